"""How much a method depends on a hyperparameter, and what tuning it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alrao_rl.stats.arrays import Array, Scores, Values, by_name, check_same, means_by_environment


class Sensitivity(NamedTuple):
    """A point in the performance–sensitivity plane, ``(phi, tuned)``, and the score with one setting for all.

    Attributes:
        phi: Φ = tuned − shared: what tuning on each environment gains.
        tuned: mean over environments of the score at each one's best setting.
        shared: mean over environments of the score at the one setting that is best on average.
    """

    phi: Values
    tuned: Values
    shared: Values


def sensitivity(settings: Mapping[Any, Scores], tuning: Mapping[Any, Scores] | None = None) -> Sensitivity:
    """Sensitivity of a method to its hyperparameters.

    Φ = mean_e max_h Γ(e, h) − max_h mean_e Γ(e, h), with Γ(e, h) the mean normalised score of setting h on environment
    e. See "A Method for Evaluating Hyperparameter Sensitivity in Reinforcement Learning" (Adkins, Bowling, White,
    NeurIPS 2024, arXiv 2412.07165), which scales scores by percentiles over all methods and settings; here they are
    used as given. A method with one setting has Φ = 0.

    Args:
        settings: normalised scores of every setting, ``(..., n_seeds)`` for each environment.
        tuning: scores on other seeds, of the same settings and environments, by which settings are chosen. Without
            them they are chosen by the reported scores themselves, which flatters the maximum of noisy means.

    Returns:
        Three values of shape ``(...)``.

    Raises:
        ValueError: if there is no setting, a setting has no run on one of the environments, or ``tuning`` has other
            settings.
    """
    reported, envs = _table(settings)
    chosen_on = reported
    if tuning is not None:
        check_same("settings", list(settings), list(tuning), "settings", "tuning")
        chosen_on, _ = _table({name: tuning[name] for name in settings}, envs)
    best, common = chosen_on.argmax(axis=0), chosen_on.mean(axis=1).argmax(axis=0)
    tuned = np.take_along_axis(reported, best[None], axis=0)[0].mean(axis=0)
    shared = np.take_along_axis(reported.mean(axis=1), common[None], axis=0)[0]
    return Sensitivity(tuned - shared, tuned, shared)


def tuned_choice(settings: Mapping[Any, Scores]) -> dict[Any, Any]:
    """The setting with the highest mean score on each environment; of equals the first.

    Args:
        settings: scores of every setting, ``(n_seeds,)`` for each environment; seeds that are not reported later.

    Returns:
        Setting by environment.

    Raises:
        ValueError: if there is no setting, or a setting has no run on one of the environments.
    """
    values, envs = _table(settings)
    return {env: list(settings)[i] for env, i in zip(envs, values.argmax(axis=0), strict=True)}


def shared_choice(settings: Mapping[Any, Scores]) -> Any:
    """The setting with the highest score averaged over environments; as :func:`tuned_choice`."""
    values, _ = _table(settings)
    return list(settings)[int(values.mean(axis=1).argmax())]


def _table(settings: Mapping[Any, Scores], envs: Sequence[Any] | None = None) -> tuple[Array, list[Any]]:
    """Γ, ``(n_settings, n_envs, ...)``, and the environments, in the order given or that of the first setting."""
    if not settings:
        raise ValueError("there is no setting, expected scores of at least one")
    named = {name: by_name(scores) for name, scores in settings.items()}
    envs = list(envs or next(iter(named.values())))
    if not envs:
        raise ValueError("the settings have no environment, expected scores on at least one")
    for name, arrays in named.items():
        check_same("environments", list(arrays), envs, f"setting {name!r}", "the first")
        empty = [env for env in envs if not arrays[env].shape[-1]]
        if empty:
            raise ValueError(f"setting {name!r} has no run on {empty[0]}, expected one or more")
    rows = [means_by_environment([arrays[env] for env in envs]) for arrays in named.values()]
    return np.stack(np.broadcast_arrays(*rows)), envs
