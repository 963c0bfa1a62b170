"""A policy as a plain torch module that acts: nothing of Alrao left, for export to other formats."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import Tensor, nn

from alrao_rl.plain import replace_heads


class Acting(nn.Module):
    """What ``predict(observation, deterministic=True)`` computes, of a policy.

    Args:
        policy: the policy, Alrao's or SB3's.
        statistics: what normalises the observations, by key of a Dict space or ``""``.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: Any, statistics: dict[str, RunningMeanStd]) -> None:
        super().__init__()
        space = policy.observation_space
        self.keys = list(space.spaces) if isinstance(space, spaces.Dict) else [""]
        for number, key in enumerate(self.keys):
            if key in statistics:
                rms = statistics[key]
                mean, variance = (torch.as_tensor(one, dtype=torch.float64) for one in (rms.mean, rms.var))
                self.register_buffer(f"mean_{number}", mean)
                self.register_buffer(f"std_{number}", (variance + 1e-8).sqrt())
        # Without the distribution: it may hold noise for exploration, of which no copy can be made.
        noise = getattr(getattr(policy, "actor", policy), "action_dist", self)
        self.policy = copy.deepcopy(policy, {id(noise): None})
        replace_heads(self.policy)
        self.requires_grad_(False).eval()
        space = policy.action_space
        if isinstance(space, spaces.Box):
            self.register_buffer("low", torch.as_tensor(space.low))
            self.register_buffer("high", torch.as_tensor(space.high))

    def forward(self, *observations: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and what they are chosen by: values or logits of all actions, ``[B, n]``, or the mean ``[B, …]``.

        Args:
            observations: ``[B, …]``, one for each key of a Dict space in its order.
        """
        normalised = [self._normalise(number, one) for number, one in enumerate(observations)]
        observation: Any = normalised[0] if self.keys == [""] else dict(zip(self.keys, normalised, strict=True))
        scores = self._scores(observation)
        if isinstance(self.policy.action_space, spaces.Box):
            scores = scores.reshape(-1, *self.policy.action_space.shape)
        return self._actions(scores), scores

    def _normalise(self, number: int, observation: Tensor) -> Tensor:
        if not hasattr(self, f"mean_{number}"):
            return observation
        mean, std = getattr(self, f"mean_{number}"), getattr(self, f"std_{number}")
        return ((observation.double() - mean) / std).clamp(-10.0, 10.0).float()  # as VecNormalize does

    def _scores(self, observation: Any) -> Tensor:
        policy = self.policy
        for name in ("q_net", "quantile_net"):
            if hasattr(policy, name):
                values = getattr(policy, f"{name}_average", getattr(policy, name))(observation)
                return cast(Tensor, values if name == "q_net" else values.mean(1))
        if hasattr(policy, "actor"):
            return self._mean(policy.actor, observation)
        features = policy.extract_features(observation)
        latent = features if policy.share_features_extractor else features[0]
        return cast(Tensor, policy.action_net(policy.mlp_extractor.forward_actor(latent)))

    def _mean(self, actor: Any, observation: Any) -> Tensor:
        """What an off-policy actor squashes."""
        features = actor.extract_features(observation, actor.features_extractor)
        if not hasattr(actor, "latent_pi"):  # TD3's, which ends with the squashing
            return cast(Tensor, actor.mu[:-1](features))
        latent = actor.latent_pi(features)
        return cast(Tensor, actor.mu(latent) if hasattr(actor, "mu") else actor.mean_of(actor.output(latent)))

    def _actions(self, scores: Tensor) -> Tensor:
        space = self.policy.action_space
        if isinstance(space, spaces.Discrete):
            return scores.argmax(1)  # as in SB3, which knows nothing of the space's start
        if isinstance(space, spaces.MultiDiscrete):
            parts = scores.split([int(n) for n in space.nvec], 1)
            return torch.stack([part.argmax(1) for part in parts], 1)
        if isinstance(space, spaces.MultiBinary):
            return (scores > 0).to(torch.int64)
        if self.policy.squash_output:
            return self.low + 0.5 * (scores.tanh() + 1) * (self.high - self.low)
        return torch.maximum(torch.minimum(scores, self.high), self.low)
