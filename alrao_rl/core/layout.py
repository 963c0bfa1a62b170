"""All parameters of a network as one flat vector, trunk first, then the heads of each output layer, one by one.

N numbers in all, in segments: 0 is the trunk, then comes one for every head of every output layer. Flat tensors may
have any dimensions in front, ``[…, N]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.rates import FeatureMap


class Layout:
    """Where every parameter lies in the flat vector, and which learning rate it has.

    Args:
        network: a converted network.
        layers: its output layers.
        skip: a part of it that somebody else trains.
    """

    def __init__(self, network: nn.Module, layers: list[OutputHeads], skip: nn.Module | None = None) -> None:
        self.layers = layers
        self.features = FeatureMap(network, skip=layers)
        others = set() if skip is None else set(skip.parameters())
        own = [parameter for parameter in self.features.index if parameter not in others]
        self.trunk = [parameter for parameter in own if parameter.requires_grad]
        self.frozen = [parameter for parameter in own if not parameter.requires_grad]
        self.parameters = [*self.trunk, *(layer.theta for layer in layers)]
        lengths = [parameter.numel() for parameter in self.parameters]
        self.numel, self.lengths = sum(lengths), lengths
        # One segment per head, not per layer: a head has its own count of steps, and is re-cloned alone.
        heads = [size for layer in layers for size in [layer.theta.shape[1]] * layer.n_heads]
        self.n_trunk = self.numel - sum(heads)
        self.sizes = torch.tensor([self.n_trunk, *heads])
        # Every head is one feature, numbered behind those of the trunk.
        trunk = [self.features.index[parameter].expand(parameter.shape).reshape(-1) for parameter in self.trunk]
        of_heads = self.features.n_features + torch.arange(len(heads))
        self._index = torch.cat([*trunk, of_heads.repeat_interleave(self.sizes[1:])])
        # The features of frozen parameters have no entries here, hence the 1.
        self._counts = torch.bincount(self._index, minlength=self.features.n_features + len(heads)).clamp_min(1).float()

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat vector that belong to each of ``parameters``, in their shapes."""
        parts = zip(flat.split(self.lengths, -1), self.parameters, strict=True)
        return [part.view(*flat.shape[:-1], *parameter.shape) for part, parameter in parts]

    def heads(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat vector that belong to each output layer, ``[…, J, P]`` each."""
        parts = flat[..., self.n_trunk :].split(self.lengths[len(self.trunk) :], -1)
        return [part.unflatten(-1, layer.theta.shape) for part, layer in zip(parts, self.layers, strict=True)]

    def segments(self, counts: Tensor) -> list[Tensor]:
        """The parts of one number for every segment that belong to each output layer's heads, ``[…, J]`` each."""
        return list(counts[..., 1:].split([layer.n_heads for layer in self.layers], -1))

    def rates(self, feature_rates: Tensor) -> Tensor:
        """The learning rate of every entry, ``[…, N]``, from those of the trunk's features, ``[…, n_features]``.

        In float32 at least, and the optimizer's state and arithmetic with it.
        """
        heads = [layer.rates.expand(*feature_rates.shape[:-1], -1) for layer in self.layers]
        rates = torch.cat([feature_rates, *heads], -1)[..., self._features(feature_rates.device)[0]]
        # In bfloat16, 0.999 v rounds to v, so that a running mean of squares would never decay.
        return rates.to(torch.promote_types(rates.dtype, torch.float32))

    def spread(self, per_segment: Tensor) -> Tensor:
        """One number for every segment to one for every entry: ``[…, S]`` to ``[…, N]``."""
        self.sizes = self.sizes.to(per_segment.device)
        # With the known output size a GPU need not report the sum of the sizes.
        return torch.repeat_interleave(per_segment, self.sizes, -1, output_size=self.numel)

    def feature_mean(self, flat: Tensor) -> Tensor:
        """Replace every entry by the mean over its feature, ``[…, N]`` to ``[…, N]``; a head is one feature."""
        index, counts = self._features(flat.device)
        sums = flat.new_zeros(*flat.shape[:-1], len(counts)).index_add_(-1, index, flat)
        return (sums / counts)[..., index]

    def _features(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The feature of every entry, ``[N]``, and the number of entries of every feature, on ``device``."""
        self._index, self._counts = self._index.to(device), self._counts.to(device)
        return self._index, self._counts
