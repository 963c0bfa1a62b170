"""A run that is killed and continued ends bit for bit as one that was not; checkpoints are whole or not used."""

import contextlib
import importlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from common import ENVIRON, FAST, HEADS, arguments, bits, command, differing, dying, flip, same_files
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv

import alrao_rl.train.callback
from alrao_rl.environments.make import classes, make_one
from alrao_rl.environments.recording import RecordingMonitor, ReplayError, generator_state
from alrao_rl.errors import UserError
from alrao_rl.fast import kernels
from alrao_rl.recipes.files import load_environment
from alrao_rl.recipes.schema import Environment
from alrao_rl.runs import buffer_chunks, checkpoint
from alrao_rl.runs.buffer_chunks import Ring
from alrao_rl.runs.checkpoint import CheckpointError, Checkpoints, Timer, load
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.provenance import continued, mismatches, stretches, versions
from alrao_rl.train import state as snapshot
from alrao_rl.train.command import from_arguments, main, parser

TREE = {
    "numbers": [1, -2.5, float("inf"), 2**100, True, None, "é"],
    "tuple": (1, (2, "x")),
    "keys": {0: "zero", "$tensor": "no tensor"},
    "nested": {"a/b": np.arange(3), "a": {"b": np.float32(0.1)}},
    "empty": [np.zeros((2, 0)), {}, ()],
    "bool": np.array([True, False]),
    "torch": [torch.tensor(1.5), torch.eye(2)],
}
# --- a run that is broken off ---------------------------------------------------------------------------------------


class Every(Timer):
    """A checkpoint at every so many rollouts, whatever the clock says; none where the command wants none."""

    rollouts = 7

    def is_due(self):
        self.count = getattr(self, "count", 0) + 1  # not asked at the first rollout
        return self._interval > 0 and self.count % self.rollouts == self.rollouts - 1


class StopError(Exception):
    pass


def in_process(monkeypatch):
    """A function that runs the command, broken off at a step if one is given; returns all bits at the run's end."""
    stop, final = [], {}
    callback = alrao_rl.train.callback.TrainingCallback
    on_step, on_end = callback._on_step, callback._on_training_end

    def step(self):
        random.random()  # as an environment might
        if stop and self.num_timesteps >= stop[0]:
            raise StopError
        return on_step(self)

    def end(self):
        on_end(self)
        beside = {"evaluations": self._evaluations.state(), "budget": self._budget.state()}
        final["state"] = dict(bits(take(self.model) | beside))

    def put_back(state, model):
        lost = original(state, model)
        if not lost:
            # All of it is back, also what may make no difference in so short a run.
            assert differing(dict(bits(state)), dict(bits(take(model)))) == []
        return lost

    original, take = snapshot.put_back, snapshot.take
    monkeypatch.setattr(snapshot, "put_back", put_back)
    monkeypatch.setattr(callback, "_on_step", step)
    monkeypatch.setattr(callback, "_on_training_end", end)
    monkeypatch.setattr(alrao_rl.train.callback, "Timer", Every)
    # Few evaluations, which take most of the time.
    monkeypatch.setattr(alrao_rl.train.callback, "N_EVALUATIONS", 4)
    monkeypatch.setattr(alrao_rl.train.callback, "CONFIRMATION", 1)

    def run(args, out, stop_at=None, interval=1e-9):
        stop[:] = [] if stop_at is None else [stop_at]
        assert main([*args, "--checkpoint-interval", str(interval), "--out", str(out)]) == (stop_at is not None)
        return None if stop_at else final.pop("state")

    return run


@pytest.fixture
def train(monkeypatch):
    return in_process(monkeypatch)


def saved(out):
    return sorted(path.name for path in (out / "checkpoint").iterdir())


def continues_exactly(train, tmp_path, capfd, args, stops):
    straight = train(args, tmp_path / "straight", interval=0)
    assert len(straight) > 50
    out = tmp_path / "broken"
    for step in stops:
        train(args, out, stop_at=step)
        assert saved(out)
        capfd.readouterr()
    assert differing(straight, train(args, out)) == []
    same_files(tmp_path / "straight", out)
    said = capfd.readouterr().err.splitlines()
    # What is said of every such run, continued or not.
    assert [line for line in said if not line.startswith("warning: with optimize_memory_usage")] == []
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "straight").iterdir()}


