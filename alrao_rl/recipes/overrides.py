"""``KEY=VALUE`` of ``--set``, ``--grid`` and ``--env-kwargs``: parsing, and finding where a key belongs."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from alrao_rl.errors import UserError, suggest
from alrao_rl.notation import literal
from alrao_rl.recipes.files import parse_toml
from alrao_rl.recipes.schema import NORMALIZATIONS, Agent, AlraoOptions
from alrao_rl.recipes.validation import FALLING, NO_ALRAO, NO_LEARNING_RATE


def parse_override(text: str, flag: str = "--set") -> tuple[str, Any]:
    """Split the ``KEY=TOML`` of a ``flag``; a bare word that is not a TOML value is a string."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"{flag} {text!r}: expected KEY=VALUE, such as batch_size=64 or alrao.n_heads=20")
    return key, parse_value(value.strip(), f"{flag} {key}")


_PYTHON_BOOLEANS = {"True": True, "False": False}
"""As a string, "False" would count as true in an environment."""


def parse_value(text: str, where: str) -> Any:
    """A TOML literal, Python's True and False, or a bare word as a string."""
    if text in _PYTHON_BOOLEANS:
        return _PYTHON_BOOLEANS[text]
    if text in ("None", "null"):
        raise UserError(f'{where}={text}: TOML has no {text}: leave the key out, or write "{text}" for the text')
    try:
        table = parse_toml(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        table = {}
        if text and all(char.isalnum() or char in "-_." for char in text):
            return text
    # A line break in the text would start another key.
    if table.keys() != {"value"}:
        raise UserError(f'{where}={text}: expected a TOML value: a number, true, "text", [1, 2] or a word')
    return table["value"]


def parse_env_kwargs(text: str | None) -> dict[str, Any]:
    """``--env-kwargs``: a TOML inline table ``{g = 9.8}`` or bare ``g=9.8`` pairs separated by commas.

    A bare word is a string, as for ``--set``.
    """
    if not text:
        return {}
    table = _TEXT_OR_WORD.sub(_as_toml, text.strip())
    table = table if table.startswith("{") else f"{{{table}}}"
    try:
        return dict(parse_value(table, "--env-kwargs"))
    except UserError:
        raise UserError(f"--env-kwargs is {text!r}, expected TOML such as '{{gravity = -5.0}}'") from None


_TEXT_OR_WORD = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|=\s*(?P<word>[\w.-]+)(?=\s*(?:[,}]|$))""")


def _as_toml(found: re.Match[str]) -> str:
    """Quoted text unchanged, the value of a bare word as TOML."""
    word = found["word"]
    value = parse_value(word, "--env-kwargs") if word else None
    return f"={literal(value)}" if isinstance(value, (str, bool)) else found[0]


def find_key(key: str, agent: Agent, value: Any = None, flag: str = "--set") -> list[str]:
    """The full path of a ``flag``'s key: hyperparameters and policy options may be given without their table.

    An Alrao agent has the key ``learning_rate`` for one value only.

    Raises:
        UserError: if such an agent does not have the key; names the nearest one.
    """
    hyperparameters = list(agent.algorithm.hyperparameters.model_fields)
    options, alrao = list(agent.algorithm.policy_options.model_fields), list(AlraoOptions.model_fields)
    top = ["n_envs", *NORMALIZATIONS]
    path = key.split(".")
    if len(path) == 1 and key in hyperparameters:
        path = ["hyperparameters", key]
    elif len(path) == 1 and key in options:
        path = ["policy_options", key]
    valid = [*top, *(f"alrao.{name}" for name in alrao), *hyperparameters, *options]
    if key in ("alrao", "hyperparameters", "policy_options"):
        raise UserError(f"{flag} {key}: it is a table, set one of its keys, such as alrao.n_heads=20 or batch_size=64")
    known = {"hyperparameters": hyperparameters, "policy_options": options, "alrao": alrao}
    nested = len(path) == 3 and path[0] == "alrao" and path[1] in ("base_kwargs", "value_averaging", "policy_averaging")
    if not (key in top or (len(path) == 2 and path[1] in known.get(path[0], ())) or nested):
        hint = suggest(key, valid, 0.6) or suggest(path[-1], valid, 0.6) or f", expected one of {', '.join(valid)}"
        raise UserError(f"{flag} {key}: no such key for {agent.algo}{hint}")
    if path[-1] == "learning_rate" and agent.policy == "alrao" and value != FALLING:
        raise UserError(f"{flag} learning_rate: {NO_LEARNING_RATE}")
    if path[0] == "alrao" and agent.policy == "stock":
        raise UserError(f"{flag} {key}: {NO_ALRAO}")
    return path
