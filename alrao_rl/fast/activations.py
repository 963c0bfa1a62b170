"""Activations in less time: of a batch of many units torch's tanh takes half as long as the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alrao_rl.fast import kernels
from alrao_rl.fast.memory import differentiate, is_plain

LEAST_NUMBERS = 2**12
"""Numbers from which it pays."""


def tanh(x: Tensor) -> Tensor:
    """``torch.tanh`` to float rounding, on the CPU and in float32; elsewhere, and of few numbers, it itself."""
    if kernels.library is None or x.numel() < LEAST_NUMBERS or not is_plain(x) or not x.is_contiguous():
        return x.tanh()
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _tanh(x)
    result: Tensor = _Tanh.apply(x)
    return result


def _tanh(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    kernels.library.hyperbolic_tangent(x.numel(), x.data_ptr(), y.data_ptr())  # type: ignore[union-attr]
    return y


class _Tanh(torch.autograd.Function):
    """``apply(x)``: see :func:`tanh`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Compute it."""
        y = _tanh(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor | None:
        """(1 − y²) times the gradient."""
        x, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will differentiate this once more
            return differentiate(torch.tanh, (x,), (True,), gradient)[0]
        of_x: Tensor = torch.ops.aten.tanh_backward(gradient, y)
        return of_x
