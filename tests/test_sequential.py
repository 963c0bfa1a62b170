"""The lean Sequential computes what torch's does, and calls whoever hooked in."""

import copy

import pytest
import torch
from stable_baselines3 import A2C, DQN
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from alrao_rl import AlraoPolicy
from alrao_rl.sb3.sequential import LeanSequential, use_lean_sequentials


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
    use_lean_sequentials(lean)
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
    use_lean_sequentials(net)
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
