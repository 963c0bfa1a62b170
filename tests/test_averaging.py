import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alrao_rl.core import averaging
from alrao_rl.core.averaging import (
    RULES,
    Bayes,
    Evidence,
    ExponentiatedGradient,
    Likelihood,
    Switch,
    Uniform,
    Whiteness,
    make_rule,
)
from alrao_rl.core.rates import head_rates

pytestmark = pytest.mark.usefixtures("way")

RATES = torch.tensor([1e-3, 1e-2, 1e-1])


def uniform(n=3):
    return torch.full((n,), 1.0 / n)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_uniform_never_moves():
    rule = Uniform(RATES)
    assert torch.equal(rule.step(uniform(), Evidence(gradient=torch.ones(3, 2))), uniform())


def test_bayes_by_hand():
    rule = Bayes(torch.tensor([1e-3, 1e-2]), discount=1.0)
    weights = rule.step(uniform(2), Evidence(nll=torch.tensor([0.0, -math.log(0.6), -math.log(0.2)])))
    assert weights.tolist() == pytest.approx([0.75, 0.25])
    weights = rule.step(weights, Evidence(nll=torch.tensor([0.0, -math.log(0.1), -math.log(0.9)])))
    assert weights.tolist() == pytest.approx([0.06 / (0.06 + 0.18), 0.18 / (0.06 + 0.18)])


def test_bayes_discount_by_hand():
    rule = Bayes(torch.tensor([1e-3, 1e-2]), discount=0.5)
    nll = torch.tensor([0.0, 0.0, math.log(4.0)])
    first = rule.step(uniform(2), Evidence(nll=nll))
    assert first.tolist() == pytest.approx([0.8, 0.2])
    second = rule.step(first, Evidence(nll=torch.zeros(3)))  # no evidence: square roots of 0.8 and 0.2
    assert second.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_switch_first_step_by_hand():
    theta, p = 0.9, (0.6, 0.2)
    rule = Switch(torch.tensor([1e-3, 1e-2]), theta=theta)
    weights = rule.step(uniform(2), Evidence(nll=torch.tensor([0.0, *(-math.log(q) for q in p)])))
    # w^a = θ/J, w^b = (1−θ)/J, times p; t = 1: hazard 1/2
    wa, wb = [theta / 2 * q for q in p], [(1 - theta) / 2 * q for q in p]
    pool = 0.5 * sum(wa)
    wa, wb = [0.5 * w + theta * pool / 2 for w in wa], [w + (1 - theta) * pool / 2 for w in wb]
    total = sum(wa) + sum(wb)
    assert weights.tolist() == pytest.approx([(a + b) / total for a, b in zip(wa, wb, strict=True)])


@pytest.mark.parametrize("known", ["residual", "loss"])
def test_switch_leaves_out_a_hopeless_head_until_it_does_better(known):
    rule, even = Switch(torch.tensor([1e-3, 1e-2, 1e-1]), n=2.0), [1.0, 1.0, 1.0]
    weights = uniform()
    for heads in ([1.0, 1.0, 1e6], [1.0, 1.0, math.inf]):
        weights = rule.step(weights, Evidence(**{known: torch.tensor([1.0, *heads])}))
        assert weights.tolist() == pytest.approx([0.5, 0.5, 0.0])
        assert weights[2] == 0
    assert rule.mixture[:, 2].sum() > 0.05  # what the rule knows of it is what the prior leaves to it
    weights = rule.step(weights, Evidence(**{known: torch.tensor([1.0, *even])}))
    assert weights[2] > 0.05
    assert weights.sum() == pytest.approx(1)


def test_switch_leaves_a_hopeless_head_its_share_among_probabilities():
    weights = Switch(RATES).step(uniform(), Evidence(nll=torch.tensor([1.0, 1.0, 1.0, 1e6])))
    assert weights[2] > 0.1


def test_regression_likelihood_by_hand():
    rule = Bayes(torch.tensor([1e-3, 1e-2]), discount=1.0, n=2.0)
    # σ² = 4 after one step (bias-corrected), log p = −n/2 · r/σ² = −1, −2
    weights = rule.step(uniform(2), Evidence(residual=torch.tensor([4.0, 4.0, 8.0])))
    assert weights.tolist() == pytest.approx([1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1))])


