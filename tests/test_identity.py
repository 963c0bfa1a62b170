"""Degenerate identity: with one head and one learning rate, Alrao is the stock algorithm.

Clipping is off on both sides (stock clips heads and trunk together, Alrao apart), the activation and the optimizer's ε
are the same. Compared update by update, up to the first action that differs: rounding alone makes runs part ways.
"""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from alrao_rl import AlraoPolicy
from alrao_rl.core import OutputHeads

LENGTHS = pytest.mark.parametrize("steps", [300, pytest.param(2_000, marks=pytest.mark.slow)])


class ActionLog(gym.Wrapper):
    """Remember every action."""

    def __init__(self, env):
        super().__init__(env)
        self.actions = []

    def step(self, action):
        self.actions.append(torch.as_tensor(action).clone())
        return super().step(action)


def run(algorithm, policy, env, steps, policy_kwargs, prepare=None, **kwargs):
    """Train; return the actions and, for every update, how many actions came before it and the parameters after it."""
    env = ActionLog(gym.make(env) if isinstance(env, str) else env)
    model = algorithm(policy, env, seed=0, device="cpu", max_grad_norm=1e9, policy_kwargs=policy_kwargs, **kwargs)
    if prepare is not None:
        prepare(model)
    updates, optimize = [], model.policy.optimizer.step

    def record(*args, **options):
        result = optimize(*args, **options)
        updates.append((len(env.actions), parameters(model.policy)))
        return result

    model.policy.optimizer.step = record
    model.learn(steps)
    return env.actions, updates


def parameters(policy):
    """By the stock policy's names, the first head's without its leading dimension."""
    found = {}
    for name, p in policy.named_parameters():
        parent = policy.get_submodule(name.rpartition(".")[0])
        if name.endswith("theta"):
            found[name.replace("theta", "weight")] = parent.weight[0]
            found[name.replace("theta", "bias")] = parent.bias[0]
            if parent.extra is not None:
                found["log_std"] = parent.extra[0]
        elif not name.endswith("averaging_weights") and "_average." not in name:
            found[name] = p
    return {name: p.detach().clone() for name, p in found.items()}


def assert_identical(alrao, stock, lr):
    """Both runs agree up to the first action that differs.

    The first update to float rounding, which Adam makes larger where a gradient is small, the next 50 to a tenth of a
    single step, which is about ``lr`` in every base compared here, all others to one step: rounding grows, a difference
    in method is of the size of a step at once.
    """
    (actions, updates), (stock_actions, stock_updates) = alrao, stock
    assert len(actions) == len(stock_actions)
    pairs = zip(actions, stock_actions, strict=True)
    same = [torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3) for mine, theirs in pairs]
    until = same.index(False) if False in same else len(same)
    compared = 0
    for (n_actions, mine), (stock_n_actions, theirs) in zip(updates, stock_updates, strict=True):
        assert n_actions == stock_n_actions
        if n_actions > until:
            break
        atol = 1e-7 + lr / 2e3 if not compared else lr / 10 if compared < 50 else lr
        for name in mine.keys() | theirs.keys():
            torch.testing.assert_close(
                mine[name], theirs[name], rtol=0, atol=atol, msg=lambda m, n=name, k=compared: f"update {k}, {n}: {m}"
            )
        compared += 1
    assert compared > len(updates) / 5
    start, end = updates[0][1], updates[compared - 1][1]
    assert not any(torch.equal(start[name], end[name]) for name in start)


def one_rate(lr, base="adam", n_heads=1, **base_kwargs):
    return {"alrao": {"n_heads": n_heads, "lr_range": (lr, lr), "base": base, "base_kwargs": base_kwargs,
                      "head_max_grad_norm": None}}  # fmt: skip


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
@LENGTHS
def test_dqn(lr, steps):
    options = {"learning_starts": 100, "train_freq": 4, "target_update_interval": 100, "batch_size": 32}
    network = {"activation_fn": nn.Tanh}
    stock = run(DQN, "MlpPolicy", "CartPole-v1", steps, network, learning_rate=lr, **options)
    alrao = run(DQN, AlraoPolicy, "CartPole-v1", steps, network | one_rate(lr, eps=1e-8), **options)
    assert_identical(alrao, stock, lr)


@pytest.mark.parametrize("lr", [3e-4, 3e-3])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@LENGTHS
def test_ppo(env_id, lr, steps):
    options = {"n_steps": 256, "n_epochs": 4, "ent_coef": 0.01}
    stock = run(PPO, "MlpPolicy", env_id, steps, {}, learning_rate=lr, **options)
    alrao = run(PPO, AlraoPolicy, env_id, steps, one_rate(lr, eps=1e-5), **options)
    assert_identical(alrao, stock, lr)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@LENGTHS
