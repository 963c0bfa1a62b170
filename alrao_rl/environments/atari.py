"""Atari games as rl-baselines3-zoo trains on them: SB3's wrappers, and evaluation on whole games."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper, EpisodicLifeEnv
from stable_baselines3.common.env_util import unwrap_wrapper


def wrap(env: gym.Env[Any, Any], training: bool, **options: Any) -> gym.Env[Any, Any]:
    """Wrap a game.

    In training an agent sees rewards clipped to their sign and every lost life as an end, as in Mnih et al. 2015,
    "Human-level control through deep reinforcement learning". Its scores and its evaluations are for whole games.

    Args:
        env: a game of ALE that does not skip frames.
        training: for training, or for evaluation.
        options: those of ``AtariWrapper``.

    Raises:
        ValueError: if the game itself skips frames, or repeats actions, and the wrapper would do so again.
    """
    _refuse_twice(env.unwrapped, **options)
    unclipped = {} if training else {"clip_reward": False}
    wrapped = AtariWrapper(cast(Any, env), **{**options, **unclipped})
    lives = cast(EpisodicLifeEnv | None, unwrap_wrapper(wrapped, EpisodicLifeEnv))
    return wrapped if training or lives is None else WholeGames(wrapped, lives)


def _refuse_twice(game: Any, frame_skip: int = 4, action_repeat_probability: float = 0.0, **_: Any) -> None:
    skipped, sticky = getattr(game, "_frameskip", 1), _stickiness(game)
    if skipped != 1 and frame_skip > 1:
        raise ValueError(
            f"the game itself skips frames (frameskip {skipped}), and the wrapper would skip {frame_skip} of the rest; "
            f"give it frameskip = 1, and repeat_action_probability = 0.0 for no sticky actions (it is {sticky:g})"
        )
    if sticky > 0 and action_repeat_probability > 0:
        raise ValueError(
            f"the game itself has sticky actions (repeat_action_probability {sticky:g}), and so would the wrapper; "
            "give it repeat_action_probability = 0.0"
        )


def cautions(env: gym.Env[Any, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """How a wrapped game differs from rl-baselines3-zoo's, unless its arguments say so."""
    sticky = _stickiness(env.unwrapped)
    if sticky > 0 and "repeat_action_probability" not in given and unwrap_wrapper(env, AtariWrapper) is not None:
        yield (
            f"repeats the last action with probability {sticky:g} instead of the given one, at every frame, as ALE "
            "does by default: give it repeat_action_probability, 0.0 or this"
        )


def _stickiness(game: Any) -> float:
    """Probability that an unwrapped game repeats the last action; 0 if it is not a game of ALE."""
    return float(game.ale.getFloat("repeat_action_probability")) if hasattr(game, "ale") else 0.0


class WholeGames(gym.Wrapper[Any, Any, Any, Any]):
    """An episode is a game, and every reset begins one.

    After a lost life the game goes on as in training, including whatever it takes to put the ball into play, which the
    agent has not learned to do.

    Args:
        env: a game.
        lives: the wrapper below that ends an episode with every life.
    """

    def __init__(self, env: gym.Env[Any, Any], lives: EpisodicLifeEnv) -> None:
        super().__init__(env)
        self._lives = lives

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin a new game, whether or not the last one was over."""
        observation, info = self.env.reset(**kwargs)
        self._lives.was_real_done = True
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; losing a life does not end the episode."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = self._lives.was_real_done
        if terminated and not over:
            observation, _ = self.env.reset()
        self._lives.was_real_done = True  # so that a reset at any time begins a game
        return observation, reward, terminated and over, truncated, info
