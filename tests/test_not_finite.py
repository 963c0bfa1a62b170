"""Numbers that are not finite, in real runs: from the environment they fail a run, in a head they cost it that head."""

import json
import re
import shutil
import warnings

import pytest
import torch
from stable_baselines3 import A2C
from test_checkpoint import arguments
from torch import nn

from alrao_rl import AlraoPolicy
from alrao_rl.agents.file import read_agent
from alrao_rl.checks import SkippedUpdateWarning
from alrao_rl.core import AlraoOptimizer, convert
from alrao_rl.enjoy import main as enjoy
from alrao_rl.train.callback import TrainingCallback
from alrao_rl.train.command import main

pytestmark = pytest.mark.usefixtures("backend")
ODD = '''
import shutil
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Odd(gym.Env):
    """Ten steps an episode; the 120th step of the one with seed 0 gives what it is told, and copies the agent."""

    metadata = {"render_modes": []}

    def __init__(self, reward="1", observation="0", dtype="float32", run="", continuous=False):
        self.action_space = spaces.Box(-1.0, 1.0, (1,)) if continuous else spaces.Discrete(2)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.dtype(dtype))
        self.first, self.reward, self.observation, self.run, self.total = False, reward, observation, run, 0

    def observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.first = self.first or seed == 0
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        observation, reward = self.observe(), float(np.sum(action))
        if self.first and self.total == 120:
            observation[1] += float(self.observation)
            reward += float(self.reward)
            if self.run:
                shutil.copy(f"{self.run}/agent.safetensors", f"{self.run}.before")
        return observation, reward, self.steps == 10, False, {}

gym.register("Odd-v0", Odd)
'''
# SB3's explained variance, which is only logged.
OVERFLOW = pytest.mark.filterwarnings("ignore:.*(overflow|invalid value) encountered.*:RuntimeWarning")
ENVIRONMENTS = {"dqn": 1, "a2c": 4, "ppo": 4}
CONTINUOUS = ("sac", "td3", "tqc", "crossq")


@pytest.fixture
def odd(install):
    install("odd", ODD)
    return "odd:Odd-v0"


@pytest.fixture
def watched(monkeypatch):
    """What of the network was ever not finite, seen at every step."""
    found, on_step = [], TrainingCallback._on_step

    def step(self):
        state = self.model.policy.state_dict()
        found.extend((self.num_timesteps, name) for name, value in state.items() if not value.isfinite().all())
        return on_step(self)

    monkeypatch.setattr(TrainingCallback, "_on_step", step)
    return found


def finite(out):
    for name in ("agent", "last"):
        for key, value in read_agent(out / f"{name}.safetensors")[1].items():
            assert torch.as_tensor(value).isfinite().all(), key


def given(algo, *kwargs):
    """The option for the environment's arguments; actions are those that the algorithm takes."""
    return ["--env-kwargs", ", ".join([*kwargs, f"continuous={str(algo in CONTINUOUS).lower()}"])]


ODDITIES = [
    ('reward="nan"', "the reward is nan at step 120 of the environment"),
    ('reward="-inf"', "the reward is -inf at step 120 of the environment"),
    ('reward="1e39"', "the reward is 1e+39 at step 120 of the environment"),
    ('observation="nan"', "the observation (nan) is not finite at step 120 of the environment"),
    ('observation="1e39", dtype="float64"', "the observation (1e+39) is not finite at step 120 of the environment"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "kwargs", "reason"),
    [(algo, *one) for one in ODDITIES for algo in ENVIRONMENTS]
    + [(algo, *one) for algo, one in zip(CONTINUOUS, ODDITIES, strict=False)],
)
def test_from_the_environment(odd, tmp_path, capfd, watched, algo, kwargs, reason):
    """It fails the run before the next update, with step and value, and the best agent so far is as it was."""
    out = tmp_path / "run"
    sets = ["learning_starts=50"] if algo not in ("a2c", "ppo") else []
    args = [*arguments(algo, odd, 1000, *sets), *given(algo, kwargs, f'run="{out}"')]
    assert main([*args, "--out", str(out)]) == 1
    step = 119 * ENVIRONMENTS.get(algo, 1)
    assert f"error: the run failed at step {step}: NonFiniteError: {reason}; see" in capfd.readouterr().err
    status = json.loads((out / "status.json").read_text())
    assert status == {"state": "failed", "reason": f"NonFiniteError: {reason}", "timestep": step}
    assert (out / "agent.safetensors").read_bytes() == (tmp_path / "run.before").read_bytes()
    assert watched == []


@pytest.mark.slow
@OVERFLOW
@pytest.mark.parametrize("algo", [*ENVIRONMENTS, *CONTINUOUS])
def test_a_huge_reward(odd, tmp_path, capfd, watched, algo):
    """One among normal ones: the run goes on, and nothing of its network is ever not finite."""
    out = tmp_path / "run"
    assert main([*arguments(algo, odd, 1000), *given(algo, 'reward="1e30"'), "--out", str(out)]) == 0
    err = capfd.readouterr().err.splitlines()
    if algo in ("dqn", "tqc"):  # their losses grow linearly
        assert err == []
    else:
        check_skipped(out, err[0])
    assert "e+30" in (out / "episodes.csv").read_text()
    assert watched == []
    finite(out)


