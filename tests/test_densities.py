"""Compiled log-densities are those of torch's Normal, in value and gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from alrao_rl.fast import densities, kernels
from alrao_rl.fast.densities import gaussian_log_prob

pytestmark = pytest.mark.skipif(kernels.library is None, reason="no compiled library here")


def normal(mean, log_std, actions):
    return Normal(mean, log_std.exp().unsqueeze(-2).expand_as(mean)).log_prob(actions).sum(-1)


def found(function, mean, log_std, actions):
    """Value and both gradients, for a random weight of each."""
    mean, log_std = (x.detach().clone().requires_grad_() for x in (mean, log_std))
    value = function(mean, log_std, actions)
    value.backward(torch.linspace(-1, 2, value.numel()).view_as(value))
    return value.detach(), mean.grad, log_std.grad


@pytest.fixture
def compiled(monkeypatch):
    """No other way than compiled code."""
    monkeypatch.setattr(densities, "_by_torch", None)


@given(
    branches=st.sampled_from([(), (1,), (11,)]),
    n=st.integers(0, 40),
    k=st.integers(1, 7),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients(branches, n, k, scale, seed):
    torch.manual_seed(seed)
    inputs = torch.randn(*branches, n, k), scale * torch.randn(*branches, k), torch.randn(n, k)
    fast = found(gaussian_log_prob, *inputs)
    torch.testing.assert_close(fast, found(normal, *inputs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast, found(densities._by_torch, *inputs), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(gaussian_log_prob(*inputs), fast[0])


def test_by_hand(compiled):
    """Half a nat for a deviation of one σ, and σ = e: log p = −½ − 1 − ½ log 2π."""
    value = gaussian_log_prob(torch.zeros(1, 1), torch.ones(1), torch.full((1, 1), torch.e))
    assert value.item() == pytest.approx(-1.5 - 0.9189385)


@pytest.mark.parametrize("view", ["transposed", "with gaps", "expanded"])
def test_layouts(view, compiled):
    torch.manual_seed(0)
    source, make = {
        "transposed": (torch.randn(4, 3, 6), lambda x: x.transpose(1, 2)),
        "with gaps": (torch.randn(4, 6, 6), lambda x: x[..., ::2]),
        "expanded": (torch.randn(4, 1, 3), lambda x: x.expand(4, 6, 3)),
    }[view]
    log_std, actions = torch.randn(3, 4), torch.randn(6, 6)[:, ::2]
    fast, slow = (
        found(lambda x, s, a, one=one: one(make(x), s.t(), a), source, log_std, actions)
        for one in (gaussian_log_prob, normal)
    )
    torch.testing.assert_close(fast, slow)


def test_what_is_no_number_shows(compiled):
    value, of_mean, of_log_std = found(
        gaussian_log_prob, torch.tensor([[[torch.nan]], [[0.0]]]), torch.tensor([[0.0], [torch.nan]]), torch.ones(1, 1)
    )
    assert value.isnan().all()
    assert of_mean.isnan().all()
    assert of_log_std.isnan().all()


def test_second_derivatives():
    """∂²/∂μ² = −1/σ², also where σ is held."""
    mean, log_std, actions = torch.zeros(2, 3, 1, requires_grad=True), torch.tensor([[0.0], [1.0]]), torch.ones(3, 1)
    for held in (log_std, log_std.clone().requires_grad_()):
        value = (gaussian_log_prob(mean, held, actions) * torch.tensor([[1.0], [2.0]])).sum()
        (gradient,) = torch.autograd.grad(value, mean, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), mean)
        torch.testing.assert_close(second, -torch.tensor([1.0, 2 * math.exp(-2)]).view(2, 1, 1).expand(2, 3, 1))


def test_an_input_that_depends_on_the_other():
    """With ``create_graph`` too, what reaches the mean by way of σ is counted once."""
    torch.manual_seed(0)
    source, actions = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2)

    def gradient(function):
        mean = source * 1
        value = function(mean, mean.mean(0) * 0.3, actions).sum()
        (first,) = torch.autograd.grad(value, source, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), source)[0]

    torch.testing.assert_close(gradient(gaussian_log_prob), gradient(normal))


def test_batches_of_gradients():
    """Jacobians, which pass many gradients at once."""
    log_std, actions = torch.randn(2), torch.randn(4, 2)
    fast, slow = (
        torch.autograd.functional.jacobian(
            lambda m, one=one: one(m, log_std, actions), torch.randn(4, 2) * 0, vectorize=True
        )
        for one in (gaussian_log_prob, normal)
    )
    torch.testing.assert_close(fast, slow)


def test_tangents():
    """Forward-mode derivatives are torch's."""
    mean, log_std, actions = torch.zeros(4, 2), torch.zeros(2), torch.ones(4, 2)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mean, torch.ones_like(mean))
        tangent = torch.autograd.forward_ad.unpack_dual(gaussian_log_prob(dual, log_std, actions)).tangent
    torch.testing.assert_close(tangent, torch.full((4,), 2.0))


