"""2. Learning curves per environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from alrao_rl import stats
from alrao_rl._report import compare, figures
from alrao_rl._report.document import Block, Image, Section, Text, slug
from alrao_rl._report.sections.words import (
    indices_of,
    number,
    of,
)
from alrao_rl._report.study import Study


def section(study: Study) -> Section:
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
        blocks.append(_curve_image(number_, env, curves, steps, counts, indices_of(study)))
    text = (
        "Thick lines are the interquartile mean over seeds, bands its pointwise 95 % bootstrap interval, thin lines "
        "the seeds. Nothing is smoothed: a point is the mean return of the episodes that ended in one of "
        f"{study.n_bins} equal stretches of the environment steps; a stretch without an end of an episode carries on "
        "the one before it. Failed and diverged runs lie at the floor."
    )
    return Section("Learning curves", [Text(text), *blocks])


def _curve_image(i: int, env: str, curves: Any, steps: int, counts: str, indices: dict[str, int]) -> Image:
    name = f"curve-{i:02d}-{slug(env)}"
    picture = figures.draw(name, lambda figure: figures.learning_curves(figure, curves, steps, indices))
    last = ", ".join(f"{method} at {number(band.estimate[-1], 1)}" for method, (_, band) in curves.items())
    alt = f"Learning curves on {env}: return against environment steps; at the end {last}."
    return Image(name, f"{env}. IQM over seeds with its pointwise 95 % interval. Seeds: {counts}.", alt, picture)
