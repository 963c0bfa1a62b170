"""Losses of all branches as one node of the graph: of the actions that DQN took, and of QR-DQN's quantiles.

For the CPU and float32. The gradient is found with the losses. For the first torch needs four operations and their
gradients, and for a batch of a hundred numbers takes longer to start them than to compute them; for the second some
twenty, each of which reads and writes a number for every pair of quantiles of every branch.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alrao_rl.fast import kernels
from alrao_rl.fast.memory import differentiate, is_plain, with_room

_BOUNDS = {"mse_loss": math.inf, "smooth_l1_loss": 1.0, "huber_loss": 1.0}
"""Where each loss, as it is by default, becomes linear."""


def chosen_losses(name: str, choice: tuple[Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean loss of each of B branches, ``[B]``, with its gradient, and mean squared residual, ``[B]``, without one.

    Args:
        name: of a loss in ``torch.nn.functional``.
        choice: outputs of every branch, ``[B, n, K]``, and which of the K of every row is meant, ``[n, 1]``, both on
            one device.
        labels: ``[n, 1]``, without a gradient.

    None if torch has to compute it instead.

    Raises:
        RuntimeError: an index is out of bounds.
    """
    outputs, index = choice
    if (
        kernels.library is None
        or name not in _BOUNDS
        or not is_plain(outputs, labels)
        or labels.requires_grad
        or labels.shape != index.shape
    ):
        return None
    losses: tuple[Tensor, Tensor] = _ChosenLosses.apply(outputs, index, labels, name)
    return losses


class _ChosenLosses(torch.autograd.Function):
    """``apply(outputs, index, labels, name)``: see :func:`chosen_losses`."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, index: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Compute losses, squares and, for later, the gradient."""
        assert kernels.library is not None
        n_branches, n, n_columns = outputs.shape
        losses, squares = outputs.new_empty(n_branches), outputs.new_empty(n_branches)
        # Zeros, as only one of K outputs of each row is chosen and gets a gradient.
        held, gradient = with_room(outputs, torch.zeros_like)
        index, labels = index.contiguous(), labels.contiguous()
        found = kernels.library.chosen_losses(
            n_branches, n, n_columns, (ctypes.c_int64 * 3)(*held.stride()), held.data_ptr(), index.data_ptr(),
            labels.data_ptr(), _BOUNDS[name], losses.data_ptr(), squares.data_ptr(), gradient.data_ptr(),
        )  # fmt: skip
        # Torch's gather would check the index; this does so in C, where it is read anyway.
        if not found:
            raise RuntimeError(f"index of gather() is out of bounds: it is to choose one of {n_columns} outputs")
        ctx.save_for_backward(outputs, gradient)
        ctx.rest = index, labels, name
        # Evidence has no gradient, and without this autograd would make zeros for it.
        ctx.mark_non_differentiable(squares)
        ctx.set_materialize_grads(False)
        return losses, squares

    @staticmethod
    def backward(ctx: Any, of_losses: Tensor | None, of_squares: None) -> Any:
        """Gradient of the outputs."""
        outputs, gradient = ctx.saved_tensors
        if of_losses is None:
            return None, None, None, None
        # With create_graph this will be differentiated once more, which compiled code cannot be.
        if torch.is_grad_enabled():
            rest = ctx.rest
            return *differentiate(lambda x: _by_torch(x, *rest), (outputs,), (True,), of_losses), None, None, None
        # [B, n, K] times the gradient of each branch's loss: both losses are linear in their scale.
        return gradient * of_losses.view(-1, 1, 1), None, None, None


def quantile_losses(quantiles: Tensor, samples: Tensor) -> Tensor | None:
    """Quantile Huber loss of each of B branches, ``[B]``, with its gradient.

    Summed over quantiles, mean over rows and samples, as ``sb3_contrib.common.utils.quantile_huber_loss`` does
    (Dabney et al., "Distributional Reinforcement Learning with Quantile Regression", arXiv 1710.10044, eq. 9 and 10).

    Args:
        quantiles: of every branch, ``[B, n, Q]``, at (i + ½)/Q.
        samples: of what they are quantiles of, ``[n, T]``, without a gradient.

    None if torch has to compute it instead.
    """
    if (
        kernels.library is None
        or not is_plain(quantiles, samples)
        or samples.requires_grad
        or quantiles.dim() != 3
        or samples.dim() != 2
        or quantiles.shape[1] != len(samples)
        or not (quantiles.numel() and samples.numel())
    ):
        return None
    losses: Tensor = _QuantileLosses.apply(quantiles, samples)
    return losses


class _QuantileLosses(torch.autograd.Function):
    """``apply(quantiles, samples)``: see :func:`quantile_losses`."""

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, samples: Tensor) -> Tensor:
        """Compute losses and, for later, the gradient."""
        assert kernels.library is not None
        held, samples = quantiles.contiguous(), samples.contiguous()
        losses, gradient = held.new_empty(len(held)), torch.empty_like(held)
        kernels.library.quantile_losses(
            *held.shape, samples.shape[1], held.data_ptr(), samples.data_ptr(), losses.data_ptr(), gradient.data_ptr()
        )
        ctx.save_for_backward(quantiles, samples, gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, of_losses: Tensor) -> Any:
        """Gradient of the quantiles."""
        quantiles, samples, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *differentiate(lambda x: quantiles_by_torch(x, samples), (quantiles,), (True,), of_losses), None
        return gradient * of_losses.view(-1, 1, 1), None


def quantiles_by_torch(quantiles: Tensor, samples: Tensor) -> Tensor:
    """The losses, ``[B]``, by operations that have gradients themselves."""
    n = quantiles.shape[2]
    # [B, n, Q, T]: every quantile against every sample.
    d = samples.unsqueeze(-2) - quantiles.unsqueeze(-1)
    tau = ((torch.arange(n, dtype=d.dtype) + 0.5) / n).unsqueeze(-1)
    huber = F.huber_loss(d, torch.zeros_like(d), reduction="none")
    return (torch.where(d < 0, 1 - tau, tau) * huber).sum(2).mean((1, 2))


def _by_torch(outputs: Tensor, index: Tensor, labels: Tensor, name: str) -> Tensor:
    """The losses, ``[B]``, by operations that have gradients themselves."""
    chosen = outputs.gather(2, index.expand(len(outputs), -1, -1))
    losses: Tensor = getattr(F, name)(chosen, labels.expand_as(chosen), reduction="none")
    return losses.flatten(1).mean(1)