# Broken off early, late and twice; a full buffer, a target sync and several episodes before and after.
SHORT = [
    ("dqn", "CartPole-v1", 450, (90, 400), []),
    ("dqn", "LunarLander-v3", 400, (250,), ["normalize_observations=false", "n_steps=3", "n_envs=2"]),
    ("dqn-adam", "Acrobot-v1", 550, (520,), ["normalize_observations=true"]),
    ("a2c", "CartPole-v1", 800, (300, 700), ["normalize_observations=true"]),
    ("a2c-rmsprop", "LunarLander-v3", 600, (500,), ["learning_rate=lin_7e-4"]),
    ("ppo", "CartPole-v1", 1024, (900, 1000), ["learning_rate=lin_1", "clip_range=lin_0.2"]),
    ("ppo-adam", "LunarLander-v3", 1152, (1100,), ["normalize_observations=scale"]),
    ("ppo", "Pendulum-v1", 1024, (950,), ["use_sde=true"]),
    ("a2c-rmsprop", "Pendulum-v1", 900, (450, 800), ["normalize_observations=false"]),
    ("dqn-adam", "CartPole-v1", 400, (310,), ["normalize_rewards=true"]),
    ("qrdqn", "CartPole-v1", 300, (200,), []),
    ("recurrent-ppo", "CartPoleNoVel-v1", 1024, (950,), []),
    ("recurrent-ppo-adam", "CartPole-v1", 1024, (920,), ["enable_critic_lstm=false"]),
    ("dqn", "MinAtar/SpaceInvaders-v1", 300, (210,), []),
    ("sac", "Pendulum-v1", 450, (90, 400), ["gradient_steps=2"]),
    ("sac", "MountainCarContinuous-v0", 300, (200,), ["use_sde=true", "sde_sample_freq=8", "n_envs=2"]),
    ("sac", "Pendulum-v1", 300, (200,), ["n_steps=3", "n_envs=2", "gradient_steps=-1"]),
    ("tqc", "Pendulum-v1", 300, (200,), []),
    ("crossq", "Pendulum-v1", 300, (200,), []),
    ("sac-adam", "Pendulum-v1", 300, (200,), []),
    ("td3", "Pendulum-v1", 300, (200,), ["normalize_observations=true"]),
    ("ddpg", "Pendulum-v1", 300, (200,), []),
]


@pytest.mark.parametrize(
    ("agent", "env", "steps", "stops", "sets"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] not in ("dqn", "a2c") or "CartPole" not in case[1]))
     for case in SHORT],
    ids=lambda value: str(value),
)  # fmt: skip
def test_continued_run_is_the_same(train, tmp_path, capfd, agent, env, steps, stops, sets):
    continues_exactly(train, tmp_path, capfd, arguments(agent, env, steps, *sets), stops)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sac", "td3", "dqn"])
def test_continued_run_that_learns_at_ends_of_episodes(train, tmp_path, capfd, agent):
    """Of 30 steps, with a checkpoint at the seventh: the last one ends behind the timesteps."""
    env = "CartPole-v1" if agent == "dqn" else "Pendulum-v1"
    sets = ['train_freq=[1, "episode"]', "gradient_steps=-1", "learning_starts=20"]
    args = [*arguments(agent, env, 310, *sets), "--env-kwargs", "max_episode_steps=30"]
    continues_exactly(train, tmp_path, capfd, args, (290,))
    config, status = (json.loads((tmp_path / "broken" / name).read_text()) for name in ("config.json", "status.json"))
    assert config["hyperparameters"]["train_freq"] == [1, "episode"]
    if agent != "dqn":
        assert status["timesteps"] == 330


