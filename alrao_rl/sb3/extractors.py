"""Image features extractors with bounded units."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import Tensor, nn

_NATURE_NEEDS = 36
"""Pixels a side: below that nothing is left for NatureCNN's last convolution."""


def _replace_relu(module: nn.Module, activation_fn: type[nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ReLU):
            setattr(module, name, activation_fn())
        else:
            _replace_relu(child, activation_fn)


class AlraoNatureCNN(NatureCNN):
    """NatureCNN's three convolutions and one layer of ``features_dim`` units, with tanh in place of its ReLU.

    A unit whose learning rate is far too large must saturate, not explode: see :class:`~alrao_rl.AlraoPolicy`.
    Arguments and errors are NatureCNN's; images are at least 36 pixels a side.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        features_dim: int = 512,
        normalized_image: bool = False,
        activation_fn: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(observation_space, features_dim, normalized_image)
        _replace_relu(self, activation_fn)


class AlraoMinAtarCNN(BaseFeaturesExtractor):
    """The MinAtar paper's network for small images: 16 convolutions of 3×3 and one layer of ``features_dim`` units.

    Young and Tian 2019 (https://arxiv.org/abs/1903.03176), with tanh in place of its ReLU.

    Args:
        observation_space: images ``[C, H, W]`` of at least 3 pixels a side.
        features_dim: number of features.
        normalized_image: whether SB3 is not to scale images, as in ``NatureCNN``.
        activation_fn: the units.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        features_dim: int = 128,
        normalized_image: bool = False,
        activation_fn: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(observation_space, features_dim)
        if not is_image_space(observation_space, check_channels=False, normalized_image=normalized_image):
            raise ValueError(
                f"expected images, uint8 from 0 to 255 of three dimensions, not {observation_space}; for numbers that "
                "are scaled already: policy_kwargs=dict(normalize_images=False)"
            )
        channels, height, width = observation_space.shape  # type: ignore[misc]
        if min(height, width) < 3:
            raise ValueError(f"expected images of at least 3 pixels a side, not of {height}×{width}")
        self.cnn = nn.Sequential(nn.Conv2d(channels, 16, 3), activation_fn(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(16 * (height - 2) * (width - 2), features_dim), activation_fn())

    def forward(self, observations: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, features_dim]``."""
        return self.linear(self.cnn(observations))


def image_extractor(space: gym.Space[Any]) -> type[BaseFeaturesExtractor]:
    """The extractor for images of this size, wherever their channels are: NatureCNN if they are large enough for it."""
    small = space.shape is not None and len(space.shape) == 3 and sorted(space.shape)[1] < _NATURE_NEEDS
    return AlraoMinAtarCNN if small else AlraoNatureCNN


class AlraoCombinedExtractor(CombinedExtractor):
    """SB3's extractor for Dict observations, with the extractors of this file for images."""

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False
    ) -> None:
        # Not SB3's own, which makes a NatureCNN of every image, however small it is.
        BaseFeaturesExtractor.__init__(self, observation_space, features_dim=1)
        self.extractors = nn.ModuleDict()
        self._features_dim = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space, normalized_image=normalized_image):
                make = image_extractor(space)
                self.extractors[key] = make(space, features_dim=cnn_output_dim, normalized_image=normalized_image)  # type: ignore[call-arg]
                self._features_dim += cnn_output_dim
            else:
                self.extractors[key] = nn.Flatten()
                self._features_dim += get_flattened_obs_dim(space)
