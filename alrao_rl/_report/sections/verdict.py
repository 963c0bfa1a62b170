"""1. The verdict in a sentence, and what weakens it."""

from __future__ import annotations

from collections.abc import Sequence
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
    pairs = compare.verdicts(study, baseline)
    results = [result for pair in pairs if (result := compare.compare(*pair, envs))]
    involved = list(dict.fromkeys(method for pair in pairs for method in pair)) or methods[:1] or study.methods
    done = study.finished(involved, envs or None)
    n_seeds = min((result.n_seeds[0] for result in results), default=0)
    if results:
        leads = [_compared(study, pair, result) for pair, result in zip(pairs, results, strict=True)]
    elif methods:
        sizes = [len(methods[0].on(env)) for env in envs]
        n_seeds = min(sizes)
        leads = [_alone(study, methods[0], envs, (n_seeds, max(sizes)), done)]
    else:
        why = "no run has a score yet" if study.compared.empty else "no environment with reference scores is shared"
        leads = [f"No verdict: {why}; {done[0]} of {done[1]} runs finished."]
    sentences = [Text(lead, lead=True) for lead in leads]
    finished, asked = study.in_all
    if finished == asked:
        sentences.append(Text(f"All {plural(asked, 'run')} finished, those at all rates and on tuning seeds included."))
    return Section("Verdict", [*sentences, *_warnings(study, n_seeds, len(envs), done, baseline)])


def _alone(study: Study, method: Method, envs: Sequence[str], n_seeds: tuple[int, int], done: tuple[int, int]) -> str:
    value = compare.aggregates(method, envs, "auc")["IQM"]
    return (
        f"{method.name} has an IQM of normalised return averaged over training of {number(value.estimate)}"
        f"{_interval_words(value)}; {seeds_of(study, n_seeds)} × {plural(len(envs), 'environment')}, "
        f"{done[0]} of {done[1]} runs finished. There is nothing to compare it with."
    )


def _interval_words(value: stats.Interval, of_what: str = "", digits: int = 2) -> str:
    if not np.isfinite(value.low):
        return " (a single seed has no interval)"
    return f" ({STRATIFIED}{of_what} {number(value.low, digits)} to {number(value.high, digits)})"


def _compared(study: Study, pair: tuple[Method, Method], result: Comparison) -> str:
    method, baseline = pair
    done = study.finished(pair, result.envs)
    value = result.difference
    if not (np.isfinite(value.low) and done[0]):
        words = "No verdict"
    elif value.low > 0 or value.high < 0:
        words = "Ahead" if value.estimate > 0 else "Behind"
    else:
        words = "No clear difference"
    place = "above" if value.estimate >= 0 else "below"
    return (
        f"{words}: {method.name} is {number(abs(value.estimate), 3)} {place} {baseline.name} in the IQM of normalised "
        f"return averaged over training{_interval_words(value, ' of the difference', 3)}; "
        f"{seeds_of(study, result.n_seeds)} × {plural(len(result.envs), 'environment')}, "
        f"{done[0]} of {done[1]} runs finished."
    )


def _warnings(study: Study, n_seeds: int, n_envs: int, done: tuple[int, int], baseline: Method | None) -> list[Block]:
    alerts: list[Block] = [Alert("amber", f"{text}.") for text in study.warnings]
    if 0 < n_seeds < AMBER:
        level: Any = "red" if n_seeds < RED else "amber"
        covers = "how much runs differ is unknown and no interval can be given"
        if n_seeds > 1:
            alone = f" and {100 * stats.coverage(n_seeds):.0f} % on a single environment" if n_envs > 1 else ""
            here = f"{100 * stats.coverage(n_seeds, n_envs):.0f} % here"
            covers = f"intervals of means said to cover 95 % cover about {here}{alone}"
        alerts.append(
            Alert(level, f"{plural(n_seeds, 'seed')}, fewer than {RED if n_seeds < RED else AMBER}: {covers}.")
        )
    if done[0] < done[1]:
        alerts.append(Alert("amber", f"{done[0]} of {done[1]} runs of this comparison finished."))
    finished, asked = study.in_all
    if finished < asked:
        alerts.append(Alert("amber", f"{finished} of all {asked} runs finished, those at all rates and on tuning seeds "
                                     "included; the others are named under Environments."))  # fmt: skip
    failures = study.frame[study.frame.state.isin(["failed", "diverged"])]
    if len(failures):
        text = "Failed or diverged runs, which score the floor of their environment"
        alerts.append(Alert("amber", f"{text}: {len(failures)}, named under Environments."))
    tuned = [method for method in study.methods if method.rates]
    if untuned := [method.name for method in tuned if not method.held_out]:
        text = "the rate was chosen on the reported seeds, which flatters the baseline"
        alerts.append(Alert("amber", f"{', '.join(untuned)}: {text}."))
    if fewer := [m.name for m in tuned if m.held_out and len(m.tuned_on) < len(study.tuning_seeds)]:
        text = f"the rate was chosen on fewer than the {len(study.tuning_seeds)} tuning seeds, as more are not over"
        alerts.append(Alert("amber", f"{', '.join(fewer)}: {text}."))
    _, envs = compare.aggregated(study)
    for env in study.envs:
        if env not in study.scaled:
            why = "no reference scores" if len(study.frame[study.frame.env == env]) else "no run"
            alerts.append(Alert("amber", f"{env} is left out of the aggregates: {why}."))
        elif envs and env not in envs:
            alerts.append(Alert("amber", f"{env} is left out of the aggregates: not every method has a run on it."))
    alerts += _different_lengths(study, baseline)
    if baseline is None and study.methods and all(method.policy != "alrao" for method in study.methods):
        alerts.append(Alert("amber", f"No Alrao agent: methods are compared with {study.methods[0].name}."))
    if study.methods and all(method.policy == "alrao" for method in study.methods):
        alerts.append(Alert("amber", "No stock agent: nothing says what a tuned learning rate would have given."))
    return alerts


def _different_lengths(study: Study, baseline: Method | None) -> list[Block]:
    """Runs of different length that are compared; those of different algorithms mostly are not."""
    groups = [(method,) for method in study.methods] + compare.comparisons(study, baseline)
    found = {}
    for env in study.envs:
        for group in groups:
            steps = sorted({int(n) for method in group for n in method.on(env).requested_timesteps})
            if len(steps) > 1:
                lengths = " and ".join(f"{n:,}" for n in (steps[0], steps[-1]))
                found[env, lengths] = f"Runs on {env} that are compared differ in length: {lengths} steps."
    return [Alert("red", text) for text in found.values()]
