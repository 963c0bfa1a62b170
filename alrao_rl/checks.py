"""Checks of options: one line that names the value, what was expected and the nearest valid choice."""

from __future__ import annotations

import inspect
import math
import numbers
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from alrao_rl.errors import suggest


def is_number(value: object) -> bool:
    """Whether it is a finite number, NumPy's included."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


LINEAR = "lin_"
"""Before a number: it is the first value and falls linearly to 0 over the run, as rl-baselines3-zoo writes it."""


def first_value(value: Any) -> float:
    """A hyperparameter at the start of training; nan if it is no number and no schedule."""
    if isinstance(value, str) and value.startswith(LINEAR):
        with suppress(ValueError):
            return float(value.removeprefix(LINEAR))
    return float(value) if is_number(value) else math.nan


def number(name: str, value: Any, low: float, high: float = math.inf, ends: str = "()", also: str = "") -> float:
    """Return ``value`` if it is in the interval from ``low`` to ``high``, whose ends are open or closed.

    ``also`` names what else would have been accepted.
    """
    inside = is_number(value) and low <= value <= high
    if not inside or (value == low and ends[0] == "(") or (value == high and ends[1] == ")"):
        kind = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
        if (low, high) == (0, math.inf):
            kind = "a positive number" + (" or 0" if ends[0] == "[" else "")
        raise ValueError(f"{name} is {value!r}, expected {also}{kind}")
    return float(value)


AUTO = "auto"
"""Of SAC's entropy coefficient and its target: learned, and minus the number of actions."""


def entropy_coefficient(value: Any) -> Any:
    """Return SAC's ``ent_coef``: a number of at least 0, ``"auto"`` or ``"auto_0.1"``, which begins with 0.1."""
    if isinstance(value, str):
        _, _, start = value.partition("auto_")
        with suppress(ValueError):
            if value == AUTO or (value.startswith("auto_") and 0 < float(start) < math.inf):
                return value
    elif is_number(value) and value >= 0:
        return value
    raise ValueError("expected a number of at least 0, 'auto', or 'auto_0.1' to begin with 0.1")


def target_entropy(value: Any) -> Any:
    """Return SAC's ``target_entropy`` if it is a number or ``"auto"``."""
    if value == AUTO or is_number(value):
        return value
    raise ValueError("expected a number or 'auto'")


def whole(name: str, value: Any, low: int, high: int = sys.maxsize) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        most = f" and at most {high}" if is_number(value) and value > high else ""
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {low}{most}")
    return int(value)


def one_of(what: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is not among the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(choices)}{suggest(str(value), choices)}")


def construct(what: str, classes: Mapping[str, type], name: Any, options: Any, *args: Any) -> Any:
    """Make the object called ``name``, ``classes[name](*args, **options)``; its options are numbers and booleans."""
    one_of(what, name, classes)
    if not isinstance(options, Mapping):
        raise TypeError(f"options of {what} {name!r} are {options!r}, expected a dict")
    known = dict(list(inspect.signature(classes[name]).parameters.items())[len(args) :])
    for key, value in options.items():
        if not known:
            raise ValueError(f"{what} {name!r} takes no options, {key!r} was given")
        one_of(f"option of {what} {name!r}", key, known)
        wants_bool = isinstance(known[key].default, bool)
        if wants_bool != isinstance(value, bool) or not (wants_bool or is_number(value)):
            expected = "true or false" if wants_bool else "a number"
            raise TypeError(f"{what} {name!r}: {key} is {value!r}, expected {expected}")
    try:
        return classes[name](*args, **options)
    except ValueError as error:
        raise ValueError(f"{what} {name!r}: {error}") from None
