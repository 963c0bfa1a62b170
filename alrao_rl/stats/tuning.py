"""Which learning rate the runs of a stock agent speak for: the best on each environment, and the best one for all."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pandas as pd

from alrao_rl.stats.sensitivity import shared_choice, tuned_choice
from alrao_rl.stats.tables import by_setting

Choice: TypeAlias = Literal["tuned", "shared rate"]


def chosen_rates(runs: pd.DataFrame) -> dict[Choice, dict[str, float]]:
    """Rates by environment: ``tuned``, and ``shared rate`` if that is another on some environment.

    The best rate for all is that of the highest mean normalised score among the rates that were run on all environments
    which have one.

    Args:
        runs: rows of one agent at several rates, all of which have an ``auc``; ``env`` distinguishes variants.
    """
    tuned: dict[str, float] = {}
    for _, rows in runs.groupby("env"):
        tuned.update(tuned_choice(by_setting(rows, score="auc")))
    choices: dict[Choice, dict[str, float]] = {"tuned": tuned}
    common = complete(runs[runs.auc_normalised.notna()])
    if len(common) and common.env.nunique() > 1:
        shared = dict.fromkeys(common.env.unique(), float(shared_choice(by_setting(common))))
        if shared != tuned:
            choices["shared rate"] = shared
    return choices


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs at rates that were run on every one of their environments."""
    if runs.empty:
        return runs
    counts = runs.groupby("learning_rate").env.nunique()
    return runs[runs.learning_rate.isin(counts[counts == runs.env.nunique()].index)]
