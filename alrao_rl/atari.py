"""Atari games as rl-baselines3-zoo trains on them: SB3's wrappers, and evaluations that are of whole games."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper, EpisodicLifeEnv
from stable_baselines3.common.env_util import unwrap_wrapper


def wrap(env: gym.Env[Any, Any], training: bool, **options: Any) -> gym.Env[Any, Any]:
    """Wrap a game.

    In training an agent sees rewards clipped to their sign and every lost life as an end, as in Mnih et al. 2015,
    "Human-level control through deep reinforcement learning". Its scores, and evaluations, are those of whole games.

    Args:
        env: a game of ALE that skips no frames.
        training: for training, or for evaluation.
        options: those of ``AtariWrapper``.
    """
    unclipped = {} if training else {"clip_reward": False}
    wrapped = AtariWrapper(cast(Any, env), **{**options, **unclipped})
    lives = cast(EpisodicLifeEnv | None, unwrap_wrapper(wrapped, EpisodicLifeEnv))
    return wrapped if training or lives is None else WholeGames(wrapped, lives)


class WholeGames(gym.Wrapper[Any, Any, Any, Any]):
    """An episode is a game, and every reset begins one.

    After a lost life it goes on as it does in training, with whatever it takes to put the ball into play: the agent has
    not learned to do that.

    Args:
        env: a game.
        lives: the wrapper below that ends an episode with every life.
    """

    def __init__(self, env: gym.Env[Any, Any], lives: EpisodicLifeEnv) -> None:
        super().__init__(env)
        self._lives = lives

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin a game, whatever became of the last one."""
        observation, info = self.env.reset(**kwargs)
        self._lives.was_real_done = True
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; the end of a life is none."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = self._lives.was_real_done
        if terminated and not over:
            observation, _ = self.env.reset()
        self._lives.was_real_done = True  # for a reset at any time
        return observation, reward, terminated and over, truncated, info
