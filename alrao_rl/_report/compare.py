"""The numbers of the report, all of them from ``alrao_rl.stats``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from alrao_rl import stats
from alrao_rl._report.study import Method, Study, complete
from alrao_rl.load import SCORED

SCORES = {"auc": "return averaged over training", "final": "final return (last 20 % of the steps)"}
AGGREGATES: dict[str, Callable[[stats.Scores], stats.Values]] = {
    "IQM": stats.iqm,
    "mean": stats.mean,
    "median": stats.median,
    "optimality gap": stats.optimality_gap,
}
THRESHOLDS = np.linspace(-0.25, 1.25, 61)
FEWER = 2_000
"""Resamples where a figure shows a band; intervals that are printed have the 10,000 of ``stats.bootstrap``."""


class Comparison(NamedTuple):
    """One method against another on the same environments, in one score.

    Attributes:
        method: name.
        baseline: name of the other.
        score: key of ``SCORES``.
        paired: whether runs are paired by seed.
        difference: of the IQMs of normalised scores, and its interval.
        improvement: probability that a run of the method beats one of the baseline, and its interval.
        envs: environments compared on.
        n_seeds: the least and the largest number of seeds of an environment.
        alone: runs of either that are left out because the other has none of their seed.
    """

    method: str
    baseline: str
    score: str
    paired: bool
    difference: stats.Interval
    improvement: stats.Interval
    envs: list[str]
    n_seeds: tuple[int, int]
    alone: int


def aggregated(study: Study) -> tuple[list[Method], list[str]]:
    """Methods that can be aggregated and the environments, with reference scores, on which all of them have runs."""
    methods = [method for method in study.methods if set(method.scored.env) & set(study.scaled)]
    envs = [env for env in study.scaled if methods and all(len(method.on(env)) for method in methods)]
    return (methods, envs) if envs else ([], [])


def aggregates(method: Method, envs: Sequence[str], score: str) -> dict[str, stats.Interval]:
    """Each of ``AGGREGATES`` of a method's normalised scores with its stratified bootstrap interval."""

    def all_of(scores: stats.Scores) -> stats.Array:
        return np.stack([statistic(scores) for statistic in AGGREGATES.values()])

    values = stats.bootstrap(all_of, method.scores(envs, f"{score}_normalised"))
    return dict(zip(AGGREGATES, _each(values), strict=True))


def _each(values: stats.Interval) -> list[stats.Interval]:
    """An interval for each of an array of statistics."""
    return [stats.Interval(*column) for column in zip(*(np.atleast_1d(part) for part in values), strict=True)]


