"""Log-densities of actions under Gaussians as one node of the graph.

Torch needs ten operations and their gradients, and takes longer to start than to compute them. Of given actions on the
CPU and in float32.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alrao_rl.core import densities as core
from alrao_rl.core.densities import LOG_STD_RANGE, MOST_RATIO, SQUASHED
from alrao_rl.fast import kernels
from alrao_rl.fast.memory import differentiate, is_plain, with_room

MOST_NUMBERS = 2**16
"""Means up to which torch is no faster, which starts slowly and computes well."""
_Strides = ctypes.c_int64 * 3


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """See :func:`alrao_rl.core.densities.gaussian_log_prob`."""
    branches = mean.shape[:-2]
    if (
        kernels.library is None
        or not is_plain(mean, log_std, actions)
        or mean.numel() > MOST_NUMBERS
        or mean.dim() not in (2, 3)
        or actions.shape != mean.shape[-2:]
        or log_std.shape != (*branches, mean.shape[-1])
        or actions.requires_grad
    ):
        return core.gaussian_log_prob(mean, log_std, actions)
    if not torch.is_grad_enabled():
        return _forward(mean, log_std, actions)
    log_prob: Tensor = _GaussianLogProb.apply(mean, log_std, actions)
    return log_prob


def _shape(mean: Tensor) -> tuple[int, int, int, Any]:
    """Numbers of branches, data and Gaussians, and the strides of all three."""
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
        if torch.is_grad_enabled() or not is_plain(gradient):  # somebody will differentiate this once more
            needed = ctx.needs_input_grad[:2]
            return *differentiate(
                lambda m, s: core.gaussian_log_prob(m, s, actions), (mean, log_std), needed, gradient
            ), None
        assert kernels.library is not None
        mean, of_mean = with_room(mean, torch.empty_like)
        log_std, actions, gradient = log_std.contiguous(), actions.contiguous(), gradient.contiguous()
        of_log_std, weighted = torch.empty_like(log_std), torch.empty_like(gradient)
        inputs = (x.data_ptr() for x in (mean, log_std, actions, log_prob))
        outputs = (x.data_ptr() for x in (gradient, weighted, of_mean, of_log_std))
        kernels.library.gaussian_gradient(*_shape(mean), *inputs, math.log(MOST_RATIO), *outputs)
        return of_mean, of_log_std, None


def squashed_gaussian(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`alrao_rl.core.densities.squashed_gaussian`."""
    if not torch.is_grad_enabled() or not is_plain(outputs, noise):
        return core.squashed_gaussian(outputs, noise)
    found: tuple[Tensor, Tensor] = _SquashedGaussian.apply(outputs, noise)
    return found


class _SquashedGaussian(torch.autograd.Function):
    """``apply(outputs, noise)``: see :func:`squashed_gaussian`."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute actions and log-densities."""
        mean, log_std = outputs.chunk(2, -1)
        clamped = log_std.clamp(*LOG_STD_RANGE)
        deviation = clamped.exp().mul_(noise)
        actions = (mean + deviation).tanh_()
        slope = actions.square().neg_().add_(1)
        density = slope + SQUASHED
        constant = noise.square().mul_(0.5).add_(0.5 * math.log(2 * math.pi))
        log_prob = density.log().add_(clamped).add_(constant).sum(-1).neg_()
        ctx.save_for_backward(outputs, actions, deviation, slope, density)
        ctx.set_materialize_grads(False)
        return actions, log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_actions: Tensor | None, of_log_prob: Tensor | None) -> Any:
        """Gradient of the outputs."""
        outputs, actions, deviation, slope, density = ctx.saved_tensors
        of_actions = torch.zeros_like(actions) if of_actions is None else of_actions
        of_log_prob = actions.new_zeros(actions.shape[:-1]) if of_log_prob is None else of_log_prob
        of_log_prob = of_log_prob.unsqueeze(-1)
        of_outputs = torch.empty_like(outputs)
        of_mean, of_log_std = of_outputs.chunk(2, -1)
        # Of the gaussian's own density only −log σ depends on the outputs: (u − m)/σ is the noise.
        torch.mul((actions / density).mul_(2 * of_log_prob).add_(of_actions), slope, out=of_mean)
        torch.sub(of_mean * deviation, of_log_prob, out=of_log_std)
        log_std = outputs.chunk(2, -1)[1]
        low, high = LOG_STD_RANGE
        of_log_std.masked_fill_((log_std < low) | (log_std > high), 0.0)
        return of_outputs, None
