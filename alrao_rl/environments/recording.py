"""The state of an environment as what led to it: its random generator before the last reset, and the actions since.

Environments need not support this. Pickling would not do: some are copied without their internals, and without error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor

from alrao_rl.errors import first_line


class ReplayError(Exception):
    """The recorded episode does not lead to the recorded state; the message says why."""


class NonFiniteError(ValueError):
    """The environment gave a reward or an observation that is nan, infinite, or too large to learn from."""


_LARGEST = float(np.finfo(np.float32).max)
"""Networks and buffers compute with 32 bits, where anything larger is infinite."""


class Origin(gym.Wrapper[Any, Any, Any, Any]):
    """What an environment gives, below the wrappers of its file: its own rewards, and copies of the rest.

    A wrapper above may change the rewards, or keep observations that the environment writes into one array.

    Args:
        env: the environment as it is registered.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.rewards: list[float] = []
        """Rewards of the current episode."""
        self._steps = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(**kwargs)
        self.rewards = []
        return deepcopy(observation), {**info}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step.

        Raises:
            ValueError: if the reward is not a number.
            NonFiniteError: if it is not finite.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        self.rewards.append(_number(reward, self._steps))
        return deepcopy(observation), reward, terminated, truncated, {**info}


class RecordingMonitor(Monitor[Any, Any]):
    """SB3's Monitor, which also records the current episode, and computes returns as exact sums.

    It is outside all other wrappers, so that a replay restores everything below it: elapsed steps, stacked frames, the
    rewards so far.

    Above SB3's ``EpisodicLifeEnv``, an Atari game goes on after a reset: the whole game is recorded. Above another
    Monitor or :class:`Origin`, returns are those of its rewards, before the wrappers in between change them.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._space = env.observation_space
        self._before: dict[str, Any] | None = None
        self._reset: dict[str, Any] = {}
        self._parts: list[list[Any]] = []
        """Actions from one reset to the next; the first part begins the game."""
        below = unwrap_wrapper(env, Monitor) or unwrap_wrapper(env, Origin)
        self._counting = self if below is None else cast(Monitor[Any, Any] | Origin, below)
        self._lives = cast(EpisodicLifeEnv | None, unwrap_wrapper(env, EpisodicLifeEnv))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode and its record.

        Raises:
            ValueError: if the observation does not have its space's shape and kind, or is not finite.
        """
        if self._begins_anew:
            self._before, self._reset, self._parts = generator_state(self.unwrapped), kwargs, []
        self._parts.append([])
        observation, info = super().reset(**kwargs)
        self._check(observation, "after a reset")
        if (name := _non_finite(observation)) is not None:
            raise NonFiniteError(f"{name} is not finite after a reset")
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step and record the action.

        ``info`` is a new dict at every step, with ``episode`` only if an episode, or a game, has ended.

        Raises:
            ValueError: if the reward is not a number, or the observation does not have its space's shape and kind.
            NonFiniteError: if one of them is not finite, before it reaches a network or a replay buffer.
        """
        if self.needs_reset:
            raise RuntimeError("Tried to step environment that needs reset")
        # An array may be a row of a buffer into which the caller writes its next actions.
        self._parts[-1].append(action.copy() if isinstance(action, np.ndarray) else action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total_steps += 1
        self._check(observation, f"at step {self.total_steps} of the environment")
        self.rewards.append(_number(reward, self.total_steps))
        if (name := _non_finite(observation)) is not None:
            raise NonFiniteError(f"{name} is not finite at step {self.total_steps} of the environment")
        # An environment may return the same dict at every step, and have an entry of this name.
        info = {key: value for key, value in info.items() if key != "episode"}
        if terminated or truncated:
            self.needs_reset = True
            # SB3 keeps it while it resets the environment, which may write into the same array.
            observation = deepcopy(observation)
            if self._begins_anew:
                info["episode"] = self._summary()
        return observation, reward, terminated, truncated, info

    @property
    def _begins_anew(self) -> bool:
        """Whether a reset begins a new game, rather than continuing one after a lost life."""
        return self._lives is None or self._lives.was_real_done

    def _summary(self) -> dict[str, Any]:
        """Return, length and time of the episode or game that has ended."""
        return {
            "r": math.fsum(self._counting.rewards),
            "l": sum(map(len, self._parts)),
            "t": round(time.time() - self.t_start, 6),
        }

    def end_game(self) -> None:
        """Let the next reset begin a new game, however many lives are left."""
        if self._lives is not None:
            self._lives.was_real_done = True

    def _check(self, observation: Any, when: str) -> None:
        """Reject an observation that does not have its space's shape and kind: NumPy would silently convert it."""
        if (reason := _mismatch(self._space, observation)) is not None:
            raise ValueError(f"the observation {reason} {when}")

    def record(self) -> dict[str, Any]:
        """What leads to the current state, and what to recognise it by: ``rewards`` ``[T]`` and ``after``."""
        return {
            "before": self._before,
            "reset": self._reset,
            "actions": [np.array(part) for part in self._parts],
            "rewards": np.array(self.rewards, dtype=np.float64),
            "after": generator_state(self.unwrapped),
        }

    def replay(self, record: dict[str, Any]) -> Any:
        """Replay a recorded episode; return its last observation.

        Raises:
            ReplayError: if it came out differently.
        """
        try:
            set_generator_state(self.unwrapped, record["before"])
            self.end_game()
            for number, part in enumerate(record["actions"]):
                observation, _ = self.reset(**(record["reset"] if number == 0 else {}))
                for action in part:
                    observation = self.step(action)[0]
        except Exception as error:  # an environment in another state may raise anything
            raise ReplayError(f"{type(error).__name__}: {first_line(error)}") from None
        if np.array(self.rewards, dtype=np.float64).tobytes() != record["rewards"].tobytes():
            raise ReplayError("its rewards came out differently")
        if generator_state(self.unwrapped) != record["after"]:
            raise ReplayError("its random generator came out differently")
        self._before = record["before"]
        return observation


