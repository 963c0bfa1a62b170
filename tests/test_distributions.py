"""Lean distributions are SB3's: the same numbers, the same draws, and the same of every head."""

import copy

import pytest
import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch import nn

from alrao_rl.fast import HeadwiseTensor, OutputHeads
from alrao_rl.sb3.distributions import (
    LeanBernoulli,
    LeanCategorical,
    LeanMultiCategorical,
    LeanStateDependentNoise,
    lean,
)

LAYER = OutputHeads(nn.Linear(2, 3), 3, (1e-3, 1e-1), rule="uniform")
SPLITS = [3, 1, 4, 2]


def log_softmax(logits):
    return torch.cat([part.log_softmax(-1) for part in logits.split(SPLITS, -1)], -1)


CASES = {
    "categorical": (CategoricalDistribution(5), LeanCategorical, 5, lambda x: x.log_softmax(-1)),
    "multi-categorical": (MultiCategoricalDistribution(SPLITS), LeanMultiCategorical, sum(SPLITS), log_softmax),
    "bernoulli": (BernoulliDistribution(4), LeanBernoulli, 4, lambda x: x),
}


@pytest.fixture(params=CASES)
def pair(request):
    """SB3's distribution, the lean one, how logits become its parameters, and logits of four branches, some extreme."""
    stock, kind, n, normalise = CASES[request.param]
    assert type(lean(stock)) is kind
    scales = torch.tensor([1.0, 10.0, 1e3, 0.0]).view(-1, 1, 1)
    return stock, lean(stock), normalise, scales * torch.randn(4, 7, n)


def test_numbers_and_draws(pair):
    stock, ours, normalise, logits = pair
    for parameters in normalise(logits):
        found = []
        for one in (stock, ours):
            torch.manual_seed(1)
            one.proba_distribution(parameters)
            drawn = one.get_actions()
            torchs = one.distribution if isinstance(one.distribution, list) else [one.distribution]
            logits = torch.cat([part.logits for part in torchs], 1)
            found.append(
                (drawn, logits, one.mode(), one.get_actions(deterministic=True), one.log_prob(drawn), one.entropy())
            )
        torch.testing.assert_close(*found)
        assert found[1][0].dtype == found[0][0].dtype


def test_every_branch_and_its_gradient(pair):
    stock, ours, normalise, logits = pair
    actions = stock.proba_distribution(logits[0]).sample()
    found = []
    for headwise in (True, False):
        leaf = logits.clone().requires_grad_()
        values = []
        for x in [HeadwiseTensor.wrap(normalise(leaf), [LAYER])] if headwise else normalise(leaf):
            one = (ours if headwise else stock).proba_distribution(x)
            values.append(one.log_prob(actions) + 0.5 * one.entropy())
        value = values[0].branches if headwise else torch.stack(values)
        value.sum().backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_actions_of_the_policy_itself(pair):
    """Not labels but what the heads say: branch by branch, as torch's distributions have it."""
    stock, ours, normalise, logits = pair
    branches = normalise(logits)
    ours.proba_distribution(HeadwiseTensor.wrap(branches.clone().requires_grad_(), [LAYER]))
    actions = HeadwiseTensor.wrap(torch.stack([stock.proba_distribution(x).sample() for x in branches]), [LAYER])
    expected = [stock.proba_distribution(x).log_prob(a) for x, a in zip(branches, actions.branches, strict=True)]
    torch.testing.assert_close(ours.log_prob(actions).branches.detach(), torch.stack(expected))


@pytest.mark.parametrize(
    "options",
    [{}, {"full_std": False}, {"use_expln": True}, {"learn_features": True}, {"squash_output": True}],
    ids=lambda options: "".join(options) or "default",
)
def test_state_dependent_noise(options):
    """Every branch has the numbers, draws and gradients that SB3's has of its parameters."""
    stock = StateDependentNoiseDistribution(2, **options)
    _, log_std = stock.proba_distribution_net(5)
    ours = lean(copy.copy(stock))
    assert type(ours) is LeanStateDependentNoise
    means, log_stds = torch.randn(4, 7, 2), log_std.detach() + torch.randn(4, *log_std.shape)
    latent = torch.randn(7, 5)
    actions = stock.proba_distribution(means[0], log_stds[0], latent).sample().detach()
    weights = torch.linspace(-1, 1, 7)  # of another sign for each datum: no mean over them hides an error

    def found(one, headwise, branch=0):
        leaves = [x.clone().requires_grad_() for x in (means, log_stds, latent)]
        parts = [HeadwiseTensor.wrap(x, [LAYER]) if headwise else x[branch] for x in leaves[:2]]
        one.proba_distribution(*parts, leaves[2])
        log_prob, entropy = one.log_prob(actions), one.entropy()
        loss = log_prob.exp() + (0 if entropy is None else entropy)
        loss = loss.branches if headwise else loss
        (loss * weights).sum().backward()
        values = [log_prob.branches[branch] if headwise else log_prob, loss[branch] if headwise else loss]
        return [x.detach() for x in values], [leaves[0].grad[branch], leaves[1].grad[branch]], leaves[2].grad

    for branch in range(4):
        (values, gradients, features), (expected, expected_gradients, expected_features) = (
            found(ours, True, branch),
            found(stock, False, branch),
        )
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
        if branch == 0:
            torch.testing.assert_close(features, expected_features, rtol=1e-4, atol=1e-5)

    draws = []
    for one in (stock, ours):
        torch.manual_seed(3)
        with torch.no_grad():
            one.sample_weights(log_stds[1], batch_size=7)
            draws.append(one.actions_from_params(means[1], log_stds[1], latent))
            draws.append(one.actions_from_params(means[1], log_stds[1], latent, deterministic=True))
    torch.testing.assert_close(draws[:2], draws[2:])
