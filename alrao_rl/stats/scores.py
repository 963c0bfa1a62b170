"""The score of a run."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from alrao_rl.checks import whole
from alrao_rl.stats.arrays import Array, Values

N_BINS = 100
FINAL_BINS = 20
"""The final return is that over the last fifth of the steps."""
FIRST_BINS = 5
"""The first twentieth of the steps gives an untrained network's return if a random policy's is unknown."""


def curve(
    timesteps: ArrayLike,
    returns: ArrayLike,
    total: int,
    floor: float,
    n_bins: int = N_BINS,
    start: float | None = None,
) -> Array:
    """The return over a run: mean return of the episodes that end in each of equally long stretches of its timesteps.

    A stretch in which no episode ends has the value of the one before it. Before the first episode ends the value is
    ``start``, or without it that of the first stretch in which one ends.

    Args:
        timesteps: ``(n_episodes,)``, timestep at which each episode ended, in any order; those past the end of the run
            (an algorithm finishes its rollout) count in the last stretch.
        returns: ``(n_episodes,)``, undiscounted return of each.
        total: timesteps asked for.
        floor: the environment's lowest score, that of a run in which no episode ends; nan if unknown.
        n_bins: number of stretches.
        start: return of a random policy, which is what most agents begin as; None or nan if unknown.

    Returns:
        ``(n_bins,)``.

    Raises:
        ValueError: if lengths differ, a timestep is negative, or a return is not finite (such a run has diverged).
    """
    total, n_bins = whole("total", total, 1), whole("n_bins", n_bins, 1)
    steps, values = np.asarray(timesteps, np.float64), np.asarray(returns, np.float64)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"timesteps and returns have shapes {steps.shape} and {values.shape}, expected one length")
    for name, array in (("timesteps", steps), ("returns", values)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} hold {array[~np.isfinite(array)][0]}, expected finite numbers")
    if steps.size and steps.min() < 0:
        raise ValueError(f"timesteps hold {steps.min():g}, expected none below 0")
    if not steps.size:
        return np.full(n_bins, floor, np.float64)
    # Whole numbers, so that rounding does not decide on which side of a border between stretches a timestep falls.
    bins = np.minimum(steps.astype(np.int64) * n_bins // total, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    means = np.bincount(bins, values, n_bins) / np.maximum(counts, 1)
    first = bins.min()
    latest = np.maximum.accumulate(np.where(counts > 0, np.arange(n_bins), first))
    begins = means[first] if start is None or math.isnan(start) else start
    return np.where(np.arange(n_bins) < first, begins, means[latest])


def auc(timesteps: ArrayLike, returns: ArrayLike, total: int, floor: float, start: float | None = None) -> float:
    """The return averaged over the timesteps of a run, the area under its :func:`curve`.

    The mean over *episodes* is a different number: if bad episodes are short, they dominate it.
    """
    return float(curve(timesteps, returns, total, floor, start=start).mean())


def final_return(
    timesteps: ArrayLike, returns: ArrayLike, total: int, floor: float, start: float | None = None
) -> float:
    """The return averaged over the last 20 % of the timesteps, of the same :func:`curve`."""
    return float(curve(timesteps, returns, total, floor, start=start)[-FINAL_BINS:].mean())


def collapsed(curves: ArrayLike, low: float, high: float) -> NDArray[np.bool_]:
    """Whether runs lost more than half of what they had learned.

    The best of a run is its best mean over any stretch of 20 % of the steps. It had learned if that is more than a
    quarter of the way from ``low`` to ``high``: anything less may be luck. It has collapsed if its final return is
    nearer to ``low`` than to that best.

    If ``low`` or ``high`` is unknown, a run had learned if all of its best stretch lies above all of its first 5 % and
    of its last 20 %; an unknown ``low`` is replaced by the mean of its first 5 %.

    Args:
        curves: :func:`curve` of the runs, ``(..., n_bins)``; nan before the first known value.
        low: return of a random policy, or nan.
        high: reference score, or nan.

    Returns:
        ``(...)``.
    """
    values = np.asarray(curves, np.float64)
    rows = pd.DataFrame(values.reshape(-1, values.shape[-1])).bfill(axis="columns").to_numpy()
    width, first = (max(rows.shape[-1] * bins // N_BINS, 1) for bins in (FINAL_BINS, FIRST_BINS))
    stretches = np.lib.stride_tricks.sliding_window_view(rows, width, axis=-1)
    means = stretches.mean(axis=-1)
    best, last = means.max(axis=-1), means[..., -1]
    floor = rows[:, :first].mean(axis=-1) if math.isnan(low) else np.full(len(rows), low)
    if math.isnan(low) or math.isnan(high):
        least = np.take_along_axis(stretches.min(axis=-1), means.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        learned = least > np.maximum(rows[:, :first].max(axis=-1), stretches[:, -1].max(axis=-1))
    else:
        learned = best - low > (high - low) / 4
    return np.asarray(learned & (last - floor < (best - floor) / 2)).reshape(values.shape[:-1])


def normalise(score: ArrayLike, low: ArrayLike, high: ArrayLike) -> Values:
    """``(score − low) / (high − low)``: 0 for ``low``, a random policy's, 1 for ``high``, the reference score.

    Returns:
        The shape of the arguments, broadcast; nan where there is no scale, because a bound is nan or both are equal.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    width: Values = np.where(high == low, np.nan, high - low)
    return ((np.asarray(score, np.float64) - low) / width)[()]
