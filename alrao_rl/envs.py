"""Make the vectorised environments of a recipe."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from alrao_rl.errors import UserError, suggest
from alrao_rl.recipes import Environment, Recipe

EVALUATION_SEED_OFFSET = 1_000_000
"""Evaluation environments are seeded this far from the training ones."""


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
    env: VecEnv = DummyVecEnv([lambda: make_one(recipe.environment) for _ in range(n)])
    if recipe.agent.normalize_observations:
        env = VecNormalize(env, training=training, norm_obs=True, norm_reward=False)
    env.seed(seed + (0 if training else EVALUATION_SEED_OFFSET))
    return env


def make_one(environment: Environment, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one environment with its wrappers, under a Monitor."""
    try:
        env = gym.make(environment.id, **{**environment.kwargs, **kwargs})
    except ImportError as error:
        raise UserError(f"{environment.id} cannot be made: {_missing(environment.id, error)}") from None
    except gym.error.DependencyNotInstalled as error:
        raise UserError(f"{environment.id} cannot be made: {_missing(environment.id, error)}") from None
    except TypeError as error:
        given = {**environment.kwargs, **kwargs}
        raise UserError(f"{environment.id} does not take {given}: {error}") from None
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{environment.id} cannot be made: {line}") from None
    for spec in environment.wrappers:
        env = _wrap(env, dict(spec))
    return Monitor(env)


def _missing(env_id: str, error: BaseException) -> str:
    name = env_id.split("/")[-1]
    if name.startswith(("LunarLander", "BipedalWalker", "CarRacing")):
        return "it needs Box2D; install it with: pip install 'gymnasium[box2d]'"
    return (str(error).strip().splitlines() or ["a package is missing"])[0]


def _wrap(env: gym.Env[Any, Any], spec: dict[str, Any]) -> gym.Env[Any, Any]:
    """Apply one wrapper of ``gymnasium.wrappers``, given as ``{name = "…", option = …}``; no other code is reached."""
    name = spec.pop("name", None)
    known = sorted(key for key, value in vars(gym.wrappers).items() if isinstance(value, type))
    if name not in known:
        raise UserError(f"wrapper {name!r} is not in gymnasium.wrappers{suggest(str(name), known)}")
    try:
        return getattr(gym.wrappers, name)(env, **spec)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"wrapper {name} does not take {spec}: {str(error).splitlines()[0]}") from None
