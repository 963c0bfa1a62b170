"""Averages of the heads' probabilities. Shapes: J heads, K outputs, B data, with any dimensions in front (``…``).

The formulas of docs/method.md, "What is averaged", in logarithms, as the probabilities of unlikely actions underflow.
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
