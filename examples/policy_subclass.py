"""Your own policy: a subclass of the concrete class, changed where Stable-Baselines3's would be.

Whatever it builds is converted afterwards: ``action_net`` and ``value_net`` become the duplicated output layers, the
rest is the trunk.
"""

import torch
from stable_baselines3 import A2C
from torch import nn

from alrao_rl import AlraoActorCriticPolicy


class TwoTrunks(nn.Module):
    """A small network for the policy and a wide one for the values."""

    latent_dim_pi, latent_dim_vf = 32, 128

    def __init__(self, size: int) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(size, 32), nn.Tanh())
        self.value = nn.Sequential(nn.Linear(size, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both latents, ``[B, 32]`` and ``[B, 128]``."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, size]`` to ``[B, 32]``."""
        return self.policy(features)

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, size]`` to ``[B, 128]``."""
        return self.value(features)


class Policy(AlraoActorCriticPolicy):
    """With the networks above."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = TwoTrunks(self.features_dim)


def main(timesteps: int = 100_000) -> A2C:
    """Train on CartPole."""
    return A2C(Policy, "CartPole-v1", verbose=1).learn(timesteps)


if __name__ == "__main__":
    main()
