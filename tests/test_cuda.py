"""On a GPU: the same updates as on the CPU, files that go either way, exact continuing."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from common import arguments
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from test_checkpoint import continues_exactly, train  # noqa: F401  the fixture
from test_contrib import Masked
from test_policies import ACTIONS, IMAGE, OBSERVATIONS, VECTOR, RandomEnv, policy_for
from torch import nn

import alrao_rl
from alrao_rl import load_agent
from alrao_rl.core import Output
from alrao_rl.fast import AlraoOptimizer, convert
from alrao_rl.train.command import main

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # SB3's advice that a GPU does not pay for small actor-critics.
    pytest.mark.filterwarnings("ignore:You are trying to run"),
]
contrib = pytest.importorskip("sb3_contrib")
REPLAY = {"learning_starts": 64, "buffer_size": 200, "train_freq": 64, "batch_size": 16}
ROLLOUT = {"n_steps": 32, "batch_size": 16, "n_epochs": 2}
ALGORITHMS = {
    "dqn": (DQN, "AlraoPolicy", REPLAY),
    "qrdqn": (contrib.QRDQN, "AlraoQRDQNPolicy", REPLAY | {"policy_kwargs": {"n_quantiles": 5}}),
    "a2c": (A2C, "AlraoPolicy", {"n_steps": 32}),
    "ppo": (PPO, "AlraoPolicy", ROLLOUT),
    "recurrent": (contrib.RecurrentPPO, "AlraoLstmPolicy", ROLLOUT | {"policy_kwargs": {"lstm_hidden_size": 8}}),
    "maskable": (contrib.MaskablePPO, "AlraoMaskablePolicy", ROLLOUT),
}


def make(kind, device, env=None, policy=None, **kwargs):
    algorithm, usual, options = ALGORITHMS[kind]
    env = env or (Masked(spaces.Discrete(3)) if kind == "maskable" else RandomEnv())
    return algorithm(policy or getattr(alrao_rl, usual), env, seed=0, device=device, **options | kwargs)


def trained_on_the_same(kind, **kwargs):
    """Two models after equal updates on equal data, on the CPU and on the GPU; the data is gathered on the CPU."""
    cpu = make(kind, "cpu", **kwargs)
    update, data = cpu.train, {}

    def keep(*args, **kwargs):
        if not data:
            name = "replay_buffer" if isinstance(cpu, OffPolicyAlgorithm) else "rollout_buffer"
            state = {key: value.clone() for key, value in cpu.policy.state_dict().items()}
            data.update(name=name, buffer=copy.deepcopy(getattr(cpu, name)), state=state, args=args, kwargs=kwargs)
            np.random.seed(0)
            update(*args, **kwargs)

    cpu.train = keep
    cpu.learn(96 if isinstance(cpu, OffPolicyAlgorithm) else 32)
    gpu = make(kind, DEVICE, **kwargs)
    gpu.policy.load_state_dict(data["state"])
    gpu.set_logger(cpu.logger)
    gpu._current_progress_remaining = 1.0
    data["buffer"].device = gpu.device
    setattr(gpu, data["name"], data["buffer"])
    np.random.seed(0)
    gpu.train(*data["args"], **data["kwargs"])
    return cpu, gpu


def assert_close(cpu, gpu, before):
    """Both moved alike: they are far nearer to each other than to where they began.

    Not entry by entry: the first direction of a gradient near 0 is its sign, which rounding decides on.
    """
    assert all(parameter.device.type == DEVICE for parameter in gpu.policy.parameters())
    found = gpu.policy.state_dict()
    moved = 0
    for name, value in cpu.policy.state_dict().items():
        distance, step = (found[name].cpu() - value).double().norm(), (value - before[name]).double().norm()
        assert distance <= 0.02 * step + 1e-6 * value.double().norm(), f"{name}: {distance} of {step}"
        moved += step > 0
    assert moved > 5


@pytest.fixture(autouse=True)
def _no_short_mantissas(monkeypatch):
    """Of ten bits, by which convolutions and LSTMs on a GPU multiply unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_same_update_as_on_the_cpu(kind):
    cpu, gpu = trained_on_the_same(kind)
    assert_close(cpu, gpu, make(kind, "cpu").policy.state_dict())


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_images(kind):
    policy = policy_for(IMAGE)
    options = {"env": RandomEnv(IMAGE), "policy": policy}
    cpu, gpu = trained_on_the_same(kind, **options)
    assert_close(cpu, gpu, make(kind, "cpu", **options).policy.state_dict())


