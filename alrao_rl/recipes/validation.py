"""Checks of recipes: one line with the key, its value and the nearest valid choice."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from alrao_rl.checks import LINEAR
from alrao_rl.errors import UserError, suggest
from alrao_rl.recipes.algorithms import ACTIVATIONS, ALGORITHMS
from alrao_rl.recipes.fields import Table
from alrao_rl.recipes.schema import CONTINUOUS, Agent, AlraoOptions


def validate(model: type[Table], data: Any, where: str, prefix: str = "", takes: str = "expected") -> Any:
    """Validate data as a table.

    Args:
        model: the type of table that is expected.
        data: content of a file or a flag.
        where: the file or flag, for errors.
        prefix: table name before the keys, for errors.
        takes: words before the list of keys, for errors.

    Raises:
        UserError: one line with the key, its value and the nearest valid choice.
    """
    try:
        # Strict, but a float may be written without its point and a tuple as a list.
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(model, error, prefix, takes)}") from None


def _explain(model: type[Table], error: ValidationError, prefix: str, takes: str) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"] and first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")  # about the whole table, which need not be quoted
    path = [str(part) for part in first["loc"]]
    table: Any = model
    for part in path[:-1]:
        inner = table.model_fields.get(part) if hasattr(table, "model_fields") else None
        inner_type = getattr(inner, "annotation", None)
        if not (isinstance(inner_type, type) and issubclass(inner_type, BaseModel)):
            break
        table = inner_type
    known = list(getattr(table, "model_fields", {}))
    if first["type"] == "extra_forbidden":
        return f"unknown key {prefix}{'.'.join(path)}, {takes} {', '.join(known)}{suggest(path[-1], known)}"
    # The rest of the path is not keys: indices, or the tag of a union, of which only the first member is quoted.
    free = ("timesteps", "base_kwargs")
    keys = [part for before, part in zip(["", *path], path, strict=False) if part in known or before in ("", *free)]
    value = first.get("input")
    words = (*ALGORITHMS, *ACTIVATIONS, "scale", CONTINUOUS)
    hint = suggest(str(value), words) if first["type"] == "literal_error" and value not in words else ""
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = (message[0].lower() + message[1:]).replace("True, False", "true, false")
    if first["type"] == "missing":
        return f"{prefix}{'.'.join(path)} is missing"
    shown = repr(value)
    return f"{prefix}{'.'.join(keys)} is {shown if len(shown) < 80 else shown[:77] + '...'}: {message}{hint}"


def check_agent(data: Any, where: str) -> Agent:
    """Make an agent from plain data.

    Args:
        data: content of an agent file.
        where: the file or flag, for errors.

    Raises:
        UserError: if a key is unknown, or a value has a wrong type or is out of range.
    """
    agent: Agent = validate(Agent, data, where)
    takes = f"SB3's {agent.algorithm.cls} takes"
    validate(agent.algorithm.hyperparameters, agent.hyperparameters, where, "hyperparameters.", takes)
    validate(agent.algorithm.policy_options, agent.policy_options, where, "policy_options.", f"{takes} for its policy")
    if agent.policy == "alrao" and agent.hyperparameters.get("learning_rate", FALLING) != FALLING:
        raise UserError(f"{where}: hyperparameters.learning_rate: {NO_LEARNING_RATE}")
    if agent.policy == "stock" and agent.alrao != AlraoOptions():
        raise UserError(f"{where}: alrao: {NO_ALRAO}")
    return agent


FALLING = f"{LINEAR}1"
"""The only learning rate an Alrao agent may have: all of its rates fall together."""
NO_LEARNING_RATE = (
    "an Alrao agent has no learning rate to set: leave it out, set the interval with alrao.lr_range=[1e-6, 0.1], "
    f"let all rates fall to 0 over the run with learning_rate={FALLING}, "
    "or take a stock agent (dqn-adam, a2c-rmsprop, ppo-adam, sac-adam)"
)
NO_ALRAO = 'a stock agent has no Alrao options: leave them out, or take policy = "alrao" (dqn, a2c, ppo, sac)'
