"""``python -m alrao_rl.export``: what SB3 loads acts as what we saved."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from test_agent import ACTIONS, IMAGE, OBSERVATIONS, make_agent, make_model, samples
from test_enjoy import CARTPOLE, save_run

from alrao_rl import export, load_agent, runs, save_agent
from alrao_rl.export import main
from alrao_rl.train import main as train

ROOT = Path(__file__).parent.parent
RAW = spaces.Box(100.0, 140.0, (3,))
DICT = spaces.Dict({"goal": RAW, "n": spaces.Discrete(4), "image": IMAGE})
# A process that knows SB3 and, unless the agent is Alrao's, nothing of us.
LOADS = """
import importlib, pickle, sys
if {stock}:
    sys.modules["alrao_rl"] = None
import numpy as np
import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

with open({observations!r}, "rb") as file:
    observation_space, action_space, observations = pickle.load(file)
algorithm = getattr(importlib.import_module({module!r}), {name!r})
model = algorithm.load({path!r})
assert type(model) is algorithm
if {normalized}:
    class Env(gym.Env):
        pass

    Env.observation_space, Env.action_space = observation_space, action_space
    env = DummyVecEnv([Env])
    if isinstance(observation_space, gym.spaces.Dict):  # with an image, whose channels the agent takes first
        env = VecTransposeImage(env)
    env = VecNormalize.load({path!r}.replace(".zip", "_vecnormalize.pkl"), env)
    assert (env.training, env.norm_reward) == (False, False)
    # As a VecEnv gives them: a batch of one.
    batches = [{{k: v[None] for k, v in o.items()}} if isinstance(o, dict) else o[None] for o in observations]
    if isinstance(observation_space, gym.spaces.Dict):
        batches = [env.venv.transpose_observations(batch) for batch in batches]
    observations = [env.normalize_obs(batch) for batch in batches]
