"""``python -m alrao_rl.export``: what SB3 loads acts as what we saved."""

import functools
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from common import one_error
from gymnasium import spaces
from safetensors.torch import save
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage
from test_agent import ACTIONS, IMAGE, OBSERVATIONS, RandomEnv, make_agent, make_model, samples
from test_enjoy import CARTPOLE, save_run

from alrao_rl import export, load_agent, save_agent
from alrao_rl.agents.file import _digest, read_agent
from alrao_rl.export import main
from alrao_rl.train.command import main as train

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


def only(mark, *cases):
    return [pytest.param(*case, marks=mark) for case in cases]


slow, only_long = functools.partial(only, pytest.mark.slow), functools.partial(only, pytest.mark.long)


CASES = [
    *((algo, "alrao", RAW, "discrete", "scale") for algo in ("dqn", "a2c", "ppo")),
    *only_long(*((algo, "stock", RAW, "discrete", "scale") for algo in ("dqn", "a2c", "ppo"))),
    ("ppo", "alrao", RAW, "box", True),
    *only_long(
        ("ppo", "stock", RAW, "box", True), *(("a2c", policy, RAW, "box", True) for policy in ("alrao", "stock"))
    ),
    ("dqn", "stock", IMAGE, "discrete", False),
    ("sac", "alrao", RAW, "box", True),
    ("td3", "alrao", DICT, "box", True),
    ("crossq", "alrao", RAW, "box", True),
    *only_long(("tqc", "alrao", RAW, "box", False), ("ddpg", "alrao", RAW, "box", False)),
    ("ppo", "alrao", DICT, "multi-discrete", True),
    ("recurrent-ppo", "alrao", RAW, "discrete", True),
    *only_long(
        ("dqn", "alrao", OBSERVATIONS["vector"], "discrete", False),
        ("qrdqn", "alrao", RAW, "discrete", True),
        ("qrdqn", "stock", RAW, "discrete", False),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "policy", "space", "actions", "normalize"), CASES)
