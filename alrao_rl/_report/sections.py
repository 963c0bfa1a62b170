"""What the report says, section by section, in the order in which they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl import stats
from alrao_rl._report import compare, figures
from alrao_rl._report.compare import SCORES, Comparison
from alrao_rl._report.document import Alert, Block, Image, Items, Report, Section, Table, Text, Verbatim, csv, slug
from alrao_rl._report.study import Method, Study, clean
from alrao_rl.load import load_heads
from alrao_rl.runs import read_json

AMBER, RED = stats.MIN_SEEDS, 5
"""With fewer seeds an interval is too narrow, and far too narrow."""
STRATIFIED = "95 % stratified bootstrap interval"


def report(study: Study, baseline: Method | None, command: str) -> Report:
    """The whole report.

    Args:
        study: what was run.
        baseline: whom everybody is compared with; None to choose by algorithm.
        command: that makes this report.
    """
    sections = [
        verdict(study, baseline),
        learning_curves(study),
        aggregates(study, baseline),
        learning_rate(study),
        environments(study),
        inside(study),
        provenance(study, command),
    ]
    return Report(f"Report on {clean(study.root.absolute().name)}", sections)


# --- words ----------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if not np.isfinite(value) else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def with_interval(value: stats.Interval, digits: int = 2) -> str:
    """``0.75 [0.70, 0.80]``."""
    if not np.isfinite(value.low):
        return number(value.estimate, digits)
    return f"{number(value.estimate, digits)} [{number(value.low, digits)}, {number(value.high, digits)}]"


def of(count: int, requested: int) -> str:
    """``10``, or ``9 of 10`` where something is missing."""
    return str(count) if count == requested else f"{count} of {requested}"


def rate(value: float) -> str:
    """A learning rate."""
    return "–" if math.isnan(value) else f"{value:g}"


def plural(count: int | str, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


def seeds_of(study: Study, span: tuple[int, int]) -> str:
    """How many seeds, of how many."""
    low, high = span
    text = of(low, len(study.seeds)) if low == high else f"{low} to {high} of {len(study.seeds)}"
    return plural(text, "seed")


# --- 1 --------------------------------------------------------------------------------------------------------------


def verdict(study: Study, baseline: Method | None) -> Section:
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
        f"{words}: {method.name} is {number(abs(value.estimate))} {place} {baseline.name} in the IQM of normalised return "
        f"averaged over training{_interval_words(value, ' of the difference')}; "
        f"{seeds_of(study, result.n_seeds)} × {plural(len(result.envs), 'environment')}, "
        f"{done[0]} of {done[1]} runs finished."
    )


def _warnings(
    study: Study, n_seeds: int, n_envs: int, done: tuple[int, int], baseline: Method | None
) -> list[Block]:
    alerts: list[Block] = []
    if 0 < n_seeds < AMBER:
        level: Any = "red" if n_seeds < RED else "amber"
        covers = (
            f"intervals said to cover 95 % cover about {100 * stats.coverage(n_seeds, n_envs):.0f} % here"
            f" and {100 * stats.coverage(n_seeds):.0f} % on a single environment"
            if n_seeds > 1
            else "how much runs differ is unknown and no interval can be given"
        )
        alerts.append(Alert(level, f"{plural(n_seeds, 'seed')}, fewer than {RED if n_seeds < RED else AMBER}: {covers}."))
    if done[0] < done[1]:
        alerts.append(Alert("amber", f"{done[0]} of {done[1]} runs of this comparison finished."))
    reported = study.reported
    failures = reported[reported.state.isin(["failed", "diverged"])]
    if len(failures):
        text = f"{plural(len(failures), 'run')} failed or diverged and score the floor of their environment"
        alerts.append(Alert("amber", f"{text} (named under Environments)."))
    untuned = [m.name for m in study.methods if m.rates and not study.tuning_seeds]
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


# --- 2 --------------------------------------------------------------------------------------------------------------


def _indices(study: Study) -> dict[str, int]:
    """The colour of each method, the same in all figures."""
    return {method.name: i for i, method in enumerate(study.methods)}


def learning_curves(study: Study) -> Section:
    """IQM with band per environment, every seed a thin line."""
    blocks: list[Block] = []
    for number_, env in enumerate(study.envs):
        shown = [method for method in study.methods if len(method.on(env))]
        if not shown:
            blocks.append(Text(f"{env}: no run has a score yet."))
            continue
        curves = {}
        for method in shown:
            seeds = study.curves_of(method, env)
            # Where the floor is unknown nothing is known before the first episode ends: there is no curve there.
            known = np.isfinite(seeds).all(axis=0)
            band = np.full((3, study.n_bins), np.nan)
            if known.any():
                band[:, known] = stats.learning_curve([seeds[:, known]], n_resamples=compare.FEWER // 2)
            curves[method.name] = (seeds, stats.Interval(*band))
        steps = int(max(method.on(env).requested_timesteps.max() for method in shown))
        counts = ", ".join(f"{method.name} {of(len(method.on(env)), len(study.seeds))}" for method in shown)
        blocks.append(_curve_image(number_, env, curves, steps, counts, _indices(study)))
    text = (
        "Thick lines are the interquartile mean over seeds, bands its pointwise 95 % bootstrap interval, thin lines the "
        f"seeds. Nothing is smoothed: a point is the mean return of the episodes that ended in one of {study.n_bins} "
        "equal stretches of the environment steps; a stretch without an end of an episode carries on the one before it. "
        "Failed and diverged runs lie at the floor."
    )
    return Section("Learning curves", [Text(text), *blocks])


def _curve_image(i: int, env: str, curves: Any, steps: int, counts: str, indices: dict[str, int]) -> Image:
    name = f"curve-{i:02d}-{slug(env)}"
    picture = figures.draw(name, lambda figure: figures.learning_curves(figure, curves, steps, indices))
    last = ", ".join(f"{method} at {number(band.estimate[-1], 1)}" for method, (_, band) in curves.items())
    alt = f"Learning curves on {env}: return against environment steps; at the end {last}."
    return Image(name, f"{env}. IQM over seeds with its pointwise 95 % interval. Seeds: {counts}.", alt, picture)


# --- 3 --------------------------------------------------------------------------------------------------------------


def aggregates(study: Study, baseline: Method | None) -> Section:
    """Aggregates with intervals, performance profiles, probability of improvement."""
    methods, envs = compare.aggregated(study)
    if not methods:
        return Section("Aggregates", [Text("Nothing can be aggregated: no environment has reference scores and runs.")])
    constants = [f"{env}: random {study.constants(env).iloc[0]:g} = 0, reference {study.constants(env).iloc[1]:g} = 1"
                 for env in envs]  # fmt: skip
    values = {score: {m.name: compare.aggregates(m, envs, score) for m in methods} for score in SCORES}
    blocks: list[Block] = [
        Text(f"Scores are normalised over {plural(len(envs), 'environment')}; environments weigh the same. Best "
             "checkpoints enter nothing."),
        Items(constants),
    ]  # fmt: skip
    rows = []
    for score, words in SCORES.items():
        lines = [
            [name, _seeds_cell(study, method, envs), *(with_interval(value) for value in values[score][name].values())]
            for name, method in ((m.name, m) for m in methods)
        ]
        blocks.append(Table(f"{words.capitalize()}, normalised, with {STRATIFIED}s. Optimality gap: lower is better.",
                            ["method", "seeds", *compare.AGGREGATES], lines))  # fmt: skip
        rows += [
            {"score": score, "method": name, "statistic": statistic, **value._asdict()}
            for name, one in values[score].items()
            for statistic, value in one.items()
        ]
    blocks += _aggregate_figures(study, methods, envs, values["auc"])
    table, improvements = _comparisons(study, baseline, envs)
    return Section("Aggregates", [*blocks, *improvements], {"aggregates": pd.DataFrame(rows), "comparisons": table})


def _seeds_cell(study: Study, method: Method, envs: Iterable[str]) -> str:
    sizes = [len(method.on(env)) for env in envs]
    low, high = min(sizes), max(sizes)
    return of(low, len(study.seeds)) if low == high else f"{low}–{high} of {len(study.seeds)}"


def _aggregate_figures(study: Study, methods: Sequence[Method], envs: Sequence[str], values: Any) -> list[Block]:
    indices = _indices(study)
    panels = {name: {method.name: values[method.name][name] for method in methods} for name in compare.AGGREGATES}
    height = 1.1 + 0.34 * len(methods)
    forest = figures.draw("aggregates", lambda f: figures.intervals(f, panels, indices, []), (8.2, height))
    shares = {method.name: compare.profile(method, envs) for method in methods}
    profiles = figures.draw("profiles", lambda f: figures.profiles(f, shares, compare.THRESHOLDS, indices))
    iqms = ", ".join(f"{method.name} {with_interval(values[method.name]['IQM'])}" for method in methods)
    above = ", ".join(
        f"{name} {100 * float(np.interp(0.5, compare.THRESHOLDS, share.estimate)):.0f} %" for name, share in shares.items()
    )
    return [
        Image("aggregates", f"Return averaged over training, normalised: estimate and {STRATIFIED}.",
              f"Aggregates of the methods with intervals. IQM: {iqms}.", forest),
        Image("profiles", "Performance profiles: share of runs above each normalised score τ of the return averaged over "
              "training, with pointwise 95 % stratified bootstrap bands.",
              f"Performance profiles. Share of runs above one half: {above}.", profiles),
    ]  # fmt: skip


def _comparisons(study: Study, baseline: Method | None, envs: Sequence[str]) -> tuple[pd.DataFrame, list[Block]]:
    results = [
        result
        for pair in compare.comparisons(study, baseline)
        for score in SCORES
        if (result := compare.compare(*pair, envs, score))
    ]
    frame = pd.DataFrame([
        {
            "method": r.method, "baseline": r.baseline, "score": r.score, "paired_by_seed": r.paired,
            "difference": r.difference.estimate, "difference_low": r.difference.low, "difference_high": r.difference.high,
            "improvement": r.improvement.estimate, "improvement_low": r.improvement.low,
            "improvement_high": r.improvement.high, "environments": len(r.envs), "seeds": r.n_seeds[0],
        }
        for r in results
    ])  # fmt: skip
    if not results:
        return frame, [Text("Probability of improvement: there is no second method to compare with.")]
    rows = [
        [f"{r.method} against {r.baseline}", SCORES[r.score].split(" (")[0], with_interval(r.difference),
         with_interval(r.improvement), "seed" if r.paired else "no", seeds_of(study, r.n_seeds)]
        for r in results
    ]  # fmt: skip
    columns = ["comparison", "score", "difference of IQMs", "probability of improvement", "paired by", "runs"]
    caption = f"Comparisons with {STRATIFIED}s. Pairs share their seed where both methods ran it."
    panel = {"probability of improvement": {f"{r.method} against {r.baseline}": r.improvement
                                            for r in results if r.score == "auc"}}  # fmt: skip
    size = (7.2, 1.1 + 0.34 * len(panel["probability of improvement"]))
    order = {f"{r.method} against {r.baseline}": _indices(study)[r.method] for r in results}
    picture = figures.draw("improvement", lambda f: figures.intervals(f, panel, order, [0.5]), size)
    said = "; ".join(f"{name} {with_interval(value)}" for name, value in panel["probability of improvement"].items())
    return frame, [
        Image("improvement", "Probability that a run of the first beats one of the second on the same environment; "
              "dotted: neither is better.", f"Probability of improvement: {said}.", picture),
        Table(caption, columns, rows),
    ]  # fmt: skip


# --- 4 --------------------------------------------------------------------------------------------------------------


def learning_rate(study: Study) -> Section:
    """Return against rate, sensitivity, what tuning costs."""
    stock = [method for method in study.methods if method.policy == "stock" and not method.name.endswith(", one rate")]
    if not stock:
        return Section("Learning rate", [Text("No stock agent was run: there is no learning rate to look at.")])
    points: list[pd.DataFrame] = []
    images: list[Block] = []
    for number_, env in enumerate(study.envs):
        images += _rate_images(study, number_, env, stock, points)
    how = "Points are means over seeds with 95 % bootstrap intervals, tuning seeds included."
    blocks: list[Block] = [Text(f"{how} Alrao has no rate and is the level band across. {_choice_words(study, stock)}")]
    data = {"rates": pd.concat(points)} if points else {}
    plane, table = _plane(study)
    costs, cost_table = _costs(study)
    data |= {"sensitivity": table} if len(table) else {}
    return Section("Learning rate", [*blocks, *images, *plane, cost_table, *_chosen(study)], {**data, "cost": costs})


def _choice_words(study: Study, stock: Sequence[Method]) -> str:
    if not any(method.rates for method in stock):
        return "Every stock agent has one rate: nothing was tuned."
    if study.tuning_seeds:
        seeds = ", ".join(map(str, study.tuning_seeds))
        return f"Tuned rates were chosen on the tuning seeds ({seeds}), which are not among those reported."
    return "Tuned rates were chosen on the reported seeds, which flatters the baseline."


def _rate_images(
    study: Study, i: int, env: str, stock: Sequence[Method], points: list[pd.DataFrame]
) -> Iterable[Image]:
    """A picture for every algorithm with a stock agent on this environment; the points are added to ``points``."""
    for algo in sorted({method.algo for method in stock}):
        curves = {}
        for method in (m for m in stock if m.algo == algo):
            variant = method.runs.variant.iloc[0]
            curve = compare.rate_curve(study, env, method.agent, variant)
            if len(curve):
                curves[method.name] = curve
                points.append(curve.assign(environment=env, agent=method.name.removesuffix(", tuned")))
        if not curves:
            continue
        alrao = [m for m in study.methods if m.policy == "alrao" and m.algo == algo and len(m.on(env))]
        levels = {m.name: compare.interval_of(m.on(env).auc.to_numpy(np.float64)) for m in alrao}
        name = f"rates-{i:02d}-{slug(env)}-{slug(algo)}"
        # A default argument binds the value of this turn of the loop.
        picture = figures.draw(name, lambda f, c=curves, v=levels: figures.rates(f, c, v, _indices(study)))  # type: ignore[misc]
        best = ", ".join(f"{m} best at {c.learning_rate[c.estimate.argmax()]:g} with {number(c.estimate.max(), 1)}"
                         for m, c in curves.items())  # fmt: skip
        level = ", ".join(f"{m} {with_interval(value, 1)}" for m, value in levels.items()) or "no Alrao agent"
        counts = sorted({int(n) for curve in curves.values() for n in curve.n})
        seeds = "–".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]]))
        alt = f"Return averaged over training against learning rate on {env}: {best}; level: {level}."
        yield Image(name, f"{env}, {algo.upper()}. Seeds a point: {seeds}.", alt, picture)


def _plane(study: Study) -> tuple[list[Block], pd.DataFrame]:
    _, envs = compare.aggregated(study)
    points = compare.plane(study, envs) if envs else []
    if not any(point.n_rates > 1 for point in points):
        text = "The sensitivity Φ needs a stock agent at several learning rates, all of them run on the same environments."
        return [Text(text)], pd.DataFrame()
    rows = [[p.name, str(p.n_rates), with_interval(p.phi), with_interval(p.tuned),
             "tuning seeds" if p.held_out else "reported seeds"] for p in points]  # fmt: skip
    pairs = {p.name: (p.phi, p.tuned) for p in points}
    picture = figures.draw("plane", lambda f: figures.plane(f, pairs, _indices(study)), (6.4, 3.8))
    frame = pd.DataFrame([
        {"method": p.name, "rates": p.n_rates, "phi": p.phi.estimate, "phi_low": p.phi.low, "phi_high": p.phi.high,
         "tuned": p.tuned.estimate, "tuned_low": p.tuned.low, "tuned_high": p.tuned.high, "held_out": p.held_out}
        for p in points
    ])  # fmt: skip
    said = "; ".join(f"{p.name}: Φ {number(p.phi.estimate)}, score {number(p.tuned.estimate)}" for p in points)
    caption = (
        "Φ = score when the rate is tuned for each environment − score of the one rate that is best for all (Adkins, "
        "Bowling, White 2024). Without a rate to tune Φ is 0. Up and left is better."
    )
    return [
        Image("plane", f"{caption} Crosses: 95 % bootstrap intervals.", f"Performance–sensitivity plane. {said}.", picture),
        Table(caption, ["method", "rates", "Φ", "score when tuned", "rates chosen on"], rows),
    ], frame


def _costs(study: Study) -> tuple[pd.DataFrame, Table]:
    rows = []
    for method in study.methods:
        steps = int(method.runs.timesteps.fillna(0).sum())
        rows.append({"method": method.name, "reported_steps": steps, "tuning_steps": method.tuning_steps,
                     "total_steps": steps + method.tuning_steps})  # fmt: skip
    frame = pd.DataFrame(rows)
    cells = [
        [row.method, *(f"{int(value):,}" for value in (row.reported_steps, row.tuning_steps, row.total_steps)),
         f"{row.total_steps / row.reported_steps:.1f}" if row.reported_steps else "–"]
        for row in frame.itertuples()
    ]  # fmt: skip
    tuning = "on tuning seeds" if study.tuning_seeds else "at the rates that were not chosen"
    caption = (
        f"Cost in environment steps over all environments. Tuning is the steps of an agent's runs {tuning}; a method "
        "with one rate is charged none, whoever found that rate."
    )
    return frame, Table(caption, ["method", "reported runs", "tuning", "total", "total / reported"], cells)


def _chosen(study: Study) -> list[Block]:
    rows = [
        [method.name, *(rate(method.rates.get(env, math.nan)) for env in study.envs)]
        for method in study.methods
        if method.rates
    ]
    return [Table("Rates that were chosen.", ["method", *study.envs], rows)] if rows else []


# --- 5 --------------------------------------------------------------------------------------------------------------


def environments(study: Study) -> Section:
    """A table for each environment, and every run that failed, diverged, is broken or missing, by name."""
    text = (
        "Mean over seeds with its 95 % bootstrap interval; spread is the standard deviation between seeds. A failed or "
        "diverged run scores the floor. A run has collapsed if it ended nearer to the random score than to the best mean "
        "it held over a fifth of the steps."
    )
    blocks: list[Block] = [Text(text)]
    tables = []
    columns = ["method", "seeds", "rate", "over training", "spread", "lowest to highest", "final", "spread",
               "failed", "diverged", "collapsed"]  # fmt: skip
    for env in study.envs:
        frame = compare.environment_table(study, env)
        if frame.empty:
            blocks.append(Text(f"{env}: no run."))
            continue
        tables.append(frame)
        blocks.append(Table(_constants_words(study, env), columns, [_environment_row(r) for r in frame.itertuples()]))
    named = _named_runs(study)
    blocks += [Text("Runs that failed, diverged, collapsed, are broken or missing:"), Items(named)] if named else [
        Text("No run failed, diverged, collapsed or is missing.")
    ]  # fmt: skip
    return Section("Environments", blocks, {"environments": pd.concat(tables)} if tables else {})


def _constants_words(study: Study, env: str) -> str:
    names = ("random", "reference", "floor")
    known = [f"{name} {value:g}" for name, value in zip(names, study.constants(env), strict=True) if np.isfinite(value)]
    missing = [] if env in study.scaled else ["no reference scores, in no aggregate"]
    return f"{env}: {', '.join(known + missing) or 'no constants'}."


def _environment_row(row: Any) -> list[str]:
    auc, final = (
        with_interval(stats.Interval(*(getattr(row, f"{score}{end}") for end in ("", "_low", "_high"))), 1)
        for score in ("auc", "final")
    )
    extent = f"{number(row.auc_min, 1)} to {number(row.auc_max, 1)}" if row.seeds else "–"
    return [row.method, of(row.seeds, row.requested_seeds), rate(row.learning_rate), auc, number(row.auc_sd, 1), extent,
            final, number(row.final_sd, 1), str(row.failed), str(row.diverged), str(row.collapsed)]  # fmt: skip


def _named_runs(study: Study) -> list[str]:
    lines = []
    bad = study.reported[study.reported.state.isin(["failed", "diverged", "broken"])]
    for run in bad.itertuples():
        at = f" at rate {run.learning_rate:g}" if np.isfinite(run.learning_rate) else ""
        floor = "" if run.state == "broken" else f", scores the floor {number(run.floor, 1)}"
        seed = "?" if pd.isna(run.seed) else run.seed
        lines.append(f"{run.env}, {run.agent}{at}, seed {seed}: {run.state}{floor}: {run.error or 'no reason given'}")
    for env in study.envs:
        for method in (m for m in study.methods if study.expects(m, env)):
            missing = [f"{seed} ({state})" for seed, state in study.missing(method, env)]
            have = len(study.seeds) - len(missing)
            if missing:
                lines.append(f"{env}, {method.name}: {have} of {len(study.seeds)} seeds; missing {', '.join(missing)}")
        table = compare.environment_table(study, env)
        fell = table[table.collapsed > 0] if len(table) else table
        lines += [f"{env}, {row.method}: collapsed on seeds {row.collapsed_seeds}" for row in fell.itertuples()]
    return lines


# --- 6 --------------------------------------------------------------------------------------------------------------


def inside(study: Study) -> Section:
    """Averaging weights over time and the effective learning rate, per head group."""
    blocks: list[Block] = []
    for method in (m for m in study.methods if m.policy == "alrao"):
        for env in study.envs:
            logs = [log for run in method.on(env).sort_values("seed").path if len(log := load_heads(run))]
            if logs:
                blocks += _head_images(f"{method.name} on {env}", logs)
    if not blocks:
        return Section("Inside Alrao", [Text("No run of an Alrao agent has recorded averaging weights.")])
    text = (
        "Averaging weights of the heads, mean over seeds, at every evaluation; the line is the effective learning rate "
        "Π η^a, the geometric mean of the heads' rates weighted by them, geometric mean over seeds. Re-cloned heads are "
        "not recorded and not shown."
    )
    return Section("Inside Alrao", [Text(text), *blocks])


def _head_images(title: str, logs: Sequence[pd.DataFrame]) -> Iterable[Image]:
    table = pd.concat(logs)
    for layer, rows in table.groupby("layer"):
        weights = rows.pivot_table(index="head", columns="timestep", values="weight", aggfunc="mean")
        rates = rows.groupby("head").learning_rate.first().to_numpy(np.float64)
        # A head or a time that some line lacks, in a run cut off while it wrote, is no weight of nothing.
        weights = weights.dropna(axis="columns")
        if weights.empty or (rates <= 0).any():
            continue
        values, steps = weights.to_numpy(np.float64), weights.columns.to_numpy(np.float64)
        effective = np.exp(np.log(rates) @ values / values.sum(axis=0))
        label = clean(layer)
        name = slug(f"heads-{title}-{label}")
        draw = lambda f, v=values, r=rates, s=steps, e=effective: figures.heads(f, v, r, s, e)  # noqa: E731
        picture = figures.draw(name, draw)
        alt = (
            f"Averaging weights of {label}, {title}: at the end most weight, {values[:, -1].max():.2f}, is on the head "
            f"with rate {rates[values[:, -1].argmax()]:.1e}; effective learning rate {effective[-1]:.1e}."
        )
        caption = f"{title}, {label}. {plural(len(logs), 'seed')}; effective rate at the end {effective[-1]:.1e}."
        yield Image(name, caption, alt, picture)


# --- 7 --------------------------------------------------------------------------------------------------------------


def provenance(study: Study, command: str) -> Section:
    """Commands, recipes, versions, hardware, commit; scores and curves as CSV."""
    configs = [_config(path) for path in study.frame.path]
    facts = [config.get("provenance", {}) for config in configs]
    facts = [fact if isinstance(fact, dict) else {} for fact in facts]
    rows = []
    for title, keys in (("git commit", ["git_commit"]), ("Python", ["python"]), ("platform", ["platform"]),
                        ("device", ["device"])):  # fmt: skip
        values = sorted({clean(fact[key]) for fact in facts for key in keys if fact.get(key) is not None})
        rows.append([title, "; ".join(values) or "not recorded"])
    versions = sorted({(clean(k), clean(v)) for fact in facts for k, v in _items(fact.get("versions"))})
    rows += [[name, "; ".join(v for n, v in versions if n == name)] for name in dict.fromkeys(n for n, _ in versions)]
    states = study.frame.state.value_counts().sort_index()
    runs = ", ".join(f"{count} {state}" for state, count in states.items())
    commands = sorted({clean(fact["command"]) for fact in facts if fact.get("command")})
    scores = study.frame.drop(columns=["variant"]).assign(path=[_relative(p, study.root) for p in study.frame.path])
    curves = _curves_table(study)
    blocks: list[Block] = [
        Text("This report is made by:"),
        Verbatim(command),
        Text(f"Folder {clean(study.root.absolute().name)}: {plural(len(study.frame), 'run')}, {runs}. "
             "A run's own command, given again, continues or repeats it."),
        Table("What the runs were made with.", ["", "value"], rows),
        Verbatim("\n".join(commands) or "not recorded", title=f"Commands of the runs ({len(commands)})"),
        *_recipes(study, configs),
        Verbatim(csv(scores), "Scores of all runs, CSV", "tables/runs.csv"),
        Verbatim(csv(curves), f"Learning curves, CSV: {study.n_bins} bins, each {100 / study.n_bins:g} % of the steps",
                 "tables/curves.csv"),
        Text("data.csv.gz beside this file holds every episode of every run: timestep, return, length."),
    ]  # fmt: skip
    return Section("Provenance", blocks, {"runs": scores, "curves": curves})


def _config(path: str) -> dict[str, Any]:
    try:
        return read_json(Path(path) / "config.json")
    except Exception:  # whatever is wrong with it, the run's row says so
        return {}


def _items(value: object) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _relative(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root))


def _curves_table(study: Study) -> pd.DataFrame:
    runs = study.compared
    bins = pd.DataFrame(np.array(list(study.curves)).reshape(-1, study.n_bins), index=runs.index)
    width = 100 / study.n_bins
    bins.columns = [f"{width * (i + 1):g}%" for i in range(study.n_bins)]
    # Four digits: the raw rows have all.
    texts = bins.map(lambda value: f"{value:.4g}")
    return pd.concat([runs[["env", "agent", "variant", "learning_rate", "seed"]], texts], axis=1)


def _recipes(study: Study, configs: Sequence[dict[str, Any]]) -> Iterable[Block]:
    """The configuration of each agent, as its first run has it."""
    seen = set()
    for agent, variant, config in zip(study.frame.agent, study.frame.variant, configs, strict=True):
        if (agent, variant) in seen or not config:
            continue
        seen.add((agent, variant))
        text = {key: value for key, value in config.items() if key not in ("agent", "env", "seed", "provenance")}
        name = f"{agent} ({variant})" if variant else agent
        yield Verbatim(json.dumps(text, indent=2), title=f"Recipe of {name}, as of its first run")
