"""This package's environments, registered with Gymnasium on import, and those of the extra ``envs``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

from alrao_rl.errors import UserError

_NEEDS = {"ALE/": ("ale_py", "cv2"), "MinAtar/": ("minatar",)}
"""Packages that environments with these prefixes need; importing ``ale_py`` registers ALE's."""


class WithoutVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole with position and angle only, so that velocities must be inferred; as in rl-baselines3-zoo."""

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

# MinAtar's own limit in Freeway, for all games: in Seaquest an agent that stays at the surface would play for ever.
for _game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
    gym.register(
        f"MinAtar/{_game.title().replace('_', '')}-v1",
        "alrao_rl.environments.minatar:MinAtar",
        kwargs={"game": _game},
        max_episode_steps=2_500,
    )


def provide(env_id: str) -> None:
    """Make sure that Gymnasium can make an environment, if it is one of ALE's or MinAtar's.

    Raises:
        UserError: if the packages for it are not installed.
    """
    for prefix, packages in _NEEDS.items():
        if env_id.startswith(prefix):
            if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
                raise UserError(f"{env_id} needs {' and '.join(missing)}: pip install 'alrao-rl[envs]'")
            if prefix == "ALE/":
                ale = importlib.import_module("ale_py")
                ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # no banner for every game