def test_continued_with_other_evaluations(train, tmp_path, capfd):
    """Which is no other run: training goes on as it would have."""
    args, out = arguments("ppo", "Pendulum-v1", 1024), tmp_path / "broken"
    straight = train(args, tmp_path / "straight", interval=0)
    train(args, out, stop_at=950)
    capfd.readouterr()
    other = train([*args, "--eval-episodes", "30", "--eval-freq", "10"], out)
    assert [key for key in differing(straight, other) if not key.startswith(("/evaluations", "/budget"))] == []
    assert capfd.readouterr().err == ""
    for name in ("episodes.csv", "heads.csv"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["eval_freq"] == 10


@pytest.mark.long
def test_continued_run_of_an_atari_game(train, tmp_path, capfd):
    """Broken off after the first life was lost: the record begins with the game."""
    sets = ["learning_starts=150", "train_freq=8", "gradient_steps=1"]
    continues_exactly(train, tmp_path, capfd, arguments("dqn", "ALE/Breakout-v5", 200, *sets), (90, 170))


AGENTS = ["dqn", "dqn-paper", "dqn-adam", "a2c", "a2c-paper", "a2c-rmsprop", "ppo", "ppo-adam"]


@pytest.mark.long
@pytest.mark.parametrize("normalize", ["true", "scale", "false"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "LunarLander-v3"])
@pytest.mark.parametrize("agent", AGENTS)
def test_every_continued_run_is_the_same(train, tmp_path, capfd, monkeypatch, agent, env, normalize):
    """The recipes as they are, but for shorter evaluations."""
    monkeypatch.setattr(Every, "rollouts", {"dqn": 97, "a2c": 11, "ppo": 1}[agent.split("-")[0]])
    steps = {"dqn": 3000, "a2c": 4000, "ppo": 10_240}[agent.split("-")[0]]
    args = ["--agent", agent, "--env", env, "--timesteps", str(steps), "--eval-episodes", "2", "--quiet"]
    stops = [steps // 3 + 100, steps // 2, steps - 100]
    continues_exactly(train, tmp_path, capfd, [*args, "--set", f"normalize_observations={normalize}"], stops)


TINY = '''
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Odd(gym.Env):
    """Ten steps an episode; what it shows comes from a generator of its own, if ``hidden`` one that nobody can seed."""

    metadata = {"render_modes": []}
    action_space = spaces.Discrete(2)

    def __init__(self, hidden=True, kind="box"):
        spaces_of = {
            "box": spaces.Box(-1.0, 1.0, (2,)),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "dict": spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Discrete(3)}),
        }
        self.observation_space, self.hidden, self.own = spaces_of[kind], hidden, np.random.default_rng()
        self.np_random.random()  # it has a generator before it has a seed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), float(action), self.steps == 10, False, {}

    def observe(self):
        self.observation_space.seed(int((self.own if self.hidden else self.np_random).integers(2**31)))
        return self.observation_space.sample()

gym.register("Odd-v0", Odd)
'''


@pytest.fixture
def odd(install):
    install("odd", TINY)
    return "odd:Odd-v0"


OTHERS = [
    ("a2c", "dict", ["normalize_observations=true"], (250,)),
    ("dqn-adam", "dict", [], (60, 250)),  # the first time before an evaluation
    ("dqn", "image", ["gradient_steps=1", "train_freq=16"], (250,)),
]


@pytest.mark.parametrize(("agent", "kind", "sets", "stops"), OTHERS)
def test_other_observations(odd, train, tmp_path, capfd, agent, kind, sets, stops):
    args = [*arguments(agent, odd, 260, *sets), "--env-kwargs", f'hidden=false, kind="{kind}"']
    continues_exactly(train, tmp_path, capfd, args, stops)


@pytest.mark.parametrize(
    ("kind", "sets", "n_arrays"),
    [
        pytest.param("box", [], 6, marks=pytest.mark.slow),
        pytest.param("box", ["n_steps=3", "n_envs=2"], 6, marks=pytest.mark.long),
        pytest.param("box", ["optimize_memory_usage=true"], 5, marks=pytest.mark.long),
        pytest.param("dict", [], 8, marks=pytest.mark.slow),
    ],
)
def test_buffer_in_chunks(odd, train, tmp_path, capfd, monkeypatch, kind, sets, n_arrays):
    """Written before the buffer is full, when it has just become so, and when it has been round again."""
    monkeypatch.setattr(snapshot, "LARGE", 0)
    monkeypatch.setattr(buffer_chunks, "CHUNK_BYTES", 200)
    args = [*arguments("dqn", odd, 720, "buffer_size=120", *sets), "--env-kwargs", f'hidden=false, kind="{kind}"']
    continues_exactly(train, tmp_path, capfd, args, (100, 260, 261, 700))
    train(args, tmp_path / "once", stop_at=700)
    first, second = (tmp_path / "once" / "checkpoint").iterdir()
    assert len({path.name[:6] for path in first.glob("ring-*.bin")}) == n_arrays
    links = [path.stat().st_nlink for path in [*first.glob("ring-*"), *second.glob("ring-*")]]
    assert set(links) == {1}  # of three checkpoints' files the oldest one's are gone


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["n_steps=3"], "NStepReplayBuffer doesn't support optimize_memory_usage=True"),
        ([], "DictReplayBuffer does not support optimize_memory_usage"),
    ],
)
def test_what_sb3_has_no_memory_saving_buffer_for(odd, tmp_path, capfd, sets, expected):
    args = arguments("dqn", odd, 10, "optimize_memory_usage=true", *sets)
    kind = "box" if sets else "dict"
    assert main([*args, "--env-kwargs", f'kind="{kind}"', "--out", str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err == f"error: cannot build DQN: {expected}\n"


@pytest.mark.parametrize(
    ("agent", "sets"),
    [
        ("dqn", ["n_steps=3"]),
        ("dqn-adam", ["optimize_memory_usage=true"]),
        ("a2c", ["normalize_observations=true"]),
    ],
)
def test_environment_that_cannot_be_replayed(odd, train, tmp_path, capfd, agent, sets):
    """It says so, begins an episode, and the run goes on; the logs agree with what happened."""
    out = tmp_path / "run"
    args = arguments(agent, odd, 400, *sets)
    train(args, out, stop_at=303)
    capfd.readouterr()
    step = json.loads((out / "checkpoint" / saved(out)[-1] / "state.json").read_text())["step"]
    state = train(args, out)
    lines = capfd.readouterr().err.splitlines()
    n_envs = 4 if agent == "a2c" else 1
    expected = (
        "warning: odd:Odd-v0 cannot be replayed (its observation came out differently): environment {} of {} starts a "
        "new episode, so the run differs from an uninterrupted one"
    )
    lines = [line for line in lines if not line.startswith("warning: with optimize_memory_usage")]
    assert lines == [expected.format(number, n_envs) for number in range(1, n_envs + 1)]
    status = json.loads((out / "status.json").read_text())
    reason = "its observation came out differently"
    assert status["restarted_episodes"] == [
        {"timestep": step, "environment": number, "reason": reason} for number in range(1, n_envs + 1)
    ]
    if agent != "a2c":  # the broken-off episode was cut, as by a time limit, and returns over 3 steps end there
        dones, timeouts = (
            np.frombuffer(state[f"/replay_buffer/rows/{name}"], np.float32) for name in ("dones", "timeouts")
        )
        assert dones[step - 1] == 1
        # Without the observation that came next there is none to go on from: it is an end as any other.
        assert np.flatnonzero(timeouts).tolist() == ([step - 1] if agent == "dqn" else [])
    rows = [line.split(",") for line in (out / "episodes.csv").read_text().splitlines()[1:]]
    assert {row[2] for row in rows} == {"10"}
    ends = sorted(int(row[0]) for row in rows)
    assert len(ends) == len(range(10 * n_envs, step + 1, 10 * n_envs)) * n_envs + (400 - step) // (10 * n_envs) * n_envs


# --- a process that is killed ---------------------------------------------------------------------------------------


KILLED = [*arguments("dqn", "CartPole-v1", 700), "--checkpoint-interval", "0.01"]


def kill_after(started, out, n_new, seconds=0.0, within_save=False):
    """Start a command, kill it some time after so many checkpoints were written."""
    before = set(out.glob("checkpoint/step-*"))
    process = subprocess.Popen(started, env=ENVIRON, stderr=subprocess.PIPE)
    try:
        new, deadline = set(), time.monotonic() + 60
        while len(new) < n_new:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            new |= set(out.glob("checkpoint/step-*")) - before
            time.sleep(0.005)
        time.sleep(seconds)
        while within_save and not any(out.glob("checkpoint/.*.tmp")) and process.poll() is None:
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.communicate()[1] == b""


@pytest.mark.slow
def test_kill_and_the_same_command_again(tmp_path):
    out, straight = tmp_path / "killed", tmp_path / "straight"
    kill_after(command(*KILLED, "--out", out), out, 1, seconds=0.2)
    assert json.loads((out / "status.json").read_text())["state"] == "running"
    # It came further than its last checkpoint: the logs have to be cut.
    with (out / "episodes.csv").open("a") as file:
        file.write("9999,1.0,1\n12")
    again = command(*[arg for arg in KILLED if arg != "--quiet"], "--out", out)
    done = subprocess.run(again, env=ENVIRON, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dqn on CartPole-v1: 700 steps, continued from step ")
    assert main([*KILLED, "--out", str(straight)]) == 0
    same_files(straight, out)
    assert {path.name for path in out.iterdir()} == {path.name for path in straight.iterdir()}
    assert not (out / "checkpoint").exists()


@pytest.mark.long
def test_killed_again_and_again(tmp_path):
    """With a checkpoint at every rollout; every other kill waits for the writing of one."""
    out, straight = tmp_path / "killed", tmp_path / "straight"
    args = [*arguments("a2c-rmsprop", "CartPole-v1", 20_000), "--checkpoint-interval", "1e-9"]
    code = (
        "import sys; from alrao_rl.runs import checkpoint; from alrao_rl.train.command import main;"
        "checkpoint.MAX_SHARE = 1; main(sys.argv[1:])"
    )
    draw, interrupted = np.random.default_rng(0), 0
    for number in range(12):
        again = [sys.executable, "-c", code, *args, "--out", str(out)]
        kill_after(again, out, 2, draw.uniform(0, 0.1), within_save=number % 2 == 0)
        for folder in (out / "checkpoint").glob("step-*"):
            load(folder)
        interrupted += any((out / "checkpoint").glob(".*.tmp"))
    assert interrupted > 3
    assert main([*args, "--out", str(out)]) == 0
    assert main([*args, "--out", str(straight)]) == 0
    same_files(straight, out)


# --- a checkpoint that is not usable --------------------------------------------------------------------------------

PPO_RUN = arguments("ppo-adam", "CartPole-v1", 1280)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was broken off with two checkpoints behind it, and the same in one go."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        train = in_process(patch)
        patch.setattr(Every, "rollouts", 2)
        train(PPO_RUN, folder / "straight", interval=0)
        train(PPO_RUN, folder / "broken", stop_at=1000)
    assert saved(folder / "broken") == ["step-000000000640", "step-000000000896"]
    return folder


@pytest.fixture
def broken(interrupted, tmp_path):
    shutil.copytree(interrupted / "broken", tmp_path / "run")
    return tmp_path / "run"


def newest(out, name):
    return out / "checkpoint" / saved(out)[-1] / name


DAMAGES = [
    (lambda out: flip(newest(out, "arrays.safetensors")), "its file arrays.safetensors is damaged"),
    (lambda out: os.truncate(newest(out, "state.json"), 100), "its file state.json is damaged"),
    (lambda out: os.truncate(newest(out, "manifest.json"), 100), "it is damaged: JSONDecodeError"),
    (lambda out: newest(out, "agent.json").unlink(), "its file agent.json is missing"),
    (lambda out: newest(out, "state.json").write_bytes(b""), "its file state.json is damaged"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_damaged_checkpoint_is_not_used_but_the_one_before(interrupted, broken, train, capfd, damage, reason):
    path = newest(broken, "")
    damage(broken)
    train(PPO_RUN, broken)
    err = capfd.readouterr().err
    assert err.startswith(f"warning: the checkpoint {path} is not used: {reason}")
    assert err.count("\n") == 1
    same_files(interrupted / "straight", broken)


def test_none_that_is_usable(interrupted, broken, train, capfd):
    for folder in (broken / "checkpoint").iterdir():
        (folder / "manifest.json").unlink()
    train(PPO_RUN, broken)
    assert capfd.readouterr().err.count("is not used") == 2
    same_files(interrupted / "straight", broken)


def test_logs_that_were_cut_by_hand(interrupted, broken, train, capfd):
    (broken / "episodes.csv").write_text("timestep,return,length\n")
    train(PPO_RUN, broken)
    assert f"{broken / 'episodes.csv'} is shorter than it was" in capfd.readouterr().err
    same_files(interrupted / "straight", broken)


def test_checkpoint_of_another_configuration(interrupted, train, tmp_path, capfd):
    args, out = [*PPO_RUN, "--seed", "1"], tmp_path / "run"
    train(args, tmp_path / "straight")
    train(args, out, stop_at=100)
    shutil.copytree(interrupted / "broken" / "checkpoint", out / "checkpoint")
    capfd.readouterr()
    train(args, out)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("is not used: it is of another configuration (seed: 0 -> 1)") for line in lines)
    same_files(tmp_path / "straight", out)


def provenance(out):
    return json.loads((out / "config.json").read_text())["provenance"]


def test_another_version(interrupted, broken, train, capfd, monkeypatch):
    """It is refused with the difference, and nothing is touched; allowed, every stretch is on record."""
    config = json.loads((broken / "config.json").read_text())
    config["provenance"]["versions"] |= {"torch": "1.0", "numpy": "1.1"}
    config["provenance"] |= {"device": "cuda", "loops": "others"}
    (broken / "config.json").write_text(json.dumps(config))
    begun = config["provenance"]
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    assert main([*PPO_RUN, "--checkpoint-interval", "1", "--out", str(broken)]) == 2
    changed = (
        f"(torch: 1.0 -> {version('torch')}, numpy: 1.1 -> {version('numpy')}, device: cuda -> cpu, "
        f"loops: others -> {kernels.LOOPS})"
    )
    err = capfd.readouterr().err
    assert err.startswith(
        f"error: {broken}/checkpoint/step-000000000896 was made with something else {changed}: --allow-mismatch "
    )
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before
    with monkeypatch.context() as patch:
        patch.setattr(Every, "rollouts", 1)
        train([*PPO_RUN, "--allow-mismatch"], broken, stop_at=1200)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == (f"warning: continued from step 896 with something else {changed}: the run may end differently")
    assert {key: value for key, value in provenance(broken).items() if key != "continued"} == begun
    (later,) = provenance(broken)["continued"]
    assert (later["timestep"], later["device"], later["versions"]["torch"]) == (896, "cpu", version("torch"))
    # From a checkpoint of this stretch the difference is none any more; a configuration is never changed on the way.
    assert main([*PPO_RUN, "--allow-mismatch", "--set", "gamma=0.5", "--out", str(broken)]) == 2
    assert "holds a run of another configuration (hyperparameters.gamma: 0.99 -> 0.5)" in capfd.readouterr().err
    train(PPO_RUN, broken)
    assert capfd.readouterr().err == ""
    assert provenance(broken)["continued"] == [later]
    same_files(interrupted / "straight", broken)


def test_stretches():
    """What came after the checkpoint is lost, and so is the record of it; what is the same is one stretch."""
    a, b, c = ({"versions": {"torch": name}, "device": "cpu", "git_commit": name} for name in "abc")
    assert mismatches(a, 5, a) == mismatches(a | {"git_commit": "x"}, 5, a) == []
    assert mismatches(a, 5, b | {"device": "cuda"}) == ["torch: a -> b", "device: cpu -> cuda"]
    assert mismatches(a, 5, {"versions": {"torch": "a", "numpy": "2"}}) == ["numpy: unknown -> 2"]
    assert mismatches("junk", 5, a) == ["torch: unknown -> a", "device: unknown -> cpu"]
    first = {"command": "x", **a}
    assert continued(first, 5, a | {"command": "y"}) == first
    second = continued(first, 5, b)
    assert second == first | {"continued": [{"timestep": 5, **b}]}
    assert mismatches(second, 5, b) == ["torch: a -> b"]  # killed before there was another checkpoint
    assert mismatches(second, 6, b) == []
    assert continued(second, 5, b) == second
    assert continued(second, 5, a) == first
    third = continued(second, 9, c)
    assert [one["versions"]["torch"] for one in stretches(third)] == ["a", "b", "c"]
    assert continued(third, 8, b) == second
    assert continued(None, 5, a) == {"continued": [{"timestep": 5, **a}]}
    assert stretches({"continued": [3, {"timestep": None}]}) == [{"continued": [3, {"timestep": None}]}]


def test_only_what_was_recorded_can_be_otherwise():
    """An older alrao-rl recorded no engines: its checkpoints are continued, and the engine is on record from there."""
    old = {"versions": dict.fromkeys(("alrao-rl", "torch", "stable-baselines3", "gymnasium", "numpy"), "1")}
    new = {"versions": old["versions"] | {"mujoco": "4"}}
    assert mismatches(old, 5, new) == []
    later = continued(old, 5, new)
    assert mismatches(later, 9, new) == []
    assert mismatches(later, 9, {"versions": new["versions"] | {"mujoco": "5"}}) == ["mujoco: 4 -> 5"]
    assert mismatches(later, 9, old) == []


def versions_beside(*classes):
    """Those that not every run has."""
    found, always = versions(*classes), versions()
    assert always.items() <= found.items()
    return {name: found[name] for name in found.keys() - always.keys()}


def test_versions_of_what_a_run_is_made_of():
    """Besides what every run needs, the packages of its algorithm and environments; a user's own files have none."""
    own = type("Own", (), {"__module__": "nowhere_installed"})
    assert versions_beside(DQN, CartPoleEnv, own) == {}
    derived = type("Own", (pytest.Session,), {"__module__": "nowhere_installed"})
    assert versions_beside(derived)["pytest"] == version("pytest")


@pytest.mark.parametrize(
    ("env_id", "wrappers", "packages"),
    [
        ("CartPole-v1", [{"name": "FrameStackObservation", "stack_size": 2}], []),
        ("HalfCheetah-v5", [], ["mujoco", "mujoco-core", "mujoco-studio"]),
        ("LunarLander-v3", [], ["Box2D"]),
        ("CarRacing-v3", [{"name": "ResizeObservation", "shape": [40, 40]}], ["Box2D", "opencv-python-headless"]),
        ("MinAtar/Breakout-v1", [], ["MinAtar"]),
        ("ALE/Breakout-v5", [{"name": "AtariWrapper", "frame_skip": 1}], ["ale-py", "opencv-python-headless"]),
        ("ALE/Breakout-v5", [], ["ale-py"]),
    ],
)
def test_versions_of_the_engine(env_id, wrappers, packages):
    env = DummyVecEnv([lambda: make_one(Environment(id=env_id, wrappers=wrappers))])
    assert versions_beside(*classes(env)) == {name: version(name) for name in packages}
    env.close()


def test_versions_of_what_own_files_import(install):
    """Of packages that the modules beside the environment use."""
    install("cartkit", "import pluggy\n")
    install("cart", "import cartkit\nclass Cart: pass\n")
    assert versions_beside(importlib.import_module("cart").Cart) == {"pluggy": version("pluggy")}


def test_another_engine(tmp_path, capfd):
    """A run begun on one is not continued on another; the sweep's own check is tested with the sweeps."""
    args = ["--algo", "a2c", "--env", "LunarLander-v3", "--timesteps", "60", *FAST, *HEADS]
    options, _ = from_arguments(parser().parse_args(args))
    config = options.configuration(options.recipe())
    made_with = {"versions": versions() | {"Box2D": "2.3.8"}, "device": "cpu", "loops": kernels.LOOPS}
    with contextlib.closing(RunFolder(tmp_path)) as folder:
        folder.open()
        folder.start({**config, "provenance": made_with})
        Checkpoints(tmp_path / "checkpoint").save(40, {"step": 40, "config": config, "logs": folder.logs()})
    assert main([*args, "--out", str(tmp_path)]) == 2
    assert f"was made with something else (Box2D: 2.3.8 -> {version('Box2D')}): --allow" in capfd.readouterr().err


def no_space(*_):
    raise OSError(28, "No space left on device")


FAILURES = [
    (checkpoint, "_copy", no_space, "OSError: No space left on device"),
    (snapshot, "take", lambda *_: {"odd": {1}}, "TypeError: /training/odd is a set, expected numbers, strings and"),
]


@pytest.mark.parametrize(("module", "name", "function", "cause"), FAILURES)
def test_checkpoint_that_cannot_be_written(
    interrupted, broken, train, capfd, monkeypatch, module, name, function, cause
):
    """The run fails with path and cause, earlier checkpoints stay as they are, and it can be continued."""
    before = {path: path.read_bytes() for path in broken.glob("checkpoint/step-*/*")}
    with monkeypatch.context() as patch:
        patch.setattr(module, name, function)
        patch.setattr(Every, "rollouts", 1)
        assert main([*PPO_RUN, "--checkpoint-interval", "1", "--out", str(broken)]) == 1
    path = broken / "checkpoint" / "step-000000001024"
    err = capfd.readouterr().err
    assert f"error: the run failed at step 1024: CheckpointError: cannot write the checkpoint {path}: {cause}" in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in broken.glob("checkpoint/*/*")} == before
    train(PPO_RUN, broken)
    same_files(interrupted / "straight", broken)


def test_finished_run_drops_what_is_left(interrupted, tmp_path, train):
    shutil.copytree(interrupted / "straight", tmp_path / "run")
    shutil.copytree(interrupted / "broken" / "checkpoint", tmp_path / "run" / "checkpoint")
    assert main([*PPO_RUN, "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_interval_that_is_none(tmp_path, capfd, value):
    assert main([*PPO_RUN, "--checkpoint-interval", value, "--out", str(tmp_path / "run")]) == 2
    expected = f"error: --checkpoint-interval is {float(value)}, expected seconds, or 0 for no checkpoints\n"
    assert capfd.readouterr().err == expected


def test_without_checkpoints(tmp_path, train):
    train(PPO_RUN, tmp_path / "run", stop_at=1200, interval=0)
    assert not (tmp_path / "run" / "checkpoint").exists()


# --- the format -----------------------------------------------------------------------------------------------------


def test_tree_comes_back_as_it_was(tmp_path):
    folder = Checkpoints(tmp_path / "c").save(7, TREE, {"more.json": b"{}"})
    read = load(folder)
    assert folder.name == "step-000000000007"
    assert differing(dict(bits(TREE)), dict(bits(read.state))) == []
    assert read.state["keys"] == TREE["keys"]
    assert read.state["tuple"] == TREE["tuple"]
    assert (read.files, read.read("more.json")) == (("more.json",), b"{}")
    assert [type(value) for value in read.state["numbers"]] == [type(value) for value in TREE["numbers"]]
    assert isinstance(read.state["torch"][0], torch.Tensor)
    assert read.state["nested"]["a/b"].flags.writeable
    read.state["nested"]["a/b"][0] = 5


@pytest.mark.parametrize("value", [object(), np.array([object()]), {1, 2}, torch.zeros(1, dtype=torch.bfloat16)])
def test_what_cannot_be_written(tmp_path, value):
    """It names the path and the cause, and what was there stays."""
    checkpoints = Checkpoints(tmp_path / "c")
    first = checkpoints.save(1, TREE)
    before = {path: path.read_bytes() for path in first.iterdir()}
    with pytest.raises(CheckpointError, match=f"cannot write the checkpoint {tmp_path / 'c' / 'step-000000000002'}: "):
        checkpoints.save(2, {"x": {"y": value}})
    assert {path: path.read_bytes() for path in first.iterdir()} == before
    assert [path for path in (tmp_path / "c").iterdir()] == [first]


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])
def test_every_bit_is_guarded(tmp_path, stride):
    rows = Ring(np.arange(4, dtype=np.uint8), 7, 4)
    state = {"x": np.arange(3), "y": (1, 2.5), "rows": rows}
    folder = Checkpoints(tmp_path / "c").save(1, state, {"agent.json": b'{"a": 1}'})
    load(folder)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        damaged = [data[:length] for length in range(0, len(data), stride)]
        for bit in range(0, len(data) * 8, stride):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(flipped))
        for other in damaged:
            path.write_bytes(other)
            with pytest.raises(CheckpointError):
                load(folder)
        path.write_bytes(data)
    load(folder)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is cleaned up after it."""


def test_killed_at_every_moment_of_a_save(tmp_path, monkeypatch):
    """Before each operation on the disk in turn: what was there stays usable, and the next save clears up."""
    calls = [
        (checkpoint.os, "fsync"),
        (Path, "replace"),
        (Path, "open"),
        (checkpoint.shutil, "rmtree"),
        (Path, "mkdir"),
    ]
    for moment in range(100):
        checkpoints = Checkpoints(tmp_path / str(moment))
        for step in (1, 2):
            checkpoints.save(step, {"step": step})
        left = [moment]

        killed = True
        with monkeypatch.context() as patch:
            for owner, name in calls:
                patch.setattr(owner, name, dying(getattr(owner, name), left, Killed))
            try:
                checkpoints.save(3, {"step": 3})
                killed = False
            except Killed:
                pass
        found = checkpoints.newest(pytest.fail, lambda state: None)
        assert found.state["step"] in (2, 3)
        if not killed:
            break
        if found.state["step"] == 2:
            checkpoints.save(3, {"step": 3})
        checkpoints.save(4, {"step": 4})
        assert saved_in(checkpoints.path) == ["step-000000000003", "step-000000000004"]
    assert moment > 10


def saved_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    for step in (1, 20, 300):
        checkpoints.save(step, {"step": step})
    assert saved_in(checkpoints.path) == ["step-000000000020", "step-000000000300"]
    checkpoints.remove()
    assert checkpoints.newest(print, lambda state: None) is None


def test_checkpoint_that_may_not_be_read(tmp_path, monkeypatch):
    """That says nothing about what is in it: it stays."""
    folder = Checkpoints(tmp_path / "c").save(1, TREE)

    def denied(_):
        raise PermissionError(13, "Permission denied", str(folder / "state.json"))

    monkeypatch.setattr(checkpoint, "_digest", denied)
    with pytest.raises(UserError, match=f"cannot read {folder / 'state.json'}: Permission denied"):
        Checkpoints(tmp_path / "c").newest(pytest.fail, lambda state: None)
    assert saved_in(tmp_path / "c") == [folder.name]


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_nothing_is_executed(tmp_path):
    """Even where the manifest vouches for it."""
    folder = Checkpoints(tmp_path / "c").save(1, TREE)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("arrays.safetensors", "state.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        hashes = {**manifest["sha256"], name: checkpoint._digest(folder / name)}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": hashes}))
        with pytest.raises(CheckpointError, match="it is damaged"):
            load(folder)
        (folder / name).write_bytes(content)
    folder = Checkpoints(tmp_path / "c").save(2, {"rows": Ring(np.zeros(4, np.uint8), 7, 4)})
    manifest = json.loads((folder / "manifest.json").read_text())
    text = (folder / "rings.json").read_text()
    for name in ("state.json", "../step-000000000001/state.json", "/etc/hostname"):
        (folder / "rings.json").write_text(text.replace("ring-0-000000.bin", name))
        hashes = {**manifest["sha256"], "rings.json": checkpoint._digest(folder / "rings.json")}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": hashes}))
        expected = (
            "its chunks hold .* bytes, expected 4" if name == "state.json" else f"names '{name}', which is not in"
        )
        with pytest.raises(CheckpointError, match=expected):
            load(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": "alrao-rl checkpoint 9"}))
    with pytest.raises(
        CheckpointError, match="its format is 'alrao-rl checkpoint 9', expected 'alrao-rl checkpoint 4'"
    ):
        load(folder)


def test_slow_checkpoints_become_rare(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])
    timer = Timer(60)
    due = []
    for second in range(2000):
        clock[0] = float(second)
        if timer.is_due():
            due.append(second)
            timer.wrote(0.1 if second < 200 else 10.0)
    assert due == [60, 120, 180, 240, 430, 620, 810, 1000, 1190, 1380, 1570, 1760, 1950]


# --- the record of an environment -----------------------------------------------------------------------------------


GAMES = ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
REPLAYED = ["CartPole-v1", "Acrobot-v1", "LunarLander-v3", "Pendulum-v1", *(f"MinAtar/{game}-v1" for game in GAMES)]


@pytest.mark.parametrize(
    "env_id", [*REPLAYED, *(pytest.param(game, marks=pytest.mark.slow) for game in ("ALE/Pong-v5", "ALE/Breakout-v5"))]
)
def test_replay(env_id):
    """A fresh environment comes to where the recorded one is, and goes on as it does."""
    one, two = (make_one(load_environment(env_id)[0], training=True) for _ in range(2))
    two.reset(seed=9)
    one.reset(seed=3)
    one.action_space.seed(0)
    for steps in (3, 40, 700):
        for _ in range(steps):
            action = one.action_space.sample()
            observation, _, terminated, truncated, _ = one.step(action)
            if terminated or truncated:
                observation, _ = one.reset()
        assert two.replay(one.record()).tobytes() == observation.tobytes()
        assert two.rewards == one.rewards
        assert generator_state(two.unwrapped) == generator_state(one.unwrapped)
    terminated = truncated = False
    while not (terminated or truncated):
        action = one.action_space.sample()
        (a, r, terminated, truncated, info), (b, s, *ends, other) = one.step(action), two.step(action)
        assert (a.tobytes(), r, [terminated, truncated]) == (b.tobytes(), s, ends)
    assert ("episode" in info) == ("episode" in other) == (not env_id.startswith("ALE/Breakout"))  # which has lives
    assert info.get("episode", {}).get("r") == other.get("episode", {}).get("r")
    assert one.reset()[0].tobytes() == two.reset()[0].tobytes()


def test_replay_that_comes_out_differently():
    one, two = (RecordingMonitor(gym.make("CartPole-v1")) for _ in range(2))
    one.reset(seed=3)
    for _ in range(4):
        one.step(0)
    record = one.record()
    for change, reason in [
        ({"rewards": record["rewards"] + 1}, "its rewards came out differently"),
        ({"after": {**record["after"], "uinteger": 7}}, "its random generator came out differently"),
        ({"actions": [np.zeros(50, dtype=int)]}, "RuntimeError: Tried to step environment that needs reset"),
        ({"before": {"bit_generator": "MT19937"}, "reset": {}}, "KeyError|ValueError"),
    ]:
        two.reset(seed=1)
        with pytest.raises(ReplayError, match=reason):
            two.replay({**record, **change})
