"""6. What Alrao did inside: averaging weights and effective learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from alrao_rl._report import figures
from alrao_rl._report.document import Block, Image, Section, Text, slug
from alrao_rl._report.sections.words import (
    plural,
)
from alrao_rl._report.study import Study, clean
from alrao_rl.load import load_heads


def section(study: Study) -> Section:
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
        "Π η^a, the geometric mean of the heads' rates weighted by them, geometric mean over seeds. Re-cloned heads "
        "are not recorded and not shown."
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
