"""1. The verdict in a sentence, and what weakens it."""

from __future__ import annotations

from typing import Any

import numpy as np

from alrao_rl import stats
from alrao_rl._report import compare
from alrao_rl._report.compare import Comparison
from alrao_rl._report.document import Alert, Block, Section, Text
from alrao_rl._report.sections.words import (
    AMBER,
    RED,
    STRATIFIED,
    number,
    plural,
    seeds_of,
)
from alrao_rl._report.study import Method, Study


def section(study: Study, baseline: Method | None) -> Section:
    """Effect, interval, seeds × environments, finished of requested; then what weakens it."""
    methods, envs = compare.aggregated(study)
    pair = compare.verdict(study, baseline)
    if pair is not None and (result := compare.compare(*pair, envs)):
        done = study.finished(pair, result.envs)
        lead, n_seeds, envs = _compared(study, pair, result, done), result.n_seeds[0], result.envs
    elif methods:
        method = methods[0]
        value = compare.aggregates(method, envs, "auc")["IQM"]
        sizes = [len(method.on(env)) for env in envs]
        done, n_seeds = study.finished([method], envs), min(sizes)
        lead = (
            f"{method.name} has an IQM of normalised return averaged over training of {number(value.estimate)}"
            f"{_interval_words(value)}; {seeds_of(study, (min(sizes), max(sizes)))} × "
            f"{plural(len(envs), 'environment')}, {done[0]} of {done[1]} runs finished. "
            "There is nothing to compare it with."
        )
    else:
        done, n_seeds = study.finished(study.methods), 0
        why = "no run has a score yet" if study.compared.empty else "no environment with reference scores is shared"
        lead = f"No verdict: {why}; {done[0]} of {done[1]} runs finished."
    return Section("Verdict", [Text(lead, lead=True), *_warnings(study, n_seeds, len(envs), done, baseline)])


def _interval_words(value: stats.Interval, of_what: str = "") -> str:
    if not np.isfinite(value.low):
        return " (a single seed has no interval)"
    return f" ({STRATIFIED}{of_what} {number(value.low)} to {number(value.high)})"


def _compared(study: Study, pair: tuple[Method, Method], result: Comparison, done: tuple[int, int]) -> str:
    method, baseline = pair
    value = result.difference
    clear = np.isfinite(value.low) and (value.low > 0 or value.high < 0)
    words = ("Ahead" if value.estimate > 0 else "Behind") if clear else "No clear difference"
    place = "above" if value.estimate >= 0 else "below"
    return (
        f"{words}: {method.name} is {number(abs(value.estimate))} {place} {baseline.name} in the IQM of normalised "
        f"return averaged over training{_interval_words(value, ' of the difference')}; "
        f"{seeds_of(study, result.n_seeds)} × {plural(len(result.envs), 'environment')}, "
        f"{done[0]} of {done[1]} runs finished."
    )


def _warnings(study: Study, n_seeds: int, n_envs: int, done: tuple[int, int], baseline: Method | None) -> list[Block]:
    alerts: list[Block] = []
    if 0 < n_seeds < AMBER:
        level: Any = "red" if n_seeds < RED else "amber"
        covers = (
            f"intervals said to cover 95 % cover about {100 * stats.coverage(n_seeds, n_envs):.0f} % here"
            f" and {100 * stats.coverage(n_seeds):.0f} % on a single environment"
            if n_seeds > 1
            else "how much runs differ is unknown and no interval can be given"
        )
        alerts.append(
            Alert(level, f"{plural(n_seeds, 'seed')}, fewer than {RED if n_seeds < RED else AMBER}: {covers}.")
        )
    if done[0] < done[1]:
        alerts.append(Alert("amber", f"{done[0]} of {done[1]} runs of this comparison finished."))
    reported = study.reported
    failures = reported[reported.state.isin(["failed", "diverged"])]
    if len(failures):
        text = "Failed or diverged runs, which score the floor of their environment"
        alerts.append(Alert("amber", f"{text}: {len(failures)}, named under Environments."))
    untuned = [m.name for m in study.methods if m.rates and not m.held_out]
    if untuned:
        text = "the rate was chosen on the reported seeds, which flatters the baseline"
        alerts.append(Alert("amber", f"{', '.join(untuned)}: {text}."))
    _, envs = compare.aggregated(study)
    for env in study.envs:
        if env not in study.scaled:
            why = "no reference scores" if len(study.frame[study.frame.env == env]) else "no run"
            alerts.append(Alert("amber", f"{env} is left out of the aggregates: {why}."))
        elif envs and env not in envs:
            alerts.append(Alert("amber", f"{env} is left out of the aggregates: not every method has a run on it."))
    mixed = study.compared.groupby("env").requested_timesteps.nunique()
    alerts += [Alert("red", f"Runs on {env} differ in length.") for env in mixed[mixed > 1].index]
    if baseline is None and study.methods and all(method.policy != "alrao" for method in study.methods):
        alerts.append(Alert("amber", f"No Alrao agent: methods are compared with {study.methods[0].name}."))
    if all(method.policy == "alrao" for method in study.methods):
        alerts.append(Alert("amber", "No stock agent: nothing says what a tuned learning rate would have given."))
    return alerts
