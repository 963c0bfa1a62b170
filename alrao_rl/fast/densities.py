"""Log-densities of actions under Gaussians, of all branches at once: one node of the graph, for the CPU and float32.

Torch needs ten operations and their gradients, and takes longer to start than to compute them.

Heads learn from actions of the average, not of their own. Where the loss does not allow for that (A2C's −A log π_j;
PPO's has the ratio π_j/π in it) a head's log-density counts by min(π_j/π, 10): off-policy actor-critic (Degris, White
and Sutton, arXiv 1205.4839) with the truncation of V-trace (Espeholt et al., arXiv 1802.01561). Without it −A log π_j
has no bound as σ_j falls, and the smaller σ_j, the larger is the gradient.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from alrao_rl.fast import kernels
from alrao_rl.fast.memory import differentiate, is_plain, with_room

MOST_RATIO = 10.0
"""Bound of π_j/π."""
MOST_NUMBERS = 2**16
"""Number of means up to which C is faster: torch starts slowly, but computes well."""
_Strides = ctypes.c_int64 * 3


def importance_weighted(log_prob: Tensor) -> Tensor:
    """The same log-densities; a head's gradient that equals the average's is multiplied by min(π_j/π, 10).

    It does in a loss that is linear in the log-density. In one with the ratio π_j/π in it gradients differ from branch
    to branch, except where the densities are equal, and there the factor is 1.

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


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-densities under K independent Gaussians; those of heads :func:`importance_weighted`.

    Args:
        mean: ``[…, B, K]``, with at most one dimension of branches in front, the average's first.
        log_std: log σ, ``[…, K]``.
        actions: the same for all branches, ``[B, K]``, without a gradient.

    Returns:
        ``[…, B]``.
    """
    branches = mean.shape[:-2]
    # C reads B numbers for each of K Gaussians in each branch: whatever is broadcast otherwise is left to torch.
    if (
        kernels.library is None
        or not is_plain(mean, log_std, actions)
        or mean.numel() > MOST_NUMBERS
        or mean.dim() not in (2, 3)
        or actions.shape != mean.shape[-2:]
        or log_std.shape != (*branches, mean.shape[-1])
        or actions.requires_grad
    ):
        return _by_torch(mean, log_std, actions)
    if not torch.is_grad_enabled():
        return _forward(mean, log_std, actions)
    log_prob: Tensor = _GaussianLogProb.apply(mean, log_std, actions)
    return log_prob


def _by_torch(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """The log-densities by operations that have gradients themselves."""
    z = (actions - mean) * log_std.neg().exp().unsqueeze(-2)
    constant = 0.5 * math.log(2 * math.pi) * actions.shape[-1]
    return importance_weighted(z.square().sum(-1) * -0.5 - (log_std.sum(-1, keepdim=True) + constant))


def _shape(mean: Tensor) -> tuple[int, int, int, Any]:
    """Numbers of branches, data and Gaussians, and the strides of all three."""
    # Means are a transposed view of the heads' outputs, [1 + J, K, B]: strides are cheaper than a copy.
    strides = mean.stride() if mean.dim() == 3 else (0, *mean.stride())
    return len(mean) if mean.dim() == 3 else 1, *mean.shape[-2:], _Strides(*strides)


def _forward(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    assert kernels.library is not None
    log_std, actions = log_std.contiguous(), actions.contiguous()
    log_prob = mean.new_empty(mean.shape[:-1])
    place = (x.data_ptr() for x in (mean, log_std, actions, log_prob))
    kernels.library.gaussian_log_prob(*_shape(mean), *place)
    return log_prob


class _GaussianLogProb(torch.autograd.Function):
    """``apply(mean, log_std, actions)``: see :func:`gaussian_log_prob`."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        """Compute the log-densities."""
        log_prob = _forward(mean, log_std, actions)
        ctx.save_for_backward(mean, log_std, actions, log_prob)
        return log_prob

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of mean and log σ."""
        mean, log_std, actions, log_prob = ctx.saved_tensors
        # With create_graph this will be differentiated once more, which compiled code cannot be.
        if torch.is_grad_enabled() or not is_plain(gradient):
            needed = ctx.needs_input_grad[:2]
            return *differentiate(lambda m, s: _by_torch(m, s, actions), (mean, log_std), needed, gradient), None
        assert kernels.library is not None
        mean, of_mean = with_room(mean, torch.empty_like)
        log_std, actions, gradient = log_std.contiguous(), actions.contiguous(), gradient.contiguous()
        of_log_std, weighted = torch.empty_like(log_std), torch.empty_like(gradient)
        inputs = (x.data_ptr() for x in (mean, log_std, actions, log_prob))
        outputs = (x.data_ptr() for x in (gradient, weighted, of_mean, of_log_std))
        kernels.library.gaussian_gradient(*_shape(mean), *inputs, math.log(MOST_RATIO), *outputs)
        return of_mean, of_log_std, None
