"""What makes a run another run, and in what two of them differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

EVALUATION = ("eval_episodes", "eval_freq", "eval_budget")
"""Keys of ``config.json`` that decide on no score: training is the same however it is evaluated."""


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another run, of what ``config.json`` holds."""
    return {key: value for key, value in config.items() if key not in ("provenance", *EVALUATION)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines ``key: old value -> new value`` for everything in which two nested mappings differ."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {json.dumps(before)} -> {json.dumps(after)}"
