"""Make the vectorised environments of a recipe."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, cast

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from alrao_rl.cli.console import print_warning
from alrao_rl.environments import atari, register, supported
from alrao_rl.environments.normalization import normalized
from alrao_rl.environments.recording import Origin, RecordingMonitor
from alrao_rl.errors import UserError, first_line, suggest
from alrao_rl.recipes.schema import CONTINUOUS, NORMALIZATIONS, Agent, Environment, Recipe

EVALUATION_SEED_OFFSET = 1_000_000
"""Evaluation environments are seeded this far from the training ones."""
_EXTRAS = {
    "gymnasium.envs.box2d": ("Box2D", "gymnasium[box2d]"),
    "gymnasium.envs.mujoco": ("MuJoCo", "alrao-rl[mujoco]"),
}
"""Extras for Gymnasium's own environments, by module: they need several packages, some imported by other names."""


def make_env(
    recipe: Recipe,
    seed: int,
    training: bool,
    n_envs: int | None = None,
    make: Callable[[], gym.Env[Any, Any]] | None = None,
) -> VecEnv:
    """Make the training or the evaluation environments of a recipe.

    Args:
        recipe: what to make.
        seed: seed of the run; evaluation environments add :data:`EVALUATION_SEED_OFFSET`.
        training: training environments (the agent's ``n_envs``) or evaluation ones.
        n_envs: how many, instead of the agent's number.
        make: makes one of them, instead of :func:`make_one`.

    Raises:
        UserError: if the environment cannot be made, with the reason and what to install.
    """
    n = n_envs or recipe.agent.n_envs
    games = DummyVecEnv([make or (lambda: make_one(recipe.environment, training))] * n)
    if training and make is None:
        warn(recipe.environment, games.envs[0])
    env = normalized(games, settle(recipe).agent, training)
    env.seed(seed + (0 if training else EVALUATION_SEED_OFFSET))
    return env


def settle(recipe: Recipe) -> Recipe:
    """The recipe with its agent's "continuous" replaced by true or false, which depends on the environment's actions.

    Makes one environment for this, once per process.

    Raises:
        UserError: if the environment cannot be made.
    """
    origins, values = dict(recipe.origins), {}
    for name in NORMALIZATIONS:
        if getattr(recipe.agent, name) == CONTINUOUS:
            actions = _action_space(recipe.environment.model_dump_json(exclude={"timesteps"}))
            values[name] = isinstance(actions, spaces.Box)
            origin = origins[name][1]
            origins[name] = (values[name], f'{origin}: "{CONTINUOUS}", and the actions are {actions}')
    if not values:
        return recipe
    agent = Agent.model_validate(recipe.agent.model_dump(exclude_none=True) | values)
    return replace(recipe, agent=agent, origins=origins)


@cache
def _action_space(environment: str) -> spaces.Space[Any]:
    """Action space of an environment given as JSON."""
    env = make_one(Environment.model_construct(**json.loads(environment)))
    with contextlib.suppress(Exception):  # closing the run's own environments will report it
        env.close()
    return env.action_space


def classes(env: VecEnv) -> set[type]:
    """Classes of the first environment, its wrappers, and what they hold: a game of ALE, a model of MuJoCo."""
    layer, found = cast(Any, env.unwrapped).envs[0], set[type]()
    while True:
        found |= {type(layer), *map(type, vars(layer).values())}
        if not isinstance(layer, gym.Wrapper):
            return found
        layer = layer.env


def warn(environment: Environment, env: gym.Env[Any, Any]) -> None:
    """Warn of what a user may not expect of an environment."""
    for caution in (*supported.cautions(env), *atari.cautions(env, environment.kwargs)):
        print_warning(f"{environment.id} {caution}")


def close(env: VecEnv | gym.Env[Any, Any]) -> None:
    """Close environments; an error is only a warning, because their work is done."""
    try:
        env.close()
    except Exception as error:
        print_warning(f"the environment could not be closed: {type(error).__name__}: {first_line(error)}")


