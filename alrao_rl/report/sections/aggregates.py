"""3. Aggregates over environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl.report import compare, figures
from alrao_rl.report.compare import SCORES, Comparison, Match
from alrao_rl.report.document import Block, Image, Items, Section, Table, Text
from alrao_rl.report.sections.words import (
    STRATIFIED,
    indices_of,
    returned_interval,
    some,
    span_of,
    with_interval,
)
from alrao_rl.report.study import Method, Study


def section(study: Study, baseline: Method | None) -> Section:
    """Aggregates with intervals, performance profiles, probability of improvement."""
    groups = compare.aggregated(study)
    blocks: list[Block] = []
    rows: list[dict[str, Any]] = []
    for i, (methods, envs) in enumerate(groups):
        blocks += _group(study, f"-{i + 1}" if i else "", methods, envs, rows)
    if groups:
        scale = [f"{env}: random {study.constants(env).iloc[0]:g} = 0, reference {study.constants(env).iloc[1]:g} = 1"
                 for env in study.envs if any(env in envs for _, envs in groups)]  # fmt: skip
        over = "environments" if len(groups) == 1 else "the environments on which all of these methods have runs"
        text = f"Scores are normalised; {over} weigh the same. Best checkpoints enter nothing."
        blocks = [Text(text), Items(scale), *_names(study), *blocks]
    else:
        why = "no run has a score yet" if study.compared.empty else "no environment with runs has reference scores"
        blocks = [Text(f"Nothing can be aggregated: {why}.")]
    table, improvements = _comparisons(study, baseline)
    data = {"aggregates": pd.DataFrame(rows)} if rows else {}
    return Section("Aggregates", [*blocks, *improvements], data | ({"comparisons": table} if len(table) else {}))


def _group(
    study: Study, suffix: str, methods: Sequence[Method], envs: Sequence[str], rows: list[dict[str, Any]]
) -> list[Block]:
    """Tables and figures of methods on the environments that they share; adds to ``rows``."""
    blocks: list[Block] = []
    values = {score: {m.name: compare.aggregates(m, envs, score) for m in methods} for score in SCORES}
    for score, words in SCORES.items():
        lines = [
            [
                method.name,
                span_of(compare.span([method.scores(envs)]), study.requested(method)),
                *(with_interval(value) for value in values[score][method.name].values()),
            ]
            for method in methods
        ]
        blocks.append(Table(f"{words.capitalize()}, normalised, with {STRATIFIED}s, on {some(envs)}. Optimality "
                            "gap: lower is better.", ["method", "seeds", *compare.AGGREGATES], lines))  # fmt: skip
        rows += [
            {"score": score, "method": method.name, "statistic": statistic, **value._asdict(),
             "seeds": min(compare.span([method.scores(envs)])), "requested_seeds": study.requested(method),
             "environments": len(envs)}
            for method in methods
            for statistic, value in values[score][method.name].items()
        ]  # fmt: skip
    return blocks + _aggregate_figures(study, suffix, methods, envs, values["auc"])


def _names(study: Study) -> list[Block]:
    """What the names of stock agents at their best rates mean."""
    choices = {method.choice for method in study.methods if method.choice}
    if not choices:
        return []
    shared = (
        " (shared rate): at the one rate with the highest mean normalised score over all environments, left out where "
        "that is the same rate on each." if "shared rate" in choices else ""
    )  # fmt: skip
    default = (
        " (default rate): at the one of Stable-Baselines3, left out where that is the shared one."
        if "default rate" in choices else ""
    )  # fmt: skip
    return [Text(
        "(tuned): a stock agent at the rate with the highest mean return over training on each environment, also where "
        f"final returns are compared.{shared}{default} Which seeds rates were chosen on stands under Learning "
        "rate; intervals here and in the verdict take the chosen rates as given."
    )]  # fmt: skip


def _aggregate_figures(
    study: Study, suffix: str, methods: Sequence[Method], envs: Sequence[str], values: Any
) -> list[Block]:
    indices = indices_of(study)
    panels = {name: {method.name: values[method.name][name] for method in methods} for name in compare.AGGREGATES}
    size = (5.0, 1.4 + 0.6 * len(methods))
    forest = figures.draw(f"aggregates{suffix}", lambda f: figures.intervals(f, panels, indices, []), size)
    shares = {method.name: compare.profile(method, envs) for method in methods}
    profiles = figures.draw(f"profiles{suffix}", lambda f: figures.profiles(f, shares, compare.THRESHOLDS, indices))
    spans = [compare.span([method.scores(envs)]) for method in methods]
    span = (min(low for low, _ in spans), max(high for _, high in spans))
    where = f"On {some(envs)}. Seeds: {span_of(span, study.requested(*methods))}."
    iqms = ", ".join(f"{method.name} {with_interval(values[method.name]['IQM'])}" for method in methods)
    above = ", ".join(
        f"{name} {100 * float(np.interp(0.5, compare.THRESHOLDS, share.estimate)):.0f} %"
        for name, share in shares.items()
    )
    return [
        Image(f"aggregates{suffix}", f"Return averaged over training, normalised: estimate and {STRATIFIED}. {where}",
              f"Aggregates of the methods with intervals. IQM: {iqms}.", forest),
        Image(f"profiles{suffix}", "Performance profiles: share of runs above each normalised score τ of the return "
              f"averaged over training, with pointwise 95 % stratified bootstrap bands. {where}",
              f"Performance profiles. Share of runs above one half: {above}.", profiles),
    ]  # fmt: skip


def _comparisons(study: Study, baseline: Method | None) -> tuple[pd.DataFrame, list[Block]]:
    matches = compare.matches(study, baseline)
    results = [compare.compare(match, score) for match in matches for score in SCORES]
    frame = pd.DataFrame([
        {
            "method": r.match.method.name, "baseline": r.match.baseline.name, "score": r.score,
            "paired_by_seed": r.paired,
            "difference": r.difference.estimate, "difference_low": r.difference.low,
            "difference_high": r.difference.high,
            "improvement": r.improvement.estimate, "improvement_low": r.improvement.low,
            "improvement_high": r.improvement.high, "environments": len(r.match.envs), "seeds": r.n_seeds[0],
            "requested_seeds": study.requested(*r.match[:2]), "left_out": r.alone, "normalised": not r.match.raw,
            "on": ", ".join(r.match.envs),
        }
        for r in results
    ])  # fmt: skip
    if not results:
        why = "there is no second method to compare with."
        if compare.comparisons(study, baseline):
            why = "methods that are compared share no environment on which all their runs have scores yet."
        return frame, [Text(f"Probability of improvement: {why}")]
    return frame, [*_improvement(study, results), *_comparison_tables(study, results)]


def _comparison_tables(study: Study, results: Sequence[Comparison]) -> list[Block]:
    how = (
        "Runs are paired by their seed where both methods ran most seeds of every environment; those without a partner "
        "are left out. A probability has no interval where on every environment all runs go one way."
    )
    blocks: list[Block] = []
    for raw, score, centre in (
        (False, "normalised scores", "IQMs"),
        (True, "returns, which nothing normalises", "means"),
    ):
        rows = [
            [f"{r.match.method.name} against {r.match.baseline.name}", some(r.match.envs),
             {"auc": "over training", "final": "final"}[r.score],
             returned_interval(r.difference) if raw else with_interval(r.difference, 3), with_interval(r.improvement),
             "seed" if r.paired else "no", span_of(r.n_seeds, study.requested(*r.match[:2])), str(r.alone)]
            for r in results if r.match.raw == raw
        ]  # fmt: skip
        columns = ["comparison", "on", "score", f"difference of {centre}", "probability of improvement", "paired by",
                   "seeds", "left out"]  # fmt: skip
        caption = f"Comparisons of {score}, with {STRATIFIED}s. {how}"
        blocks += [Table(caption, columns, rows)] if rows else []
    return blocks


def _improvement(study: Study, results: Sequence[Comparison]) -> list[Block]:
    shown = {_title(r.match): r for r in results if r.score == "auc"}
    panel = {"probability of improvement": {name: r.improvement for name, r in shown.items()}}
    order = {name: indices_of(study)[r.match.method.name] for name, r in shown.items()}
    size = (5.0, 1.1 + 0.34 * len(shown))
    picture = figures.draw("improvement", lambda f: figures.intervals(f, panel, order, [0.5], (-0.02, 1.02)), size)
    span = (min(r.n_seeds[0] for r in shown.values()), max(r.n_seeds[1] for r in shown.values()))
    requested = study.requested(*(method for r in shown.values() for method in r.match[:2]))
    words = "; ".join(f"{name} {with_interval(r.improvement)}" for name, r in shown.items())
    return [
        Image("improvement", "Probability that a run of the first beats one of the second on the same environment; "
              f"dashed: neither is better. Seeds: {span_of(span, requested)}.",
              f"Probability of improvement: {words}.", picture)
    ]  # fmt: skip


def _title(match: Match) -> str:
    name = f"{match.method.name} against {match.baseline.name}"
    return f"{name}, {match.envs[0]}" if match.raw else name