def test_a_trace_sees_it():
    class Density(torch.nn.Module):
        def forward(self, mean, log_std, actions):
            return gaussian_log_prob(mean, log_std, actions)

    with torch.no_grad():
        traced = torch.jit.trace(Density(), (torch.zeros(4, 2), torch.zeros(2), torch.ones(4, 2)))
        inputs = torch.randn(4, 2), torch.randn(2), torch.randn(4, 2)
        torch.testing.assert_close(traced(*inputs), normal(*inputs))


def test_left_to_torch(monkeypatch):
    """Other precisions, many numbers, actions that are learned."""
    monkeypatch.setattr(densities, "_forward", None)
    mean, log_std, actions = torch.randn(2, 5, 3), torch.randn(2, 3), torch.randn(5, 3)
    for tensors in (
        (mean.double(), log_std.double(), actions.double()),
        (mean, log_std, actions.clone().requires_grad_()),
        (mean, log_std, torch.randn(3)),
    ):
        torch.testing.assert_close(gaussian_log_prob(*tensors), normal(*tensors))
    monkeypatch.setattr(densities, "MOST_NUMBERS", 29)
    torch.testing.assert_close(gaussian_log_prob(mean, log_std, actions), normal(mean, log_std, actions))


# --- importance weights ---------------------------------------------------------------------------------------------

WAYS = pytest.mark.parametrize("way", [gaussian_log_prob, densities._by_torch], ids=["compiled", "torch"])


@WAYS
def test_a_head_counts_by_its_density_beside_that_of_the_average(way):
    """By hand, at an action one σ beside the average's mean: A2C's gradient of (μ_j, log σ_j) is A·w·(z/σ_j, z² − 1).

    Heads: the average's own density; σ_j = ½, with a density 2·exp(−(4 − 1)/2) times as large; as far off again, with a
    mean at the action: exp(½) times; σ_j = 1/100 there: 100·exp(½) times, which counts as 10.
    """
    mean = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]).view(5, 1, 1).requires_grad_()
    log_std = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.01]).log().view(5, 1).requires_grad_()
    advantage = 3.0
    (advantage * way(mean, log_std, torch.ones(1, 1))).sum().backward()
    w = 2 * math.exp(-1.5)
    torch.testing.assert_close(mean.grad.flatten() / advantage, torch.tensor([1.0, 1.0, w * 4, 0.0, 0.0]))
    expected = torch.tensor([0.0, 0.0, w * 3, -math.exp(0.5), -10.0])
    torch.testing.assert_close(log_std.grad.flatten() / advantage, expected)


@WAYS
def test_a_loss_with_the_ratio_in_it_stays_as_it_is(way):
    """PPO's: ratios to the density at the time of acting have gradients of their own."""
    torch.manual_seed(0)
    inputs, old = (torch.randn(11, 8, 2), 0.3 * torch.randn(11, 2), torch.randn(8, 2)), torch.randn(8) - 3
    advantage = torch.randn(8)

    def gradients(function):
        mean, log_std = (x.detach().clone().requires_grad_() for x in inputs[:2])
        ratio = (function(mean, log_std, inputs[2]) - old).exp()
        (-torch.min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2)).mean(1)).sum().backward()
        return mean.grad, log_std.grad

    torch.testing.assert_close(gradients(way), gradients(normal))


def test_expected_gradients_are_those_of_on_policy_actions():
    """A constant advantage teaches nothing on average, however far a head is from the policy that acted.

    Without weights, log σ_j of a head with σ_j = ½ would fall at a rate of (σ/σ_j)² − 1 = 3 times the constant.
    """
    torch.manual_seed(0)
    mean = torch.tensor([0.0, 0.5]).view(2, 1, 1).expand(2, 40_000, 1).clone().requires_grad_()
    log_std = torch.tensor([[0.0], [math.log(0.5)]], requires_grad=True)
    (-gaussian_log_prob(mean, log_std, torch.randn(40_000, 1)).mean(1)).sum().backward()
    assert abs(log_std.grad[1].item()) < 0.05
    assert abs(mean.grad[1].sum().item()) < 0.05
