"""Scores of runs, aggregates over environments, and how certain they are; with NumPy and SciPy, for any scores.

A run is scored by :func:`auc` and :func:`final_return`. The *scores* of one method are one array per environment, in a
dict by the environment's name or in a list, and environments may have different numbers of seeds:
``{"CartPole-v1": [0.9, 0.7, 0.8], "Acrobot-v1": [0.6, 0.9]}``. A matrix is read as ``n_envs × n_seeds``. For all
scores **the last axis is the seeds**; axes before it are carried through, so that the function for one set of scores
also serves ten thousand resampled ones. Environments have equal weight, however many seeds each has. Scores are
finite: a failed run scores its environment's floor, it is not left out.

Aggregates and intervals are those of "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal
et al., NeurIPS 2021, arXiv 2108.13264) and agree with its library, rliable (``tests/fixtures``).
"""

from __future__ import annotations

from alrao_rl.stats.aggregates import (
    iqm,
    mean,
    median,
    optimality_gap,
    paired_probability_of_improvement,
    performance_profile,
    probability_of_improvement,
)
from alrao_rl.stats.arrays import Array, Scores, Values
from alrao_rl.stats.intervals import MIN_SEEDS, Interval, bootstrap, coverage, learning_curve, mean_interval
from alrao_rl.stats.scores import (
    FINAL_BINS,
    FIRST_BINS,
    N_BINS,
    auc,
    collapsed,
    curve,
    final_return,
    normalise,
)
from alrao_rl.stats.sensitivity import Sensitivity, sensitivity, shared_choice, tuned_choice
from alrao_rl.stats.tables import by_environment, by_setting, environments, paired_by_seed, tuned_baseline
from alrao_rl.stats.tuning import chosen_rates, complete

__all__ = [
    "FINAL_BINS",
    "FIRST_BINS",
    "MIN_SEEDS",
    "N_BINS",
    "Array",
    "Interval",
    "Scores",
    "Sensitivity",
    "Values",
    "auc",
    "bootstrap",
    "by_environment",
    "by_setting",
    "chosen_rates",
    "collapsed",
    "complete",
    "coverage",
    "curve",
    "environments",
    "final_return",
    "iqm",
    "learning_curve",
    "mean",
    "mean_interval",
    "median",
    "normalise",
    "optimality_gap",
    "paired_by_seed",
    "paired_probability_of_improvement",
    "performance_profile",
    "probability_of_improvement",
    "sensitivity",
    "shared_choice",
    "tuned_baseline",
    "tuned_choice",
]
