"""Which environments an agent can be trained on; others are rejected before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from alrao_rl.errors import UserError

_KINDS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_EXPECTED = "expected Box, Discrete, MultiDiscrete or MultiBinary"
_SMALLEST_FRAME = 10
"""Pixels per side; anything smaller with two dimensions is a stack of vectors."""
_FAR = 10.0
"""Action bounds this many times larger or smaller than 1 are too far from the values of a standard normal number."""


def refuse_spaces(env_id: str, env: gym.Env[Any, Any]) -> None:
    """Reject spaces that Stable-Baselines3 has no policy for; its own errors come late, and do not cover all of them.

    Raises:
        UserError: with the part that is at fault, and a wrapper that helps.
    """
    refuse_observations(env_id, env.observation_space)
    if (fault := _fault(env.action_space)) is not None:
        raise UserError(f"{env_id} acts in {env.action_space}, {fault}; wrap it in a gymnasium.ActionWrapper")


def refuse_observations(env_id: str, space: spaces.Space[Any]) -> None:
    """Reject observations that Stable-Baselines3 has no policy for.

    Raises:
        UserError: with the part that is at fault, and a wrapper that helps.
    """
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    faults = {key: fault for key, part in parts.items() if (fault := _fault(part) or _flat_fault(part)) is not None}
    if not faults and parts:
        return
    kept = [key for key, part in parts.items() if _flattens(part)]
    if 0 < len(kept) < len(parts):
        left_out, keys = ", ".join(repr(key) for key in parts if key not in kept), ", ".join(f'"{key}"' for key in kept)
        help_ = f'leave out {left_out} with the wrapper {{ name = "FilterObservation", filter_keys = [{keys}] }}'
    elif _can_be_flattened(space):
        help_ = "wrap it, for instance in gymnasium.wrappers.FlattenObservation"
    else:
        help_ = "no wrapper in gymnasium.wrappers makes an array of it, so the environment has to"
    name, fault = next(iter(faults.items()), ("", "expected at least one part"))
    what = f"{parts[name]} as {name!r}" if name else f"{space}"
    raise UserError(f"{env_id} observes {what}, {fault}{', or a Dict of these' if fault == _EXPECTED else ''}; {help_}")


def _fault(space: spaces.Space[Any]) -> str | None:
    """What was expected of actions, or of a part of observations, instead; None if nothing is wrong."""
    if not isinstance(space, _KINDS):
        return _EXPECTED
    if 0 in (space.shape or ()):
        return "expected at least one number"
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) != 1:
        return "expected one dimension"
    return None


def _flat_fault(space: spaces.Space[Any]) -> str | None:
    """What was expected of a part of observations instead, where actions would be fine."""
    return "expected at least one dimension" if isinstance(space, spaces.Box) and space.shape == () else None


def _flattens(space: spaces.Space[Any]) -> bool:
    """Whether a space is made of numbers, however they are nested."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return all(map(_flattens, inner))
    return isinstance(space, _KINDS) and 0 not in (space.shape or ())


def _can_be_flattened(space: spaces.Space[Any]) -> bool:
    try:
        flat = spaces.utils.flatten_space(space)
    except Exception:  # a user's own space may raise anything
        return False
    return isinstance(flat, spaces.Box) and 0 not in flat.shape


def refuse_learning_wrappers(env_id: str, env: gym.Env[Any, Any]) -> None:
    """Reject wrappers with running statistics, such as ``NormalizeObservation``, wherever they were applied.

    Each environment would have its own: evaluation, saving and playing would not use those of training.

    Raises:
        UserError: with the agent's option that does the same.
    """
    while isinstance(env, gym.Wrapper):
        held = {key: value for key, value in vars(env).items() if not isinstance(value, gym.Env)}
        name = next((key for key, value in held.items() if _is_running(value)), "" if _is_running(env) else None)
        if name is not None:
            of_rewards = isinstance(env, gym.RewardWrapper) or name.lstrip("_").startswith(("ret", "rew"))
            key = "normalize_rewards" if of_rewards else "normalize_observations"
            raise UserError(
                f"{env_id}: the wrapper {type(env).__name__} keeps running statistics, separate ones in each "
                f"environment, that are not saved with the agent; use {key} of the agent instead: --set {key}=true"
            )
        env = env.env


def _is_running(value: object) -> bool:
    """Whether ``value`` looks like Gymnasium's or SB3's RunningMeanStd."""
    return hasattr(value, "__dict__") and {"mean", "var", "count"} <= vars(value).keys()


def cautions(env: gym.Env[Any, Any]) -> Iterator[str]:
    """How observations and actions are treated differently from what the environment's author may expect."""
    space, actions = env.observation_space, env.action_space
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
        if not (isinstance(part, spaces.Box) and part.dtype == np.uint8 and (part.high == 255).all()):
            continue
        n = len(part.shape)
        if n > 3 or (n == 2 and min(part.shape) >= _SMALLEST_FRAME):
            yield (
                f"observes {part}{f' as {key!r}' if key else ''}, of {n} dimensions, and only three make an "
                "image: its numbers up to 255 go to a network without convolutions; GrayscaleObservation and then "
                "FrameStackObservation make three"
            )
    if isinstance(actions, spaces.Box) and actions.is_bounded() and not _fits_a_gaussian(actions):
        yield (
            f"acts in {actions}, but an agent begins around 0 with a standard deviation of 1, whatever the bounds: as "
            "Stable-Baselines3 recommends, scale actions to [-1, 1], with gymnasium.wrappers.RescaleAction(env, -1, 1) "
            'or in the environment\'s file wrappers = [{name = "RescaleAction", min_action = -1, max_action = 1}]'
        )


def _fits_a_gaussian(actions: spaces.Box) -> bool:
    """Whether the bounds are about as far from 0, on either side, as a standard normal number."""
    low, high = actions.low.astype(np.float64), actions.high.astype(np.float64)
    return bool(np.allclose(low, -high) and (high >= 1 / _FAR).all() and (high <= _FAR).all())