@pytest.mark.slow
@OVERFLOW
@pytest.mark.parametrize(
    ("algo", "rates", "lost", "skipped"),
    [
        ("dqn", "[1e5, 1e6]", False, False),
        ("a2c", "[1e5, 1e6]", False, False),
        ("ppo", "[1e5, 1e6]", False, False),
        ("dqn", "[1e29, 1e30]", False, False),  # its loss grows linearly
        ("a2c", "[1e29, 1e30]", False, True),  # all at once: the fault may be in the data
        ("ppo", "[1e-3, 1e30]", True, True),
        ("sac", "[1e5, 1e6]", False, False),
        ("sac", "[1e29, 1e30]", False, True),
        ("td3", "[1e5, 1e6]", False, False),
        ("td3", "[1e-3, 1e30]", True, True),
        ("tqc", "[1e29, 1e30]", False, False),
        ("crossq", "[1e5, 1e6]", True, True),  # of its rates those of scales, too
    ],
)
def test_heads_diverge(tmp_path, capfd, watched, algo, rates, lost, skipped):
    """The average stays finite, the agent acts, and what was lost or skipped is said once."""
    out = tmp_path / "run"
    env = "Pendulum-v1" if algo in CONTINUOUS else "CartPole-v1"
    args = arguments(algo, env, 600, f"alrao.lr_range={rates}")
    assert main([*args, "--out", str(out)]) == 0
    err = capfd.readouterr().err.splitlines()
    assert watched == []
    finite(out)
    if lost:
        line = err.pop(0)
        times = int(line.removeprefix("warning: ").split()[0])
        last = [line.split(",") for line in (out / "heads.csv").read_text().splitlines()[1:]]
        end = last[-1][0]
        assert 0 < times <= sum(int(row[5]) for row in last if row[0] == end)
        assert "output heads became non-finite and were re-cloned from the average" in line
    if skipped:
        check_skipped(out, err.pop(0))
    assert err == []
    assert enjoy([str(out), "--episodes", "1"]) == 0
    shutil.rmtree(out)


def check_skipped(out, line):
    """That a run's warning and its status tell of the same updates."""
    times, total = re.match(
        r"warning: (\d+) of (\d+) updates? (?:was|were) skipped, wholly or in part: a loss", line
    ).groups()
    assert 0 < int(times) < int(total)
    assert json.loads((out / "status.json").read_text())["skipped_updates"] == int(times)


@pytest.mark.parametrize("steps", [30, 2000])
def test_a_run_that_skips_every_update_fails(tmp_path, capfd, steps):
    """The standard deviation of one advantage is nan: what stock fails of at once; at the end, or after 100 updates."""
    out = tmp_path / "run"
    args = arguments("a2c", "CartPole-v1", steps, "n_steps=1", "normalize_advantage=true", "n_envs=1")
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert main([*args, "--out", str(out)]) == 1
    status = json.loads((out / "status.json").read_text())
    updates = 30 if steps == 30 else 119  # evaluations come every 40 steps, before the update of their step
    reason = f"FloatingPointError: all {updates} updates were skipped: the loss or the gradient was nan or infinite, as"
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"{reason} where advantages are normalised over a single step (")
    assert f"error: the run failed at step {status['timestep']}: {reason}" in capfd.readouterr().err


def test_in_python_a_skipped_update_warns_once_and_is_counted():
    model = A2C(AlraoPolicy, "CartPole-v1", n_steps=1, normalize_advantage=True, device="cpu", seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(20)
    (warning,) = [str(one.message) for one in caught if one.category is SkippedUpdateWarning]
    assert warning.startswith("update 1 was skipped: its loss or the gradient is nan or infinite, as where advantages")
    assert [layer["skipped"] for layer in model.policy.alrao_stats().values()] == [20, 20]


@pytest.mark.parametrize("base", ["rmsprop", "adam", "feature-normalized", "sgd"])
def test_only_what_is_not_finite_is_skipped(base):
    """Of five updates the third has a loss of nan, the fourth a gradient whose square overflows in 32 bits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    convert(net, {"2": "values"}, {"base": base, "lr_range": (1e-3, 1e-2)})
    optimizer, moved = AlraoOptimizer(net), []
    for scale in (1.0, 1.0, float("nan"), 1e25, 1.0):
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        (net(torch.ones(1, 3)).square().sum() * scale).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error" if optimizer.skipped else "ignore", SkippedUpdateWarning)
            optimizer.step()
        moved.append(any(not torch.equal(p, q) for p, q in zip(net[0].parameters(), before, strict=False)))
    assert optimizer.skipped == 2
    momentum = base == "adam"
    assert moved == [True, True, momentum, momentum, True]
    for value in [*net.state_dict().values(), *next(iter(optimizer.state.values())).values()]:
        assert value.isfinite().all()
