"""Checks that a tensor is plain CPU float32 memory before its address goes to C, which cannot check."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def all_finite(tensor: Tensor) -> bool:
    """Whether all numbers of ``tensor`` are finite. On a GPU this waits for the answer, as few operations do."""
    # A sum is finite if all its terms are, but for overflow, which is then looked into by whoever asked. On a GPU the
    # wait takes less time than the dozens of kernels that are spared.
    return math.isfinite((tensor.sum() if tensor.dim() else tensor).item())


def can_read(*tensors: Tensor) -> bool:
    """Whether their memory is what compiled code takes it for: on the CPU, of float32, without gaps."""
    return all([x.is_cpu and x.dtype is torch.float32 and x.is_contiguous() for x in tensors])


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are tensors of float32 on the CPU that say with their memory what they are, and all of it.

    Not what transforms of torch.func, forward-mode derivatives or a trace are to see through.
    """
    # Cheap questions first: this is asked several times per update.
    if torch._C._is_tracing() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    for x in tensors:
        if (
            type(x) is not Tensor
            or not x.is_cpu
            or x.dtype is not torch.float32
            or not torch._C._has_storage(x)
            # Lazy negation and lazy zeros: the memory does not hold what the tensor says.
            or x.is_neg()
            or x._is_zerotensor()
        ):
            return False
    return True


def with_room(x: Tensor, make: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """``x``, copied where it has gaps, and what ``make`` (``torch.zeros_like``) makes of it, laid out alike."""
    room = make(x)
    # torch.empty_like keeps a transposition and closes gaps: C walks through both by the strides of one.
    if room.stride() != x.stride():
        x = x.contiguous()
        room = make(x)
    return x, room


def differentiate(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], needed: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function`` by operations of torch, which have gradients themselves: those that are ``needed``."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of aliases: an input may depend on another one, and what reaches it that way is not this node's gradient.
        aliases = [x.view_as(x) if need else x.detach() for x, need in zip(inputs, needed, strict=True)]
        wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
        found = iter(torch.autograd.grad(function(*aliases), wanted, gradient, create_graph=create_graph))
    return [next(found) if need else None for need in needed]
