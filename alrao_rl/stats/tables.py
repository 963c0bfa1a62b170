"""Scores from a table of runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl.checks import one_of
from alrao_rl.stats.arrays import Array
from alrao_rl.stats.sensitivity import shared_choice, tuned_choice


def environments(runs: pd.DataFrame) -> pd.Series[str]:
    """Name of each run's environment: ``env``, with its ``variant``, if it has one, in brackets.

    Runs with the same id but other keyword arguments, wrappers or timesteps are runs on another environment.
    """
    if "variant" not in runs:
        return runs.env.astype(str)
    return runs.env.where(runs.variant == "", runs.env + " (" + runs.variant + ")")


def by_environment(runs: pd.DataFrame, score: str = "auc_normalised") -> dict[str, Array]:
    """Scores of one method from its rows of :func:`~alrao_rl.load_results`: ``(n_seeds,)`` by environment, by seed.

    Environments are named as by :func:`environments`.
    """
    one_of("score", score, map(str, runs.columns))
    groups = _by_variant(runs).sort_values("seed").groupby("env")
    return {str(env): rows[score].to_numpy(np.float64) for env, rows in groups}


def _by_variant(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, with each variant of an environment as a separate environment."""
    return runs.assign(env=environments(runs)).drop(columns="variant", errors="ignore")


def by_setting(
    runs: pd.DataFrame, setting: str = "learning_rate", score: str = "auc_normalised"
) -> dict[Any, dict[str, Array]]:
    """Scores of one agent's settings: those of :func:`by_environment` for every value of the column ``setting``."""
    return {value: by_environment(rows, score) for value, rows in runs.groupby(setting)}


def paired_by_seed(
    x: pd.DataFrame, y: pd.DataFrame, score: str = "auc_normalised"
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores of two methods for the environments and seeds that both ran, in one order.

    Args:
        x: rows of one method, with columns ``env``, ``seed`` and the score's.
        y: rows of the other.
        score: the column.

    Returns:
        Two dicts by environment, arrays ``(n_shared_seeds,)``; both empty if nothing is shared.

    Raises:
        ValueError: if a method has a seed twice on one environment.
    """
    x, y = _by_variant(x), _by_variant(y)
    for rows in (x, y):
        twice = rows[rows.duplicated(["env", "seed"])]
        if len(twice):
            raise ValueError(f"seed {twice.seed.iloc[0]} of {twice.env.iloc[0]} appears twice, expected one method")
    both = x.merge(y, on=["env", "seed"], suffixes=("_x", "_y"))
    return by_environment(both, f"{score}_x"), by_environment(both, f"{score}_y")


def tuned_baseline(
    runs: pd.DataFrame,
    tuning_seeds: Collection[int],
    setting: str = "learning_rate",
    score: str = "auc_normalised",
    shared: bool = False,
) -> pd.DataFrame:
    """Runs of an agent at the best setting for each environment, chosen on some seeds and reported on the others.

    To report the seeds that the setting was chosen on would be to report the luckiest setting.

    Args:
        runs: rows of one agent at several settings.
        tuning_seeds: seeds to choose on.
        setting: column of the setting.
        score: column of the score to choose by.
        shared: choose one setting for all environments instead.

    Returns:
        The rows of the chosen settings whose seed is not among ``tuning_seeds``.

    Raises:
        ValueError: if there is no run on the tuning seeds, or on others, or a setting lacks one of the environments.
    """
    tuning = runs.seed.isin(list(tuning_seeds))
    if not tuning.any() or tuning.all():
        raise ValueError(
            f"{int(tuning.sum())} of {len(runs)} runs have a tuning seed, expected some with and some without"
        )
    settings = by_setting(runs[tuning], setting, score)
    choice = tuned_choice(settings)
    best = pd.Series(dict.fromkeys(choice, shared_choice(settings)) if shared else choice)
    return runs[~tuning & (runs[setting] == environments(runs).map(best))]