actions = [model.predict(observation, deterministic=True)[0] for observation in observations]
np.save({out!r}, np.array(actions))
assert ("alrao_rl" in sys.modules and sys.modules["alrao_rl"] is not None) == (not {stock})
"""


def actions_of(path, algorithm, stock, normalized, space, action_space, observations, tmp_path):
    given, out = tmp_path / "observations.pkl", tmp_path / "actions.npy"
    given.write_bytes(pickle.dumps((space, action_space, observations)))
    script = LOADS.format(
        stock=stock, observations=str(given), module=algorithm.__module__.partition(".")[0], name=algorithm.__name__,
        path=str(path), normalized=normalized, out=str(out),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return np.load(out)


CASES = [
    *((algo, policy, RAW, "discrete", "scale") for algo in ("dqn", "a2c", "ppo") for policy in ("alrao", "stock")),
    *((algo, policy, RAW, "box", True) for algo in ("a2c", "ppo") for policy in ("alrao", "stock")),
    ("dqn", "alrao", OBSERVATIONS["vector"], "discrete", False),
    ("dqn", "stock", IMAGE, "discrete", False),
    ("ppo", "alrao", DICT, "multi-discrete", True),
    *((algo, "alrao", RAW, "discrete", True) for algo in ("qrdqn", "recurrent-ppo")),
    ("qrdqn", "stock", RAW, "discrete", False),
]


@pytest.mark.parametrize(("algo", "policy", "space", "actions", "normalize"), CASES)
def test_sb3_acts_as_load_agent_does(tmp_path, capfd, algo, policy, space, actions, normalize):
    """In a fresh process, with SB3's own load."""
    agent = make_agent(algo, policy, normalize_observations=normalize)
    model = make_model(agent, space, ACTIONS[actions], steps=32)
    save_agent(model, agent, tmp_path / "agent", timestep=32)
    assert main([str(tmp_path), "--to", "sb3"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    package = "stable_baselines3" if algo in ("dqn", "a2c", "ppo") else "sb3_contrib"
    loader = f"{package}.{type(model).__name__}.load"
    assert out.startswith(f"written: {tmp_path / 'agent.zip'}, for {loader}, which executes what it is given\n")
    assert (tmp_path / "agent_vecnormalize.pkl").exists() == ("vecnormalize.pkl" in out) == bool(normalize)
    observations, loaded = samples(space, 20), load_agent(tmp_path)
    expected = np.array([loaded.predict(observation, deterministic=True)[0] for observation in observations])
    given = bool(normalize), space, ACTIONS[actions], observations
    found = actions_of(tmp_path / "agent.zip", type(model), policy == "stock", *given, tmp_path)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_hyperparameters_are_those_of_training(tmp_path):
    """Also the size of a buffer that load_agent does without."""
    save_run(tmp_path, CARTPOLE, "dqn", hyperparameters={"buffer_size": 1234, "gamma": 0.5})
    assert main([str(tmp_path), "--to", "sb3"]) == 0
    with zipfile.ZipFile(tmp_path / "agent.zip") as file:
        data = json.loads(file.read("data"))
    assert (data["buffer_size"], data["gamma"], data["exploration_rate"]) == (1234, 0.5, 0.05)
    save_run(tmp_path, CARTPOLE, "dqn", hyperparameters={})
    assert main([str(tmp_path), "--to", "sb3"]) == 0
    with zipfile.ZipFile(tmp_path / "agent.zip") as file:
        assert json.loads(file.read("data"))["buffer_size"] == 1_000_000


def test_the_real_command_on_a_real_run(tmp_path, monkeypatch):
    """``--out`` names the file; the same again replaces it, and what belonged to another agent goes."""
    monkeypatch.chdir(tmp_path)
    args = ["--agent", "dqn-adam", "--env", "CartPole-v1", "--timesteps", "60", "--eval-episodes", "1", "--quiet"]
    sets = ["--set", "learning_starts=10", "--set", "net_arch=[4]", "--set"]
    assert train([*args, *sets, "normalize_observations=scale", "--out", "scaled"]) == 0
    assert train([*args, *sets, "normalize_observations=false", "--out", "plain"]) == 0
    for run in ("scaled", "scaled", "plain"):
        done = subprocess.run(
            [sys.executable, "-m", "alrao_rl.export", f"{run}/last.safetensors", "--to", "sb3", "--out", "mine.zip"],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        beside = {"mine_vecnormalize.pkl"} if run == "scaled" else set()
        assert {path.name for path in tmp_path.iterdir()} == {"plain", "scaled", "mine.zip"} | beside


def refused(capfd, *args):
    assert main([*map(str, args)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run", CARTPOLE, normalize_observations=True)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "the following arguments are required: --to"),
        (["--to", "onxn"], "invalid choice: 'onxn' (choose from"),
        (
            ["--to", "sb3", "--out", "agent.safetensors"],
            "--out is 'agent.safetensors', expected a file name that ends in",
        ),
        (["--to", "sb3", "--out", "nowhere/a.zip"], "cannot write nowhere/a.zip: No such file or directory"),
        (["--to", "sb3", "--uot", "a.zip"], "did you mean '--out'?"),
    ],
)
def test_bad_input(run, capfd, args, expected):
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert expected in refused(capfd, run, *args)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_no_run_and_what_is_no_agent(tmp_path, capfd):
    assert f"cannot read the agent {tmp_path / 'no' / 'agent.safetensors'}" in refused(
        capfd, tmp_path / "no", "--to", "sb3"
    )
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed"}))
    assert "the run's state is 'failed'" in refused(capfd, tmp_path, "--to", "sb3")
    (tmp_path / "agent.safetensors").write_bytes(b"x" * 100)
    assert "is not an agent of alrao-rl, or it is truncated" in refused(capfd, tmp_path, "--to", "sb3")
    assert "m.zip is Stable-Baselines3's own format" in refused(capfd, tmp_path / "m.zip", "--to", "sb3")


@pytest.mark.parametrize("name", ["m.zip", "m_vecnormalize.pkl"])
def test_what_is_not_ours_stays(run, tmp_path, capfd, name):
    """Such as a model that SB3 itself has saved."""
    load_agent(save_run(tmp_path / "other", CARTPOLE)).save(tmp_path / "m.zip")
    (tmp_path / "m.zip").rename(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    error = refused(capfd, run, "--to", "sb3", "--out", tmp_path / "m.zip")
    assert f"{tmp_path / name} is there already and not an export of alrao-rl" in error
    assert (tmp_path / name).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other", name}


def test_a_failed_export_leaves_the_one_before(run, capfd, monkeypatch):
    assert main([str(run), "--to", "sb3"]) == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    capfd.readouterr()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    assert "No space left on device" in refused(capfd, run, "--to", "sb3")
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_help_imports_no_torch():
    script = (
        "import sys, alrao_rl.export as e; assert not {'torch', 'stable_baselines3'} & set(sys.modules);"
        "e.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "executes what is in them" in " ".join(done.stdout.split())
    assert export._MARK
