"""The numbers of the report, all of them from ``alrao_rl.stats``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from alrao_rl import stats
from alrao_rl.report.study import SECOND, Method, Study
from alrao_rl.runs.results import SCORED

SCORES = {"auc": "return averaged over training", "final": "final return (last 20 % of the steps)"}
AGGREGATES: dict[str, Callable[[stats.Scores], stats.Values]] = {
    "IQM": stats.iqm,
    "mean": stats.mean,
    "median": stats.median,
    "optimality gap": stats.optimality_gap,
}
THRESHOLDS = np.linspace(-0.25, 1.25, 61)
FEWER = 2_000
"""Resamples for bands in figures; printed intervals have the 10,000 of ``stats.bootstrap``."""


class Match(NamedTuple):
    """Which two methods are compared, and on what.

    Attributes:
        method: one of them.
        baseline: the other.
        envs: environments on which both have runs, all of them with scores; a single one if ``raw``.
        raw: whether returns are compared as they are, because there are no reference scores to normalise them by.
    """

    method: Method
    baseline: Method
    envs: list[str]
    raw: bool


class Comparison(NamedTuple):
    """One method against another on the same environments, in one score.

    Attributes:
        match: the methods and the environments.
        score: key of ``SCORES``.
        paired: whether runs are paired by seed.
        difference: of the IQMs of normalised scores, or of the means of returns, and its interval.
        improvement: probability that a run of the method beats one of the baseline, and its interval.
        n_seeds: the smallest and the largest number of seeds of an environment.
        alone: runs of either method that are left out because the other has no run of their seed.
    """

    match: Match
    score: str
    paired: bool
    difference: stats.Interval
    improvement: stats.Interval
    n_seeds: tuple[int, int]
    alone: int


def aggregated(study: Study) -> list[tuple[list[Method], list[str]]]:
    """Groups of methods to aggregate together, with the environments to aggregate over; the largest group first.

    For each method's set of environments with normalised scores, the group is all methods that have scores on all of
    these, so that a method with few environments does not reduce the others'. A group of one is dropped if its method
    is in a larger group, over fewer environments.
    """
    sets = dict.fromkeys(tuple(method.comparable()) for method in study.methods)
    groups = [([m for m in study.methods if {*envs} <= {*m.comparable()}], list(envs)) for envs in sets if envs]
    together = {method.name for methods, _ in groups if len(methods) > 1 for method in methods}
    kept = [group for group in groups if len(group[0]) > 1 or group[0][0].name not in together]
    return sorted(kept, key=lambda group: -len(group[0]) * len(group[1]))


def aggregates(method: Method, envs: Sequence[str], score: str) -> dict[str, stats.Interval]:
    """Each of ``AGGREGATES`` for a method's normalised scores, with its stratified bootstrap interval."""

    def all_of(scores: stats.Scores) -> stats.Array:
        return np.stack([statistic(scores) for statistic in AGGREGATES.values()])

    values = stats.bootstrap(all_of, method.scores(envs, f"{score}_normalised"))
    return dict(zip(AGGREGATES, _each(values), strict=True))


def _each(values: stats.Interval) -> list[stats.Interval]:
    """One interval for each statistic in an array of them."""
    return [stats.Interval(*column) for column in zip(*(np.atleast_1d(part) for part in values), strict=True)]


