"""Make the vectorised environments of a recipe."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage

from alrao_rl import atari, registry
from alrao_rl.errors import UserError, first_line, print_warning, suggest
from alrao_rl.recipes import Environment, Recipe
from alrao_rl.recorder import RecordingMonitor

EVALUATION_SEED_OFFSET = 1_000_000
"""Evaluation environments are seeded this far from the training ones."""

_BOX2D = ("LunarLander", "BipedalWalker", "CarRacing")


def make_env(recipe: Recipe, seed: int, training: bool, n_envs: int | None = None) -> VecEnv:
    """Make the training or the evaluation environments of a recipe.

    Args:
        recipe: what to make.
        seed: seed of the run; evaluation environments add :data:`EVALUATION_SEED_OFFSET`.
        training: training environments (the agent's ``n_envs``) or evaluation ones.
        n_envs: how many, if not the agent's number.

    Raises:
        UserError: the environment cannot be made, with the reason and what to install.
    """
    n = n_envs or recipe.agent.n_envs
    env: VecEnv = DummyVecEnv([lambda: make_one(recipe.environment, training) for _ in range(n)])
    if recipe.agent.normalize_observations:
        env = _normalized(env, training, recipe.agent.normalize_observations)
    env.seed(seed + (0 if training else EVALUATION_SEED_OFFSET))
    return env


def _normalized(env: VecEnv, training: bool, how: bool | str) -> VecEnv:
    """Normalise what has a mean and a variance: Box observations, but for images, which SB3 scales by itself."""
    space = env.observation_space
    keys = None
    if isinstance(space, spaces.Dict):
        keys = [key for key, inner in space.spaces.items() if _has_statistics(inner)]
    if not (keys or _has_statistics(space)):
        return env
    if isinstance(space, spaces.Dict) and any(map(_has_channels_last, space.values())):
        # Below the normalisation: SB3 would do it above, and replay what was not transposed.
        env = VecTransposeImage(env)
    normalizer = VecNormalize(env, training=training, norm_reward=False, norm_obs_keys=keys)
    if how == "scale":
        normalizer.obs_rms = _uncentred(normalizer.obs_rms)
    return normalizer


class RunningMeanSquare(RunningMeanStd):
    """Statistics that make VecNormalize divide by the running root mean square and leave the centre where it is.

    What hardly moves at first, such as the cosine of an angle near 0, would be blown up by its tiny variance.
    """

    def update_from_moments(self, batch_mean: Any, batch_var: Any, batch_count: float) -> None:
        """Take a batch: the mean stays 0, the variance is the mean square."""
        super().update_from_moments(np.zeros_like(batch_mean), batch_var + np.square(batch_mean), batch_count)


def _uncentred(statistics: RunningMeanStd | dict[str, RunningMeanStd]) -> Any:
    if isinstance(statistics, dict):
        return {key: _uncentred(one) for key, one in statistics.items()}
    return RunningMeanSquare(shape=statistics.mean.shape)


def _has_channels_last(space: spaces.Space[Any]) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(cast(spaces.Box, space))


def _has_statistics(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and not is_image_space(space)


def close(env: VecEnv) -> None:
    """Close environments; what they raise then is a warning, as all that they were for is done."""
    try:
        env.close()
    except Exception as error:
        print_warning(f"the environment could not be closed: {type(error).__name__}: {first_line(error)}")


def make_one(environment: Environment, training: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one environment with its wrappers, under a :class:`~alrao_rl.recorder.RecordingMonitor`.

    Args:
        environment: what to make.
        training: for training, where an Atari game may be wrapped otherwise.
        kwargs: arguments for it beside those of the recipe, such as ``render_mode``.

    Raises:
        UserError: it cannot be made, with the reason and what to install.
    """
    given = {**environment.kwargs, **kwargs}
    registry.provide(environment.id)
    try:
        env = gym.make(environment.id, **given)
    except TypeError as error:
        raise UserError(f"{environment.id} does not take {given}: {first_line(error)}") from None
    except Exception as error:
        missing = isinstance(error, (ImportError, gym.error.DependencyNotInstalled))
        box2d = missing and environment.id.split("/")[-1].startswith(_BOX2D)
        reason = "it needs Box2D; install it with: pip install 'gymnasium[box2d]'" if box2d else first_line(error)
        raise UserError(f"{environment.id} cannot be made: {reason}") from None
    for spec in environment.wrappers:
        env = _wrap(env, environment.id, training, dict(spec))
    _refuse_spaces(environment.id, env)
    return RecordingMonitor(env)


def _refuse_spaces(env_id: str, env: gym.Env[Any, Any]) -> None:
    """Refuse what Stable-Baselines3 has no policy for; its own words come late, and not of all of it."""
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    known = "Box, Discrete, MultiDiscrete or MultiBinary"
    observed = env.observation_space
    parts = observed.values() if isinstance(observed, spaces.Dict) else [observed]
    if not all(isinstance(part, kinds) for part in parts):
        raise UserError(
            f"{env_id} observes {observed}, expected {known}, or a Dict of these; wrap it, for instance in "
            "gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(env.action_space, kinds):
        raise UserError(f"{env_id} acts in {env.action_space}, expected {known}; wrap it")


def _wrap(env: gym.Env[Any, Any], env_id: str, training: bool, spec: dict[str, Any]) -> gym.Env[Any, Any]:
    """Apply one wrapper, given as ``{name = "…", option = …}``; no other code is reached.

    It is one of ``gymnasium.wrappers``, or SB3's ``AtariWrapper``, see :func:`~alrao_rl.atari.wrap`.
    """
    name = spec.pop("name", None)
    known: dict[str, Any] = {key: value for key, value in vars(gym.wrappers).items() if isinstance(value, type)}
    known["AtariWrapper"] = lambda env, **options: atari.wrap(env, training, **options)
    if name not in known:
        raise UserError(
            f"{env_id}: wrapper {name!r} is not in gymnasium.wrappers, nor AtariWrapper{suggest(str(name), known)}"
        )
    # TOML has no tuples, which wrappers expect.
    spec = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
    if name == "TimeLimit":
        _refuse_longer_limit(env, env_id, spec.get("max_episode_steps"))
    try:
        return known[name](env, **spec)
    except Exception as error:
        raise UserError(f"{env_id}: wrapper {name} does not take {spec}: {first_line(error)}") from None


def _refuse_longer_limit(env: gym.Env[Any, Any], env_id: str, steps: object) -> None:
    """Refuse a time limit around a shorter one, such as that of the registry, which would end the episodes first."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit) and isinstance(steps, int) and steps > layer._max_episode_steps:
            limit = layer._max_episode_steps
            raise UserError(
                f"{env_id}: wrapper TimeLimit of {steps} steps would do nothing, as episodes end after {limit}; "
                f"expected at most {limit}, or max_episode_steps = {steps} among the kwargs in the place of the wrapper"
            )
        layer = layer.env
