"""``python -m alrao_rl.train``: the run folder, its states, its errors."""

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import gymnasium as gym
import numpy as np
import pytest
from common import one_error
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec
from hypothesis import given
from hypothesis import strategies as st

from alrao_rl import load_agent
from alrao_rl.agents.build import algorithm
from alrao_rl.environments.make import make_env, make_one
from alrao_rl.errors import UserError
from alrao_rl.numbers import significant
from alrao_rl.recipes.files import load_agent_recipe, load_environment, recipe_names
from alrao_rl.recipes.resolve import resolve
from alrao_rl.recipes.schema import Environment
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.runs.checkpoint import Checkpoints
from alrao_rl.runs.files import COLUMNS
from alrao_rl.sweep import command as sweep
from alrao_rl.train.callback import TrainingCallback
from alrao_rl.train.command import from_arguments, main, parser
from alrao_rl.train.display import bar_chart
from alrao_rl.train.options import RunOptions

ROOT = Path(__file__).parent.parent
FILES = {"config.json", "status.json", "sha256.json", ".lock", *COLUMNS} | {
    f"{name}.{suffix}" for name in ("agent", "last") for suffix in ("json", "safetensors")
}
TINY = '''
import pathlib, time
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Tiny(gym.Env):
    """Five steps an episode; may raise, or wait for a file, when its instance has made so many steps."""

    metadata = {"render_modes": []}
    action_space = spaces.Discrete(2)

    def __init__(
        self, image=False, fail_at=-1, wait_at=-1, wait_for="", refuse=False, exit_at=-1, mixed=False, close=None
    ):
        if refuse:
            raise OSError("no licence\\nfound")
        self.observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8) if image else spaces.Box(-1.0, 1.0, (2,))
        self.fail_at, self.wait_at, self.wait_for, self.total = fail_at, wait_at, wait_for, 0
        self.exit_at, self.happens = exit_at, close
        if mixed:
            image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
            self.observation_space = spaces.Dict([("vector", spaces.Box(-9.0, 9.0, (2,))), ("image", image)])

    def close(self):
        if self.happens == "raise":
            raise OSError("the server is gone")
        if self.happens == "signal":
            import os, signal
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    def _observe(self):
        if isinstance(self.observation_space, spaces.Dict):
            return self.observation_space.sample()
        return self.np_random.integers(0, 2, self.observation_space.shape).astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        if self.fail_at == 0:
            raise ValueError("broken at reset")
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        if self.total == self.fail_at:
            raise ValueError(f"broken at step {self.total}\\nwith a second line")
        if self.total == self.exit_at:
            raise SystemExit(0)
        while self.total == self.wait_at and not pathlib.Path(self.wait_for).exists():
            time.sleep(0.02)
        return self._observe(), float(action), self.steps == 5, False, {}

gym.register("Tiny-v0", Tiny)
'''
# Little work, but every part of it: updates, target syncs, two evaluation episodes.
FAST = ["--eval-episodes", "2", "--eval-budget", "20", "--set", "alrao.n_heads=3", "--set", "net_arch=[8]"]
DQN = [*FAST, "--set", "learning_starts=20", "--set", "batch_size=8", "--set", "target_update_interval=20"]
CARTPOLE = ["--algo", "dqn", "--env", "CartPole-v1", "--timesteps", "300", *DQN]


@pytest.fixture
def tiny(install):
    """An installed package ``tiny`` whose import registers ``Tiny-v0``; the folder to put on the path."""
    return install("tiny", TINY)


def command(*args):
    return [sys.executable, "-m", "alrao_rl.train", *map(str, args)]


def environment(*path):
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), "OMP_NUM_THREADS": "1"}


def run(*args, cwd, path=()):
    return subprocess.run(command(*args), capture_output=True, text=True, cwd=cwd, env=environment(*path))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def configuration_of(args):
    """What ``config.json`` says of a command, its provenance apart."""
    options, _ = from_arguments(parser().parse_args(args))
    return options.configuration(options.recipe())