def test_a2c(env_id, steps):
    """A2C's own optimizer, torch's RMSprop: ε outside the root, no bias correction."""
    stock = run(A2C, "MlpPolicy", env_id, steps, {}, learning_rate=7e-4)
    alrao = run(A2C, AlraoPolicy, env_id, steps, one_rate(7e-4, "rmsprop", eps=1e-5, eps_inside=False))
    assert_identical(alrao, stock, 7e-4)


@LENGTHS
def test_a2c_with_tensorflows_rmsprop(steps):
    """Alrao's default base, ε inside the root; TensorFlow's running mean starts at 1, Alrao's at 0."""

    def start_at_zero(model):
        optimizer = model.policy.optimizer
        for parameter in optimizer.param_groups[0]["params"]:
            optimizer.state[parameter] = {"step": 0, "square_avg": torch.zeros_like(parameter)}

    kwargs = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
    stock = run(A2C, "MlpPolicy", "CartPole-v1", steps, kwargs, start_at_zero, learning_rate=7e-4)
    alrao = run(A2C, AlraoPolicy, "CartPole-v1", steps, one_rate(7e-4, "rmsprop", eps=1e-5))
    assert_identical(alrao, stock, 7e-4)


class Sums(gym.Env):
    """A reward that depends on every component of the action; episodes of ten steps."""

    def __init__(self, action_space):
        self.observation_space, self.action_space = gym.spaces.Box(-1, 1, (3,)), action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action.sum()), self.steps == 10, False, {}

    def _observe(self):
        return self.np_random.uniform(-1, 1, 3).astype("float32")


@pytest.mark.parametrize(
    ("action_space", "options"),
    [
        (gym.spaces.MultiDiscrete([2, 3]), {}),
        (gym.spaces.MultiBinary(3), {}),
        (gym.spaces.Box(-1, 1, (2,)), {}),
        (gym.spaces.Box(-1, 1, (2,)), {"use_sde": True, "sde_sample_freq": 4}),
    ],
)
def test_ppo_in_every_action_space(action_space, options):
    options = {"n_steps": 64, "n_epochs": 4, "batch_size": 16, "ent_coef": 0.01, **options}
    stock = run(PPO, "MlpPolicy", Sums(action_space), 300, {}, learning_rate=1e-3, **options)
    alrao = run(PPO, AlraoPolicy, Sums(action_space), 300, one_rate(1e-3, eps=1e-5), **options)
    assert_identical(alrao, stock, 1e-3)


@pytest.mark.parametrize("algorithm", [DQN, A2C, PPO])
def test_identical_heads_of_one_rate_are_one_head(algorithm):
    """Each of them learns as if it alone were the output, so they stay alike, and so does their average."""

    def make_alike(model):
        for module in model.policy.modules():
            if isinstance(module, OutputHeads):
                module.theta.data[:] = module.theta.data[0].clone()
        if algorithm is DQN:
            model.q_net_target.load_state_dict(model.q_net.state_dict())
        models.append(model)

    models = []
    options = {
        DQN: {"learning_starts": 100, "train_freq": 4, "target_update_interval": 100, "batch_size": 32},
        A2C: {"use_rms_prop": False},
        PPO: {"n_steps": 128, "n_epochs": 4, "ent_coef": 0.01},
    }[algorithm]
    network, eps = {"activation_fn": nn.Tanh}, 1e-8 if algorithm is DQN else 1e-5
    stock = run(algorithm, "MlpPolicy", "CartPole-v1", 300, network, learning_rate=1e-3, **options)
    kwargs = network | one_rate(1e-3, n_heads=4, eps=eps)
    alrao = run(algorithm, AlraoPolicy, "CartPole-v1", 300, kwargs, make_alike, **options)
    assert_identical(alrao, stock, 1e-3)
    for layer in models[0].policy.alrao_layers().values():
        torch.testing.assert_close(layer.averaging_weights.detach(), torch.full((4,), 0.25))
        torch.testing.assert_close(layer.weight[0], layer.weight[3])


def test_another_rate_is_told_apart():
    """What the comparison is worth: one per cent more is not identical."""
    stock = run(A2C, "MlpPolicy", "CartPole-v1", 300, {}, learning_rate=7e-4)
    alrao = run(A2C, AlraoPolicy, "CartPole-v1", 300, one_rate(7.07e-4, "rmsprop", eps_inside=False))
    with pytest.raises(AssertionError, match="update 0"):
        assert_identical(alrao, stock, 7e-4)
