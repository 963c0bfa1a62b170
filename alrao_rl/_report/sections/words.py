"""How numbers and counts are said, and which colour a method has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from alrao_rl import stats
from alrao_rl._report.study import Study
from alrao_rl.notation import CLASSES, seeds_as_text

AMBER, RED = stats.MIN_SEEDS, 5
"""With fewer seeds an interval is too narrow, and far too narrow."""
STRATIFIED = "95 % stratified bootstrap interval"


def number(value: Any, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    if not np.isfinite(value):
        return "–"
    # What rounds to zero keeps its sign, which may be what an interval says, unless it is zero but for rounding.
    exact = 0.0 if abs(value) < 1e-9 else float(value)
    return f"{exact:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def with_interval(value: stats.Interval, digits: int = 2) -> str:
    """``0.75 [0.70, 0.80]``."""
    if not np.isfinite(value.low):
        return number(value.estimate, digits)
    return f"{number(value.estimate, digits)} [{number(value.low, digits)}, {number(value.high, digits)}]"


def of(count: int, requested: int) -> str:
    """``10``, or ``9 of 10`` where something is missing."""
    return str(count) if count == requested else f"{count} of {requested}"


def rate(value: float) -> str:
    """A learning rate."""
    return "–" if math.isnan(value) else f"{value:g}"


def algorithm(name: str) -> str:
    """An algorithm by the name of its class."""
    return CLASSES.get(name, name)


def plural(count: int | str, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


def span_of(study: Study, span: tuple[int, int]) -> str:
    """``10``, ``9 of 10``, ``8–9 of 10``: the least and the largest number of seeds, of those that are reported."""
    low, high = span
    return of(low, len(study.seeds)) if low == high else f"{low}–{high} of {len(study.seeds)}"


def seeds_of(study: Study, span: tuple[int, int]) -> str:
    """The same with the word."""
    return plural(span_of(study, span), "seed")


def runs_in_words(runs: Iterable[tuple[int, str]]) -> str:
    """Seeds with their states: ``4–9 (not started), 12 (broken)``."""
    by_state: dict[str, list[int]] = {}
    for seed, state in runs:
        by_state.setdefault(state, []).append(seed)
    said = (f"{seeds_as_text(seeds).replace(',', ', ')} ({state})" for state, seeds in by_state.items())
    return ", ".join(said).replace("-", "\N{EN DASH}")


def indices_of(study: Study) -> dict[str, int]:
    """The colour of each method, the same in all figures."""
    return {method.name: i for i, method in enumerate(study.methods)}
