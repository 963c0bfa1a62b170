"""Models that act but do not learn: what an agent's file is loaded as."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd

Statistics = dict[str, RunningMeanStd]
"""Running mean and variance of observations: of each normalised key of a Dict space, or of ``""``, the whole."""
_ACTS_ONLY = "load_agent makes an agent that acts: its file holds no optimizer state and no data to learn from"
_LOSES_STATISTICS = "{} would lose the statistics that normalise observations: keep the run's files, or use save_agent"


def acting(algorithm: type[Any]) -> type[Any]:
    """A subclass of the algorithm that refuses what a model loaded to act cannot do."""

    class Acting(algorithm):
        def learn(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(_ACTS_ONLY)

        def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
            if hasattr(self.policy, "statistics"):
                raise RuntimeError(_LOSES_STATISTICS.format(path))
            super().save(path, *args, **kwargs)

        def set_env(self, env: Any, force_reset: bool = True) -> None:
            env = self._wrap_env(env, self.verbose)
            self.n_envs = env.num_envs  # the number in training matters to learning only
            super().set_env(env, force_reset)

    Acting.__name__ = Acting.__qualname__ = algorithm.__name__  # the name in SB3's messages
    return Acting


def normalizing(policy: type[Any]) -> type[Any]:
    """A subclass of the policy that takes raw observations, although it was trained on normalised ones.

    ``statistics`` are those of each normalised key of a Dict space, or of ``""``.
    """

    class Normalizing(policy):
        statistics: Statistics

        def obs_to_tensor(self, observation: Any) -> Any:
            tensor, vectorized = super().obs_to_tensor(observation)  # first, because it rejects wrong shapes
            if isinstance(tensor, dict):
                return {key: self._normalize(value, key) for key, value in tensor.items()}, vectorized
            return self._normalize(tensor, ""), vectorized

        def save(self, path: str) -> None:
            raise RuntimeError(_LOSES_STATISTICS.format(path))

        def _normalize(self, value: torch.Tensor, key: str) -> torch.Tensor:
            """As VecNormalize does."""
            if key not in self.statistics:
                return value
            rms = self.statistics[key]
            normal = np.clip((value.cpu().numpy() - rms.mean) / np.sqrt(rms.var + 1e-8), -10.0, 10.0)
            return torch.as_tensor(normal.astype(np.float32), device=value.device)

    Normalizing.__name__ = Normalizing.__qualname__ = policy.__name__
    return Normalizing


class SpacesOnly(gym.Env[Any, Any]):
    """An environment with spaces and nothing else, to build a model that only predicts."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def action_masks(self) -> Any:
        """Refuse, like ``reset``; an algorithm that needs masks can be built because the method exists."""
        raise RuntimeError(_ACTS_ONLY)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Refuse: there is nothing to learn on."""
        raise RuntimeError(_ACTS_ONLY)
