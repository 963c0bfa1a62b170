"""Scores as arrays, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Values: TypeAlias = np.float64 | Array
"""One number, or an array of them if the scores have axes before that of the seeds."""
Scores: TypeAlias = Mapping[str, ArrayLike] | Sequence[ArrayLike] | Array
"""Scores of one method: an array ``(..., n_seeds)`` for each environment."""


def by_name(scores: Scores) -> dict[Any, Array]:
    """The arrays ``(..., n_seeds)`` by environment; in a list its name is its index.

    Raises:
        ValueError: if an environment has no array, or scores that are not finite.
    """
    named: dict[Any, Array] = {}
    for env, values in scores.items() if isinstance(scores, Mapping) else enumerate(scores):
        named[env] = as_array(f"the scores of environment {env!r}", values)
    return named


def as_array(what: str, values: ArrayLike) -> Array:
    """An array ``(..., n_seeds)`` of finite numbers.

    Raises:
        ValueError: if they are a single value, or not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim == 0:
        raise ValueError(f"{what} are {values!r}, expected an array, one score per seed")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{what} hold {array[~np.isfinite(array)][0]}, expected finite numbers: "
            "a failed run scores the floor that its environment's file names, an unfinished one has no score yet"
        )
    return array


def mean_over_seeds(scores: Array) -> Values:
    """Mean over the seeds, ``(...)``; nan if there are none."""
    return scores.mean(axis=-1) if scores.shape[-1] else np.full(scores.shape[:-1], np.nan)


def means_by_environment(scores: Scores) -> Array:
    """Mean over the seeds of each environment, ``(n_envs, ...)``; nan for one without runs, or if there are none."""
    means = [mean_over_seeds(a) for a in by_name(scores).values()]
    return np.stack(np.broadcast_arrays(*means or [np.full((), np.nan)]))


def check_same(what: str, x: Sequence[Any], y: Sequence[Any], of_x: str = "one", of_y: str = "the other") -> None:
    """Check that two sequences have the same elements.

    Raises:
        ValueError: if they have not; names the elements that only one of them has.
    """
    if set(x) != set(y):
        differ = ", ".join(map(str, [*(item for item in x if item not in y), *(item for item in y if item not in x)]))
        raise ValueError(f"{of_x} and {of_y} have different {what} ({differ}), expected the same")


def matched(x: Scores, y: Scores, of_x: str = "one method", of_y: str = "the other") -> list[tuple[Array, Array]]:
    """Arrays of X and Y for each environment, matched by name, in the order of Y."""
    arrays_x, arrays_y = by_name(x), by_name(y)
    check_same("environments", list(arrays_x), list(arrays_y), of_x, of_y)
    return [(arrays_x[env], array) for env, array in arrays_y.items()]


def check_paired(pairs: list[tuple[Array, Array]]) -> None:
    """Check that the arrays of each pair have the same number of seeds.

    Raises:
        ValueError: if they have not; names the numbers.
    """
    for a, b in pairs:
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"an environment has {a.shape[-1]} seeds of one method and {b.shape[-1]} of the other, expected pairs: "
                "paired_by_seed() gives those that both ran"
            )
