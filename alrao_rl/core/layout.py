"""All parameters of a network as one flat vector, trunk first, then the heads of each output layer, one by one."""

from __future__ import annotations

import ctypes
import math
from itertools import chain

import torch
from torch import Tensor, nn

from alrao_rl.compiled import kernels
from alrao_rl.compiled.memory import can_read
from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.rates import FeatureMap


class Layout:
    """Where every parameter lies in the flat vector of N numbers, and which learning rate it has.

    Segment 0 is the trunk; then comes one segment for every head of every output layer.
    """

    def __init__(self, network: nn.Module, layers: list[OutputHeads]) -> None:
        self.layers = layers
        self.features = FeatureMap(network, skip=layers)
        self.trunk = [parameter for parameter in self.features.index if parameter.requires_grad]
        self.frozen = [parameter for parameter in self.features.index if not parameter.requires_grad]
        self.parameters = [*self.trunk, *(layer.theta for layer in layers)]
        lengths = [parameter.numel() for parameter in self.parameters]
        self.numel, self.lengths = sum(lengths), lengths
        heads = [size for layer in layers for size in [layer.theta.shape[1]] * layer.n_heads]
        self.n_trunk = self.numel - sum(heads)
        self.sizes = torch.tensor([self.n_trunk, *heads])

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat vector that belong to each of ``parameters``, in their shapes."""
        return [part.view(p.shape) for part, p in zip(flat.split(self.lengths), self.parameters, strict=True)]

    def heads(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat vector that belong to each output layer, ``[J, P]`` each."""
        parts = flat[self.n_trunk :].split(self.lengths[len(self.trunk) :])
        return [part.view(layer.theta.shape) for part, layer in zip(parts, self.layers, strict=True)]

    def rates(self, feature_rates: Tensor) -> Tensor:
        """The learning rate of every entry, ``[N]``, from those of the trunk's features, ``[n_features]``."""
        trunk = [feature_rates[self._index(parameter).to(feature_rates.device)] for parameter in self.trunk]
        heads = [layer.rates[:, None].expand_as(layer.theta).reshape(-1) for layer in self.layers]
        return torch.cat([*trunk, *heads])

    def _index(self, parameter: nn.Parameter) -> Tensor:
        return self.features.index[parameter].expand(parameter.shape).reshape(-1)

    def spread(self, per_segment: Tensor) -> Tensor:
        """One number for every segment to one for every entry: ``[S]`` to ``[N]``."""
        self.sizes = self.sizes.to(per_segment.device)
        return torch.repeat_interleave(per_segment, self.sizes, output_size=self.numel)

    def feature_mean(self, flat: Tensor) -> Tensor:
        """Replace every entry by the mean over its feature, ``[N]`` to ``[N]``; a head is one feature."""
        index, count = self._feature_index(flat.device)
        sums = flat.new_zeros(len(count)).index_add_(0, index, flat)
        return (sums / count)[index]

    def _feature_index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        cached: tuple[Tensor, Tensor] | None = getattr(self, "_cache", None)
        if cached is None or cached[0].device != device:
            n, heads = self.features.n_features, self.sizes[1:].cpu()
            index = torch.cat(
                [*(self._index(p) for p in self.trunk), n + torch.arange(len(heads)).repeat_interleave(heads)]
            )
            count = torch.bincount(index, minlength=n + len(heads)).clamp_min(1).float()
            cached = self._cache = index.to(device), count.to(device)
        return cached


class Memory:
    """Where parameters, and the parts of their flat gradient, lie, for compiled code: on the CPU and in float32."""

    def __init__(self, library: ctypes.CDLL, layout: Layout) -> None:
        self.library, self._layout = library, layout
        parts: list[tuple[int, ...]] = []
        offset = 0
        for parameter in layout.trunk:
            parts.append((offset, 1, 0, 1, 0, parameter.numel()))
            offset += parameter.numel()
        for layer in layout.layers:
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
    def of(cls, layout: Layout, tensors: list[Tensor]) -> Memory | None:
        """Of a network whose parameters and flat ``tensors``, ``[N]``, compiled code can work on; else None."""
        sizes = [x.numel() for x in layout.parameters + tensors]
        fits = sizes == [*layout.lengths, *[layout.numel for _ in tensors]]
        if kernels.library is None or not fits or not can_read(*layout.parameters, *tensors):
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
        for layer in self._layout.layers:
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
