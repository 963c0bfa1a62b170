"""4. The learning rate: what it does to stock agents, and what tuning it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from alrao_rl._report import compare, figures
from alrao_rl._report.document import Block, Image, Section, Table, Text, slug
from alrao_rl._report.sections.words import (
    indices_of,
    number,
    rate,
    with_interval,
)
from alrao_rl._report.study import Method, Study
from alrao_rl.load import each_row


def section(study: Study) -> Section:
    """Return against rate, sensitivity, what tuning costs."""
    stock = [method for method in study.methods if method.policy == "stock" and method.choice != "one rate"]
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
    if all(method.held_out for method in stock if method.rates):
        seeds = ", ".join(map(str, study.tuning_seeds))
        return f"Tuned rates were chosen on the tuning seeds ({seeds}), which are not among those reported."
    return "Tuned rates were chosen on the reported seeds, which flatters the baseline."


def _rate_images(
    study: Study, i: int, env: str, stock: Sequence[Method], points: list[pd.DataFrame]
) -> Iterable[Image]:
    """A picture for every algorithm with a stock agent on this environment; the points are added to ``points``."""
    indices = {m.name.removesuffix(" (tuned)"): i for i, m in enumerate(study.methods)}
    for algo in sorted({method.algo for method in stock}):
        curves = {}
        for method in (m for m in stock if m.algo == algo):
            curve = compare.rate_curve(study, env, method)
            if len(curve):
                curves[method.name.removesuffix(" (tuned)")] = curve
                points.append(curve.assign(environment=env, agent=method.agent, variant=method.variant))
        if not curves:
            continue
        alrao = [m for m in study.methods if m.policy == "alrao" and m.algo == algo and len(m.on(env))]
        levels = {m.name: compare.interval_of(m.on(env).auc.to_numpy(np.float64)) for m in alrao}
        name = f"rates-{i:02d}-{slug(env)}-{slug(algo)}"
        # A default argument binds the value of this turn of the loop.
        picture = figures.draw(name, lambda f, c=curves, v=levels: figures.rates(f, c, v, indices))  # type: ignore[misc]
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
        text = (
            "The sensitivity Φ needs a stock agent at several learning rates, all of them run on the same environments."
        )
        return [Text(text)], pd.DataFrame()
    rows = [
        [p.name, str(p.n_rates), with_interval(p.phi), with_interval(p.tuned),
         "tuning seeds" if p.held_out else "reported seeds"] if p.n_rates > 1 else
        [p.name, "–" if p.name in _without_a_rate(study) else "1", "0", with_interval(p.tuned), "–"]
        for p in points
    ]  # fmt: skip
    pairs = {p.name: (p.phi, p.tuned) for p in points}
    picture = figures.draw("plane", lambda f: figures.plane(f, pairs, indices_of(study)), (6.4, 3.8))
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
        Image(
            "plane", f"{caption} Crosses: 95 % bootstrap intervals.", f"Performance–sensitivity plane. {said}.", picture
        ),
        Table(
            "The plane in numbers, with 95 % bootstrap intervals.",
            ["method", "rates", "Φ", "score when tuned", "rates chosen on"],
            rows,
        ),
    ], frame


def _without_a_rate(study: Study) -> set[str]:
    return {method.name for method in study.methods if method.policy == "alrao"}


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
        for row in each_row(frame)
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
