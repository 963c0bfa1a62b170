"""How counts, seeds and values are written, on command lines, in files and in reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alrao_rl.errors import UserError

MAX_SEEDS = 10_000


def parse_seeds(texts: Iterable[str], where: str) -> list[int]:
    """Seeds such as ``0-9`` or ``0,3,5-7``.

    Raises:
        UserError: if a range is empty or too long, or a part is not a seed or a range.
    """
    seeds: list[int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        found = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part)
        if found is None:
            raise UserError(f"{where}: {part!r} is not a seed, expected whole numbers or ranges such as 0-9 or 0,3,5-7")
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
    """Seeds in the form that :func:`parse_seeds` reads: ``0-9,100``."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], seed]
        else:
            ranges.append([seed])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def plural(count: int | str, one: str, many: str = "") -> str:
    """``1 seed``, ``2,000 seeds``; ``many`` where that is not ``one`` with an s: ``1 run is``, ``2 runs are``."""
    text = count if isinstance(count, str) else f"{count:,}"
    return f"{text} {one if text == '1' else many or f'{one}s'}"


def literal(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{toml_key(key)} = {literal(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    # Not ASCII only: JSON escapes a character that needs more than four digits as two, which TOML does not accept.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """A key as TOML."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
