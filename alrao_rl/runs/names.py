"""What the folder of a run is called after."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from alrao_rl.errors import UserError
from alrao_rl.notation import literal

MAX_NAME = 255
"""Bytes of a file's name: no common file system takes more."""
_DIGITS = 12


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
