"""How certain an aggregate is: bootstrap and Student's intervals, and how often they cover."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from alrao_rl.checks import number, one_of, whole
from alrao_rl.stats.aggregates import iqm
from alrao_rl.stats.arrays import Array, Scores, Values, as_array, by_name, check_paired, matched, mean_over_seeds

MIN_SEEDS = 10
"""With fewer seeds a percentile interval covers much less than it claims (:func:`coverage`): add a warning."""


class Interval(NamedTuple):
    """An estimate and the ends of its interval: numbers, or arrays of one shape if the statistic is an array."""

    estimate: Values
    low: Values
    high: Values

    def plus_minus(self, digits: int) -> str:
        """``estimate ± half width`` of a symmetric interval, such as :func:`mean_interval`; without ends the estimate.

        Args:
            digits: decimal places.
        """
        text = f"{self.estimate:.{digits}f}"
        return text if np.isnan(self.high) else f"{text} ± {self.high - self.estimate:.{digits}f}"


def bootstrap(
    statistic: Callable[..., Any],
    *samples: Scores,
    paired: bool = False,
    confidence: float = 0.95,
    method: Literal["percentile", "basic", "BCa"] = "percentile",
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Stratified bootstrap interval: the seeds of every environment are resampled with replacement, environments stay.

    So the interval shows what other seeds would have given on these environments. With few seeds it is narrower than it
    claims: see :func:`coverage`. Computed by ``scipy.stats.bootstrap`` with one sample per environment.

    Args:
        statistic: function of as many scores as there are ``samples``, over the last axis: ``(..., n_seeds)`` each to
            ``(...)`` or, for an array of statistics, ``(k, ...)``. All aggregates of this package qualify.
        samples: scores of one or more methods, ``(n_seeds,)`` or ``(k, n_seeds)`` for each environment.
        paired: draw the same seeds in all samples, for statistics of runs that share them.
        confidence: nominal coverage.
        method: of ``scipy.stats.bootstrap``. Where BCa is undefined, the percentiles are used.
        n_resamples: number of resamples.
        seed: of the resampling: the same call gives the same interval.

    Returns:
        Estimate and ends, each of the shape of ``statistic(*samples)``. Ends are nan if an environment has fewer than
        two seeds: one run says nothing about how much runs differ.

    Raises:
        ValueError: if an option is out of range, scores are not finite, ``paired`` samples have different shapes, or
            the statistic does not work along the last axis.
    """
    number("confidence", confidence, 0, 1)
    one_of("method", method, ("percentile", "basic", "BCa"))
    n_resamples = whole("n_resamples", n_resamples, 1)
    for other in samples[1:] if paired else ():
        check_paired(matched(samples[0], other))
    named = [by_name(sample) for sample in samples]
    # One stratum for each environment of each sample, or of all samples together if they are paired.
    strata = {(0 if paired else k, env): a.shape[-1] for k, arrays in enumerate(named) for env, a in arrays.items()}
    estimate = np.asarray(statistic(*samples), np.float64)
    if not strata or min(strata.values()) < 2:
        nothing = np.full(estimate.shape, np.nan)[()]
        return Interval(estimate[()], nothing, nothing)

    def of_indices(*indices: NDArray[np.intp], axis: int = -1) -> Array:
        """The statistic of the runs drawn: SciPy resamples the indices of each environment's seeds."""
        rows = dict(zip(strata, indices, strict=True))
        drawn: list[Scores] = []
        for k, (sample, arrays) in enumerate(zip(samples, named, strict=True)):
            new = {env: array[..., rows[0 if paired else k, env]] for env, array in arrays.items()}
            drawn.append(new if isinstance(sample, Mapping) else list(new.values()))
        value = np.asarray(statistic(*drawn), np.float64)
        batch = indices[0].shape[:-1]
        if value.shape != estimate.shape + batch:
            raise ValueError(
                f"the statistic gives shape {value.shape} for {batch} sets of scores, expected "
                f"{estimate.shape + batch}: it has to work along the last axis, the seeds"
            )
        return value

    size = sum(array.size for arrays in named for array in arrays.values())
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            [np.arange(n) for n in strata.values()],
            of_indices,
            vectorized=True,
            confidence_level=confidence,
            method=method,
            n_resamples=n_resamples,
            batch=max(2_000_000 // size, 1),
            rng=np.random.default_rng(seed),
        )
        tail = (1 - confidence) / 2
        low, high = np.quantile(result.bootstrap_distribution, [tail, 1 - tail], axis=-1)
    ends = result.confidence_interval
    return Interval(
        estimate[()],
        np.where(np.isnan(ends.low), low, ends.low)[()],
        np.where(np.isnan(ends.high), high, ends.high)[()],
    )


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of one set of scores, which is not too narrow with few seeds.

    Exact for normally distributed scores; :func:`bootstrap` assumes no distribution, but needs more seeds.

    Args:
        values: ``(..., n_seeds)``, finite.
        confidence: nominal coverage.

    Returns:
        Mean and ends, ``(...)`` each. Ends are nan with fewer than two seeds, and all three with none.

    Raises:
        ValueError: if ``confidence`` is out of range or scores are not finite.
    """
    number("confidence", confidence, 0, 1)
    scores = as_array("the scores", values)
    n, middle = scores.shape[-1], mean_over_seeds(scores)
    if n < 2:
        return Interval(middle, middle * np.nan, middle * np.nan)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * scores.std(-1, ddof=1) / math.sqrt(n)
    return Interval(middle, middle - half, middle + half)


def learning_curve(curves: Scores, n_resamples: int = 2_000, **options: Any) -> Interval:
    """IQM over all runs at every point of their curves, with its pointwise band.

    Args:
        curves: normalised :func:`curve` of every run, ``(n_seeds, n_bins)`` for each environment.
        n_resamples: as in :func:`bootstrap`.
        options: of :func:`bootstrap`.

    Returns:
        Estimate and ends, ``(n_bins,)`` each.
    """
    seeds_last = [np.atleast_2d(array).T for array in by_name(curves).values()]
    return bootstrap(iqm, seeds_last, n_resamples=n_resamples, **options)


def coverage(n_seeds: int, n_envs: int = 1, confidence: float = 0.95) -> float:
    """How often a percentile interval of the mean really covers it, for normal scores and a nominal ``confidence``.

    P(\\|t\\| < z √((n−1)/n)) with M (n−1) degrees of freedom, n seeds on each of M environments: the bootstrap's
    variance is too small by (n−1)/n, and it uses normal quantiles instead of Student's. For one environment and a
    nominal 95 %: 75 % with 3 seeds, 85 % with 5, 90 % with 10, 93 % with 20; for six, 86 %, 91 %, 93 % and 94 %. The
    tests simulate it. The IQM on one environment is covered more often, by 3,000 simulated experiments 74 %, 89 %, 93 %
    and 94 %; on six as often as the mean.

    Returns:
        A probability; nan for one seed, which has no interval.
    """
    n, m = whole("n_seeds", n_seeds, 1), whole("n_envs", n_envs, 1)
    z = stats.norm.ppf((1 + number("confidence", confidence, 0, 1)) / 2)
    return float(2 * stats.t.cdf(z * math.sqrt((n - 1) / n), m * (n - 1)) - 1) if n > 1 else math.nan
