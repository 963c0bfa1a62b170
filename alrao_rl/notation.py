"""How algorithms, seeds and settings are written, on command lines, in files, in names of folders and in reports."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import product
from typing import Any

from alrao_rl.errors import UserError

CLASSES = {
    "dqn": "DQN", "a2c": "A2C", "ppo": "PPO", "qrdqn": "QRDQN", "recurrent-ppo": "RecurrentPPO",
    "maskable-ppo": "MaskablePPO",
}  # fmt: skip
"""The classes of Stable-Baselines3, and of sb3-contrib, by their names in recipes."""
MAX_SEEDS = 10_000
MAX_NAME = 255
"""Bytes of a file's name: no common file system takes more."""
_DIGITS = 12


def parse_count(text: str) -> int:
    """A number of timesteps on a command line: ``100000``, ``100_000``, ``1e5``, ``100k`` or ``0.1m``, for argparse.

    Raises:
        ArgumentTypeError: it is none, or no whole one.
    """
    found = re.fullmatch(r"([+-]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)(e[+-]?[0-9]{1,2}|[km])?", text.strip().lower())
    if found is not None:
        count = Decimal(found[1] + {"k": "e3", "m": "e6", None: ""}.get(found[2], found[2]))
        if count == count.to_integral_value():
            return int(count)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number such as 100000, 1e5, 100k or 1m")


def parse_seed(text: str) -> int:
    """The seed of a single run, for argparse.

    Raises:
        ArgumentTypeError: it is none; for several it names the command that takes them.
    """
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(UserError):
        parse_seeds([text], "")
        raise argparse.ArgumentTypeError(
            f"{text!r} are several seeds, expected one; python -m alrao_rl.sweep --seeds {text} trains them all"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is no seed, expected a whole number")


def parse_seeds(texts: Iterable[str], where: str) -> list[int]:
    """Seeds such as ``0-9`` or ``0,3,5-7``.

    Raises:
        UserError: an empty range, a seed twice, something else than whole numbers.
    """
    seeds: list[int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        found = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part)
        if found is None:
            raise UserError(f"{where}: {part!r} is no seed, expected whole numbers and ranges such as 0-9 or 0,3,5-7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"{where}: the range {part} is empty; did you mean {last}-{first}?")
        if last - first >= MAX_SEEDS:
            raise UserError(
                f"{where}: the range {part} holds {last - first + 1:,} seeds, at most {MAX_SEEDS:,} are run"
            )
        seeds += range(first, last + 1)
    return seeds


def seeds_as_text(seeds: Iterable[int]) -> str:
    """What :func:`parse_seeds` reads as these seeds: ``0-9,100``."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], seed]
        else:
            ranges.append([seed])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def literal(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{toml_key(key)} = {literal(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    # TOML has escapes of four digits or eight, and JSON writes what needs more than four as two of them.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """A key as TOML."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def setting_name(values: Mapping[str, Any], agent: str = "") -> str:
    """What follows the agent's name and ``@`` in a folder's: ``learning_rate=0.001``; the values of a grid by key.

    Where the folder's name would be too long it is cut, and ends with a digest of the whole.

    Raises:
        UserError: the agent's name leaves no place for that.
    """
    name = ",".join(f"{key}={_word(literal(value)) or 'empty'}" for key, value in values.items())
    room = MAX_NAME - len(f"{agent}@".encode())
    if len(name) <= room:
        return name
    end = f"...{hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]}"
    if room < 2 * len(end):
        raise UserError(f"agent {agent!r} has too long a name for folders that name settings too: rename its file")
    return name[: room - len(end)] + end


def is_cut(name: str) -> bool:
    """Whether :func:`setting_name` has cut a name."""
    return re.search(rf"\.\.\.[0-9a-f]{{{_DIGITS}}}$", name) is not None


def setting_names(grid: Mapping[str, list[Any]], agent: str, seen: Iterable[str]) -> list[str]:
    """Names of an agent's settings: all combinations of those keys that the names which are there have.

    A key that does nothing to an agent is in no name. Where names are cut it has all keys, or nothing is known.
    """
    seen = set(seen)
    cut = any(map(is_cut, seen))
    keys = [key for key in grid if cut or any(f"{key}=" in name for name in seen)]
    named = [
        setting_name(dict(zip(keys, values, strict=True)), agent) for values in product(*(grid[key] for key in keys))
    ]
    return [] if not keys or (cut and not seen <= set(named)) else named


def _word(text: str) -> str:
    """What a folder may be called by; a number keeps its sign."""
    word = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")
    return f"-{word}" if re.match(r"-[0-9.]", text) else word
