"""Image features extractors with bounded units."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from torch import nn


def _bound_units(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Tanh())
        else:
            _bound_units(child)


class AlraoNatureCNN(NatureCNN):
    """NatureCNN's three convolutions and one layer of ``features_dim`` units, with tanh in place of its ReLU.

    A unit whose learning rate is far too large must saturate, not explode: see :class:`~alrao_rl.AlraoPolicy`.
    Arguments and errors are NatureCNN's; images are at least 36 pixels a side.
    """

    def __init__(
        self, observation_space: gym.Space[Any], features_dim: int = 512, normalized_image: bool = False
    ) -> None:
        super().__init__(observation_space, features_dim, normalized_image)
        _bound_units(self)


class AlraoCombinedExtractor(CombinedExtractor):
    """SB3's extractor for Dict observations, with bounded units in its image branches."""

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False
    ) -> None:
        super().__init__(observation_space, cnn_output_dim, normalized_image)
        _bound_units(self)
