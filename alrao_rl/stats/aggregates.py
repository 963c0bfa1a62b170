"""Aggregates over environments."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from alrao_rl.checks import number
from alrao_rl.stats.arrays import Array, Scores, Values, by_name, check_paired, matched, means_by_environment


def iqm(scores: Scores) -> Values:
    """Interquartile mean: the mean of the middle half of all runs. Outliers do not move it, luck less than a median.

    The lowest and the highest ⌊n/4⌋ of the n pooled runs are left out. If numbers of seeds differ, each run is
    repeated so that all environments have the same number.

    Args:
        scores: ``(..., n_seeds)`` for each environment.

    Returns:
        ``(...)``; nan if an environment has no run.
    """
    arrays = list(by_name(scores).values())
    counts = [array.shape[-1] for array in arrays]
    leading = np.broadcast_shapes(*(array.shape[:-1] for array in arrays))
    if not counts or 0 in counts:
        return np.full(leading, np.nan)[()]
    pooled = np.concatenate([np.broadcast_to(array, leading + array.shape[-1:]) for array in arrays], axis=-1)
    each = math.lcm(*counts)
    total, cut = each * len(counts), each * len(counts) // 4
    if each == counts[0] == min(counts):
        return np.sort(pooled, axis=-1)[..., cut : total - cut].mean(axis=-1)
    order = np.argsort(pooled, axis=-1)
    weights = np.repeat([each // count for count in counts], counts)[order]
    ends = np.cumsum(weights, axis=-1)
    kept = np.clip(ends, cut, total - cut) - np.clip(ends - weights, cut, total - cut)
    return (np.take_along_axis(pooled, order, axis=-1) * kept).sum(axis=-1) / (total - 2 * cut)


def mean(scores: Scores) -> Values:
    """Mean over environments of the mean over seeds; shapes as in :func:`iqm`."""
    return means_by_environment(scores).mean(axis=0)


def median(scores: Scores) -> Values:
    """Median over environments of the mean over seeds; shapes as in :func:`iqm`. With few it rests on a run or two."""
    return np.median(means_by_environment(scores), axis=0)[()]


def optimality_gap(scores: Scores, gamma: float = 1.0) -> Values:
    """How far runs fall short of ``gamma`` on average (1 = the reference score); exceeding it earns nothing.

    γ − mean min(score, γ), with equal weight for environments; shapes as in :func:`iqm`. Lower is better.
    """
    number("gamma", gamma, -math.inf, ends="()")
    return gamma - means_by_environment([np.minimum(array, gamma) for array in by_name(scores).values()]).mean(axis=0)


def performance_profile(scores: Scores, thresholds: ArrayLike) -> Array:
    """The share of runs with a score above each threshold, with equal weight for environments.

    Args:
        scores: ``(..., n_seeds)`` for each environment.
        thresholds: ``(n_thresholds,)``.

    Returns:
        ``(n_thresholds, ...)``; nan if an environment has no run.
    """
    levels = np.atleast_1d(np.asarray(thresholds, np.float64))
    above = [np.where(a > levels.reshape(-1, *(1 for _ in a.shape)), 1.0, 0.0) for a in by_name(scores).values()]
    shares = means_by_environment(above).mean(axis=0)
    return shares if above else np.full(levels.shape, np.nan)


def probability_of_improvement(x: Scores, y: Scores) -> Values:
    """The probability that a run of X beats a run of Y on the same environment, averaged over environments.

    P(X > Y) + ½ P(X = Y) over all pairs of runs, which is Mann and Whitney's U divided by their number.

    Args:
        x: ``(..., n_seeds_x)`` for each environment.
        y: ``(..., n_seeds_y)`` for the same environments.

    Returns:
        ``(...)``, between 0 and 1; nan if an environment has no run.

    Raises:
        ValueError: if X and Y have different environments.
    """
    pairs = matched(x, y)
    won = [_won(a[..., :, None], b[..., None, :]) for a, b in pairs]
    return mean([matrix.reshape(*matrix.shape[:-2], -1) for matrix in won])


def paired_probability_of_improvement(x: Scores, y: Scores) -> Values:
    """The same within pairs: P(x_i > y_i) + ½ P(x_i = y_i), where run i of X and run i of Y share a seed.

    Seeds that make a task easy or hard for both methods then do not blur the comparison.

    Args:
        x: ``(..., n_seeds)`` for each environment.
        y: the same shapes, the same seeds in the same order (:func:`paired_by_seed`).

    Returns:
        ``(...)``, between 0 and 1; nan if an environment has no run.

    Raises:
        ValueError: if X and Y have different environments or numbers of seeds.
    """
    pairs = matched(x, y)
    check_paired(pairs)
    return mean([_won(a, b) for a, b in pairs])


def _won(a: Array, b: Array) -> Array:
    return 0.5 + 0.5 * np.sign(a - b)
