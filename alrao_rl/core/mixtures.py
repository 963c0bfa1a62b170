"""The heads' probabilities: their averages, and what actions that the average chose count for a head.

The formulas of docs/method.md, "What is averaged", in logarithms, as the probabilities of unlikely actions underflow.
Shapes: J heads, K outputs, B data, with any dimensions in front (``…``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def by_component(function: Callable[..., Tensor], splits: Sequence[int], logits: Tensor, *args: Tensor) -> Tensor:
    """Apply ``function`` to independent categorical components, of the sizes ``splits``: ``[…, K, B]`` to the same."""
    if len(splits) == 1:
        return function(logits, *args)
    return torch.cat([function(part, *args) for part in logits.split(list(splits), -2)], -2)


def mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j a_j exp(log_probs_j), ``[…, J, K, B]`` and ``[…, J]`` to ``[…, K, B]``."""
    return torch.logsumexp(log_probs + weights.log()[..., None, None], -3)


def mix_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j a_j softmax(logits_j): log-probabilities of the mixture; ``[…, J, K, B]`` to ``[…, K, B]``."""
    return mix(logits.log_softmax(-2), weights)


def mix_bernoulli(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture Σ_j a_j σ(logits_j) of each component; ``[…, J, K, B]`` to ``[…, K, B]``."""
    # log p − log(1 − p), each a mixture of its own: 1 − p rounds to 0 long before log(1 − p) is −∞.
    return mix(nn.functional.logsigmoid(logits), weights) - mix(nn.functional.logsigmoid(-logits), weights)


MOST_RATIO = 10.0
"""Bound of π_j/π."""


def importance_weighted(log_prob: Tensor) -> Tensor:
    """The same log-densities, with a gradient for heads that takes into account who chose the actions.

    Heads learn from actions of the average, not of their own. PPO's loss allows for that by the ratio π_j/π in it. In
    a loss that does not (A2C's −A log π_j) a head's log-density counts by min(π_j/π, 10): off-policy actor-critic
    (Degris, White and Sutton, arXiv 1205.4839) with the truncation of V-trace (Espeholt et al., arXiv 1802.01561).
    Without it the loss has no bound as σ_j falls, and the smaller σ_j, the larger is the gradient.

    The two are told apart by the gradient that arrives: a loss that is linear in the log-density gives head and average
    the same. With the ratio in it they differ, except where the densities are equal, and there the factor is 1.

    Args:
        log_prob: ``[1 + J, B]``, the average's first; without branches, ``[B]``, nothing happens.
    """
    if log_prob.dim() < 2 or not log_prob.requires_grad:
        return log_prob
    held = log_prob.detach()

    def weigh(gradient: Tensor) -> Tensor:
        # The bound within the logarithm: exp of a large difference is infinite, and infinity times 0 is NaN.
        ratio = (held - held[:1]).fmin(held.new_tensor(MOST_RATIO).log()).exp()
        # A gradient that equals the average's comes from a loss that is linear in the log-density: it needs the weight.
        return torch.where(gradient == gradient[:1], gradient * ratio, gradient)

    log_prob.register_hook(weigh)
    return log_prob
