"""Log-densities of actions under Gaussians, of all branches at once.

Off policy (SAC) every head has actions of its own, drawn with the same noise, and its gradient passes through them:
:func:`squashed_gaussian`. On policy it is judged by the average's:

Heads learn from actions of the average, not of their own. Where the loss does not allow for that (A2C's −A log π_j;
PPO's has the ratio π_j/π in it) a head's log-density counts by min(π_j/π, 10): off-policy actor-critic (Degris, White
and Sutton, arXiv 1205.4839) with the truncation of V-trace (Espeholt et al., arXiv 1802.01561). Without it −A log π_j
has no bound as σ_j falls, and the smaller σ_j, the larger is the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_RATIO = 10.0
"""Bound of π_j/π."""


def importance_weighted(log_prob: Tensor) -> Tensor:
    """The same log-densities; gradients of those that get the average's count by min(π_j/π, 10).

    A loss that is linear in the log-density has the same gradient for all branches, one with the ratio in it has not,
    but where the densities are the same.

    Args:
        log_prob: ``[1 + J, B]``, the average's first; without branches, ``[B]``, nothing happens.
    """
    if log_prob.dim() < 2 or not log_prob.requires_grad:
        return log_prob
    held = log_prob.detach()

    def weigh(gradient: Tensor) -> Tensor:
        ratio = (held - held[:1]).fmin(held.new_tensor(MOST_RATIO).log()).exp()
        return torch.where(gradient == gradient[:1], gradient * ratio, gradient)

    log_prob.register_hook(weigh)
    return log_prob


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-densities under K independent Gaussians; those of heads :func:`importance_weighted`.

    Args:
        mean: ``[…, B, K]``, with at most one dimension of branches in front, the average's first.
        log_std: log σ, ``[…, K]``.
        actions: the same for all branches, ``[B, K]``, without a gradient.

    Returns:
        ``[…, B]``.
    """
    z = (actions - mean) * log_std.neg().exp().unsqueeze(-2)
    constant = 0.5 * math.log(2 * math.pi) * actions.shape[-1]
    return importance_weighted(z.square().sum(-1) * -0.5 - (log_std.sum(-1, keepdim=True) + constant))


LOG_STD_RANGE = -20.0, 2.0
"""Of SAC's actor, as in SB3."""
SQUASHED = 1e-6
"""Added to 1 − a², as in SB3: its logarithm is to be finite."""


def squashed_gaussian(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions a = tanh(m + σ ε) and their log-densities, log N(u; m, σ) − Σ log(1 − a²), with u = m + σ ε.

    "Soft Actor-Critic" (Haarnoja et al., arXiv 1801.01290, appendix C).

    Args:
        outputs: means m and log σ, ``[…, B, 2A]``.
        noise: ε, ``[B, A]``, the same for all branches.

    Returns:
        Actions ``[…, B, A]`` and log-densities ``[…, B]``; gradients pass through both.
    """
    mean, log_std = outputs.chunk(2, -1)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    actions = (mean + log_std.exp() * noise).tanh()
    constant = 0.5 * math.log(2 * math.pi)
    log_prob = noise.square() * -0.5 - log_std - constant - (1 - actions.square() + SQUASHED).log()
    return actions, log_prob.sum(-1)
