"""Lean distributions are SB3's: the same numbers, the same draws, and the same of every head."""

import pytest
import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
)
from torch import nn

from alrao_rl.core import HeadwiseTensor, OutputHeads
from alrao_rl.sb3.distributions import LeanBernoulli, LeanCategorical, LeanMultiCategorical, lean

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
