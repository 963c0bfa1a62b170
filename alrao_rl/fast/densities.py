"""Log-densities of actions under Gaussians, of all branches at once: one node of the graph.

Torch needs ten operations and their gradients, and takes longer to start than to compute them. C computes those of
given actions on the CPU, in float32. Off policy (SAC) every head has actions of its own, drawn with the same noise, and
its gradient passes through them: :func:`squashed_gaussian`.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


LOG_STD_RANGE = -20.0, 2.0
"""Of SAC's actor, as in SB3."""
SQUASHED = 1e-6
"""Added to 1 − a², as in SB3: its logarithm has to be finite."""


def squashed_gaussian(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions a = tanh(m + σ ε) and their log-densities, log N(u; m, σ) − Σ log(1 − a²), with u = m + σ ε.

    "Soft Actor-Critic" (Haarnoja et al., arXiv 1801.01290, appendix C).

    Args:
        outputs: means m and log σ, ``[…, B, 2A]``.
        noise: ε, ``[B, A]``, the same for all branches.

    Returns:
        Actions ``[…, B, A]`` and log-densities ``[…, B]``; gradients pass through both.
    """
    if (
        kernels.library is None
        or not is_plain(outputs, noise)
        or outputs.dim() not in (2, 3)
        or outputs.shape[-2:] != (noise.shape[0], 2 * noise.shape[1])
        or noise.requires_grad
    ):
        return squashed_by_torch(outputs, noise)
    if not torch.is_grad_enabled():
        return _squash(outputs, noise)
    found: tuple[Tensor, Tensor] = _SquashedGaussian.apply(outputs, noise)
    return found


def squashed_by_torch(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The same by operations that have gradients themselves."""
    mean, log_std = outputs.chunk(2, -1)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    actions = (mean + log_std.exp() * noise).tanh()
    constant = 0.5 * math.log(2 * math.pi)
    log_prob = noise.square() * -0.5 - log_std - constant - (1 - actions.square() + SQUASHED).log()
    return actions, log_prob.sum(-1)


def _squashing(outputs: Tensor, noise: Tensor) -> tuple[Any, ...]:
    """Numbers of branches, data and actions, all strides, and constants."""
    n, strides = (len(outputs), outputs.stride()) if outputs.dim() == 3 else (1, (0, *outputs.stride()))
    return n, *noise.shape, (ctypes.c_int64 * 5)(*strides, *noise.stride()), *LOG_STD_RANGE, SQUASHED


def _squash(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    assert kernels.library is not None
    branches, (n_data, n_actions) = outputs.shape[:-2], noise.shape
    # As the heads' outputs lie, with the batch last.
    actions, log_prob = outputs.new_empty((*branches, n_actions, n_data)), outputs.new_empty((*branches, n_data))
    place = (x.data_ptr() for x in (outputs, noise, actions, log_prob))
    kernels.library.squashed_gaussian(*_squashing(outputs, noise), *place)
    return actions.transpose(-1, -2), log_prob


class _SquashedGaussian(torch.autograd.Function):
    """``apply(outputs, noise)``: see :func:`squashed_gaussian`."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute actions and log-densities."""
        ctx.save_for_backward(outputs, noise)
        return _squash(outputs, noise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_actions: Tensor, of_log_prob: Tensor) -> Any:
        """Gradient of the outputs."""
        assert kernels.library is not None
        outputs, noise = ctx.saved_tensors
        outputs, of_outputs = with_room(outputs, torch.empty_like)
        tensors = outputs, noise, of_actions.contiguous(), of_log_prob.contiguous(), of_outputs
        kernels.library.squashed_gradient(*_squashing(outputs, noise), *[x.data_ptr() for x in tensors])
        return of_outputs, None