def profile(method: Method, envs: Sequence[str]) -> stats.Interval:
    """Performance profile of the normalised return averaged over training at ``THRESHOLDS``, with its band."""

    def shares(scores: stats.Scores) -> stats.Array:
        return stats.performance_profile(scores, THRESHOLDS)

    return stats.bootstrap(shares, method.scores(envs), n_resamples=FEWER // 2)


def compare(match: Match, score: str = "auc") -> Comparison:
    """A method against a baseline: paired by seed if they share most of their seeds on every environment."""
    column = _column(score, match.raw)
    centre = stats.mean if match.raw else stats.iqm
    rows, others = (method.scored[method.scored.env.isin(match.envs)] for method in match[:2])
    x, y = stats.paired_by_seed(rows, others, column)
    alone = {env: len({*rows[rows.env == env].seed, *others[others.env == env].seed}) - len(x.get(env, ()))
             for env in match.envs}  # fmt: skip
    # Runs without a partner are left out; with many of them, that would cost more than pairing gains.
    paired = all(alone[env] <= len(x.get(env, ())) for env in match.envs)
    if not paired:
        x, y = stats.by_environment(rows, column), stats.by_environment(others, column)
    improvement = stats.paired_probability_of_improvement if paired else stats.probability_of_improvement

    def both(a: stats.Scores, b: stats.Scores) -> stats.Array:
        return np.stack([centre(a) - centre(b), improvement(a, b)])

    # If not paired, all pairs of runs are compared: fewer resamples, as memory grows with the square of the seeds.
    values = stats.bootstrap(both, x, y, paired=paired, n_resamples=10_000 if paired else FEWER)
    difference, chance = _each(values)
    if chance.low == chance.high:
        # On every environment all runs go one way, so that resamples do not vary, which is not certainty.
        chance = chance._replace(low=np.float64(np.nan), high=np.float64(np.nan))
    left = sum(alone.values()) if paired else 0
    return Comparison(match, score, paired, difference, chance, span([x, y]), left)


def _column(score: str, raw: bool) -> str:
    return {"auc": "auc", "final": "final_return"}[score] if raw else f"{score}_normalised"


def comparisons(study: Study, baseline: Method | None) -> list[tuple[Method, Method]]:
    """Which methods are compared.

    With a named baseline, all others with it. Otherwise, within each algorithm, each Alrao agent with the stock agents,
    at their tuned, shared and default rates, or all methods with the first if there is only one of the two kinds. If no
    algorithm has two methods, all methods with the first.
    """
    methods = study.methods
    if baseline is not None:
        others = [method for method in methods if method.agent != baseline.agent] or [
            method for method in methods if method is not baseline
        ]
        return [(method, baseline) for method in others]
    pairs: list[tuple[Method, Method]] = []
    for algo in dict.fromkeys(method.algo for method in methods):
        same = [method for method in methods if method.algo == algo]
        stock = [method for method in same if method.policy == "stock"]
        rest = [method for method in same if method.choice not in SECOND]
        pairs += [(a, b) for a in same if a.policy == "alrao" for b in stock] or [(a, rest[0]) for a in rest[1:]]
    return pairs or [(method, methods[0]) for method in methods[1:]]


def matches(study: Study, baseline: Method | None) -> list[Match]:
    """The comparisons: over the environments with normalised scores that a pair shares, and on each other one alone."""
    found = []
    for pair in comparisons(study, baseline):
        scaled, known = _shared(pair, "auc_normalised"), _shared(pair, "auc")
        found += [Match(*pair, scaled, raw=False)] if scaled else []
        found += [Match(*pair, [env], raw=True) for env in known if env not in scaled]
    return found


def _shared(pair: tuple[Method, Method], score: str) -> list[str]:
    return [env for env in pair[0].comparable(score) if env in pair[1].comparable(score)]


def verdicts(study: Study, baseline: Method | None) -> list[Match]:
    """The comparisons the report opens with: each method with the strongest of those it is compared with.

    Only those that share the most environments with it are considered. The strongest is determined by the runs by which
    its rates were chosen: by the reported scores it would be the luckiest. A shared or a default rate comes second to
    tuned ones by definition, and opens no report.
    """
    found: dict[tuple[str, str], list[Match]] = {}
    for match in matches(study, baseline):
        if match.baseline.choice not in SECOND or match.baseline is baseline:
            # Normalised ones first.
            found.setdefault((match.envs[0] if match.raw else "", match.method.name), []).append(match)
    return [_strongest(found[key]) for key in sorted(found, key=lambda key: key[0])]


def _strongest(rivals: Sequence[Match]) -> Match:
    most = max(len(match.envs) for match in rivals)
    rivals = [match for match in rivals if len(match.envs) == most]
    common = set(rivals[0].envs).intersection(*(match.envs for match in rivals))

    def strength(match: Match) -> float:
        rows = match.baseline.basis
        rows = rows[rows.env.isin(common or match.envs) & rows.state.isin(SCORED)]
        column = _column("auc", match.raw)
        if not np.isfinite(rows[column].astype(float)).all():
            return -math.inf
        scores = stats.by_environment(rows, column)
        return float(np.nan_to_num((stats.mean if match.raw else stats.iqm)(scores), nan=-math.inf))

    return max(rivals, key=strength)


# --- learning rates -------------------------------------------------------------------------------------------------


def rate_curve(study: Study, env: str, method: Method) -> pd.DataFrame:
    """Mean return over training at each rate of a stock agent: ``learning_rate, n, estimate, low, high``.

    Over the reported seeds; over the tuning seeds where a rate was run on these only.
    """
    frame = study.frame
    rows = frame[(frame.env == env) & (frame.agent == method.agent) & (frame.configuration == method.variant)]
    rows = rows[rows.state.isin(SCORED) & rows.auc.notna()]
    reported = study.without_tuning(rows)
    rows = pd.concat([reported, rows[~rows.learning_rate.isin(reported.learning_rate)]])
    points = [
        {"learning_rate": rate, "n": len(runs), **interval_of(runs.auc.to_numpy(np.float64))._asdict()}
        for rate, runs in rows.groupby("learning_rate")
    ]
    return pd.DataFrame(points, columns=["learning_rate", "n", "estimate", "low", "high"])


def interval_of(scores: stats.Array) -> stats.Interval:
    """Mean over seeds with its bootstrap interval; nan without a score."""
    if not np.isfinite(scores).all() or not len(scores):
        return stats.Interval(np.float64(np.nan), np.float64(np.nan), np.float64(np.nan))
    return stats.bootstrap(stats.mean, [scores])


class Plane(NamedTuple):
    """A method in the performance–sensitivity plane.

    Attributes:
        name: of the method, or of the agent whose rate is tuned.
        phi: Φ and its interval.
        tuned: score when tuned for each environment, and its interval.
        n_rates: number of rates to choose from.
        n_seeds: the smallest and the largest number of seeds of a rate on an environment.
        held_out: whether rates were chosen on tuning seeds.
    """

    name: str
    phi: stats.Interval
    tuned: stats.Interval
    n_rates: int
    n_seeds: tuple[int, int]
    held_out: bool


def plane(study: Study, methods: Sequence[Method], envs: Sequence[str]) -> list[Plane]:
    """Sensitivity of methods to their learning rate; Alrao and agents of a single rate have Φ = 0."""
    points = []
    for method in methods:
        if method.choice == "tuned":
            points += _sensitivity(study, method, envs)
        elif not method.rates:
            level = stats.bootstrap(stats.mean, method.scores(envs))
            zero = stats.Interval(np.float64(0), np.float64(0), np.float64(0))
            points.append(Plane(method.name, zero, level, 1, span([method.scores(envs)]), True))
    return points


def _sensitivity(study: Study, method: Method, envs: Sequence[str]) -> list[Plane]:
    if study.sweep["tune"] and method.held_out:
        return _sensitivity_of_choices(study, method, envs)
    frame = study.frame
    rows = frame[(frame.agent == method.agent) & (frame.configuration == method.variant) & frame.state.isin(SCORED)]
    rows = rows[rows.env.isin(envs)]
    if not np.isfinite(rows.auc_normalised.astype(float)).all():
        return []
    on_tuning = rows.seed.isin(study.tuning_seeds)
    parts = {"tuning": rows[on_tuning], "reported": rows[~on_tuning]}
    settings = {name: stats.complete(part) for name, part in parts.items()}
    held_out = method.held_out and set(settings["tuning"].learning_rate) == set(settings["reported"].learning_rate)
    # Rates that were run on tuning seeds only say nothing about others: then all of their runs are used.
    reported = stats.by_setting(settings["reported"] if held_out else stats.complete(rows))
    tuning = stats.by_setting(settings["tuning"]) if held_out else {}
    if len(reported) < 2:
        return []

    def phi_and_tuned(*scores: stats.Scores) -> stats.Array:
        drawn: Mapping[float, stats.Scores] = dict(zip(reported, scores, strict=False))
        chosen = dict(zip(tuning, scores[len(reported) :], strict=True)) if held_out else None
        return np.stack(stats.sensitivity(drawn, chosen)[:2])

    values = stats.bootstrap(phi_and_tuned, *reported.values(), *tuning.values(), n_resamples=FEWER)
    phi, tuned = _each(values)
    return [Plane(method.name, phi, tuned, len(reported), span(reported.values()), held_out)]


def _sensitivity_of_choices(study: Study, method: Method, envs: Sequence[str]) -> list[Plane]:
    """Of a sweep that ran only what was chosen on the reported seeds: with these choices, which are not made anew."""
    frame = study.frame
    rows = frame[(frame.agent == method.agent) & (frame.configuration == method.variant)]
    twins = [other for other in study.methods if (other.agent, other.variant) == (method.agent, method.variant)]
    shared = next((other for other in twins if other.choice == "shared rate"), method)
    x, y = (one.scored[one.scored.env.isin(envs)] for one in (method, shared))
    tuned, common = stats.paired_by_seed(x, y, "auc_normalised")
    if set(tuned) != set(envs):
        return []

    def phi_and_tuned(a: stats.Scores, b: stats.Scores) -> stats.Array:
        return np.stack([stats.mean(a) - stats.mean(b), stats.mean(a)])

    phi, score = _each(stats.bootstrap(phi_and_tuned, tuned, common, paired=True))
    return [Plane(method.name, phi, score, rows.learning_rate.nunique(), span([tuned]), True)]


def span(settings: Iterable[Mapping[str, stats.Array]]) -> tuple[int, int]:
    """The smallest and the largest number of seeds of a setting on an environment; 0 without any."""
    sizes = [len(scores) for setting in settings for scores in setting.values()]
    return min(sizes, default=0), max(sizes, default=0)


# --- environments ---------------------------------------------------------------------------------------------------


def environment_table(study: Study, env: str) -> pd.DataFrame:
    """One row per method: seeds, rate, both scores with intervals, spread between seeds, failures and collapses."""
    low, high, _ = study.constants(env)
    rows = []
    for method in study.methods:
        if not study.expects(method, env):
            continue
        runs = method.on(env)
        auc, final = (interval_of(runs[score].to_numpy(np.float64)) for score in ("auc", "final_return"))
        fell = stats.collapsed(study.curves_of(method, env), low, high)
        rows.append({
            "environment": env,
            "method": method.name,
            "learning_rate": _rate(runs),
            "seeds": len(runs),
            "requested_seeds": study.requested(method),
            "auc": auc.estimate, "auc_low": auc.low, "auc_high": auc.high,
            "auc_sd": runs.auc.std(ddof=1), "auc_min": runs.auc.min(), "auc_max": runs.auc.max(),
            "final": final.estimate, "final_low": final.low, "final_high": final.high,
            "final_sd": runs.final_return.std(ddof=1),
            "failed": int((runs.state == "failed").sum()),
            "diverged": int((runs.state == "diverged").sum()),
            "collapsed": int(np.sum(fell)),
            "collapsed_seeds": " ".join(str(s) for s, f in zip(runs.sort_values("seed").seed, fell, strict=True) if f),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _rate(runs: pd.DataFrame) -> float:
    rates = runs.learning_rate.dropna().unique()
    return float(rates[0]) if len(rates) == 1 else math.nan
