"""3. Aggregates over environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl._report import compare, figures
from alrao_rl._report.compare import SCORES
from alrao_rl._report.document import Block, Image, Items, Section, Table, Text
from alrao_rl._report.sections.words import (
    STRATIFIED,
    indices_of,
    plural,
    span_of,
    with_interval,
)
from alrao_rl._report.study import Method, Study


def section(study: Study, baseline: Method | None) -> Section:
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
        *_names(study),
    ]  # fmt: skip
    rows = []
    for score, words in SCORES.items():
        lines = [
            [
                name,
                span_of(study, compare.span([method.scores(envs)])),
                *(with_interval(value) for value in values[score][name].values()),
            ]
            for name, method in ((m.name, m) for m in methods)
        ]
        blocks.append(Table(f"{words.capitalize()}, normalised, with {STRATIFIED}s. Optimality gap: lower is better.",
                            ["method", "seeds", *compare.AGGREGATES], lines))  # fmt: skip
        rows += [
            {"score": score, "method": method.name, "statistic": statistic, **value._asdict(),
             "seeds": min(compare.span([method.scores(envs)])), "requested_seeds": len(study.seeds)}
            for method in methods
            for statistic, value in values[score][method.name].items()
        ]  # fmt: skip
    blocks += _aggregate_figures(study, methods, envs, values["auc"])
    table, improvements = _comparisons(study, baseline, envs)
    return Section("Aggregates", [*blocks, *improvements], {"aggregates": pd.DataFrame(rows), "comparisons": table})


def _names(study: Study) -> list[Block]:
    """What the names of stock agents at their best rates mean."""
    choices = {method.choice for method in study.methods if method.choice}
    if not choices:
        return []
    shared = (
        " (shared rate): at the one rate with the highest mean normalised score over all environments, left out where "
        "that is the same rate on each." if "shared rate" in choices else ""
    )  # fmt: skip
    return [Text(
        "(tuned): a stock agent at the rate with the highest mean return over training on each environment, also where "
        f"final returns are compared.{shared} Which seeds rates were chosen on stands under Learning rate; intervals "
        "here and in the verdict take the chosen rates as given."
    )]  # fmt: skip


def _aggregate_figures(study: Study, methods: Sequence[Method], envs: Sequence[str], values: Any) -> list[Block]:
    indices = indices_of(study)
    panels = {name: {method.name: values[method.name][name] for method in methods} for name in compare.AGGREGATES}
    height = 1.1 + 0.34 * len(methods)
    forest = figures.draw("aggregates", lambda f: figures.intervals(f, panels, indices, []), (8.2, height))
    shares = {method.name: compare.profile(method, envs) for method in methods}
    profiles = figures.draw("profiles", lambda f: figures.profiles(f, shares, compare.THRESHOLDS, indices))
    spans = [compare.span([method.scores(envs)]) for method in methods]
    seeds = f"Seeds: {span_of(study, (min(low for low, _ in spans), max(high for _, high in spans)))}."
    iqms = ", ".join(f"{method.name} {with_interval(values[method.name]['IQM'])}" for method in methods)
    above = ", ".join(
        f"{name} {100 * float(np.interp(0.5, compare.THRESHOLDS, share.estimate)):.0f} %"
        for name, share in shares.items()
    )
    return [
        Image("aggregates", f"Return averaged over training, normalised: estimate and {STRATIFIED}. {seeds}",
              f"Aggregates of the methods with intervals. IQM: {iqms}.", forest),
        Image("profiles", "Performance profiles: share of runs above each normalised score τ of the return averaged "
              f"over training, with pointwise 95 % stratified bootstrap bands. {seeds}",
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
            "difference": r.difference.estimate, "difference_low": r.difference.low,
            "difference_high": r.difference.high,
            "improvement": r.improvement.estimate, "improvement_low": r.improvement.low,
            "improvement_high": r.improvement.high, "environments": len(r.envs), "seeds": r.n_seeds[0],
            "requested_seeds": len(study.seeds), "left_out": r.alone,
        }
        for r in results
    ])  # fmt: skip
    if not results:
        return frame, [Text("Probability of improvement: there is no second method to compare with.")]
    rows = [
        [f"{r.method} against {r.baseline}", {"auc": "over training", "final": "final"}[r.score],
         with_interval(r.difference, 3), with_interval(r.improvement), "seed" if r.paired else "no",
         span_of(study, r.n_seeds), str(r.alone)]
        for r in results
    ]  # fmt: skip
    columns = ["comparison", "score", "difference of IQMs", "probability of improvement", "paired by", "seeds",
               "left out"]  # fmt: skip
    caption = (
        f"Comparisons with {STRATIFIED}s. Runs are paired by their seed where both methods ran most seeds of every "
        "environment; those without a partner are left out. A probability has no interval where on every environment "
        "all runs go one way."
    )
    panel = {"probability of improvement": {f"{r.method} against {r.baseline}": r.improvement
                                            for r in results if r.score == "auc"}}  # fmt: skip
    size = (7.2, 1.1 + 0.34 * len(panel["probability of improvement"]))
    order = {f"{r.method} against {r.baseline}": indices_of(study)[r.method] for r in results}
    picture = figures.draw("improvement", lambda f: figures.intervals(f, panel, order, [0.5], (-0.02, 1.02)), size)
    spans = (min(r.n_seeds[0] for r in results), max(r.n_seeds[1] for r in results))
    said = "; ".join(f"{name} {with_interval(value)}" for name, value in panel["probability of improvement"].items())
    return frame, [
        Image("improvement", "Probability that a run of the first beats one of the second on the same environment; "
              f"dashed: neither is better. Seeds: {span_of(study, spans)}.",
              f"Probability of improvement: {said}.", picture),
        Table(caption, columns, rows),
    ]  # fmt: skip