def test_other_losses_by_hand():
    rule = Bayes(torch.tensor([1e-3, 1e-2]), discount=1.0, n=3.0)
    weights = rule.step(uniform(2), Evidence(loss=torch.tensor([2.0, 2.0, 4.0])))  # log p = −3·1, −3·2
    assert weights.tolist() == pytest.approx([1 / (1 + math.exp(-3)), math.exp(-3) / (1 + math.exp(-3))], rel=1e-5)


def test_variance_is_the_averages_so_a_diverged_head_cannot_inflate_it():
    rules = [Bayes(torch.tensor([1e-3, 1e-2])), Bayes(torch.tensor([1e-3, 1e-2]))]
    for rule, third in zip(rules, (1.0, math.inf), strict=True):
        rule.step(uniform(2), Evidence(residual=torch.tensor([1.0, 1.0, third])))
    assert rules[0].scale == rules[1].scale
    assert rules[1].posterior.tolist() == pytest.approx([1.0, 0.0])


def test_exponentiated_gradient_by_hand():
    rule = ExponentiatedGradient(torch.tensor([1e-3, 1e-2]), beta=0.5, alpha=0.1, clip=10.0)
    weights = rule.step(uniform(2), Evidence(gains=torch.tensor([4.0, 2.0])))
    # g = (4, 2), d = (1, −1), v = 1: weights ∝ e^0.5, e^−0.5, mixed with 10 % of uniform
    a = math.exp(0.5) / (math.exp(0.5) + math.exp(-0.5))
    assert weights.tolist() == pytest.approx([0.9 * a + 0.05, 0.9 * (1 - a) + 0.05])


def test_exponentiated_gradient_counts_new_data():
    """A datum shown four times moves the weights as often, each time by a fourth."""
    gains = torch.tensor([4.0, 2.0])
    once = ExponentiatedGradient(torch.tensor([1e-3, 1e-2]), beta=0.5, alpha=1e-9)
    often = ExponentiatedGradient(torch.tensor([1e-3, 1e-2]), beta=0.5, alpha=1e-9, reuse=4)
    weights = once.step(uniform(2), Evidence(gains=gains))
    assert often.step(uniform(2), Evidence(gains=gains)).tolist() == pytest.approx(
        (weights**0.25 / (weights**0.25).sum()).tolist()
    )


def test_whiteness_by_hand():
    rule = Whiteness(RATES, window=2.0, kappa=0.25)
    rule.prepare(2)
    first = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    assert torch.equal(rule.step(uniform(), Evidence(gradient=first)), uniform())  # nothing to compare with yet
    second = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [1.0, -1.0]])
    weights = rule.step(uniform(), Evidence(gradient=second))
    # ⟨g₁, g₂⟩ = 1, −4, 0 at ½; ‖g‖² = 1, 4, 1 … 2 at ¼ and ½: ρ = ½·(1, −4, 0) / (¾·(1, 4), ¼·2 + ½·2)
    assert rule.correlation().tolist() == pytest.approx([2 / 3, -2 / 3, 0.0])
    # κρa = ¼·⅔·⅓ flows from the first head up and as much from the second down
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    weights = rule.step(torch.tensor([0.6, 0.2, 0.2]), Evidence(gradient=second * 0))  # both means halve, ρ stays
    up, down = 0.25 * 2 / 3 * 0.6, 0.25 * 2 / 3 * 0.2
    assert weights.tolist() == pytest.approx([0.6 - up + down, 0.2 + up - down, 0.2])


def test_whiteness_measures_from_the_slowest_head_where_that_is_negative():
    rule = Whiteness(RATES, window=1.0)
    rule.prepare(1)
    g = torch.ones(3, 1)
    rule.step(uniform(), Evidence(gradient=g))
    weights = rule.step(uniform(), Evidence(gradient=-g))  # all ρ = −1: no head stands out
    assert rule.correlation().tolist() == [-1.0, -1.0, -1.0]
    assert torch.equal(weights, uniform())


def test_whiteness_moves_at_most_max_flow_and_never_between_equal_rates():
    rule = Whiteness(torch.tensor([1e-3, 1e-3, 1e-2]), window=1.0, kappa=5.0, max_flow=0.3)
    rule.prepare(1)
    g = torch.ones(3, 1)
    rule.step(uniform(), Evidence(gradient=g))
    weights = rule.step(uniform(), Evidence(gradient=g))
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3 - 0.1, 1 / 3 + 0.1])


