"""4. The learning rate: what it does to stock agents, and what tuning it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from alrao_rl.report import compare, figures
from alrao_rl.report.document import Block, Image, Section, Table, Text, slug
from alrao_rl.report.sections.words import (
    algorithm,
    indices_of,
    number,
    of,
    rate,
    returned,
    returned_interval,
    some,
    span_of,
    with_interval,
)
from alrao_rl.report.study import SECOND, Method, Study
from alrao_rl.runs.results import each_row


def section(study: Study) -> Section:
    """Return against rate, sensitivity, what tuning costs."""
    stock = [method for method in study.methods if method.policy == "stock" and method.choice not in SECOND]
    if not stock:
        return Section("Learning rate", [Text("No stock agent was run: there is no learning rate to look at.")])
    points: list[pd.DataFrame] = []
    images: list[Block] = []
    for number_, env in enumerate(study.envs):
        images += _rate_images(study, number_, env, stock, points)
    how = (
        "Points are means over the reported seeds (over the tuning seeds where a rate was run on these only) with 95 % "
        "bootstrap intervals; a ring is about the rate that was chosen. Alrao has no rate and is the level band across."
    )
    blocks: list[Block] = [Text(f"{how} {_choice_words(study, stock)}")]
    data = {"rates": pd.concat(points)} if points else {}
    plane, table = _plane(study)
    costs, cost_table = _costs(study)
    data |= {"sensitivity": table} if len(table) else {}
    return Section("Learning rate", [*blocks, *images, *plane, cost_table, *_chosen(study)], {**data, "cost": costs})


def _choice_words(study: Study, stock: Sequence[Method]) -> str:
    if not any(method.rates for method in stock):
        return "Every stock agent has one rate: nothing was tuned."
    lines = []
    if held_out := [method for method in stock if method.held_out]:
        seeds = sorted({seed for method in held_out for seed in method.tuned_on})
        least, asked = min(len(method.tuned_on) for method in held_out), len(study.tuning_seeds)
        fewer = "" if least == asked else f", of which the least has {least} of {asked}"
        lines.append(f"Rates of {', '.join(method.name for method in held_out)} were chosen on the tuning seeds "
                    f"({', '.join(map(str, seeds))}{fewer}), which are not among those reported.")  # fmt: skip
    if names := [method.name for method in stock if method.rates and not method.held_out]:
        why = ", as some rates have no run on a tuning seed" if study.tuning_seeds else ""
        lines.append(
            f"Rates of {', '.join(names)} were chosen on the reported seeds, which flatters the baseline{why}."
        )
    return " ".join(lines)


def _rate_images(
    study: Study, i: int, env: str, stock: Sequence[Method], points: list[pd.DataFrame]
) -> Iterable[Image]:
    """A picture for every algorithm with a stock agent on this environment; the points are added to ``points``."""
    indices = {m.name.removesuffix(" (tuned)"): i for i, m in enumerate(study.methods)}
    for algo in sorted({method.algo for method in stock}):
        curves, chosen = {}, {}
        for method in (m for m in stock if m.algo == algo):
            curve = compare.rate_curve(study, env, method)
            if len(curve):
                name = method.name.removesuffix(" (tuned)")
                curves[name], chosen[name] = curve, method.rates.get(env, math.nan)
                points.append(curve.assign(environment=env, agent=method.agent, variant=method.variant))
        if not curves:
            continue
        alrao = [m for m in study.methods if m.policy == "alrao" and m.algo == algo and len(m.on(env))]
        levels = {m.name: compare.interval_of(m.on(env).auc.to_numpy(np.float64)) for m in alrao}
        name = f"rates-{i:02d}-{slug(env)}-{slug(algo)}"
        picture = figures.draw(
            name, partial(figures.rates, stock=curves, chosen=chosen, levels=levels, indices=indices)
        )
        best = ", ".join(f"{m} best at {c.learning_rate[c.estimate.argmax()]:g} with {returned(c.estimate.max())}"
                         for m, c in curves.items())  # fmt: skip
        level = ", ".join(f"{m} {returned_interval(value)}" for m, value in levels.items()) or "no Alrao agent"
        counts = [int(n) for curve in curves.values() for n in curve.n] + [len(m.on(env)) for m in alrao]
        shown = [m for m in study.methods if m.algo == algo]
        seeds = span_of((min(counts), max(counts)), study.requested(*shown))
        alt = f"Return averaged over training against learning rate on {env}: {best}; level: {level}."
        yield Image(name, f"{env}, {algorithm(algo)}. Seeds a point: {seeds}.", alt, picture)


def _plane(study: Study) -> tuple[list[Block], pd.DataFrame]:
    # On a single environment the shared rate is the tuned one: Φ is 0 whatever the rate does.
    groups = [group for group in compare.aggregated(study) if len(group[1]) > 1]
    found = [(compare.plane(study, *group), group[1]) for group in groups]
    planes = [(points, envs) for points, envs in found if any(point.n_rates > 1 for point in points)]
    if not planes:
        text = (
            "The sensitivity Φ needs a stock agent at several learning rates, all of them run on the same two "
            "environments or more: on one, the rate that is best for it is the best for all."
        )
        return [Text(text)], pd.DataFrame()
    blocks: list[Block] = []
    for i, (points, envs) in enumerate(planes):
        blocks += _plane_blocks(study, "plane" if not i else f"plane-{i + 1}", points, envs)
    frame = pd.DataFrame([
        {"method": p.name, "rates": p.n_rates, "phi": p.phi.estimate, "phi_low": p.phi.low, "phi_high": p.phi.high,
         "tuned": p.tuned.estimate, "tuned_low": p.tuned.low, "tuned_high": p.tuned.high, "held_out": p.held_out,
         "seeds": p.n_seeds[0], "requested_seeds": _requested(study, p), "environments": len(envs)}
        for points, envs in planes for p in points
    ])  # fmt: skip
    return blocks, frame


def _requested(study: Study, point: compare.Plane) -> int:
    return study.requested(*(method for method in study.methods if method.name == point.name))


def _plane_blocks(study: Study, name: str, points: Sequence[compare.Plane], envs: Sequence[str]) -> list[Block]:
    rows = []
    for p in points:
        seeds = span_of(p.n_seeds, _requested(study, p))
        if p.n_rates > 1:
            chosen_on = "tuning seeds" if p.held_out else "reported seeds"
            rows.append([p.name, str(p.n_rates), seeds, with_interval(p.phi), with_interval(p.tuned), chosen_on])
        else:
            n_rates = "–" if p.name in _without_a_rate(study) else "1"
            rows.append([p.name, n_rates, seeds, "0", with_interval(p.tuned), "–"])
    pairs = {p.name: (p.phi, p.tuned) for p in points}
    anew = "of the chosen rates" if study.sweep["tune"] else "in each resample the rates are chosen anew"
    picture = figures.draw(name, lambda f: figures.plane(f, pairs, indices_of(study)))
    words = "; ".join(f"{p.name}: Φ {number(p.phi.estimate)}, score {number(p.tuned.estimate)}" for p in points)
    caption = (
        "Φ = score when the rate is tuned for each environment − score of the one rate that is best for all (Adkins, "
        "Bowling, White 2024). Without a rate to tune Φ is 0. Up and left is better."
    )
    return [
        Image(name, f"On {some(envs)}. {caption} Crosses: 95 % bootstrap intervals.",
              f"Performance–sensitivity plane. {words}.", picture),
        Table(f"The plane in numbers, with 95 % bootstrap intervals; {anew}.",
              ["method", "rates", "seeds", "Φ", "score when tuned", "rates chosen on"], rows),
    ]  # fmt: skip


def _without_a_rate(study: Study) -> set[str]:
    return {method.name for method in study.methods if method.policy == "alrao"}


def _costs(study: Study) -> tuple[pd.DataFrame, Table]:
    frame = pd.DataFrame([
        {"method": method.name, "reported_steps": (steps := int(method.runs.timesteps.fillna(0).sum())),
         "tuning_steps": method.tuning_steps, "total_steps": steps + method.tuning_steps,
         "runs": study.finished([method])[0], "requested_runs": study.finished([method])[1]}
        for method in study.methods
    ])  # fmt: skip
    cells = [
        [row.method, of(row.runs, row.requested_runs),
         *(f"{int(value):,}" for value in (row.reported_steps, row.tuning_steps, row.total_steps)),
         f"{row.total_steps / row.reported_steps:.1f}" if row.reported_steps else "–"]
        for row in each_row(frame)
    ]  # fmt: skip
    caption = (
        "Cost in environment steps over all environments. Tuning is the steps of an agent's runs on tuning seeds if "
        "its rates were chosen on them, else at the rates that were not chosen. An agent that ran at one rate only is "
        "charged none, whoever found that rate."
    )
    columns = ["method", "runs finished", "steps of reported runs", "tuning", "total", "total / reported"]
    return frame, Table(caption, columns, cells)


def _chosen(study: Study) -> list[Block]:
    rows = [
        [method.name, *(rate(method.rates.get(env, math.nan)) for env in study.envs)]
        for method in study.methods
        if method.rates
    ]
    return [Table("Rates that were chosen.", ["method", *study.envs], rows)] if rows else []
