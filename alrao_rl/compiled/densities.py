"""Log-densities of actions under Gaussians, of all branches at once, as one node of the graph.

For the CPU and float32. Torch needs ten operations and their gradients, and takes longer to start than to compute them.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from alrao_rl.compiled import kernels
from alrao_rl.compiled.memory import differentiate, is_plain, with_room

MOST_NUMBERS = 2**16
"""Means up to which torch is no faster, which starts slowly and computes well."""


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-densities under K independent Gaussians.

    Args:
        mean: ``[…, B, K]``, with at most one dimension of branches in front.
        log_std: log σ, ``[…, K]``.
        actions: the same for all branches, ``[B, K]``, without a gradient.

    Returns:
        ``[…, B]``.
    """
    branches = mean.shape[:-2]
    if (
        kernels.library is None
        or not all(map(is_plain, (mean, log_std, actions)))
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
    z = (actions - mean) * log_std.neg().exp().unsqueeze(-2)
    constant = 0.5 * math.log(2 * math.pi) * actions.shape[-1]
    return z.square().sum(-1) * -0.5 - (log_std.sum(-1, keepdim=True) + constant)


def _shape(mean: Tensor) -> tuple[int, int, int, Any]:
    """Numbers of branches, data and Gaussians, and the strides of all three."""
    strides = mean.stride() if mean.dim() == 3 else (0, *mean.stride())
    return mean.shape[:-2].numel(), *mean.shape[-2:], (ctypes.c_int64 * 3)(*strides)


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
        ctx.save_for_backward(mean, log_std, actions)
        return _forward(mean, log_std, actions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of mean and log σ."""
        mean, log_std, actions = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(gradient):  # somebody will differentiate this once more
            needed = ctx.needs_input_grad[:2]
            return *differentiate(lambda m, s: _by_torch(m, s, actions), (mean, log_std), needed, gradient), None
        assert kernels.library is not None
        (mean, of_mean), log_std, actions = (
            with_room(mean, torch.empty_like),
            log_std.contiguous(),
            actions.contiguous(),
        )
        of_log_std = torch.empty_like(log_std)
        tensors = mean, log_std, actions, gradient.contiguous(), of_mean, of_log_std
        kernels.library.gaussian_gradient(*_shape(mean), *[x.data_ptr() for x in tensors])
        return of_mean, of_log_std, None
