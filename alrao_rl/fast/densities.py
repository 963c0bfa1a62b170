"""Log-densities of actions under Gaussians, of all branches at once: one node of the graph, for the CPU and float32.

Torch needs ten operations and their gradients, and takes longer to start than to compute them.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from alrao_rl.core.mixtures import MOST_RATIO, importance_weighted
from alrao_rl.fast import kernels
from alrao_rl.fast.memory import differentiate, is_plain, with_room

MOST_NUMBERS = 2**16
"""Number of means up to which C is faster: torch starts slowly, but computes well."""
_Strides = ctypes.c_int64 * 3


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