def make_one(environment: Environment, training: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one environment with its wrappers, under a :class:`~alrao_rl.environments.recording.RecordingMonitor`.

    Args:
        environment: what to make.
        training: for training, where an Atari game may be wrapped differently.
        kwargs: arguments in addition to those of the recipe, such as ``render_mode``.

    Raises:
        UserError: if it cannot be made, with the reason and what to install.
    """
    arguments = {**environment.kwargs, **kwargs}
    register.provide(environment.id)
    try:
        with contextlib.nullcontext() if "xml_file" in arguments else _quiet(environment.id):
            env = gym.make(environment.id, **arguments)
    except TypeError as error:
        raise UserError(f"{environment.id} does not take {arguments}: {first_line(error)}") from None
    except Exception as error:
        raise UserError(f"{environment.id} cannot be made: {_missing(error) or first_line(error)}") from error
    if environment.wrappers:
        env = Origin(env)
    for spec in environment.wrappers:
        env = _wrap(env, environment.id, training, dict(spec))
    supported.refuse_learning_wrappers(environment.id, env)
    supported.refuse_spaces(environment.id, env)
    return RecordingMonitor(env)


@contextlib.contextmanager
def _quiet(env_id: str) -> Iterator[None]:
    """Drop MuJoCo's warnings of deprecated attributes in Gymnasium's own models.

    MuJoCo would print them for every environment, and append them to a file ``MUJOCO_LOG.TXT`` in the current folder.
    What it warns of while it simulates still gets there.
    """
    spec = gym.registry.get(env_id)
    mujoco: Any = None
    if spec is not None and str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        with contextlib.suppress(Exception):  # making the environment will report it
            mujoco = importlib.import_module("mujoco")
    if mujoco is None:
        yield
        return
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)


class Shared(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that stands in for several, to build a model: that uses its spaces and methods but never steps."""

    @property
    def unwrapped(self) -> Any:
        """Itself, because Stable-Baselines3 refuses to use one environment several times."""
        return self


def _missing(error: Exception) -> str | None:
    """What one of Gymnasium's own environments could not be made for lack of, and what to do."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if (backend := os.environ.get("MUJOCO_GL")) and any(module.startswith("OpenGL.") for module in modules):
        return f"MuJoCo cannot load the library that MUJOCO_GL={backend} stands for; leave it unset"
    if isinstance(error, (ImportError, gym.error.DependencyNotInstalled)):
        for package, (name, extra) in _EXTRAS.items():
            if any(f"{module}.".startswith(f"{package}.") for module in modules):
                return f"it needs {name}; install it with: pip install '{extra}'"
    return None


def _wrap(env: gym.Env[Any, Any], env_id: str, training: bool, spec: dict[str, Any]) -> gym.Env[Any, Any]:
    """Apply one wrapper, given as ``{name = "…", option = …}``; no other code can be reached.

    It is one of ``gymnasium.wrappers``, or SB3's ``AtariWrapper``, see :func:`~alrao_rl.environments.atari.wrap`.
    """
    name = spec.pop("name", None)
    known: dict[str, Any] = {key: value for key, value in vars(gym.wrappers).items() if isinstance(value, type)}
    known["AtariWrapper"] = lambda env, **options: atari.wrap(env, training, **options)
    if name not in known:
        raise UserError(
            f"{env_id}: wrapper {name!r} is neither in gymnasium.wrappers nor AtariWrapper{suggest(str(name), known)}"
        )
    # TOML has no tuples, which wrappers expect.
    spec = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
    if name == "TimeLimit":
        _refuse_longer_limit(env, env_id, spec.get("max_episode_steps"))
    try:
        return known[name](env, **spec)
    except Exception as error:
        if isinstance(error, NotImplementedError):  # from Gymnasium, for a space it does not know
            supported.refuse_observations(env_id, env.observation_space)
        if spec and isinstance(error, TypeError):
            raise UserError(f"{env_id}: wrapper {name} does not take {spec}: {first_line(error)}") from None
        options = f" with {spec}" if spec else ""
        raise UserError(f"{env_id} cannot be wrapped in {name}{options}: {first_line(error)}") from None


def _refuse_longer_limit(env: gym.Env[Any, Any], env_id: str, steps: object) -> None:
    """Reject a time limit around a shorter one, such as the registry's, which would end the episodes first."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit) and isinstance(steps, int) and steps > layer._max_episode_steps:
            limit = layer._max_episode_steps
            raise UserError(
                f"{env_id}: wrapper TimeLimit of {steps} steps would do nothing, as episodes end after {limit}; "
                f"expected at most {limit}, or max_episode_steps = {steps} in the kwargs instead of the wrapper"
            )
        layer = layer.env