# --- against brute force ----------------------------------------------------------------------------------------------


@given(
    n_heads=st.integers(1, 3),
    likelihoods=st.lists(st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_switch_is_the_mixture_over_all_sequences_of_heads(n_heads, likelihoods):
    """Enumerate every sequence of heads and of switching decisions, with its prior times its likelihood."""
    theta = 0.8
    rule = Switch(head_rates(n_heads, (1e-3, 1e-1)), theta=theta)
    weights = uniform(n_heads)
    for row in likelihoods:
        weights = rule.step(weights, Evidence(nll=torch.tensor([0.0, *(-math.log(p) for p in row[:n_heads])])))
    mass = [0.0] * n_heads
    T = len(likelihoods)
    # A state is (head, settled). At every step an unsettled sequence stays with 1 − h or switches with h: then it
    # picks a head anew, at random, and settles for good with probability 1 − θ.
    states = list(itertools.product(range(n_heads), (False, True)))
    for path in itertools.product(states, repeat=T + 1):
        head, settled = path[0]
        probability = ((1 - theta) if settled else theta) / n_heads
        for t in range(1, T + 1):
            probability *= likelihoods[t - 1][head]
            hazard, (next_head, next_settled) = 1 / (t + 1), path[t]
            if settled:
                move = 1.0 if (next_head, next_settled) == (head, True) else 0.0
            else:
                move = hazard * ((1 - theta) if next_settled else theta) / n_heads
                move += (1 - hazard) if (next_head, next_settled) == (head, False) else 0.0
            probability *= move
            if probability == 0.0:
                break
            head, settled = next_head, next_settled
        mass[path[-1][0]] += probability
    assert weights.tolist() == pytest.approx([m / sum(mass) for m in mass], rel=1e-4, abs=1e-6)


@given(rows=st.lists(st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3), min_size=1, max_size=10))
def test_switch_without_hazard_is_bayes(rows):
    switch, bayes = Switch(RATES, hazard=False), Bayes(RATES, discount=1.0)
    for row in rows:
        evidence = Evidence(nll=torch.tensor([0.0, *row]))
        a, b = switch.step(uniform(), evidence), bayes.step(uniform(), evidence)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# --- properties -----------------------------------------------------------------------------------------------------


def evidence(generator, scale=1.0):
    residual = torch.rand(4, generator=generator)
    return Evidence(
        residual=residual * scale**2,
        gains=torch.randn(3, generator=generator) * scale,
        gradient=torch.randn(3, 5, generator=generator) * scale,
    )


@pytest.mark.parametrize("name", RULES)
@given(power=st.integers(-20, 20), seed=st.integers(0, 5))
def test_scaling_residuals_by_a_power_of_two_changes_no_bit(name, power, seed):
    results = []
    for scale in (1.0, 2.0**power):
        rule, weights, generator = make_rule(name, RATES), uniform(), torch.Generator().manual_seed(seed)
        rule.prepare(5)
        for _ in range(30):
            weights = rule.step(weights, evidence(generator, scale))
        results.append(weights)
    assert torch.equal(*results)


LARGE = [1e15, 1e20, 1e38, 3e38]
EXTREME = st.sampled_from([0.0, 1.0, 1e-30, *LARGE, math.inf, -1.0, *[-x for x in LARGE], -math.inf, math.nan])


def extreme(row):
    """Evidence of four numbers; of a gradient the optimizer masks what is not finite."""
    values = torch.tensor(row)
    gradient = values[1:, None].nan_to_num(0.0, 0.0, 0.0)
    return Evidence(residual=values.abs(), gains=values[1:], gradient=torch.cat([gradient, gradient.flip(0)], 1))


@pytest.mark.parametrize("name", RULES)
@given(rows=st.lists(st.lists(EXTREME, min_size=4, max_size=4), min_size=1, max_size=8))
def test_weights_stay_a_distribution_whatever_the_evidence(name, rows):
    rule, weights = make_rule(name, RATES), uniform()
    rule.prepare(2)
    for row in rows:
        weights = rule.step(weights, extreme(row))
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
        for key, value in rule.state_dict().items():
            assert value.isfinite().all(), key  # a mean that is not finite stays so for ever


@pytest.mark.parametrize("options", [{}, {"beta": 1e6, "clip": 1e9}], ids=str)
def test_exponentiated_gradient_comes_back_from_huge_gains(options):
    """Ten of them, at which squares overflow; what heads gain later still moves the weights."""
    rule, weights = ExponentiatedGradient(RATES, **options), uniform()
    for _ in range(10):
        weights = rule.step(weights, Evidence(gains=torch.tensor([1e38, -1e38, 1e20])))
    assert rule.moments.isfinite().all()
    rule.moments[:2] = 1.0  # as after a long time
    weights = rule.step(uniform(), Evidence(gains=torch.tensor([1.0, 0.0, 0.0])))
    assert weights[0] > weights[1] == weights[2]


def test_whiteness_comes_back_from_huge_gradients():
    """They overflow only in the product with the next one, of the other sign."""
    rule = Whiteness(RATES, window=1.0)
    rule.prepare(1)
    for sign in (1.0, -1.0, 1.0):
        rule.step(uniform(), Evidence(gradient=sign * torch.tensor([[1.2e19], [1.2e19], [1e38]])))
    assert rule.correlation().tolist() == [-1.0, -1.0, -1.0]
    for _ in range(2):
        rule.step(uniform(), Evidence(gradient=torch.ones(3, 1)))
    assert rule.correlation().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", RULES)
@given(rows=st.lists(st.lists(EXTREME | st.floats(-3, 3, width=32), min_size=4, max_size=4), min_size=1, max_size=12))
def test_the_fast_rule_is_the_plain_one(name, rows):
    fast, plain = make_rule(name, RATES), averaging.make_rule(name, RATES)
    weights = [uniform(), uniform()]
    for rule in (fast, plain):
        rule.prepare(2)
    for row in rows:
        weights = [rule.step(held, extreme(row)) for rule, held in zip((fast, plain), weights, strict=True)]
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("known", ["residual", "nll", "loss"])
@pytest.mark.parametrize("name", ["switch", "bayes"])
def test_the_fast_rule_is_the_plain_one_for_every_kind_of_loss(name, known):
    rules, weights = (make_rule(name, RATES), averaging.make_rule(name, RATES)), [uniform(), uniform()]
    for k in range(40):
        losses = torch.rand(4)
        losses[1 + k % 3] *= 10.0 ** (k % 7)
        if k % 9 == 8:
            losses[k % 4] = LARGE[k % 4] * (1 if known == "residual" else -1)
        evidence = Evidence(**{known: losses})
        weights = [rule.step(held, evidence) for rule, held in zip(rules, weights, strict=True)]
        torch.testing.assert_close(*weights)


@pytest.mark.parametrize("n_heads", [1, 3, 10, 17])
@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 100), shape=st.sampled_from([(1,), (3,), (2, 2)]))
def test_networks_side_by_side_are_each_as_it_would_be_alone(name, n_heads, seed, shape):
    """Dimensions in front: S calls and one call of S, bit for bit, with heads lost on the way."""
    rates, generator = head_rates(n_heads, (1e-6, 0.1)), torch.Generator().manual_seed(seed)
    together, n = averaging.make_rule(name, rates.expand(*shape, n_heads).clone()), math.prod(shape)
    alone = [averaging.make_rule(name, rates) for _ in range(n)]
    for rule in (together, *alone):
        rule.prepare(5)
    weights, others = torch.full((*shape, n_heads), 1 / n_heads), [uniform(n_heads) for _ in range(n)]
    for step in range(12):
        losses = torch.rand(*shape, 1 + n_heads, generator=generator)
        losses[..., 1][torch.rand(shape, generator=generator) < 0.2] = math.nan
        gradient = torch.randn(*shape, n_heads, 5, generator=generator)
        known = {"residual": losses, "gains": gradient[..., 0].contiguous(), "gradient": gradient}
        weights = together.step(weights, Evidence(**known))
        lost = torch.rand(*shape, n_heads, generator=generator) < 0.1
        if step % 4 == 3:
            together.forget(lost)
        for i, rule in enumerate(alone):
            flat = {key: value.flatten(0, len(shape) - 1)[i] for key, value in known.items()}
            others[i] = rule.step(others[i], Evidence(**flat))
            if step % 4 == 3:
                rule.forget(lost.flatten(0, len(shape) - 1)[i])
    assert torch.equal(weights.view(n, n_heads).view(torch.int32), torch.stack(others).view(torch.int32))


