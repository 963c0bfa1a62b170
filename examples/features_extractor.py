"""Your own features extractor, as Stable-Baselines3 takes them: every unit in it gets its own learning rate.

Bounded units matter: one whose learning rate is far too large must saturate, not explode.
"""

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from alrao_rl import AlraoPolicy


class Normalized(BaseFeaturesExtractor):
    """A layer with normalised units."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 32) -> None:
        super().__init__(observation_space, features_dim)
        size = observation_space.shape[0]
        self.net = nn.Sequential(nn.Linear(size, features_dim), nn.LayerNorm(features_dim), nn.ReLU())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """``[B, size]`` to ``[B, features_dim]``."""
        return self.net(observations)


def main(timesteps: int = 50_000) -> PPO:
    """Train on CartPole."""
    kwargs = {"features_extractor_class": Normalized, "features_extractor_kwargs": {"features_dim": 64}}
    return PPO(AlraoPolicy, "CartPole-v1", policy_kwargs=kwargs, verbose=1).learn(timesteps)


if __name__ == "__main__":
    main()
