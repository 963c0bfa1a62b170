"""The averaged model as plain torch: it computes what the network computes, and torch's own tools follow it."""

import pytest
import torch
from stable_baselines3 import DQN
from torch import nn

from alrao_rl import AlraoOptimizer, AlraoPolicy, Output, averaged, convert
from alrao_rl.fast import OutputHeads

KINDS = [
    Output("values", rule="switch"),
    Output("mean", rule="uniform", extra=torch.zeros(4)),
    Output("categorical", rule="switch"),
    Output("categorical", rule="switch", splits=[3, 1]),
    Output("bernoulli", rule="uniform"),
]
kinds = pytest.mark.parametrize("output", KINDS, ids=lambda output: f"{output.kind}-{output.splits}")


def network(output, bias=True):
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4, bias)]
    return convert(nn.Sequential(*layers), {"3": output}, {"n_heads": 3, "seed": 1})


def trained(output, **options):
    net = network(output, **options)
    optimizer = AlraoOptimizer(net)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(16, 3)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        net[3].averaging_weights.copy_(torch.tensor([0.5, 0.2, 0.3]))
    return net


@kinds
@pytest.mark.parametrize("bias", [True, False])
def test_computes_what_the_network_computes_and_is_plain(output, bias):
    net = trained(output, bias=bias)
    state, modes = torch.get_rng_state(), [module.training for module in net.modules()]
    plain = averaged(net)
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in net.modules()] == modes
    assert isinstance(net[3], OutputHeads)
    assert not any(isinstance(module, OutputHeads) for module in plain.modules())
    assert not any("alrao" in name for name in plain.state_dict())
    assert not any(module.training for module in plain.modules())
    assert not any(p.requires_grad for p in plain.parameters())
    x = torch.randn(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net.eval()(x))
    assert type(plain(x)) is torch.Tensor
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in net.parameters()}


@kinds
def test_a_broken_head_is_left_out(output):
    net, x = trained(output), torch.randn(5, 3)
    nn.init.constant_(net[3].weight[1], float("nan"))
    with torch.no_grad():
        expected = net.eval()(x)
    assert expected.isfinite().all()
    torch.testing.assert_close(averaged(net)(x), expected)


@kinds
def test_torch_follows_it(output, tmp_path):
    plain, x = averaged(trained(output)), torch.randn(5, 3)
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.jit.save(torch.jit.trace(plain, x), tmp_path / "plain.pt")
    x = torch.randn(7, 3)
    for one in (program.module(), torch.jit.load(tmp_path / "plain.pt")):
        torch.testing.assert_close(one(x), plain(x))


def test_refuses():
    with pytest.raises(ValueError, match=r"Linear is not an Alrao network: pass it through convert\(\) first"):
        averaged(nn.Linear(1, 1))


def test_a_policy_of_dqn_names_its_network():
    policy = DQN(AlraoPolicy, "CartPole-v1", device="cpu").policy
    with pytest.raises(ValueError, match="AlraoDQNPolicy is not an Alrao network: take its q_net"):
        averaged(policy)