def profile(method: Method, envs: Sequence[str]) -> stats.Interval:
    """Performance profile of the normalised return averaged over training at ``THRESHOLDS``, with its band."""

    def shares(scores: stats.Scores) -> stats.Array:
        return stats.performance_profile(scores, THRESHOLDS)

    return stats.bootstrap(shares, method.scores(envs), n_resamples=FEWER // 2)


def compare(method: Method, baseline: Method, envs: Sequence[str], score: str = "auc") -> Comparison | None:
    """A method against a baseline: paired by seed if they share most of their seeds on every environment.

    Returns:
        None where there is no environment on which both have scored runs.
    """
    column = f"{score}_normalised"
    common = [env for env in envs if len(method.on(env)) and len(baseline.on(env))]
    if not common:
        return None
    rows, others = (one.scored[one.scored.env.isin(common)] for one in (method, baseline))
    x, y = stats.paired_by_seed(rows, others, column)
    alone = {env: len({*rows[rows.env == env].seed, *others[others.env == env].seed}) - len(x.get(env, ()))
             for env in common}  # fmt: skip
    # Runs without a partner are left out; where there are many, that would cost more than pairing gains.
    paired = all(alone[env] <= len(x.get(env, ())) for env in common)
    if not paired:
        x, y = stats.by_environment(rows, column), stats.by_environment(others, column)
    improvement = stats.paired_probability_of_improvement if paired else stats.probability_of_improvement

    def both(a: stats.Scores, b: stats.Scores) -> stats.Array:
        return np.stack([stats.iqm(a) - stats.iqm(b), improvement(a, b)])

    # Not paired, all pairs of runs are compared: fewer resamples, or memory would be the square of the seeds.
    values = stats.bootstrap(both, x, y, paired=paired, n_resamples=10_000 if paired else FEWER)
    difference, chance = _each(values)
    if chance.low == chance.high:
        # On every environment all runs go one way: what is drawn from them does not vary, which is not certainty.
        chance = chance._replace(low=np.float64(np.nan), high=np.float64(np.nan))
    left = sum(alone.values()) if paired else 0
    return Comparison(method.name, baseline.name, score, paired, difference, chance, common, span([x, y]), left)


def comparisons(study: Study, baseline: Method | None) -> list[tuple[Method, Method]]:
    """Who is compared with whom.

    Everybody with a named baseline; else each Alrao agent with the stock agents of its algorithm, at their tuned and at
    their shared rates; else everybody with the first.
    """
    methods = study.methods
    if baseline is not None:
        others = [method for method in methods if method.agent != baseline.agent] or [
            method for method in methods if method is not baseline
        ]
        return [(method, baseline) for method in others]
    stock = [method for method in methods if method.policy == "stock"]
    pairs = [(a, b) for a in methods if a.policy == "alrao" for b in stock if a.algo == b.algo]
    return pairs or [(method, methods[0]) for method in methods[1:]]


def verdicts(study: Study, baseline: Method | None) -> list[tuple[Method, Method]]:
    """The comparisons the report opens with: each method with the strongest of those it is compared with.

    Which is the strongest is asked of the runs that its rates were chosen by: on the scores that are reported the
    luckiest would be. A shared rate comes second to tuned ones by definition, and opens no report.
    """
    _, envs = aggregated(study)
    strongest: dict[str, tuple[Method, Method]] = {}
    for pair in comparisons(study, baseline):
        fit = all(set(method.scored.env) & set(envs) for method in pair)
        if fit and (pair[1].choice != "shared rate" or pair[1] is baseline):
            best = strongest.setdefault(pair[0].name, pair)
            strongest[pair[0].name] = max(best, pair, key=lambda one: _strength(one[1], envs))
    return list(strongest.values())


def _strength(method: Method, envs: Sequence[str]) -> float:
    rows = method.basis[method.basis.env.isin(envs) & method.basis.state.isin(SCORED)]
    return float(np.nan_to_num(stats.iqm(stats.by_environment(rows)), nan=-math.inf))


# --- learning rates -------------------------------------------------------------------------------------------------


def rate_curve(study: Study, env: str, method: Method) -> pd.DataFrame:
    """Mean return over training at each rate of a stock agent: ``learning_rate, n, estimate, low, high``.

    Of the reported seeds; of all, where a rate was run on tuning seeds only.
    """
    frame = study.frame
    rows = frame[(frame.env == env) & (frame.agent == method.agent) & (frame.configuration == method.variant)]
    rows = rows[rows.state.isin(SCORED) & rows.auc.notna()]
    reported = study.without_tuning(rows)
    if set(reported.learning_rate) == set(rows.learning_rate):
        rows = reported
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
        n_rates: rates to choose from.
        n_seeds: the least and the largest number of seeds of a rate on an environment.
        held_out: whether rates were chosen on tuning seeds.
    """

    name: str
    phi: stats.Interval
    tuned: stats.Interval
    n_rates: int
    n_seeds: tuple[int, int]
    held_out: bool


def plane(study: Study, envs: Sequence[str]) -> list[Plane]:
    """Sensitivity of every method to its learning rate; Alrao and agents of a single rate have Φ = 0."""
    points = []
    for method in study.methods:
        if method.choice == "tuned":
            points += _sensitivity(study, method, envs)
        elif not method.rates:
            level = stats.bootstrap(stats.mean, method.scores(envs))
            zero = stats.Interval(np.float64(0), np.float64(0), np.float64(0))
            points.append(Plane(method.name, zero, level, 1, span([method.scores(envs)]), True))
    return points


def _sensitivity(study: Study, method: Method, envs: Sequence[str]) -> list[Plane]:
    frame = study.frame
    rows = frame[(frame.agent == method.agent) & (frame.configuration == method.variant) & frame.state.isin(SCORED)]
    rows = rows[rows.env.isin(envs)]
    on_tuning = rows.seed.isin(study.tuning_seeds)
    settings = {name: complete(part) for name, part in (("tuning", rows[on_tuning]), ("reported", rows[~on_tuning]))}
    held_out = method.held_out and set(settings["tuning"].learning_rate) == set(settings["reported"].learning_rate)
    # Rates that were run on tuning seeds only say nothing on others: then all of their runs are used.
    reported = stats.by_setting(settings["reported"] if held_out else complete(rows))
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


def span(settings: Iterable[Mapping[str, stats.Array]]) -> tuple[int, int]:
    """The least and the largest number of seeds of a setting on an environment."""
    sizes = [len(scores) for setting in settings for scores in setting.values()]
    return min(sizes), max(sizes)


# --- environments ---------------------------------------------------------------------------------------------------


def environment_table(study: Study, env: str) -> pd.DataFrame:
    """One row a method: seeds, rate, both scores with intervals, spread between seeds, failures and collapses."""
    low, high, floor = study.constants(env)
    rows = []
    for method in study.methods:
        if not study.expects(method, env):
            continue
        runs = method.on(env)
        auc, final = (interval_of(runs[score].to_numpy(np.float64)) for score in ("auc", "final_return"))
        fell = stats.collapsed(study.curves_of(method, env), floor if math.isnan(low) else low, high)
        rows.append({
            "environment": env,
            "method": method.name,
            "learning_rate": _rate(runs),
            "seeds": len(runs),
            "requested_seeds": len(study.seeds),
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
