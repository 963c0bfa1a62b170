"""Lean ways compute what torch's does, and calls whoever hooked in."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import QNetwork
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from alrao_rl import AlraoPolicy
from alrao_rl.sb3.shortcuts import LeanQNetwork, LeanSequential, make_lean


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def network():
    return nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5, bias=False), nn.ReLU(),
        nn.Sequential(nn.Linear(5, 4), nn.Sigmoid()),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.LayerNorm(4), nn.Dropout(0.5), Doubled(4, 2),
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_same_bits_as_torch(training):
    plain = network().train(training)
    lean = copy.deepcopy(plain)
    make_lean(lean)
    assert type(lean) is type(lean[4]) is LeanSequential
    x = torch.randn(7, 3)
    results = []
    for net in (plain, lean):
        torch.manual_seed(0)
        out = net(x)
        out.sum().backward()
        results.append((out, *(p.grad for p in net.parameters())))
    assert all(map(torch.equal, *results))
    assert plain.state_dict().keys() == lean.state_dict().keys()


def test_hooks_are_called():
    net, seen = network(), []
    make_lean(net)
    net[0].register_forward_hook(lambda module, args, out: seen.append("forward"))
    net[1].register_forward_pre_hook(lambda module, args: seen.append("before"))
    net[2].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    net(torch.randn(2, 3)).sum().backward()
    assert seen == ["forward", "before", "backward"]
    everything = []
    handle = register_module_forward_hook(lambda module, args, out: everything.append(type(module)))
    try:
        net(torch.randn(2, 3))
    finally:
        handle.remove()
    assert everything.count(nn.Tanh) == 1
    assert nn.Linear in everything


@pytest.mark.parametrize("algorithm", [DQN, A2C])
def test_policies_use_it(algorithm, tmp_path):
    model = algorithm(AlraoPolicy, "CartPole-v1", device="cpu")
    kinds = {type(module) for module in model.policy.modules() if isinstance(module, nn.Sequential)}
    assert kinds == {LeanSequential}
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert {type(module) for module in loaded.policy.modules() if isinstance(module, nn.Sequential)} == {LeanSequential}


@pytest.mark.parametrize("algorithm", [DQN, A2C])
def test_observations_that_are_features_pass_as_they_are_and_hooks_are_called(algorithm):
    policy = algorithm(AlraoPolicy, "CartPole-v1", device="cpu").policy
    network = policy.q_net if algorithm is DQN else policy
    assert not isinstance(network, QNetwork) or type(network) is LeanQNetwork
    x, seen = torch.randn(5, 4), []
    assert network.extract_features(x, network.features_extractor) is x
    assert network.extract_features(x.double(), network.features_extractor).dtype == torch.float32
    handle = network.features_extractor.register_forward_hook(lambda module, args, out: seen.append(1) or 2 * out)
    assert torch.equal(network.extract_features(x, network.features_extractor), 2 * x)
    handle.remove()
    network.features_extractor.flatten.register_forward_hook(lambda module, args, out: seen.append(2))
    network.extract_features(x, network.features_extractor)
    assert seen == [1, 2]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(0, 255, (4,), dtype=np.uint8),
        spaces.Discrete(3),
        spaces.MultiBinary(3),
    ],
)
def test_other_observations_are_preprocessed_as_ever(space):
    policy = A2C(AlraoPolicy, FakeEnv(space), device="cpu").policy
    obs = torch.as_tensor(np.stack([space.sample(), space.sample()]))
    expected = ActorCriticPolicy.extract_features(policy, obs)
    assert torch.equal(policy.extract_features(obs), expected)
    assert expected.dtype == torch.float32


class FakeEnv(gym.Env):
    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_a_forward_of_ones_own_and_a_weight_that_is_no_parameter():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    make_lean(net)
    x, called = torch.randn(2, 3), []
    net[1].forward = lambda x: called.append(1) or x
    weight = net[2].weight.detach() * 2
    del net[2].weight
    net[2].weight = weight
    torch.testing.assert_close(net(x), nn.functional.linear(net[0](x), weight, net[2].bias))
    assert called == [1]
