"""Where parameters and gradients lie, for compiled code."""

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
    """Where parameters, and the parts of their flat gradient, lie, for compiled code: on the CPU and in float32."""

    def __init__(self, library: ctypes.CDLL, layout: Layout) -> None:
        self.library, self._layout = library, layout
        self._layers = cast(list[OutputHeads], layout.layers)
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
        self.addresses = self._numbers(*[parameter.data_ptr() for parameter in layout.parameters])
        self.sizes = self._numbers(*layout.lengths)
        self.segments = layout.sizes.cpu()

    @classmethod
    def of(cls, layout: Layout, tensors: list[Tensor]) -> Addresses | None:
        """Of a network whose parameters and flat ``tensors``, ``[N]``, compiled code can work on; else None."""
        sizes = [x.numel() for x in layout.parameters + tensors]
        fits = sizes == [*layout.lengths, *[layout.numel for _ in tensors]]
        fast = all([isinstance(layer, OutputHeads) for layer in layout.layers])
        if kernels.library is None or not fits or not fast or not can_read(*layout.parameters, *tensors):
            return None
        return cls(kernels.library, layout)

    def gather(self, g: Tensor) -> list[bool] | None:
        """Write all gradients into ``g``, ``[N]``, where there are some; return which parameters have one.

        None where one is not finite, or not laid out as usual.
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
        for gradient, size in zip(gradients, self._part_sizes, strict=True):
            if gradient is None:
                sources.append(0)
            elif gradient.layout is torch.strided and gradient.is_contiguous() and gradient.numel() == size:
                sources.append(gradient.data_ptr())
            else:
                return None
        squares: float = self.library.gather(len(sources), self._sources(*sources), self._parts, g.data_ptr())
        return present if math.isfinite(squares) else None

    def moving(self, present: list[bool]) -> ctypes.Array[ctypes.c_int64]:
        """Addresses of the parameters, 0 for those that received no gradient."""
        if all(present):
            return self.addresses
        return self._numbers(*[place * given for place, given in zip(self.addresses, present, strict=True)])
