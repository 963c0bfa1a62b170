"""Resolving a recipe: SB3's defaults < agent < environment < ``--set``, with the origin of every value."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError, first_line
from alrao_rl.recipes.files import check_trust, load_agent_recipe, load_environment, recipe_folder
from alrao_rl.recipes.overrides import find_key, parse_override
from alrao_rl.recipes.schema import SCORES, Agent, AlraoOptions, Environment, Recipe
from alrao_rl.recipes.validation import check_agent, validate


def resolve(
    agent: str,
    env: str,
    overrides: Iterable[str] = (),
    timesteps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
    flag: str = "--set",
) -> Recipe:
    """Merge an agent, an environment and ``KEY=TOML`` overrides into one checked recipe.

    Args:
        agent: name or ``.toml`` file.
        env: name, id or ``.toml`` file; whether an environment with that id exists is not checked.
        overrides: of the agent's values.
        timesteps: instead of the environment's.
        env_kwargs: in addition to those of the environment's file.
        trust: whether a file may name the environment's package, which is imported when the environment is made.
        flag: the flag that the overrides were given with.

    Raises:
        UserError: one line with the file or flag, the key and the nearest valid choice.
    """
    name, recipe, agent_origin = load_agent_recipe(agent)
    environment, env_origin = load_environment(env)
    if env_origin != "--env" and not Path(env_origin).is_relative_to(recipe_folder() / "envs"):
        check_trust(environment.id, env_origin, trust)
    data = recipe.model_dump(exclude_none=True)
    origins: dict[str, tuple[Any, str]] = {}
    with_defaults(recipe, agent_origin)
    _trace(origins, data, agent_origin)
    _trace(origins, {"env": environment.model_dump(exclude_none=True, exclude={"timesteps"})}, env_origin)
    for override in overrides:
        key, value = parse_override(override, flag)
        path = find_key(key, recipe, value, flag)
        _insert(data, path, value, f"{flag} {override}")
        # The new value replaces a whole table, if there was one.
        origins = {old: origin for old, origin in origins.items() if not old.startswith(f"{'.'.join(path)}.")}
        _trace(origins, _nest(path, value), f"{flag} {override}")
    recipe = with_defaults(check_agent(data, flag), flag)
    for option, value in recipe.alrao.model_dump(exclude_none=True).items():
        if not any(key == f"alrao.{option}" or key.startswith(f"alrao.{option}.") for key in origins):
            _trace(origins, {"alrao": {option: value}}, "Alrao's default")
    if env_kwargs:
        validate(Environment, {"id": environment.id, "kwargs": dict(env_kwargs)}, "--env-kwargs")
        kwargs = {**environment.kwargs, **env_kwargs}
        if kwargs != environment.kwargs:  # the file's scores belong to another variant
            environment = environment.model_copy(update={"kwargs": kwargs, **dict.fromkeys(SCORES)})
            origins = {key: origin for key, origin in origins.items() if key.removeprefix("env.") not in SCORES}
        _trace(origins, {"env": {"kwargs": dict(env_kwargs)}}, "--env-kwargs")
    budget, origin = timesteps, "--timesteps"
    if budget is None:
        algorithm = recipe.algorithm
        known = environment.timesteps.get(recipe.algo, environment.timesteps.get(algorithm.timesteps_of))
        budget, origin = (known, env_origin) if known else (algorithm.timesteps, "default")
    if budget < 1:
        raise UserError(f"--timesteps is {budget}, expected a whole number of at least 1")
    origins["timesteps"] = (budget, origin)
    return Recipe(name, recipe, environment, budget, origins)


def alrao_options(agent: Agent) -> dict[str, Any]:
    """The options for an Alrao policy; TOML, which has no None, writes "none"."""
    options = agent.alrao.model_dump(exclude_none=True)
    return {name: None if value == "none" else value for name, value in options.items()}


def with_defaults(agent: Agent, where: str = "alrao") -> Agent:
    """The agent with all of Alrao's options, checked: a run on disk outlives the defaults of the code that made it.

    Raises:
        UserError: if :class:`~alrao_rl.core.AlraoConfig` rejects an option; begins with the file or flag ``where``.
    """
    if agent.policy == "stock":
        return agent
    # Imported here because only training needs torch.
    from alrao_rl.core import AlraoConfig
    from alrao_rl.core.bases import BASES

    try:
        config = AlraoConfig.from_options(alrao_options(agent))
        config = config.resolve(agent.algorithm.learns)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {first_line(error)}") from None
    base = {name: option.default for name, option in inspect.signature(BASES[config.base]).parameters.items()}
    options = {name: value for name, value in asdict(config).items() if value is not None}
    options = {"head_max_grad_norm": "none", **options, "lr_range": list(config.interval)}
    options["base_kwargs"] = base | options["base_kwargs"]
    return agent.model_copy(update={"alrao": AlraoOptions.model_validate(options)})


def sb3_defaults(algorithm: type, agent: Agent) -> dict[str, tuple[Any, str]]:
    """SB3's defaults of the keywords that the agent's algorithm takes."""
    parameters = inspect.signature(algorithm).parameters
    fields = agent.algorithm.hyperparameters.model_fields
    skip = ("learning_rate",) if agent.policy == "alrao" else ()
    return {
        f"hyperparameters.{name}": (parameters[name].default, "SB3's default") for name in fields if name not in skip
    }


def _insert(data: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"{where}: {part} is not a table")
    data[path[-1]] = value


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nest(path[1:], value)}


def _trace(origins: dict[str, tuple[Any, str]], data: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key, value in data.items():
        if isinstance(value, Mapping):
            # A table replaces a plain value.
            origins.pop(f"{prefix}{key}", None)
            _trace(origins, value, origin, f"{prefix}{key}.")
        else:
            origins[f"{prefix}{key}"] = (value, origin)
