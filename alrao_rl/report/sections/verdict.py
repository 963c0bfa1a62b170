"""1. The verdict in a sentence, and what weakens it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from alrao_rl import stats
from alrao_rl.notation import plural
from alrao_rl.report import compare
from alrao_rl.report.compare import Comparison
from alrao_rl.report.document import Alert, Block, Section, Text
from alrao_rl.report.sections.words import (
    AMBER,
    RED,
    RETURNS,
    STRATIFIED,
    number,
    returned,
    runs_finished,
    seeds_of,
    together,
    with_interval,
)
from alrao_rl.report.study import Method, Study


def section(study: Study, baseline: Method | None) -> Section:
    """Effect, interval, seeds × environments, finished of requested; then what weakens it."""
    results = [compare.compare(match) for match in compare.verdicts(study, baseline)]
    leads = [_compared(study, result) for result in results]
    pairs = [result.match[:2] for result in results] or compare.comparisons(study, baseline)
    involved = list(dict.fromkeys(method for pair in pairs for method in pair)) or study.methods[:1]
    places = dict.fromkeys((m, env) for result in results for m in result.match[:2] for env in result.match.envs)
    counts = [study.finished([m], [env]) for m, env in places] or [study.finished(involved)]
    done = sum(done for done, _ in counts), sum(asked for _, asked in counts)
    # The warning about narrow intervals is for those with the fewest seeds.
    sizes = [(result.n_seeds[0], len(result.match.envs)) for result in results]
    if involved and not pairs:
        found = [_alone(study, involved[0], envs) for envs in _places(involved[0])]
        leads, sizes = [lead for lead, _ in found], [size for _, size in found]
    if not leads:
        why = "methods that are compared share no environment on which all their runs have scores"
        if study.compared.empty:
            why = "no run has a score yet"
        elif not pairs:
            why = "a run has no score: none of its episodes ended, or it failed where no floor is known"
        leads = [f"No verdict: {why}; {runs_finished(*done, study.requested(*involved) > 0)}."]
    sentences = [Text(lead, lead=True) for lead in leads]
    finished, asked = study.in_all
    if finished == asked > 1 and study.asked_seeds:
        sentences.append(Text(f"All {plural(asked, 'run')} finished, those at all rates and on tuning seeds included."))
    alerts = [*_few_seeds(*min(sizes, default=(0, 0))), *_warnings(study, involved, done, baseline)]
    return Section("Verdict", [*sentences, *alerts])


def _places(method: Method) -> list[list[str]]:
    """Groups of environments to judge a method on: all with normalised scores together, each other one alone."""
    scaled = method.comparable()
    return ([scaled] if scaled else []) + [[env] for env in method.comparable("auc") if env not in scaled]


def _alone(study: Study, method: Method, envs: Sequence[str]) -> tuple[str, tuple[int, int]]:
    """The sentence on a method without another to compare it with, and its numbers of seeds and environments."""
    if set(envs) <= set(method.comparable()):
        value = compare.aggregates(method, envs, "auc")["IQM"]
        text = f"an IQM of normalised return averaged over training of {number(value.estimate)}{_interval_words(value)}"
    else:
        value = compare.interval_of(method.on(envs[0]).auc.to_numpy(np.float64))
        text = f"a mean return averaged over training of {returned(value.estimate)}{_interval_words(value, raw=True)}"
    n_seeds = compare.span([method.scores(envs, "auc")])
    lead = f"{method.name} has {text}; {_counts(study, [method], envs, n_seeds)}. There is nothing to compare it with."
    return lead, (n_seeds[0], len(envs))


def _interval_words(value: stats.Interval, of_what: str = "", least: int = 2, raw: bool = False) -> str:
    if not np.isfinite(value.low):
        return " (a single seed has no interval)"
    _, low, high = together(value, 0, RETURNS) if raw else together(value, least)
    return f" ({STRATIFIED}{of_what} {low} to {high})"


def _counts(study: Study, methods: Sequence[Method], envs: Sequence[str], n_seeds: tuple[int, int]) -> str:
    """``10 seeds × 2 environments (A, B), 40 of 40 runs finished``."""
    requested = study.requested(*methods)
    finished = runs_finished(*study.finished(methods, envs), requested > 0)
    where = f"{plural(len(envs), 'environment')} ({', '.join(envs)})"
    return f"{seeds_of(n_seeds, requested)} × {where}, {finished}"


def _compared(study: Study, result: Comparison) -> str:
    method, baseline, envs, raw = result.match
    value = result.difference
    if not (np.isfinite(value.low) and study.finished((method, baseline), envs)[0]):
        words = "No verdict"
    elif value.low > 0 or value.high < 0:
        words = "Ahead" if value.estimate > 0 else "Behind"
    else:
        words = "No clear difference"
    place = "above" if value.estimate >= 0 else "below"
    amount = together(map(abs, value), 0, RETURNS)[0] if raw else together(map(abs, value), 3)[0]
    measure = "mean return averaged over training" if raw else "the IQM of normalised return averaged over training"
    chance = f", probability of improvement {with_interval(result.improvement)}" if raw else ""
    return (
        f"{words}: {method.name} is {amount} {place} {baseline.name} in {measure}"
        f"{_interval_words(value, ' of the difference', 3, raw)}{chance}; "
        f"{_counts(study, (method, baseline), envs, result.n_seeds)}."
    )


def _few_seeds(n_seeds: int, n_envs: int) -> list[Block]:
    if not 0 < n_seeds < AMBER:
        return []
    covers = "how much runs differ is unknown and no interval can be given"
    if n_seeds > 1:
        alone = f" and {100 * stats.coverage(n_seeds):.0f} % on a single environment" if n_envs > 1 else ""
        here = f"{100 * stats.coverage(n_seeds, n_envs):.0f} % here"
        covers = f"intervals of means said to cover 95 % cover about {here}{alone}"
    fewer = RED if n_seeds < RED else AMBER
    text = f"{plural(n_seeds, 'seed')}, fewer than {fewer}: {covers}."
    return [Alert("red" if n_seeds < RED else "amber", text)]


def _warnings(study: Study, involved: Sequence[Method], done: tuple[int, int], baseline: Method | None) -> list[Block]:
    alerts: list[Block] = [Alert("amber", f"{text}.") for text in study.warnings]
    if done[0] < done[1]:
        text = runs_finished(*done, study.requested(*involved) > 0)
        text = re.sub("runs?", r"\g<0> of this comparison", text, count=1)
        alerts.append(Alert("amber", f"{text}."))
    finished, asked = study.in_all
    if finished < asked and asked > 1:
        text = f"{finished} of all {asked} runs"
        alerts.append(Alert("amber", f"{text} finished, those at all rates and on tuning seeds "
                                     "included; the others are named under Environments."))  # fmt: skip
    failures = study.frame[study.frame.state.isin(["failed", "diverged"])]
    if len(failures):
        text = "Failed or diverged runs, which score the floor of their environment"
        alerts.append(Alert("amber", f"{text}: {len(failures)}, named under Environments."))
    tuned = [method for method in study.methods if method.choice in ("tuned", "shared rate")]
    if untuned := [method.name for method in tuned if not method.held_out]:
        text = "the rate was chosen on the reported seeds, which flatters the baseline"
        alerts.append(Alert("amber", f"{', '.join(untuned)}: {text}."))
    if fewer := [m.name for m in tuned if m.held_out and len(m.tuned_on) < len(study.tuning_seeds)]:
        text = f"the rate was chosen on fewer than the {len(study.tuning_seeds)} tuning seeds, as more are not over"
        alerts.append(Alert("amber", f"{', '.join(fewer)}: {text}."))
    alerts += _left_out(study, baseline)
    alerts += _different_lengths(study, baseline)
    if baseline is None and study.methods and all(method.policy != "alrao" for method in study.methods):
        firsts = dict.fromkeys(other.name for _, other in compare.comparisons(study, None))
        with_whom = ", ".join(firsts) or "none"
        alerts.append(Alert("amber", f"No Alrao agent: methods are compared with {with_whom}."))
    if study.methods and all(method.policy == "alrao" for method in study.methods):
        alerts.append(Alert("amber", "No stock agent: nothing says what a tuned learning rate would have given."))
    return alerts


def _left_out(study: Study, baseline: Method | None) -> list[Block]:
    """Environments left out of aggregates, and those on which only one of two methods has scores."""
    texts = []
    for env in study.envs:
        if env not in study.scaled:
            why = "no reference scores" if len(study.frame[study.frame.env == env]) else "no run"
            texts.append(f"{env} is left out of the aggregates: {why}.")
    for pair in compare.comparisons(study, baseline):
        without: dict[str, list[str]] = {}
        for env in study.envs:
            lacking = [method for method in pair if env not in method.comparable("auc")]
            if lacking and any(len(method.on(env)) for method in pair):
                why = (
                    "a run of {} has no score there" if len(lacking[0].on(env)) else "{} has no run with a score there"
                )
                without.setdefault(why.format(lacking[0].name), []).append(env)
        names = " against ".join(method.name for method in pair)
        texts += [f"{', '.join(envs)} left out of {names}: {why}." for why, envs in without.items()]
    return [Alert("amber", text) for text in texts]


def _different_lengths(study: Study, baseline: Method | None) -> list[Block]:
    """Warnings of compared runs that differ in length; runs of different algorithms are mostly not compared."""
    groups = [(method,) for method in study.methods] + compare.comparisons(study, baseline)
    found = {}
    for env in study.envs:
        for group in groups:
            steps = sorted({int(n) for method in group for n in method.on(env).requested_timesteps})
            if len(steps) > 1:
                lengths = " and ".join(f"{n:,}" for n in (steps[0], steps[-1]))
                found[env, lengths] = f"Runs on {env} that are compared differ in length: {lengths} steps."
    return [Alert("red", text) for text in found.values()]
