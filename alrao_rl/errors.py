"""Errors of the user's, each one clear line: the value, what was expected, the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave; commands print it as one line and exit with status 2."""


def suggest(value: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``value``, or an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), by_lower, 1, cutoff)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
