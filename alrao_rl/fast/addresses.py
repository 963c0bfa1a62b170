"""Where parameters and gradients lie in memory, for compiled code."""

from __future__ import annotations

import ctypes
import math
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from alrao_rl.core.layout import Layout
from alrao_rl.fast import kernels
from alrao_rl.fast.heads import OutputHeads
from alrao_rl.fast.memory import can_read


class Addresses:
    """Addresses of the parameters, and places of their gradients in a flat vector, on the CPU and in float32."""

    def __init__(self, library: ctypes.CDLL, layout: Layout) -> None:
        self.library, self._layout = library, layout
        self._layers = cast(list[OutputHeads], layout.layers)
        # Part of kernels.c: offset, heads, their stride, rows, their stride and width, in the flat gradient [N]. A
        # layer's gradient arrives in pieces (weight, bias, extra), which lie interleaved in θ.
        parts: list[tuple[int, ...]] = []
        offset = 0
        for parameter in layout.trunk:
            parts.append((offset, 1, 0, 1, 0, parameter.numel()))
            offset += parameter.numel()
        for layer in self._layers:
            parts += layer.parts(offset)
            offset += layer.theta.numel()
        self._parts = (ctypes.c_int64 * (6 * len(parts)))(*chain.from_iterable(parts))
        self._part_sizes = [heads * rows * width for _, heads, _, rows, _, width in parts]
        self._sources = ctypes.c_int64 * len(parts)
        self._numbers = ctypes.c_int64 * len(layout.parameters)
        # Read once, as asking a tensor costs more than an update of it; the optimizer makes a new object if one moves.
        self.addresses = self._numbers(*[parameter.data_ptr() for parameter in layout.parameters])
        self.sizes = self._numbers(*layout.lengths)
        self.segments = layout.sizes.cpu()

    @classmethod
    def of(cls, layout: Layout, tensors: list[Tensor]) -> Addresses | None:
        """The addresses, if compiled code can work on the parameters and the flat ``tensors``, ``[N]``; else None."""
        # C believes the lengths that it is given: one that is wrong writes into other memory.
        sizes = [x.numel() for x in layout.parameters + tensors]
        fits = sizes == [*layout.lengths, *[layout.numel for _ in tensors]]
        fast = all([isinstance(layer, OutputHeads) for layer in layout.layers])
        if kernels.library is None or not fits or not fast or not can_read(*layout.parameters, *tensors):
            return None
        return cls(kernels.library, layout)

    def gather(self, g: Tensor) -> list[bool] | None:
        """Write all gradients into ``g``, ``[N]``; return which parameters have one: of others nothing is written.

        None if one is not finite, or not laid out as usual: then ``g`` is to be gathered by operations on tensors.
        """
        gradients: list[Tensor | None] = []
        present = []
        for parameter in self._layout.trunk:
            gradients.append(parameter.grad)
            present.append(parameter.grad is not None)
        for layer in self._layers:
            if (own := layer.leaf_gradients()) is None:
                return None
            gradients += own
            present.append(own[0] is not None)
        sources = []
        # A sparse gradient, or an expanded one as that of a sum, has another layout than its parameter.
        for gradient, size in zip(gradients, self._part_sizes, strict=True):
            if gradient is None:
                sources.append(0)
            elif gradient.layout is torch.strided and gradient.is_contiguous() and gradient.numel() == size:
                sources.append(gradient.data_ptr())
            else:
                return None
        # The sum of squares comes for free with the copy, and says of all numbers at once whether they are finite.
        squares: float = self.library.gather(len(sources), self._sources(*sources), self._parts, g.data_ptr())
        return present if math.isfinite(squares) else None

    def moving(self, present: list[bool]) -> ctypes.Array[ctypes.c_int64]:
        """Addresses of the parameters, 0 for those that received no gradient: C skips them."""
        if all(present):
            return self.addresses
        return self._numbers(*[place * given for place, given in zip(self.addresses, present, strict=True)])
