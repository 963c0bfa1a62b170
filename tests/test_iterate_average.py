"""The running average of a network: against a slow reference, for every kind of parameter and buffer."""

import pytest
import torch
from torch import nn

from alrao_rl.core import Output
from alrao_rl.fast import AlraoOptimizer, convert
from alrao_rl.plain import averaged
from alrao_rl.sb3.running_average import follow


def network(kind="values", **options):
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)]
    return convert(nn.Sequential(*layers), {"3": Output(kind, rule="uniform")}, {"n_heads": 3, "seed": 1} | options)


def train(net, steps):
    """Yield after every update; the weights of the heads move as well."""
    optimizer = AlraoOptimizer(net)
    for t in range(steps):
        loss = net(torch.randn(16, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            net[3].averaging_weights.copy_(torch.softmax(torch.randn(3), 0))
        yield t + 1


def reference(net):
    """The function of a network as one flat vector of a plain network's parameters and buffers."""
    heads = net[3]
    weight = sum(a * w for a, w in zip(heads.averaging_weights, heads.weight, strict=True))
    bias = sum(a * b for a, b in zip(heads.averaging_weights, heads.bias, strict=True))
    norm = [net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var]
    return torch.cat([t.detach().flatten() for t in (net[0].weight, net[0].bias, *norm, weight, bias)])


def flat(plain):
    norm = [plain[1].weight, plain[1].bias, plain[1].running_mean, plain[1].running_var]
    return torch.cat([t.flatten() for t in (plain[0].weight, plain[0].bias, *norm, plain[3].weight, plain[3].bias)])


@pytest.mark.parametrize("window", [1, 4, 1000])
def test_follows_as_by_hand(window):
    net = network()
    plain = averaged(net)
    expected = reference(net)
    for n in train(net, 40):
        follow(plain, net, n, window)
        expected = expected + max(10 / (n + 9), 1 / window) * (reference(net) - expected)
        torch.testing.assert_close(flat(plain), expected)
        assert plain[1].num_batches_tracked == net[1].num_batches_tracked == n


def test_a_long_window_averages_the_last_tenth():
    """Iterates 1 … T of one number: Σ over a tenth of the updates behind T, so the lag is about T/10."""
    net = network()
    plain = averaged(net)
    for n in range(1, 1001):
        nn.init.constant_(net[0].bias, n)
        follow(plain, net, n, 10**9)
    # Σ n w(n) in closed form, T → ∞; every tenth iterate towards the end makes it a little younger.
    assert plain[0].bias[0].item() == pytest.approx(1000 * 10 / 11, rel=0.02)


def test_some_hundred_iterates_make_the_average():
    net = network()
    plain = averaged(net)
    moved = []
    for n in range(1, 1201):
        before = plain[0].bias.clone()
        nn.init.constant_(net[0].bias, n)
        follow(plain, net, n, 400)
        if not torch.equal(before, plain[0].bias):
            moved.append(n)
    assert moved[:200] == list(range(1, 201))  # every update, then every second, third …
    assert moved[-100:] == list(range(804, 1201, 4))
    assert plain[0].bias[0].item() == pytest.approx(1200 * 10 / 11, rel=0.02)


def test_a_first_update_forgets_what_was_there():
    net = network()
    plain = averaged(net)
    nn.init.constant_(plain[0].bias, float("nan"))
    follow(plain, net, 1, 1000)
    assert torch.equal(plain[0].bias, net[0].bias)


def test_shared_modules_move_once():
    shared = nn.Linear(4, 4)
    net = convert(nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 1)), {"4": "values"}, {"seed": 1})
    plain = averaged(net)
    assert plain[0] is plain[2]
    nn.init.zeros_(plain[0].bias)
    nn.init.ones_(net[0].bias)
    follow(plain, net, 11, 1000)
    torch.testing.assert_close(plain[0].bias, torch.full((4,), 0.5))


def test_a_broken_head_does_not_reach_the_average():
    net = network()
    plain = averaged(net)
    nn.init.constant_(net[3].weight[1], float("nan"))
    follow(plain, net, 2, 1000)
    assert all(p.isfinite().all() for p in plain.parameters())


def test_an_average_of_probabilities_is_not_followed():
    net = network("categorical")
    with pytest.raises(ValueError, match="'categorical' average probabilities"):
        follow(averaged(net), net, 2, 1000)