def _number(reward: Any, step: int) -> float:
    """A reward as a number; NumPy before 2.4 would accept an array that holds one."""
    try:
        if getattr(reward, "ndim", 0):
            raise TypeError
        value = float(reward)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the reward is {reward!r}, expected a number, at step {step} of the environment") from None
    if not abs(value) <= _LARGEST:  # also true of nan
        raise NonFiniteError(f"the reward is {reward} at step {step} of the environment")
    return value


def _mismatch(space: spaces.Space[Any], observation: Any) -> str | None:
    """How an observation differs from its space in shape or kind of number; None if it does not."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or observation.keys() != space.spaces.keys():
            return f"is not a dict of {', '.join(space.spaces)}"
        found = ((key, _mismatch(inner, observation[key])) for key, inner in space.spaces.items())
        return next((f"[{key!r}] {reason}" for key, reason in found if reason is not None), None)
    if space.shape is None or space.dtype is None:
        return None
    values = np.asarray(observation)
    if values.shape != space.shape:
        return f"is of shape {values.shape}, expected {space.shape}"
    if values.dtype.kind not in ("fiub" if space.dtype.kind == "f" else "iub"):
        return f"holds {values.dtype}, expected {space.dtype}"
    return None


def _non_finite(observation: Any) -> str | None:
    """Which part of an observation is nan, infinite or too large, with its value; None if no part is."""
    if isinstance(observation, (dict, tuple)):
        parts = observation.items() if isinstance(observation, dict) else enumerate(observation)
        found = ((key, _non_finite(value)) for key, value in parts)
        return next((f"{name} [{key!r}]" for key, name in found if name is not None), None)
    values = np.asarray(observation)
    # Whole numbers, such as those of images, are finite; skipping them saves time.
    if values.dtype.kind != "f":
        return None
    usable = np.isfinite(values) if values.dtype.itemsize <= 4 else np.abs(values) <= _LARGEST
    return None if usable.all() else f"the observation ({values[~usable][0]})"


def generator_state(owner: Any) -> dict[str, Any] | None:
    """State of the ``np_random`` of an unwrapped environment or a space; None if it has none, or none yet."""
    generator = getattr(owner, "_np_random", None)  # the property would create one
    return _plain(generator.bit_generator.state) if isinstance(generator, np.random.Generator) else None


def set_generator_state(owner: Any, state: dict[str, Any] | None) -> None:
    """Restore a state from :func:`generator_state`; None does nothing.

    In place, because others may hold the same generator.

    Raises:
        ValueError: if the generator is of another kind.
    """
    if state is not None:
        owner.np_random.bit_generator.state = state


def _plain(state: Any) -> Any:
    """The state without arrays, so that two states can be compared."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state
