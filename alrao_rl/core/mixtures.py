"""Averages of the heads' probabilities. Shapes: J heads, K outputs, B data, with any dimensions in front (``…``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j a_j exp(log_probs_j), ``[…, J, K, B]`` and ``[…, J]`` to ``[…, K, B]``."""
    return torch.logsumexp(log_probs + weights.log()[..., None, None], -3)


def mix_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j a_j softmax(logits_j): log-probabilities of the mixture; ``[…, J, K, B]`` to ``[…, K, B]``."""
    return mix(logits.log_softmax(-2), weights)


def mix_bernoulli(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture Σ_j a_j σ(logits_j) of each component; ``[…, J, K, B]`` to ``[…, K, B]``."""
    return mix(nn.functional.logsigmoid(logits), weights) - mix(nn.functional.logsigmoid(-logits), weights)
