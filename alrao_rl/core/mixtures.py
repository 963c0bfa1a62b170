"""Averages of the heads' probabilities. Shapes: J heads, K outputs, B data, with any dimensions in front (``…``).

The formulas of docs/method.md, "What is averaged", in logarithms, as the probabilities of unlikely actions underflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def log_softmax(logits: Tensor, splits: Sequence[int] = ()) -> Tensor:
    """Log-probabilities of independent categorical components, ``[…, K, B]`` to ``[…, K, B]``.

    ``splits`` are their sizes, which add up to K; without any there is one component.
    """
    if len(splits) <= 1:
        return logits.log_softmax(-2)
    return torch.cat([part.log_softmax(-2) for part in logits.split(list(splits), -2)], -2)


def mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j a_j exp(log_probs_j), ``[…, J, K, B]`` and ``[…, J]`` to ``[…, K, B]``."""
    return torch.logsumexp(log_probs + weights.log()[..., None, None], -3)


def mix_logits(logits: Tensor, weights: Tensor, splits: Sequence[int] = ()) -> Tensor:
    """log Σ_j a_j softmax(logits_j): log-probabilities of the mixture; ``[…, J, K, B]`` to ``[…, K, B]``."""
    return mix(log_softmax(logits, splits), weights)


def mix_bernoulli(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture Σ_j a_j σ(logits_j) of each component; ``[…, J, K, B]`` to ``[…, K, B]``."""
    # log p − log(1 − p), each a mixture of its own: 1 − p rounds to 0 long before log(1 − p) is −∞.
    return mix(nn.functional.logsigmoid(logits), weights) - mix(nn.functional.logsigmoid(-logits), weights)