@pytest.mark.parametrize("actions", ["multi-discrete", "multi-binary", "box"])
@pytest.mark.parametrize("observations", ["vector", "dict"])
def test_spaces(observations, actions):
    observations, actions = OBSERVATIONS[observations], ACTIONS[actions]
    options = {"env": RandomEnv(observations, actions), "policy": policy_for(observations)}
    cpu, gpu = trained_on_the_same("ppo", **options)
    assert_close(cpu, gpu, make("ppo", "cpu", **options).policy.state_dict())


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_learns_and_its_file_goes_either_way(kind, tmp_path):
    model = make(kind, DEVICE).learn(128)
    observations = np.stack([VECTOR.sample() for _ in range(20)])
    if kind == "maskable":
        observations = np.stack([model.observation_space.sample() for _ in range(20)])
    actions, _ = model.predict(observations, deterministic=True)
    model.save(tmp_path / "model")
    env = model.get_env()
    for device in ("cpu", DEVICE):
        loaded = type(model).load(tmp_path / "model", env=env, device=device)
        assert (loaded.predict(observations, deterministic=True)[0] == actions).all()
        loaded.save(tmp_path / "again")
        type(model).load(tmp_path / "again", env=env, device=DEVICE).learn(64)
        loaded.learn(64)
        assert all(p.isfinite().all() for p in loaded.policy.parameters())


@pytest.mark.parametrize("base", ["rmsprop", "adam", "sgd", "feature-normalized"])
@pytest.mark.parametrize("rule", ["switch", "bayes", "exponentiated-gradient", "whiteness", "uniform"])
@pytest.mark.parametrize("kind", ["values", "categorical", "bernoulli"])
def test_core(kind, rule, base):
    """Twenty updates in float64, one head lost on the way, agree but for what is float32 anyway: rates, counts."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    convert(network, {"2": Output(kind, rule=rule)}, {"n_heads": 5, "lr_range": (1e-4, 1e-1), "base": base})
    networks = [network, copy.deepcopy(network).to(DEVICE)]
    x, y = torch.randn(20, 16, 4, dtype=torch.float64), torch.randn(20, 16, 3, dtype=torch.float64)
    for one, device in zip(networks, ("cpu", DEVICE), strict=True):
        optimizer = AlraoOptimizer(one)
        for step in range(20):
            output, target = one(x[step].to(device)), y[step].to(device)
            loss = {
                "values": lambda: nn.functional.mse_loss(output, target),  # noqa: B023
                "categorical": lambda: nn.functional.nll_loss(output, target.argmax(1)),  # noqa: B023
                "bernoulli": lambda: nn.functional.binary_cross_entropy_with_logits(output, (target > 0).double()),  # noqa: B023
            }[kind]()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 9:
                with torch.no_grad():
                    one[2].theta[1] = float("nan")
        assert optimizer.reclones(one[2], "lost").sum() == 1
    for (name, value), other in zip(networks[0].state_dict().items(), networks[1].state_dict().values(), strict=True):
        torch.testing.assert_close(other.cpu(), value, rtol=1e-5, atol=1e-7, msg=lambda m: f"{name}: {m}")  # noqa: B023


# As in test_checkpoint.py, which has the function that breaks a run off.
RUNS = [
    ("dqn", "CartPole-v1", 450, (90, 400), []),
    ("a2c", "CartPole-v1", 800, (300, 700), ["normalize_observations=true"]),
    ("ppo", "CartPole-v1", 1024, (900,), []),
    ("ppo", "Pendulum-v1", 1024, (950,), ["use_sde=true"]),
    ("recurrent-ppo", "CartPoleNoVel-v1", 1024, (950,), []),
]


@pytest.mark.parametrize(("agent", "env", "steps", "stops", "sets"), RUNS, ids=lambda value: str(value))
def test_continued_run_is_the_same(train, tmp_path, capfd, agent, env, steps, stops, sets):  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        continues_exactly(train, tmp_path, capfd, [*arguments(agent, env, steps, *sets), "--device", DEVICE], stops)


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_run_folder_is_for_every_machine(agent, tmp_path, capfd):
    run = tmp_path / "run"
    assert main([*arguments(agent, "CartPole-v1", 600), "--device", DEVICE, "--out", str(run)]) == 0
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    cpu, gpu = (load_agent(run, device=device) for device in ("cpu", DEVICE))
    assert (cpu.predict(observations, deterministic=True)[0] == gpu.predict(observations, deterministic=True)[0]).all()