def test_gains_that_differ_by_rounding_choose_no_head():
    rule, weights = ExponentiatedGradient(RATES), uniform()
    for k in range(50):
        size = math.cos(k)  # also where it is near 0, and the rounding of the terms is not
        gains = torch.tensor([size, size, size]) + torch.tensor([0.0, 6e-8, -6e-8])
        weights = rule.step(weights, Evidence(gains=gains))
    torch.testing.assert_close(weights, uniform())


@pytest.mark.parametrize("name", ["switch", "bayes"])
def test_a_better_head_takes_over_and_another_comes_back(name):
    rule, weights = make_rule(name, RATES), uniform()
    for _ in range(300):
        weights = rule.step(weights, Evidence(residual=torch.tensor([1.0, 1.0, 3.0, 3.0])))
    assert weights.argmax() == 0
    assert weights[0] > 0.9
    for _ in range(600):
        weights = rule.step(weights, Evidence(residual=torch.tensor([1.0, 3.0, 3.0, 1.0])))
    assert weights.argmax() == 2
    assert weights[2] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_whiteness_finds_the_rate_of_a_moving_target(scale):
    """A scalar tracks a random walk through noise; weight goes within a factor 3 of the best fixed rate."""
    rates = head_rates(10, (1e-4, 1.0))
    generator = torch.Generator().manual_seed(1)
    n_steps = 20_000
    targets = torch.cumsum(0.1 * torch.randn(n_steps, generator=generator), 0)
    labels = targets + torch.randn(n_steps, generator=generator)
    # Error of every fixed rate, by simulation on a finer grid than the heads'.
    fine = head_rates(41, (1e-4, 1.0))
    x, errors = torch.zeros(41), torch.zeros(41)
    for t in range(n_steps):
        errors += (x - targets[t]) ** 2
        x += fine * (labels[t] - x)
    best = fine[errors.argmin()].item()
    rule, weights, x = Whiteness(rates), uniform(10), torch.zeros(10)
    rule.prepare(1)
    chosen = []
    for t in range(n_steps):
        gradient = scale * (x - labels[t])
        weights = rule.step(weights, Evidence(gradient=gradient[:, None]))
        x -= rates * (x - labels[t])
        chosen.append((weights * rates.log()).sum().item())
    effective = math.exp(sum(chosen[n_steps // 2 :]) / (n_steps // 2))
    assert best / 3 < effective < best * 3


def test_forgetting_clears_only_the_lost_heads():
    rule = Whiteness(RATES)
    rule.prepare(2)
    for _ in range(3):
        rule.step(uniform(), Evidence(gradient=torch.ones(3, 2)))
    rule.forget(torch.tensor([False, True, False]))
    assert rule.previous.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert rule.correlation()[1] == 0
    assert rule.correlation()[0] > 0


def test_no_evidence_leaves_the_weights():
    for name in RULES:
        rule = make_rule(name, RATES)
        assert torch.equal(rule.step(uniform(), Evidence()), uniform())


@pytest.mark.parametrize(
    "bad",
    [
        {"rule": "bayes", "discount": 1.5},
        {"rule": "whiteness", "window": -1.0},
        {"rule": "exponentiated-gradient", "alpha": 0.0},
        {"rule": "switch", "theta": 1.0},
    ],
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="expected a"):
        make_rule(bad, RATES)


def test_rules_are_modules_whose_state_is_saved():
    rule = Switch(RATES)
    rule.step(uniform(), Evidence(nll=torch.tensor([0.0, 1.0, 2.0, 3.0])))
    other = Switch(RATES)
    other.load_state_dict(rule.state_dict())
    next_evidence = Evidence(nll=torch.tensor([0.0, 2.0, 1.0, 1.0]))
    assert torch.equal(rule.step(uniform(), next_evidence), other.step(uniform(), next_evidence))
    assert isinstance(rule, nn.Module)
    assert isinstance(rule, Likelihood)
