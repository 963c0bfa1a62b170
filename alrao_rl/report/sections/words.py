"""How numbers and counts are worded, and which colour a method has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alrao_rl import stats
from alrao_rl.notation import plural, seeds_as_text
from alrao_rl.numbers import LARGE, SMALL, decimals
from alrao_rl.recipes.algorithms import ALGORITHMS
from alrao_rl.report.study import Study

AMBER, RED = stats.MIN_SEEDS, 5
"""With fewer seeds an interval is too narrow (amber) or far too narrow (red)."""
RETURNS = 4
"""Significant digits of a return."""
STRATIFIED = "95 % stratified bootstrap interval"


def together(values: Iterable[Any], least: int = 2, digits: int = 2) -> list[str]:
    """Numbers with the same precision, that which the largest needs for ``digits``; a dash if one is not finite.

    Args:
        values: such as a mean and the ends of its interval.
        least: least number of decimal places.
        digits: significant digits of the largest.
    """
    # Normalised scores are near one: one that is zero except for rounding errors gets no sign. One that only prints as
    # zero keeps its sign, which may be the message of an interval.
    numbers = [0.0 if least and abs(value) < 1e-9 else float(value) for value in values]
    size = max((abs(value) for value in numbers if math.isfinite(value)), default=0.0)
    plain = not size or SMALL <= size < LARGE
    places, least = (max(least, decimals(size, digits)), least) if plain else (digits - 1, 0)
    form = ",.{}f" if plain else ".{}e"
    # Drop trailing zeros that all of them have.
    while places > least and all(format(value, form.format(places)).partition("e")[0][-1] in "0n" for value in numbers):
        places -= 1
    texts = [format(value, form.format(places)) for value in numbers]
    pairs = zip(numbers, texts, strict=True)
    return [text.replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "–" for value, text in pairs]


def number(value: Any, least: int = 2) -> str:
    """A normalised score, or a dash if there is none."""
    return together([value], least)[0]


def with_interval(value: stats.Interval, least: int = 2) -> str:
    """``0.75 [0.70, 0.80]``, of normalised scores."""
    return _bracketed(value, least, 2)


def returned(value: Any) -> str:
    """A return, or a dash if there is none; with four significant digits, because rewards are of any size."""
    return together([value], 0, RETURNS)[0]


def returned_interval(value: stats.Interval) -> str:
    """``310.2 [274.1, 345.0]``, of returns."""
    return _bracketed(value, 0, RETURNS)


def _bracketed(value: stats.Interval, least: int, digits: int) -> str:
    if not np.isfinite(value.low):
        return together([value.estimate], least, digits)[0]
    estimate, low, high = together(value, least, digits)
    return f"{estimate} [{low}, {high}]"


def of(count: int, requested: int) -> str:
    """``10``, or ``9 of 10`` if some are missing; none are if no number was requested (0)."""
    return str(count) if count >= requested else f"{count} of {requested}"


def runs_finished(done: int, total: int, requested: bool = True) -> str:
    """``9 of 10 runs finished``, of those that were requested, or else of those that exist."""
    if requested:
        return f"{done} of {plural(total, 'run')} finished"
    return f"{plural(done, 'run')} finished" if done == total else f"{done} of the {plural(total, 'run')} here finished"


def rate(value: float) -> str:
    """A learning rate."""
    return "–" if math.isnan(value) else f"{value:g}"


def algorithm(name: str) -> str:
    """An algorithm by the name of its class."""
    return ALGORITHMS[name].cls if name in ALGORITHMS else name


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names) if more < 2 else f"{', '.join(names[:most])} and {more} more"


def span_of(span: tuple[int, int], requested: int) -> str:
    """``10``, ``9 of 10``, ``8–9 of 10``: the smallest and the largest number of seeds, out of those requested.

    There may be more than requested, such as when tuning seeds are pooled with the others; then "of" is left out.
    """
    low, high = span
    text = str(low) if low == high else f"{low}–{high}"
    return text if low >= requested or high > requested else f"{text} of {requested}"


def seeds_of(span: tuple[int, int], requested: int) -> str:
    """The same with the word "seeds"."""
    return plural(span_of(span, requested), "seed")


def runs_in_words(runs: Iterable[tuple[int, str]]) -> str:
    """Seeds with their states: ``4–9 (not started), 12 (broken)``."""
    by_state: dict[str, list[int]] = {}
    for seed, state in runs:
        by_state.setdefault(state, []).append(seed)
    parts = (f"{seeds_as_text(seeds).replace(',', ', ')} ({state})" for state, seeds in by_state.items())
    return ", ".join(parts).replace("-", "\N{EN DASH}")


def indices_of(study: Study) -> dict[str, int]:
    """The colour of each method, the same in all figures."""
    return {method.name: i for i, method in enumerate(study.methods)}
