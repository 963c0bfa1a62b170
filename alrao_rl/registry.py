"""Environments of ours, registered with Gymnasium when this is imported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv


class WithoutVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole's position and angle alone: velocities have to be remembered. As in rl-baselines3-zoo."""

    _KEPT = (0, 2)

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        whole = env.observation_space
        assert isinstance(whole, spaces.Box)
        self.observation_space = spaces.Box(whole.low[list(self._KEPT)], whole.high[list(self._KEPT)])

    def observation(self, observation: Any) -> Any:
        """``[4]`` to ``[2]``."""
        return np.asarray(observation)[list(self._KEPT)]


def cartpole_without_velocities(**kwargs: Any) -> gym.Env[Any, Any]:
    """Make ``CartPoleNoVel-v1``; takes CartPole's arguments."""
    return WithoutVelocities(CartPoleEnv(**kwargs))


gym.register("CartPoleNoVel-v1", f"{__name__}:cartpole_without_velocities", max_episode_steps=500)
