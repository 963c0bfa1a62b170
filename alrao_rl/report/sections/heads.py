"""6. What Alrao did inside: averaging weights, effective learning rates, re-cloned heads, entropy coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from alrao_rl.notation import plural
from alrao_rl.report import figures
from alrao_rl.report.document import Block, Image, Section, Text, slug
from alrao_rl.report.sections.words import (
    indices_of,
    of,
)
from alrao_rl.report.study import Study, clean
from alrao_rl.runs.results import load_entropy, load_heads

_HEADS = (
    "Averaging weights of the heads, mean over seeds, at every evaluation; the line is the effective learning rate "
    "Π η^a, the geometric mean of the heads' rates weighted by them, geometric mean over seeds. Bars: how often "
    "a head was made anew from the average in a run, because it had next to no weight or was lost, mean over seeds."
)
_ENTROPY = (
    "The entropy coefficient α of the algorithms that learn it, geometric mean over seeds: Alrao by a normalised step, "
    "which has no learning rate, stock agents by their own."
)


def section(study: Study) -> Section:
    """Averaging weights over time and the effective learning rate, per head group."""
    blocks: list[Block] = []
    for method in (m for m in study.methods if m.policy == "alrao"):
        for env in study.envs:
            logs = [log for run in method.on(env).sort_values("seed").path if len(log := load_heads(run))]
            if logs:
                blocks += _head_images(f"{method.name} on {env}", logs, of(len(logs), study.requested(method)))
    if blocks:
        blocks.insert(0, Text(_HEADS))
    images = [image for number, env in enumerate(study.envs) for image in _entropy_images(study, number, env)]
    if images:
        blocks += [Text(_ENTROPY), *images]
    if not blocks:
        return Section("Inside Alrao", [Text("No run of an Alrao agent has recorded averaging weights.")])
    return Section("Inside Alrao", blocks)


def _head_images(title: str, logs: Sequence[pd.DataFrame], seeds: str) -> Iterable[Image]:
    table = pd.concat(logs)
    for layer, rows in table.groupby("layer"):
        weights = rows.pivot_table(index="head", columns="timestep", values="weight", aggfunc="mean")
        rates = rows.groupby("head").learning_rate.first().to_numpy(np.float64)
        reclones = rows.pivot_table(index="head", columns="timestep", values="reclones", aggfunc="mean")
        # Drop times that lack a head's line, as in a run cut off while it wrote: a missing weight is not 0.
        weights = weights.dropna(axis="columns")
        if weights.empty or (rates <= 0).any():
            continue
        values, steps = weights.to_numpy(np.float64), weights.columns.to_numpy(np.float64)
        effective = np.exp(np.log(rates) @ values / values.sum(axis=0))
        made_anew = reclones[weights.columns[-1]].to_numpy(np.float64)
        label = clean(layer)
        name = slug(f"heads-{title}-{label}")
        picture = figures.draw(name, partial(figures.heads, values, rates, steps, effective, made_anew))
        alt = (
            f"Averaging weights of {label}, {title}: at the end most weight, {values[:, -1].max():.2f}, is on the head "
            f"with rate {rates[values[:, -1].argmax()]:.1e}; effective learning rate {effective[-1]:.1e}; re-cloned "
            f"most, {plural(f'{made_anew.max():.0f}', 'time')}, the one with rate {rates[made_anew.argmax()]:.1e}."
        )
        caption = f"{title}, {label}. {plural(seeds, 'seed')}; effective rate at the end {effective[-1]:.1e}."
        yield Image(name, caption, alt, picture)


def _entropy_images(study: Study, number: int, env: str) -> Iterable[Image]:
    coefficients: dict[str, pd.Series[float]] = {}
    for method in study.methods:
        logs = [log for run in method.on(env).sort_values("seed").path if len(log := load_entropy(run))]
        table = pd.concat(logs).query("0 < ent_coef < inf") if logs else pd.DataFrame()
        if len(table):
            coefficients[method.name] = np.exp(np.log(table.ent_coef).groupby(table.timestep).mean())
    if coefficients:
        name = f"entropy-{number:02d}-{slug(env)}"
        picture = figures.draw(name, partial(figures.entropy, coefficients=coefficients, indices=indices_of(study)))
        ends = "; ".join(f"{method} {values.iloc[-1]:.2g}" for method, values in coefficients.items())
        alt = f"Entropy coefficient over time on {env}. At the end: {ends}."
        yield Image(name, f"{env}. At the end: {ends}.", alt, picture)