def refused(capfd, *args):
    """Run in this process; the one line of the error."""
    return one_error(main, capfd, *args).strip()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run by the real command: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("cwd")
    done = run(*CARTPOLE, "--seed", "3", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return cwd / "results" / "train" / "CartPole-v1" / "dqn" / "seed-3", done.stdout


# --- a run ----------------------------------------------------------------------------------------------------------


def test_run_folder_has_its_files_and_columns(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == FILES
    for name, columns in COLUMNS.items():
        lines = (folder / name).read_text().splitlines()
        assert lines[0] == ",".join(columns)
        assert (len(lines) > 1) is (name != "entropy.csv")  # DQN has no entropy coefficient


def test_config_is_the_resolved_recipe(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    assert (config["agent"], config["seed"], config["timesteps"], config["eval_episodes"]) == ("dqn", 3, 300, 2)
    assert config["env"]["id"] == "CartPole-v1"
    assert config["hyperparameters"]["batch_size"] == 8
    assert config["alrao"]["n_heads"] == 3
    assert config["alrao"]["lr_range"][0] < config["alrao"]["lr_range"][1]
    provenance = config["provenance"]
    assert provenance["command"].startswith("python -m alrao_rl.train --algo dqn --env CartPole-v1 --timesteps 300")
    assert {"alrao-rl", "torch", "stable-baselines3", "gymnasium"} <= provenance["versions"].keys()
    assert len(provenance["git_commit"].removesuffix("+")) == 40


def test_logs_agree_with_each_other(finished):
    folder, out = finished
    status = json.loads((folder / "status.json").read_text())
    episodes, evaluations = rows(folder / "episodes.csv"), rows(folder / "evaluations.csv")
    # CartPole pays 1 a step, and the episodes follow each other without a gap.
    end = 0
    for row in episodes:
        end += int(row["length"])
        assert int(row["timestep"]) == end
        assert float(row["return"]) == int(row["length"])
    assert 200 < end <= 300
    # Not before it learns, and then where training looks as good as ever; the last one at the end.
    steps = [int(row["timestep"]) for row in evaluations]
    assert 3 < len(steps) == len(set(steps))
    assert set(steps) <= set(range(24, 301, 6))
    assert steps[-1] == 300
    timing = [int(row["timestep"]) for row in rows(folder / "timing.csv")]
    assert timing == list(range(6, 301, 6))
    for row in evaluations:
        low, mean, high = (float(row[key]) for key in ("min_return", "mean_return", "max_return"))
        assert 1 <= int(row["episodes"]) <= 10  # up to five times as many as long as it looks like the best so far
        assert low <= mean <= high
        if row["episodes"] == "2":
            assert mean == (low + high) / 2
            assert float(row["std_return"]) == (high - low) / 2
    best = evaluations[0]
    for row in evaluations:  # of equals it is the last
        best = row if float(row["mean_return"]) >= float(best["mean_return"]) else best
    assert status["state"] == "finished"
    assert status["timesteps"] == 300
    assert (status["best_return"], status["best_timestep"]) == (float(best["mean_return"]), int(best["timestep"]))
    assert status["last_return"] == float(evaluations[-1]["mean_return"])
    for name, row in (("agent", best), ("last", evaluations[-1])):
        description = json.loads((folder / f"{name}.json").read_text())
        assert (description["timestep"], description["mean_return"]) == (
            int(row["timestep"]), float(row["mean_return"]),
        )  # fmt: skip
    assert f"best evaluation {significant(status['best_return'])} at step {status['best_timestep']:,}" in out
    assert f"last {significant(status['last_return'])} (reference 500, random 22.2)" in out
    assert re.search(r"play it: \S*python\S* -m alrao_rl.enjoy results/train/CartPole-v1/dqn/seed-3\n", out)


def test_a_network_is_evaluated_once(tmp_path, capfd):
    rollouts = ["--set", "n_envs=1", "--set", "n_steps=100", "--set", "batch_size=50", "--set", "n_epochs=1"]
    out = tmp_path / "run"
    args = ["--algo", "ppo", "--env", "CartPole-v1", "--timesteps", 300, *FAST, *rollouts, "--out", out, "--quiet"]
    assert main([*map(str, args)]) == 0
    steps = [row["timestep"] for row in rows(out / "evaluations.csv")]
    assert set(steps) <= {"102", "204", "300"}  # the first of each network that has learned
    assert steps[-1] == "300"


@pytest.mark.parametrize(
    ("best", "returns", "last", "episodes", "mean"),
    [
        (None, [5, 5, 5, 5, 5], False, [1, 1, 2, 1], 5.0),  # the first is the best there is
        (5.0, [3], False, [1], 3.0),
        (5.0, [9, 0], False, [1, 1], 4.5),  # no better after two
        (5.0, [5, 5, 5, 5, 5], False, [1, 1, 2, 1], 5.0),  # nor worse: it is the later one
        (5.0, [9, 9, 9, 9, -40], False, [1, 1, 2, 1], -0.8),
        (5.0, [3], True, [1], 3.0),
    ],
)
def test_a_candidate_is_evaluated_as_long_as_it_is_the_best(best, returns, last, episodes, mean):
    saved, asked, seen = [], [], iter(returns)

    def play(wanted, last, begun):
        if not wanted:
            return None
        asked.append(wanted)
        return np.array([next(seen) for _ in range(wanted)])

    callback = SimpleNamespace(
        model=SimpleNamespace(_n_updates=1), folder=MagicMock(), logger=MagicMock(), num_timesteps=7, _judged=0,
        _budget=MagicMock(share=lambda *args: (10, 10)), _episodes=1, _best=best and (best, 3, 1), _play=play,
        _save_agent=lambda *args: saved.append(args),
    )  # fmt: skip
    for name in ("_episodes_wanted", "_leads"):
        setattr(callback, name, getattr(TrainingCallback, name).__get__(callback))
    TrainingCallback._judge(callback, last)
    assert next(seen, None) is None
    assert asked == episodes
    step, n, found = callback.folder.append.call_args.args[1][0][:3]
    assert (step, n, found) == (7, len(returns), pytest.approx(mean))
    assert callback._last == (pytest.approx(mean), 7, len(returns))
    assert saved == ([("agent", callback._last)] if mean >= (best or 0) else [])


def test_heads_are_a_distribution_over_increasing_rates(finished):
    heads = rows(finished[0] / "heads.csv")
    assert len(heads) == 50 * 3
    for start in range(0, 60, 3):
        group = heads[start : start + 3]
        assert {row["layer"] for row in group} == {"q_net"}
        assert [row["head"] for row in group] == ["1", "2", "3"]
        assert sum(float(row["weight"]) for row in group) == pytest.approx(1, abs=1e-5)
        assert float(group[0]["learning_rate"]) < float(group[1]["learning_rate"]) < float(group[2]["learning_rate"])
    weights = {tuple(row["weight"] for row in heads[start : start + 3]) for start in range(0, 60, 3)}
    assert len(weights) > 1  # it learned
    assert all(int(row["reclones"]) >= int(before["reclones"]) for before, row in zip(heads, heads[3:], strict=False))
    assert any(int(row["reclones"]) for row in heads[-3:])


def test_same_seed_twice_gives_the_same_bytes(finished, tmp_path):
    """Another process, another folder: only clocks and provenance differ."""
    folder, _ = finished
    assert main([*CARTPOLE, "--seed", "3", "--out", str(tmp_path / "again"), "--quiet"]) == 0
    for name in FILES - {"config.json", "status.json", "sha256.json", "timing.csv"}:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    clocks = {"provenance", "wall_seconds", "seconds_evaluating"}
    for name in ("config.json", "status.json"):
        one, two = (json.loads((path / name).read_text()) for path in (folder, tmp_path / "again"))
        assert {k: v for k, v in one.items() if k not in clocks} == {k: v for k, v in two.items() if k not in clocks}


def test_another_seed_is_another_run(finished, tmp_path):
    assert main([*CARTPOLE, "--seed", "4", "--out", str(tmp_path / "other"), "--quiet"]) == 0
    for name in ("episodes.csv", "agent.safetensors"):
        assert (tmp_path / "other" / name).read_bytes() != (finished[0] / name).read_bytes()


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_finished_run_prints_its_summary_and_writes_nothing(finished, capfd):
    folder, out = finished
    before = contents(folder)
    assert main([*CARTPOLE, "--seed", "3", "--out", str(folder)]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(f"{folder} is finished:\ndqn on CartPole-v1: best evaluation")
    assert printed.out.splitlines()[1:3] == out.splitlines()[-4:-2]
    assert main([*CARTPOLE, "--seed", "3", "--out", str(folder), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (["--seed", "4"], "(seed: 3 -> 4)"),
        (["--seed", "3", "--set", "gamma=0.5"], "(hyperparameters.gamma: 0.99 -> 0.5)"),
        (["--seed", "3", "--set", "alrao.n_heads=4"], "(alrao.n_heads: 3 -> 4)"),
    ],
)
def test_run_folder_of_another_configuration(finished, capfd, more, difference):
    folder, _ = finished
    before = contents(folder)
    message = refused(capfd, *CARTPOLE, *more, "--out", folder)
    assert f"{folder} holds a run of another configuration {difference}; choose another folder with --out" in message
    assert contents(folder) == before


def test_image_environment(tiny, tmp_path):
    out = tmp_path / "run"
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--env-kwargs", "image=true", "--timesteps", "300"]
    few = ["learning_starts=200", "batch_size=4", "train_freq=8", "gradient_steps=1", "buffer_size=100"]
    sets = [part for one in ["alrao.n_heads=2", *few] for part in ("--set", one)]
    assert main([*args, *sets, "--eval-episodes", "1", "--out", str(out), "--quiet"]) == 0
    description = json.loads((out / "agent.json").read_text())
    assert description["observation_space"]["shape"] == [1, 36, 36]
    assert description["environment"]["kwargs"] == {"image": True}
    assert len(rows(out / "episodes.csv")) == 60


def test_path_of_an_agent_with_normalized_observations(tiny, tmp_path):
    agent = tmp_path / "mine.toml"
    agent.write_text(
        'algo = "ppo"\npolicy = "stock"\nn_envs = 2\nnormalize_observations = true\n'
        "[hyperparameters]\nn_steps = 8\nbatch_size = 8\nn_epochs = 1\n[policy_options]\nnet_arch = [4]\n"
    )
    out = tmp_path / "run"
    args = ["--agent", agent, "--env", "tiny:Tiny-v0", "--timesteps", 40, "--eval-budget", 9, "--out", out, "--quiet"]
    assert main([*map(str, args)]) == 0
    assert json.loads((out / "config.json").read_text())["agent"] == "mine"
    # PPO ends with a full rollout: the folder says how many steps were made.
    assert json.loads((out / "status.json").read_text())["timesteps"] == 48
    assert rows(out / "evaluations.csv")[-1]["timestep"] == "48"
    assert rows(out / "heads.csv") == []


def test_default_folder_of_a_package_id(tiny, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["--algo", "a2c", "--env", "tiny:Tiny-v0", "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "run folder: results/train/tiny-Tiny-v0/a2c/seed-0"
    assert [line.split() for line in lines if line.startswith("timesteps")] == [["timesteps", "=", "500000", "default"]]


@pytest.mark.parametrize(
    "edit",
    [lambda status: status.pop("best_return"), lambda status: status.update(wall_seconds="long", best_timestep=[])],
)
def test_status_that_was_edited(finished, tmp_path, capfd, edit):
    shutil.copytree(finished[0], tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    edit(status)
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    manifest = json.loads((tmp_path / "run" / "sha256.json").read_text())  # which would tell first
    manifest["status.json"] = hashlib.sha256((tmp_path / "run" / "status.json").read_bytes()).hexdigest()
    (tmp_path / "run" / "sha256.json").write_text(json.dumps(manifest))
    assert main([*CARTPOLE, "--seed", "3", "--out", str(tmp_path / "run")]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "status.json is not that of a finished run" in lines[0]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "status.json is missing: the run is damaged; choose another folder with --out"),
        ('{"a": 1}', "status.json has the state None, expected one of queued, running, "),
        ('{"state": "finshed"}', "status.json has the state 'finshed', expected one of queued, running, "),
    ],
)
def test_a_finished_run_without_its_status_is_not_trained_anew(finished, tmp_path, capfd, status, said):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "status.json").unlink()
    if status is not None:
        (tmp_path / "run" / "status.json").write_text(status)
    before = contents(tmp_path)
    assert main([*CARTPOLE, "--seed", "3", "--out", str(tmp_path / "run")]) == 2
    assert said in capfd.readouterr().err
    assert contents(tmp_path) == before


def test_status_of_an_unfinished_run_that_says_it_is_finished(finished, tmp_path, capfd):
    """What it has left, its checkpoints above all, stays."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "sha256.json").unlink()
    (tmp_path / "run" / "checkpoint").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"state": "finished"}')
    for more in ([], ["--quiet"]):
        assert main([*CARTPOLE, "--seed", "3", "--out", str(tmp_path / "run"), *more]) == 2
        assert "says that it is finished but lacks sha256.json" in capfd.readouterr().err
    assert (tmp_path / "run" / "checkpoint").is_dir()


# --- what is shown --------------------------------------------------------------------------------------------------


def test_bar_chart():
    assert bar_chart([0.0, 0.25, 0.5]) == " ▄█"
    assert bar_chart([0.1, 0.1]) == "██"


def test_plain_lines_where_there_is_no_terminal(finished):
    _, out = finished
    lines = out.splitlines()
    assert lines[0] == "dqn on CartPole-v1: 300 steps"
    assert len(lines) == 1 + 50 + 4
    pattern = r"step 294 of 300: return [\d.]+, evaluation [\d.]+, [\d,]+ steps/s, \d+ s left, q_net \|[ ▁▂▃▄▅▆▇█]{3}\|"
    assert re.fullmatch(pattern, lines[49])


@pytest.mark.parametrize("fail_at", [-1, 37])
def test_terminal_is_given_back(tiny, tmp_path, capsys, monkeypatch, fail_at):
    """The live bar ends, and shows the cursor again, before anything else is printed."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way to say that this is a terminal
    monkeypatch.setenv("COLUMNS", "80")
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--timesteps", "1000", *DQN, "--out", str(tmp_path / "run")]
    assert main([*args, "--env-kwargs", f"fail_at={fail_at}"]) == (1 if fail_at > 0 else 0)
    out, err = capsys.readouterr()
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1
    live, _, after = out.partition("\x1b[?25h")
    assert "dqn on tiny:Tiny-v0" in live
    assert "q_net |" in live
    assert "…" not in live
    if fail_at > 0:
        assert err.startswith("error: the run failed at step 36")
    else:
        assert after.startswith("dqn on tiny:Tiny-v0: best evaluation")
        assert after.endswith("--trust\n")


def test_names_are_no_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "[red]a :snake: [b].toml"
    path.write_text((ROOT / "agents" / "a2c.toml").read_text())
    args = ["--agent", str(path), "--env", "CartPole-v1", "--timesteps", "40", "--eval-episodes", "1"]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    live = capsys.readouterr().out.partition("\x1b[?25h")[0]
    assert "[red]a :snake: [b] on CartPole-v1" in live


# --- wrappers -------------------------------------------------------------------------------------------------------


def wrapped(tmp_path, wrappers):
    path = tmp_path / "env.toml"
    path.write_text(f'id = "CartPole-v1"\nwrappers = [{wrappers}]\n')
    return str(path)


def test_wrappers_of_an_environment_file(tmp_path):
    path = wrapped(
        tmp_path, '{name = "TimeLimit", max_episode_steps = 3}, {name = "FrameStackObservation", stack_size = 2}'
    )
    env = make_env(resolve("dqn", path), seed=0, training=True)
    assert env.observation_space.shape == (2, 4)
    env.reset()
    steps = [env.step([0]) for _ in range(3)]
    assert [bool(done[0]) for _, _, done, _ in steps] == [False, False, True]
    assert steps[-1][3][0]["episode"]["l"] == 3
    env.close()


def test_a_longer_time_limit_among_the_kwargs(tmp_path):
    """The wrapper may then be as long, and not longer."""
    path = tmp_path / "env.toml"
    text = 'id = "Pendulum-v1"\nwrappers = [{name = "TimeLimit", max_episode_steps = 202}]\n[kwargs]\n'
    for limit, end in ((202, 202), (300, 202)):
        path.write_text(f"{text}max_episode_steps = {limit}\n")
        env = make_one(load_environment(str(path))[0])
        env.reset(seed=0)
        ends = [env.step([0.0])[3] for _ in range(202)]
        assert ends.index(True) + 1 == end


@pytest.mark.parametrize(
    ("wrappers", "expected"),
    [
        ('{name = "TimeLimits", max_episode_steps = 3}', "did you mean 'TimeLimit'?"),
        ('{name = "os.system", command = "true"}', "wrapper 'os.system' is neither in gymnasium.wrappers"),
        ('{name = "vector"}', "wrapper 'vector' is neither in gymnasium.wrappers"),
        ("{max_episode_steps = 3}", "wrapper None is neither in gymnasium.wrappers"),
        ('{name = "TimeLimit", steps = 3}', "wrapper TimeLimit does not take {'steps': 3}"),
        (  # CartPole's own limit is 500
            '{name = "TimeLimit", max_episode_steps = 501}',
            "CartPole-v1: wrapper TimeLimit of 501 steps would do nothing, as episodes end after 500; expected at most "
            "500, or max_episode_steps = 501 in the kwargs",
        ),
        (
            '{name = "TimeLimit", max_episode_steps = 3}, {name = "FrameStackObservation", stack_size = 2}, '
            '{name = "TimeLimit", max_episode_steps = 4}',
            "of 4 steps would do nothing, as episodes end after 3",
        ),
        (
            '{name = "FrameStackObservation", stack_size = 0}',
            "cannot be wrapped in FrameStackObservation with {'stack_size': 0}: ",
        ),
        ('{name = "AtariWraper"}', "did you mean 'AtariWrapper'?"),
        ('{name = "AtariWrapper", training = true}', "wrapper AtariWrapper does not take {'training': True}"),
        ('{name = "AtariWrapper"}', "CartPole-v1 cannot be wrapped in AtariWrapper: "),  # it is no Atari game
        (
            '{name = "ResizeObservation", shape = [9, 9]}',
            "cannot be wrapped in ResizeObservation with {'shape': (9, 9)}",
        ),
        ('{name = "NormalizeObservation"}', "of the agent instead: --set normalize_observations=true"),
        (
            '{name = "TimeLimit", max_episode_steps = 9}, {name = "NormalizeReward"}',
            "CartPole-v1: the wrapper NormalizeReward keeps",
        ),
    ],
)
def test_wrapper_that_is_refused(tmp_path, capfd, wrappers, expected):
    out = tmp_path / "run"
    assert expected in refused(capfd, "--algo", "dqn", "--env", wrapped(tmp_path, wrappers), "--out", out)
    assert not out.exists()


class Centred(gym.Wrapper):
    """Learns the mean of what is observed, as many a project's own does."""

    def __init__(self, env):
        super().__init__(env)
        self.mean, self.var, self.count = 0.0, 1.0, 0


@pytest.mark.parametrize("wrapper", [Centred, gym.wrappers.NormalizeObservation])
def test_a_wrapper_that_learns_within_the_environment(monkeypatch, tmp_path, capfd, wrapper):
    monkeypatch.setitem(gym.registry, "Own-v0", EnvSpec("Own-v0", lambda: wrapper(PendulumEnv())))
    message = refused(capfd, "--algo", "ppo", "--env", "Own-v0", "--out", tmp_path / "run")
    assert message.startswith(f"error: Own-v0: the wrapper {wrapper.__name__} keeps running statistics, separate ")
    assert message.endswith("use normalize_observations of the agent instead: --set normalize_observations=true")
    assert not (tmp_path / "run").exists()


# --- a run that does not end well -----------------------------------------------------------------------------------


def test_failing_environment(tiny, tmp_path, capfd):
    out = tmp_path / "run"
    # An evaluation every 20 steps: the training environment is the first to reach its 37th.
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--timesteps", "1000", *DQN, "--out", str(out), "--quiet"]
    assert main([*args, "--env-kwargs", "fail_at=37"]) == 1
    printed = capfd.readouterr()
    expected = f"error: the run failed at step 36: ValueError: broken at step 37; see {out}/traceback.txt\n"
    assert printed == ("", expected)
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"] == "ValueError: broken at step 37\nwith a second line"
    assert status["timestep"] == 36
    assert 'raise ValueError(f"broken at step' in (out / "traceback.txt").read_text()
    # What happened until then is on disk.
    assert [row["timestep"] for row in rows(out / "episodes.csv")] == ["5", "10", "15", "20", "25", "30", "35"]
    assert "env.kwargs.fail_at: 37 -> 0" in refused(capfd, *args, "--env-kwargs", "fail_at=0")


def test_environment_that_exits(tiny, tmp_path, capfd):
    """Whoever chains commands by their exit status goes no further."""
    out = tmp_path / "run"
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--timesteps", "1000", *DQN, "--out", str(out), "--quiet"]
    assert main([*args, "--env-kwargs", "exit_at=37"]) == 1
    assert "error: the run failed at step 36: SystemExit: 0; see" in capfd.readouterr().err
    assert json.loads((out / "status.json").read_text())["state"] == "failed"


def test_checkpoint_of_something_else(tmp_path, capfd):
    """Whole, by its hashes, and no state of a run: it is passed over, and the run begins anew."""
    Checkpoints(tmp_path / "checkpoint").save(100, {"step": 100})
    (tmp_path / "config.json").write_text(json.dumps(configuration_of(CARTPOLE)))
    assert main([*CARTPOLE, "--out", str(tmp_path), "--quiet"]) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert "is not used: its state is not that of a run (KeyError: 'config')" in line


def test_environment_that_cannot_be_reset_or_made(tiny, tmp_path, capfd):
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--timesteps", "100", *DQN, "--quiet"]
    assert main([*args, "--env-kwargs", "fail_at=0", "--out", str(tmp_path / "reset")]) == 1
    assert "the run failed at step 0: ValueError: broken at reset" in capfd.readouterr().err
    message = refused(capfd, *args, "--env-kwargs", "refuse=true", "--out", tmp_path / "made")
    assert message == "error: tiny:Tiny-v0 cannot be made: no licence"
    message = refused(capfd, *args, "--env-kwargs", "gravity=1.0", "--out", tmp_path / "made")
    assert message.startswith("error: tiny:Tiny-v0 does not take {'gravity': 1.0}: ")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_interrupted_before_a_checkpoint_it_is_started_anew(tiny, tmp_path, capfd):
    """While it is alive a second process is refused; killed, the same command repeats it exactly."""
    out, go = tmp_path / "run", tmp_path / "go"
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--timesteps", "1000", *DQN, "--quiet"]
    args += ["--env-kwargs", f'wait_at=62, wait_for="{go}"']
    process = subprocess.Popen(command(*args, "--out", out), env=environment(tiny), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (out / "timing.csv").exists() or len(rows(out / "timing.csv")) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = contents(out)
        assert f"another process is writing to {out}" in refused(capfd, *args, "--out", out)
        assert contents(out) == before
    finally:
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
    assert err == b""
    assert json.loads((out / "status.json").read_text()) == {"state": "running", "pid": process.pid}
    (out / "agent.json").write_text("stale")
    go.touch()
    assert main([*args, "--out", str(out)]) == 0
    assert main([*args, "--out", str(tmp_path / "straight")]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    for name in FILES - {"config.json", "status.json", "sha256.json", "timing.csv"}:
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_full_disk_at_the_end(tmp_path, capfd, monkeypatch):
    """What cannot be written is said on one line, and the same command finishes the run."""
    write = write_atomically

    def full(path, data):
        if path.name == "status.json" and b"running" not in (data if isinstance(data, bytes) else data.encode()):
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        for module in ("runs.atomic", "runs.folder", "train.run"):
            patch.setattr(f"alrao_rl.{module}.write_atomically", full)
        assert main([*CARTPOLE, "--out", str(tmp_path), "--quiet"]) == 1
    assert capfd.readouterr().err == (
        "error: the run failed at step 300: OSError: [Errno 28] No space left on device; nothing can be written to "
        f"{tmp_path} (No space left on device)\n"
    )
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    assert main([*CARTPOLE, "--out", str(tmp_path), "--quiet"]) == 0


@pytest.mark.parametrize("interval", ["60", "1e-6"])
def test_folder_that_disappears(tmp_path, capfd, monkeypatch, interval):
    out, on_step = tmp_path / "run", TrainingCallback._on_step

    def step(self):
        if self.num_timesteps == 200:
            shutil.rmtree(out)
        return on_step(self)

    monkeypatch.setattr(TrainingCallback, "_on_step", step)
    assert main([*CARTPOLE, "--out", str(out), "--quiet", "--checkpoint-interval", interval]) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: the run failed at step ")
    assert err.endswith(f"nothing can be written to {out} (No such file or directory)\n")
    assert err.count("\n") == 1
    assert not out.exists()


# --- answers without training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--list", "--help"])
def test_list_and_help_import_no_torch(tmp_path, flag):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = sys.modules['stable_baselines3'] = None\n"
    )
    done = run(flag, cwd=tmp_path, path=[tmp_path])
    assert (done.returncode, done.stderr) == (0, "")
    expected = (
        [*recipe_names("agents"), *recipe_names("envs")]
        if flag == "--list"
        else ["--algo", "--env-kwargs", "--dry-run"]
    )
    assert all(word in done.stdout for word in expected)
    # The blocker blocks.
    assert (
        "import of torch halted" in run("--algo", "dqn", "--env", "CartPole-v1", cwd=tmp_path, path=[tmp_path]).stderr
    )


def test_dry_run_prints_every_value_with_its_origin_and_writes_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--algo", "dqn", "--env", "CartPole-v1", "--set", "batch_size=16", "--set", "alrao.n_heads=4"]
    assert main([*args, "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    lines = [line.partition(" = ") for line in printed.out.splitlines()]
    values = {key.strip(): rest.split(maxsplit=1) for key, _, rest in lines if rest}
    assert values["hyperparameters.tau"] == ["1.0", "SB3's default"]
    assert values["hyperparameters.buffer_size"] == ["50000", str(ROOT / "agents" / "dqn.toml")]
    assert values["hyperparameters.batch_size"] == ["16", "--set batch_size=16"]
    assert values["alrao.n_heads"] == ["4", "--set alrao.n_heads=4"]
    assert values["alrao.reclone_interval"][1] == "Alrao's default"
    assert values["env.reference_score"] == ["500.0", str(ROOT / "envs" / "CartPole-v1.toml")]
    assert values["timesteps"] == ["50000", str(ROOT / "envs" / "CartPole-v1.toml")]
    assert "hyperparameters.learning_rate" not in values
    assert printed.out.splitlines()[-1] == "run folder: results/train/CartPole-v1/dqn/seed-0"
    assert list(tmp_path.iterdir()) == []


def test_it_says_that_no_episode_ended(tmp_path, capfd):
    """Those of Pendulum have 200 steps. Then nothing tells how long evaluations would take, and none is made."""
    args = ["--algo", "sac", "--env", "Pendulum-v1", "--timesteps", "120", "--out", str(tmp_path / "run")]
    assert main([*args, "--set", "batch_size=8", "net_arch=[4]", "alrao.n_heads=2", "buffer_size=200"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[1].startswith("step 2 of 120: no episode has ended, ")
    assert "sac on Pendulum-v1: not evaluated (no episode ended in training) (reference -163, random -1,231)" in out


@pytest.mark.parametrize(
    ("algo", "options", "steps"),
    [
        ("ppo", ["n_steps=16", "n_envs=2", "batch_size=32"], 64),  # 16 x 2 = 32 a rollout: 33 need two
        ("a2c", ["n_steps=5", "n_envs=2"], 40),
        ("dqn", ["train_freq=4", "n_envs=3", "learning_starts=5"], 36),
        ("dqn", ["train_freq=1", "learning_starts=5"], 33),
    ],
)
def test_whole_rollouts_are_told_before(tmp_path, capfd, algo, options, steps):
    args = ["--algo", algo, "--env", "CartPole-v1", "--timesteps", "33", "--eval-episodes", "1", "--set", *options]
    assert main([*args, "net_arch=[4]", "--dry-run"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("timesteps "))
    assert line.partition(" = ")[2].split(maxsplit=1) == [
        "33", "--timesteps" if steps == 33 else f"--timesteps; {steps} in whole rollouts",
    ]  # fmt: skip
    assert main([*args, "net_arch=[4]", "--out", str(tmp_path / "run")]) == 0
    out = capfd.readouterr().out.splitlines()
    more = "" if steps == 33 else " in whole rollouts, for 33"
    assert out[0] == f"{algo} on CartPole-v1: {steps} steps{more}"
    assert any(line.startswith(f"step {steps} of {steps}: ") for line in out)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["timesteps"] == steps


@pytest.mark.parametrize("more", [["--dry-run"], ["--out", "run"]])
@pytest.mark.parametrize(
    ("algo", "sets", "expected"),
    [
        ("dqn", [], "DQN learns after 1,000 steps (learning_starts), but the run has 40: give it more timesteps, or a "
         "smaller number such as --set learning_starts=4"),
        ("qrdqn", ["learning_starts=40"], "QRDQN learns after 40 steps (learning_starts), but the run has 40"),
        ("dqn", ["learning_starts=48", "train_freq=8", "n_envs=2"], "DQN learns after 48 steps (learning_starts), but "
         "the run has 48"),  # 40 are three rollouts of 8 x 2
        ("dqn", ["learning_starts=0", "gradient_steps=0"], "gradient_steps of DQN is 0, expected at least 1"),
    ],
)  # fmt: skip
def test_what_would_make_no_update_is_refused(tmp_path, monkeypatch, capfd, more, algo, sets, expected):
    monkeypatch.chdir(tmp_path)
    sets = ["net_arch=[4]", *sets]
    assert expected in refused(
        capfd, "--algo", algo, "--env", "CartPole-v1", "--timesteps", "40", *more, "--set", *sets
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (['train_freq=[0, "episode"]'], "train_freq is [0, 'episode']: expected a whole number of steps of at least 1"),
        (['train_freq=[1, "episodes"]'], "is [1, 'episodes']: expected a whole number of steps of at least 1, or [1, "),
        (["train_freq=[1]"], "hyperparameters.train_freq is [1]: expected"),
        (["train_freq=true"], "hyperparameters.train_freq is True: expected"),
        (["train_freq=1.5"], "hyperparameters.train_freq is 1.5: expected"),
        (['train_freq=[1, "episode"]', "n_envs=2"], "train_freq of SAC is [1, 'episode']: episodes take one env"),
        (["ent_coef=automatic"], "ent_coef is 'automatic': expected a number of at least 0, 'auto', or 'auto_0.1'"),
        (["ent_coef=-1"], "hyperparameters.ent_coef is -1: expected a number of at least 0"),
        (["ent_coef=true"], "hyperparameters.ent_coef is True: expected"),
        (["target_entropy=low"], "hyperparameters.target_entropy is 'low': expected a number or 'auto'"),
        (["learning_rate=3e-4"], "--set learning_rate: an Alrao agent has no learning rate to set: leave it out"),
    ],
)  # fmt: skip
def test_bad_values_of_sac_are_one_line(tmp_path, monkeypatch, capfd, sets, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capfd, "--algo", "sac", "--env", "Pendulum-v1", "--set", "net_arch=[4]", *sets)
    assert list(tmp_path.iterdir()) == []


def test_train_freq_in_episodes(tmp_path, capfd):
    args = ["--algo", "sac", "--env", "Pendulum-v1", "--timesteps", "250", "--eval-episodes", "0", "--quiet"]
    small = ["net_arch=[4]", "batch_size=8", "buffer_size=300", "alrao.n_heads=3"]
    args += ["--set", *small, 'train_freq=[1, "episode"]', "gradient_steps=3"]
    assert main([*args, "--dry-run"]) == 0
    assert re.search(r"hyperparameters\.train_freq += \[1, 'episode'\] +--set", capfd.readouterr().out)
    assert main([*args, "--out", str(tmp_path)]) == 0
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["timesteps"]) == ("finished", 400)  # two episodes of 200 steps
    layers = {row["layer"] for row in rows(tmp_path / "heads.csv")}
    assert layers == {"actor", "qf0", "qf1"}
    coefficients = [float(row["ent_coef"]) for row in rows(tmp_path / "entropy.csv")]
    assert coefficients[0] == 1 > coefficients[-1] > 0
    assert "ent_coef" not in load_agent(tmp_path).policy.alrao_stats()["actor"]  # it does not have what was learned
    heads = rows(tmp_path / "heads.csv")
    times = sorted({int(row["timestep"]) for row in heads})
    assert times == [int(row["timestep"]) for row in rows(tmp_path / "entropy.csv")]


@pytest.mark.parametrize(("train_freq", "n_envs", "starts"), [(1, 1, 39), (8, 2, 47)])
def test_a_single_update_is_enough(tmp_path, train_freq, n_envs, starts):
    sets = [f"learning_starts={starts}", f"train_freq={train_freq}", f"n_envs={n_envs}", "gradient_steps=1"]
    args = ["--algo", "dqn", "--env", "CartPole-v1", "--timesteps", "40", "--eval-episodes", "0", "--quiet"]
    assert main([*args, "--out", str(tmp_path), "--set", "net_arch=[4]", "batch_size=4", *sets]) == 0
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("low", "high", "warned"),
    [
        (-2000.0, 2000.0, True),
        (1500.0, 2500.0, True),
        (-0.001, 0.001, True),
        ([-1.0, 0.0], 1.0, True),
        ([-1.0, -50.0], [1.0, 50.0], True),
        (-1.0, 1.0, False),
        (-2.0, 2.0, False),  # Pendulum
        (-0.4, 0.4, False),  # Humanoid
        (-3.0, 3.0, False),  # InvertedPendulum
    ],
)
def test_actions_that_a_gaussian_does_not_reach_are_said_once(tmp_path, monkeypatch, capfd, low, high, warned):
    low, high = np.broadcast_to(low, 2).astype(np.float32), np.broadcast_to(high, 2).astype(np.float32)
    monkeypatch.setattr(PendulumEnv, "__init__", _with_actions(PendulumEnv.__init__, spaces.Box(low, high)))
    monkeypatch.chdir(tmp_path)
    for run_command, args in (
        (main, ["--algo", "ppo", "--env", "Pendulum-v1", "--dry-run", "--set", "n_envs=3"]),
        (sweep.main, ["--agents", "ppo", "a2c", "--envs", "Pendulum-v1", "--seeds", "0-1", "--dry-run"]),
    ):
        assert run_command(args) == 0
        err = capfd.readouterr().err
        assert err.count("\n") == err.count("gymnasium.wrappers.RescaleAction(env, -1, 1)") == int(warned)
        assert err.startswith("warning: Pendulum-v1 acts in Box(" if warned else "")


def _with_actions(init, actions):
    def initialise(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.action_space = actions

    return initialise


def test_the_wrapper_that_is_named_scales_actions(tmp_path, monkeypatch, capfd):
    """What the caution recommends is taken, and is enough."""
    (tmp_path / "wide.toml").write_text(
        'id = "Pendulum-v1"\nwrappers = [{name = "RescaleAction", min_action = -1, max_action = 1}]\n'
    )
    wide = spaces.Box(-2000.0, 2000.0, (1,))
    monkeypatch.setattr(PendulumEnv, "__init__", _with_actions(PendulumEnv.__init__, wide))
    assert main(["--algo", "ppo", "--env", str(tmp_path / "wide.toml"), "--dry-run"]) == 0
    assert capfd.readouterr().err == ""
    env = make_one(load_environment(str(tmp_path / "wide.toml"))[0])
    assert env.action_space == spaces.Box(-1.0, 1.0, (1,))
    assert env.env.action(np.array([0.5], np.float32))[0] == pytest.approx(1000)


ALONE = """
import gymnasium as gym
from gymnasium import spaces

class Alone(gym.Env):
    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)
    in_use = False

    def __init__(self, at_reset=False):
        self.at_reset = at_reset
        if not at_reset:
            self.connect()

    def connect(self):
        if Alone.in_use and not hasattr(self, "steps"):
            raise ConnectionError("the simulator is in use")
        Alone.in_use, self.steps = True, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.connect() if self.at_reset else None
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action), self.steps == 5, False, {}

    def close(self):
        Alone.in_use = False

gym.register("Alone-v0", Alone)
"""


@pytest.mark.parametrize("at_reset", ["false", "true"])
def test_an_environment_that_is_the_only_one(install, tmp_path, capfd, at_reset):
    install("alone", ALONE)
    out = tmp_path / "run"
    args = ["--algo", "a2c", "--env", "alone:Alone-v0", "--timesteps", "200", "--out", str(out), "--quiet"]
    args += ["--env-kwargs", f"at_reset={at_reset}", "--set", "n_envs=1", "net_arch=[4]"]
    message = one_error(main, capfd, *args, status=1)
    assert "RuntimeError: evaluations need environments in addition to those of training: " in message
    assert "the simulator is in use; --eval-episodes 0 trains without evaluations; see " in message
    assert json.loads((out / "status.json").read_text())["state"] == "failed"
    assert "ConnectionError: the simulator is in use" in (out / "traceback.txt").read_text()
    assert main([*args, "--eval-episodes", "0"]) == 0
    assert json.loads((out / "status.json").read_text())["state"] == "finished"


def test_an_error_in_the_middle_of_a_run_leaves_it_failed(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise UserError("cannot be saved")

    monkeypatch.setattr("alrao_rl.train.callback.save_agent", refuse)
    args = ["--algo", "a2c", "--env", "CartPole-v1", "--timesteps", "40", "--eval-episodes", "0", "--quiet"]
    message = one_error(main, capfd, *args, "--out", tmp_path / "run", "--set", "net_arch=[4]", status=1)
    assert message.startswith("error: the run failed at step 40: UserError: cannot be saved; see ")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert "cannot be saved" in (tmp_path / "run" / "traceback.txt").read_text()


@pytest.mark.parametrize("algo", ["ppo-adam", "dqn-adam"])
def test_a_run_without_an_update_has_failed(tmp_path, monkeypatch, capfd, algo):
    kind = algorithm(load_agent_recipe(algo)[1])
    monkeypatch.setattr(kind, "train", lambda self, *args, **kwargs: None)
    args = ["--agent", algo, "--env", "CartPole-v1", "--timesteps", "40", "--eval-episodes", "0", "--quiet"]
    sets = ["n_steps=8", "batch_size=8"] if algo == "ppo-adam" else ["learning_starts=9"]
    sets = ["net_arch=[4]", "n_envs=1", *sets]
    message = one_error(main, capfd, *args, "--out", tmp_path / "run", "--set", *sets, status=1)
    assert "the run failed at step 40: RuntimeError: no update was made in 40 steps" in message
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("more", [["--dry-run"], ["--out", "run", "--quiet", "--eval-episodes", "1"]])
@pytest.mark.parametrize("saves", ["true", "false"])
def test_time_limits_without_memory_for_them_are_told(tmp_path, capfd, monkeypatch, more, saves):
    monkeypatch.chdir(tmp_path)
    args = ["--algo", "dqn", "--env", "CartPole-v1", "--timesteps", "20", *more, "--set", "net_arch=[4]"]
    assert main([*args, "buffer_size=50", "learning_starts=9", f"optimize_memory_usage={saves}"]) == 0
    err = capfd.readouterr().err
    said = "warning: with optimize_memory_usage an episode that a time limit cuts off counts as terminated"
    assert err.startswith(said) if saves == "true" else err == ""
    assert err.count("\n") == (saves == "true")


@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_images_beside_vectors_that_are_normalised(tiny, tmp_path, capfd, algo):
    """Whose channels come last, so that SB3 wraps the training environments once more."""
    args = ["--algo", algo, "--env", "tiny:Tiny-v0", "--env-kwargs", "mixed=true", "--timesteps", "40"]
    sets = DQN if algo == "dqn" else [*FAST, "--set", "n_steps=4", "--set", "batch_size=4"]
    assert main([*args, *sets, "--set", "normalize_observations=scale", "--out", str(tmp_path / "run")]) == 0
    assert capfd.readouterr().err == ""
    assert len(rows(tmp_path / "run" / "evaluations.csv")) > 0


def test_an_environment_that_fails_when_it_is_closed(tiny, tmp_path, capfd):
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--env-kwargs", 'close="raise"', "--timesteps", "40", *DQN]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    said = "warning: the environment could not be closed: OSError: the server is gone\n"
    assert capfd.readouterr().err == 2 * said  # that of the evaluations, too
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_a_signal_after_the_end_leaves_a_finished_run_finished(tiny, tmp_path):
    args = ["--algo", "dqn", "--env", "tiny:Tiny-v0", "--timesteps", "40", *DQN, "--out", "run"]
    # Of the training environments, which are closed last.
    code = (
        "import sys; from alrao_rl.train import command, evaluation, run;"
        "evaluation.Evaluator.close = lambda self: None;"
        "run.PATIENCE, run.LIMIT = 0.5, 1.0; sys.exit(command.main(sys.argv[1:]))"
    )
    signalled = [sys.executable, "-c", code, *args, "--env-kwargs", 'close="signal"']
    done = subprocess.run(signalled, capture_output=True, text=True, cwd=tmp_path, env=environment(tiny))
    assert done.returncode in (0, 143), done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    again = [*args, "--env-kwargs", 'close="signal"']
    assert "run is finished:" in run(*again, cwd=tmp_path, path=[tiny]).stdout


def test_a_full_disk_behind_the_output_ends_the_printing_and_not_the_run():
    code = "from alrao_rl.cli.console import print_warning as w, say; say('a'); w('b'); say('c'); w('d')"
    line = f"{sys.executable} -c {shlex.quote(code)} > /dev/full 2> /dev/full"
    assert subprocess.run(["bash", "-c", line], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_a_reader_that_goes_away_and_a_terminal_of_few_letters(tmp_path):
    line = f"{sys.executable} -m alrao_rl.train --list | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    out = tmp_path / "run"
    done = subprocess.run(
        command("--algo", "a2c", "--env", "CartPole-v1", "--timesteps", "50", "--eval-episodes", "1", "--out", out),
        env=ascii_only, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "value_net |???" in done.stdout


def test_dry_run_of_a_stock_agent_shows_its_learning_rate(capfd):
    assert main(["--agent", "ppo-adam", "--env", "CartPole-v1", "--timesteps", "9", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "hyperparameters.learning_rate       = 0.0003" in out
    assert "alrao." not in out
    assert "= 9                      --timesteps" in out


# --- bad input ------------------------------------------------------------------------------------------------------

DQN_ON_CARTPOLE = ["--algo", "dqn", "--env", "CartPole-v1"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--algo", "dnq", "--env", "CartPole-v1"], "--algo is 'dnq', expected one of dqn, a2c, ppo, qrdqn"),
        (["--agent", "dqn-adm", "--env", "CartPole-v1"], "did you mean 'dqn-adam'?"),
        (["--agent", "no.toml", "--env", "CartPole-v1"], "cannot read no.toml: No such file or directory"),
        (["--algo", "dqn"], "--env is missing"),
        (["--env", "CartPole-v1"], "--algo (or --agent) is missing"),
        (["--algo", "dqn", "--agent", "ppo", "--env", "CartPole-v1"], "not allowed with argument --algo"),
        (["--alog", "dqn", "--env", "CartPole-v1"], "did you mean '--algo'?"),
        (["--algo"], "expected one argument"),
        (["--algo", "dqn", "--env", "CartPol-v1"], "did you mean 'CartPole-v1'?"),
        (["--algo", "dqn", "--env", "Cart\nPole"], "unknown environment 'Cart\\nPole'"),
        (["--algo", "dqn", "--env", "Pendulum-v1"], "DQN cannot act in Box(-2.0, 2.0, (1,), float32)"),
        (["--algo", "dqn", "--env", "Pendulum-v1"], "use ppo or a2c"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "0"], "--timesteps is 0, expected a whole number from 1 to"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "-5"], "--timesteps is -5, expected"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "1" + 40 * "0"], "from 1 to 1,000,000,000,000"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "many"], "--timesteps: 'many': expected a whole number such as 100000, 1e5"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "1e-3"], "--timesteps: '1e-3': expected a whole number"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "1.0005k"], "--timesteps: '1.0005k': expected a whole number"),
        ([*DQN_ON_CARTPOLE, "--timesteps", "1e400"], "--timesteps: '1e400': expected a whole number"),
        ([*DQN_ON_CARTPOLE, "--seed", "0-4"], "'0-4' are several seeds, expected one; python -m alrao_rl.sweep"),
        ([*DQN_ON_CARTPOLE, "--seed", "one"], "'one' is not a seed, expected a whole number"),
        ([*DQN_ON_CARTPOLE, "--seed", "-1"], "--seed is -1, expected"),
        ([*DQN_ON_CARTPOLE, "--eval-episodes", "-1"], "--eval-episodes is -1, expected"),
        ([*DQN_ON_CARTPOLE, "--device", "gpu"], "did you mean 'cuda'?"),
        ([*DQN_ON_CARTPOLE, "--device", "nonsense", "--dry-run"], "--device is 'nonsense', expected cpu"),
        (["--algo", "dqn", "--env", ":CartPole-v1"], "the package '' to import it from is not installed"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao=3"], "--set alrao: it is a table, set one of its keys"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.lr_range=[1]"], "expected two numbers 0 < lr_min <= lr_max"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.head_max_grad_norm=foo"], "None (in TOML 'none'), 'auto' or a positive"),
        ([*DQN_ON_CARTPOLE, "--set", "learning_rate=0.1"], "an Alrao agent has no learning rate to set"),
        ([*DQN_ON_CARTPOLE, "--set", "batchsize=1"], "did you mean 'batch_size'?"),
        ([*DQN_ON_CARTPOLE, "--set", "batch\nsize=1"], "--set batch size: no such key"),
        ([*DQN_ON_CARTPOLE, "--set", "batch_size=big"], "hyperparameters.batch_size is 'big'"),
        ([*DQN_ON_CARTPOLE, "--set", "gamma=2"], "hyperparameters.gamma is 2"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.lr_range=[1e-1, 1e-3]"], "alrao.lr_range is [0.1, 0.001]"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.lr_range=[0, 1e-3]"], "alrao.lr_range is [0"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.lr_range=[-1, 1e-3]"], "alrao.lr_range is [-1"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.lr_range=[nan, 1e-3]"], "alrao.lr_range is [nan"),
        ([*DQN_ON_CARTPOLE, "--set", "alrao.n_heads=0"], "alrao.n_heads is 0"),
        ([*DQN_ON_CARTPOLE, "--set", "buffer_size=1000000000000"], "cannot build DQN: Unable to allocate"),
        (["--algo", "ppo", "--env", "CartPole-v1", "--set", "use_sde=true"], "only be used with continuous actions"),
        ([*DQN_ON_CARTPOLE, "--env-kwargs", "gravity"], "--env-kwargs is 'gravity', expected TOML"),
        ([*DQN_ON_CARTPOLE, "--env-kwargs", "gravity=1.0"], "CartPole-v1 does not take {'gravity': 1.0}"),
        ([*DQN_ON_CARTPOLE, "--env-kwargs", "when=1979-05-27"], "--env-kwargs: kwargs is"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capfd, monkeypatch, args, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capfd, "--out", tmp_path / "run", *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/run", "/proc/nowhere/run", "folder", "n" * 300])
def test_out_that_cannot_be_used(tmp_path, capfd, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    message = refused(capfd, *DQN_ON_CARTPOLE, *DQN, "--timesteps", "30", "--out", where)
    assert "--out" in message
    assert where in message
    assert contents(tmp_path) == before


def test_run_folder_whose_files_are_damaged(tmp_path, capfd):
    (tmp_path / "config.json").write_text('{"agent": ')
    message = refused(capfd, *DQN_ON_CARTPOLE, "--out", tmp_path)
    assert message.startswith(f"error: {tmp_path / 'config.json'} is not a JSON file")


@pytest.mark.parametrize("name", ["agent.safetensors", "episodes.csv", "status.json"])
def test_a_folder_where_a_file_of_the_run_belongs(tmp_path, capfd, name):
    args = ["--algo", "ppo", "--env", "CartPole-v1", "--timesteps", "10"]
    (tmp_path / name).mkdir()
    config = configuration_of(args)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "cannot" in refused(capfd, *args, "--out", tmp_path)


def test_bad_input_of_the_real_command(tmp_path):
    done = run("--algo", "dqn", "--env", "cartpole-v1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown environment 'cartpole-v1'")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "missing", "says"),
    [
        ("LunarLander-v3", "Box2D", "Box2D; install it with: pip install 'gymnasium[box2d]'"),
        ("BipedalWalker-v3", "Box2D", "Box2D; install it with: pip install 'gymnasium[box2d]'"),
        ("HalfCheetah-v5", "mujoco", "MuJoCo; install it with: pip install 'alrao-rl[mujoco]'"),
        ("HalfCheetah-v5", "imageio", "MuJoCo; install it with: pip install 'alrao-rl[mujoco]'"),
    ],
)
def test_missing_engine(tmp_path, env, missing, says):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    done = run("--algo", "ppo", "--env", env, "--out", "run", cwd=tmp_path, path=[tmp_path])
    assert done.returncode == 2
    assert done.stderr == f"error: {env} cannot be made: it needs {says}\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"sitecustomize.py", "__pycache__"}


def test_mujoco_without_the_library_it_is_to_draw_with(monkeypatch, capfd):
    """``import mujoco`` loads it, also where nothing is drawn."""

    def make(*_, **__):
        exec("None.glGetError", {"__name__": "OpenGL.raw.GL._errors"})

    monkeypatch.setattr("gymnasium.make", make)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert refused(capfd, "--algo", "sac", "--env", "Hopper-v5") == (
        "error: Hopper-v5 cannot be made: MuJoCo cannot load the library that MUJOCO_GL=osmesa stands for; "
        "leave it unset"
    )


def test_mujoco_says_nothing_of_gymnasiums_models(tmp_path, monkeypatch, capfd):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # where its warnings would be appended to a file
    for kwargs in {}, {"xml_file": "half_cheetah.xml"}:  # perhaps a model of one's own
        make_one(Environment(id="HalfCheetah-v5", kwargs=kwargs)).close()
        assert mujoco.get_mju_user_warning() is None
        if not kwargs:
            assert capfd.readouterr() == ("", "")
            assert list(tmp_path.iterdir()) == []
    assert "settotalmass" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["episodes.csv", "agent.safetensors"])
def test_a_finished_run_that_is_damaged_is_told(finished, tmp_path, capfd, name):
    shutil.copytree(finished[0], tmp_path / "run")
    data = bytearray((tmp_path / "run" / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / "run" / name).write_bytes(data)
    assert main([*CARTPOLE, "--seed", "3", "--out", str(tmp_path / "run")]) == 2
    assert f"{name} is damaged" in capfd.readouterr().err


@given(
    st.builds(
        RunOptions,
        agent=st.sampled_from(["dqn", "mine/agent.toml"]),
        env=st.sampled_from(["CartPole-v1", "json:X-v0", "env.toml"]),
        seed=st.integers(0, 2**31 - 1),
        overrides=st.lists(st.sampled_from(["gamma=0.9", "net_arch=[3, 4]", 'activation_fn="re lu"', "n_envs=2"])).map(
            tuple
        ),
        timesteps=st.none() | st.integers(1, 10**12),
        env_kwargs=st.dictionaries(
            st.text("abc_é-", min_size=1),
            st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        ),
        eval_episodes=st.integers(0, 99),
        eval_freq=st.none() | st.integers(1, 99),
        eval_budget=st.floats(0, 9),
        trust=st.booleans(),
    )
)
def test_a_command_line_asks_for_what_its_options_are(options):
    """A sweep hands its options to the process of a run so."""
    assert from_arguments(parser().parse_args(options.arguments()))[0] == options