def test_sb3_acts_as_load_agent_does(tmp_path, capfd, algo, policy, space, actions, normalize):
    """In a fresh process, with SB3's own load."""
    # Convolutions of SB3's own are those with ReLU.
    options = {"policy_options": {"activation_fn": "relu"}} if policy == "stock" and space is IMAGE else {}
    agent = make_agent(algo, policy, normalize_observations=normalize, **options)
    model = make_model(agent, space, ACTIONS[actions], steps=32)
    save_agent(model, agent, tmp_path / "agent", timestep=32)
    assert main([str(tmp_path), "--to", "sb3"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    package = type(model).__module__.partition(".")[0]
    assert package == ("sb3_contrib" if algo in ("qrdqn", "recurrent-ppo", "tqc", "crossq") else "stable_baselines3")
    loader = f"{package}.{type(model).__name__}.load"
    assert out.startswith(f"written: {tmp_path / 'agent.zip'}, for {loader}, which executes what is in it\n")
    assert (tmp_path / "agent_vecnormalize.pkl").exists() == ("vecnormalize.pkl" in out) == bool(normalize)
    observations, loaded = samples(space, 20), load_agent(tmp_path)
    expected = np.array([loaded.predict(observation, deterministic=True)[0] for observation in observations])
    given = bool(normalize), space, ACTIONS[actions], observations
    stock = policy == "stock" and normalize != "scale"  # statistics of "scale" are of a class of ours
    found = actions_of(tmp_path / "agent.zip", type(model), stock, *given, tmp_path)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("how", [True, "scale"])
@pytest.mark.parametrize("space", [RAW, DICT], ids=["vector", "dict"])
def test_statistics_go_on_where_training_has_left_them(tmp_path, how, space):
    """34 observations were seen: two at the reset, 2 x 16 steps. Two more are 2 of 36."""
    agent = make_agent("ppo", normalize_observations=how)
    model = make_model(agent, space, ACTIONS["discrete"], steps=32)
    save_agent(model, agent, tmp_path / "agent", timestep=32)
    save_agent(load_agent(tmp_path), agent, tmp_path / "agent", timestep=32)  # nothing is lost on the way
    export.to_sb3(tmp_path)
    model = PPO.load(tmp_path / "agent.zip")
    env = DummyVecEnv([lambda: RandomEnv(space, ACTIONS["discrete"])] * 2)
    env = VecTransposeImage(env) if space is DICT else env
    env = VecNormalize.load(tmp_path / "agent_vecnormalize.pkl", env)
    rms = env.obs_rms["goal"] if space is DICT else env.obs_rms
    mean, var = rms.mean.copy(), rms.var.copy()
    assert rms.count == pytest.approx(34 + 1e-4)
    assert (mean == 0).all() if how == "scale" else (np.abs(mean - 120) < 10).all()
    env.reset()
    assert (rms.mean == mean).all()  # frozen for acting
    env.training = True
    env.reset()
    seen = env.get_original_obs()["goal"] if space is DICT else env.get_original_obs()
    assert rms.count == pytest.approx(36 + 1e-4)
    first = mean * 34 / 36 + seen.sum(0) / 36
    second = (var + mean**2) * 34 / 36 + (seen.astype(float) ** 2).sum(0) / 36
    np.testing.assert_allclose(rms.mean, 0 if how == "scale" else first, rtol=1e-5)
    np.testing.assert_allclose(rms.var, second if how == "scale" else second - first**2, rtol=1e-3)
    model.set_env(env)
    model.learn(16)
    assert rms.count == pytest.approx(36 + 2 + 16 + 1e-4)
    assert (rms.mean == 0).all() == (how == "scale")


def test_statistics_of_a_file_without_their_count(tmp_path):
    """As one was before it was kept: a timestep is an observation."""
    agent = make_agent("ppo", normalize_observations=True)
    save_agent(make_model(agent, RAW, ACTIONS["discrete"], steps=32), agent, tmp_path / "agent", timestep=32)
    description, tensors = read_agent(tmp_path / "agent.safetensors")
    assert tensors.pop("normalization..count") == 34 + 1e-4
    description["sha256"] = _digest(save(tensors))
    data = save(tensors, metadata={"alrao-rl": json.dumps(description)})
    (tmp_path / "agent.safetensors").write_bytes(data)
    export.to_sb3(tmp_path)
    assert pickle.loads((tmp_path / "agent_vecnormalize.pkl").read_bytes()).obs_rms.count == 32


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


@pytest.mark.slow
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
    return one_error(main, capfd, *args)


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
    assert "is not an agent of alrao-rl, or it is damaged" in refused(capfd, tmp_path, "--to", "sb3")
    assert "m.zip is Stable-Baselines3's own format" in refused(capfd, tmp_path / "m.zip", "--to", "sb3")
    with zipfile.ZipFile(tmp_path / "seed-0.zip", "w") as file:
        for name in ("config.json", "status.json", "episodes.csv"):
            file.writestr(name, "")
    assert "seed-0.zip: a sweep has kept the logs of this run" in refused(capfd, tmp_path / "seed-0.zip", "--to", "sb3")


def test_statistics_of_the_users_beside_an_export_of_ours_stay(tmp_path, capfd):
    agent = make_agent("ppo", normalize_observations=True)
    save_agent(make_model(agent, RAW, ACTIONS["discrete"], steps=16), agent, tmp_path / "agent", timestep=16)
    for _ in range(2):
        assert main([str(tmp_path), "--to", "sb3"]) == 0
    capfd.readouterr()
    (tmp_path / "agent_vecnormalize.pkl").write_bytes(b"mine")
    assert "agent_vecnormalize.pkl exists already" in refused(capfd, tmp_path, "--to", "sb3")
    assert (tmp_path / "agent_vecnormalize.pkl").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["m.zip", "m_vecnormalize.pkl"])
def test_what_is_not_ours_stays(run, tmp_path, capfd, name):
    """Such as a model that SB3 itself has saved."""
    load_agent(save_run(tmp_path / "other", CARTPOLE)).save(tmp_path / "m.zip")
    (tmp_path / "m.zip").rename(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    error = refused(capfd, run, "--to", "sb3", "--out", tmp_path / "m.zip")
    assert f"{tmp_path / name} exists already and is not an export of alrao-rl" in error
    assert (tmp_path / name).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other", name}


def test_a_failed_export_leaves_the_one_before(run, capfd, monkeypatch):
    assert main([str(run), "--to", "sb3"]) == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    capfd.readouterr()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
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


# --- ONNX -----------------------------------------------------------------------------------------------------------

GRAPHS = [
    ("a2c", "alrao", RAW, "discrete", "scale"),
    *slow(*((algo, "alrao", RAW, "discrete", "scale") for algo in ("dqn", "ppo"))),
    *only_long(*((algo, "stock", RAW, "discrete", "scale") for algo in ("dqn", "a2c", "ppo"))),
    *slow(
        ("dqn", "alrao", IMAGE, "discrete", False),
        ("qrdqn", "alrao", RAW, "discrete", True),
        ("a2c", "alrao", OBSERVATIONS["discrete"], "multi-discrete", False),
        ("ppo", "alrao", RAW, "multi-binary", False),
        ("ppo", "alrao", RAW, "box", True),
        ("a2c", "alrao", RAW, "sde", False),
        ("sac", "alrao", RAW, "box", True),
        ("sac", "alrao", RAW, "sde", False),
        ("td3", "alrao", IMAGE, "box", False),
        ("crossq", "alrao", RAW, "box", True),
        ("ppo", "alrao", DICT, "discrete", True),
    ),
    *only_long(("sac", "stock", RAW, "box", True), ("sac", "stock", RAW, "sde", False)),
    *only_long(("td3", "stock", RAW, "box", False), ("td3", "alrao", RAW, "box", False)),
    *only_long(("tqc", "alrao", RAW, "sde", True), ("ddpg", "alrao", RAW, "box", False)),
    *only_long(("crossq", "stock", RAW, "box", True), ("tqc", "stock", RAW, "sde", False)),
    *only_long(("ppo", "stock", RAW, "box", True), ("a2c", "stock", RAW, "sde", False)),
]


@pytest.mark.parametrize(("algo", "policy", "space", "actions", "normalize"), GRAPHS)
def test_onnx_acts_as_load_agent_does(tmp_path, capfd, algo, policy, space, actions, normalize):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    agent = make_agent(algo, policy, normalize_observations=normalize)
    if actions == "sde":
        actions, agent.hyperparameters["use_sde"] = "box", True
    save_agent(make_model(agent, space, ACTIONS[actions], steps=32), agent, tmp_path / "agent", timestep=32)
    for _ in range(2):  # its own file it replaces
        assert main([str(tmp_path), "--to", "onnx"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    names = list(space.spaces) if isinstance(space, spaces.Dict) else ["observation"]
    assert out.splitlines()[0] == f"written: {tmp_path / 'agent.onnx'}, from {', '.join(names)} to action, scores"
    image = "observation (batch, 1, 36, 36)" if space is IMAGE else "image (batch, 1, 36, 36)" if space is DICT else ""
    said = f"images have their channels first, whatever the environment's order: {image}"
    assert out.count("images have") == 2 * bool(image)
    assert out.count(said) == 2 * bool(image)
    session = onnxruntime.InferenceSession(tmp_path / "agent.onnx")
    model = load_agent(tmp_path)
    assert [one.name for one in session.get_inputs()] == names
    observations = samples(model.observation_space, 20)
    rows = [one if isinstance(one, dict) else {"observation": one} for one in observations]
    batch = {name: np.stack([row[name] for row in rows]) for name in names}
    action, scores = session.run(None, batch)
    given = batch if isinstance(space, spaces.Dict) else batch["observation"]
    expected = model.predict(given, deterministic=True)[0]
    if actions == "box":
        np.testing.assert_allclose(action, expected, atol=1e-5)
    else:
        np.testing.assert_array_equal(action, expected)
    np.testing.assert_allclose(scores, scores_of(model, given), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2), (3, 1), (1, 3)])
def test_onnx_of_actions_of_several_dimensions(tmp_path, capfd, shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    agent = make_agent("ppo")
    low = np.linspace(-0.1, 0.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    model = make_model(agent, RAW, spaces.Box(low, low + 0.05), steps=16)
    save_agent(model, agent, tmp_path / "agent", timestep=16)
    assert main([str(tmp_path), "--to", "onnx"]) == 0
    observations = np.stack(samples(RAW, 3))
    action, scores = onnxruntime.InferenceSession(tmp_path / "agent.onnx").run(None, {"observation": observations})
    expected = load_agent(tmp_path).predict(observations, deterministic=True)[0]
    assert action.shape == scores.shape == (3, *shape)
    np.testing.assert_allclose(action, expected, atol=1e-5)


@pytest.mark.slow
def test_onnx_of_a_part_that_is_named_as_an_output(tmp_path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    agent, space = make_agent("ppo"), spaces.Dict({"action": RAW, "n": spaces.Discrete(4)})
    save_agent(make_model(agent, space, ACTIONS["discrete"], steps=16), agent, tmp_path / "agent", timestep=16)
    assert main([str(tmp_path), "--to", "onnx"]) == 0
    assert "from action_input, n to action, scores" in capfd.readouterr().out
    observation = {name: np.asarray(value)[None] for name, value in space.sample().items()}
    fed = {"action_input" if name == "action" else name: value for name, value in observation.items()}
    action, _ = onnxruntime.InferenceSession(tmp_path / "agent.onnx").run(None, fed)
    assert action == load_agent(tmp_path).predict(observation, deterministic=True)[0]


def scores_of(model, observations):
    """From the policy itself, heads and all."""
    policy, (tensor, _) = model.policy, model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        for name in ("q_net", "quantile_net"):
            if hasattr(policy, name):
                values = getattr(policy, f"{name}_average", getattr(policy, name))(tensor)
                return values if name == "q_net" else values.mean(1)
        if hasattr(policy, "actor"):
            actor = policy.actor
            if hasattr(actor, "latent_pi"):
                return actor.get_action_dist_params(tensor)[0]
            return actor.mu[:-1](actor.extract_features(tensor, actor.features_extractor))
        features = policy.extract_features(tensor, policy.pi_features_extractor)
        return policy.action_net(policy.mlp_extractor.forward_actor(features))


def test_onnx_refuses_what_it_cannot_do(tmp_path, capfd, monkeypatch):
    agent = make_agent("recurrent-ppo")
    save_agent(make_model(agent, RAW, ACTIONS["discrete"], steps=0), agent, tmp_path / "agent", timestep=0)
    assert main([str(tmp_path), "--to", "onnx", "--out", str(tmp_path / "x.zip")]) == 2
    assert "expected a file name that ends in .onnx" in capfd.readouterr().err
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert main([str(tmp_path), "--to", "onnx"]) == 2
    assert "--to onnx needs onnx and onnxscript; install them with: pip install" in capfd.readouterr().err
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: object())
    assert main([str(tmp_path), "--to", "onnx"]) == 2
    assert "--to onnx does not support RecurrentPPO, expected DQN, A2C, PPO, QRDQN" in capfd.readouterr().err
    agent = make_agent("ppo")
    save_agent(make_model(agent, RAW, ACTIONS["discrete"], steps=0), agent, tmp_path / "agent", timestep=0)
    (tmp_path / "agent.onnx").write_bytes(b"mine")
    assert main([str(tmp_path), "--to", "onnx"]) == 2
    assert "exists already and is not an export of alrao-rl" in capfd.readouterr().err
    assert (tmp_path / "agent.onnx").read_bytes() == b"mine"
