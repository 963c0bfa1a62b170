"""2. Learning curves per environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alrao_rl import stats
from alrao_rl.report import compare, figures
from alrao_rl.report.document import Block, Image, Section, Text, slug
from alrao_rl.report.sections.words import (
    algorithm,
    indices_of,
    of,
    returned,
)
from alrao_rl.report.study import SECOND, Method, Study


def section(study: Study) -> Section:
    """IQM with band per environment and algorithm, every seed a thin line."""
    blocks: list[Block] = []
    for number_, env in enumerate(study.envs):
        shown = [method for method in study.methods if len(method.on(env)) and not _is_drawn(study, method, env)]
        if not shown:
            blocks.append(Text(f"{env}: no run has a score yet."))
        for algo in sorted({method.algo for method in shown}):
            name = f"curve-{number_:02d}-{slug(env)}-{slug(algo)}"
            blocks.append(_image(study, name, env, [method for method in shown if method.algo == algo]))
    text = (
        "Thick lines are the interquartile mean over seeds, bands its pointwise 95 % bootstrap interval, thin lines "
        "the seeds. Nothing is smoothed: a point is the mean return of the episodes that ended in one of "
        f"{study.n_bins} equal stretches of the environment steps; a stretch without an end of an episode carries on "
        "the one before it, and before the first one the return is a random policy's or, where that is not known, "
        "that of the first. Failed and diverged runs lie at the floor. Where the tuned, the shared and the default "
        "rate of an environment are one, it is drawn once."
    )
    return Section("Learning curves", [Text(text), *blocks])


def _is_drawn(study: Study, method: Method, env: str) -> bool:
    """Whether an earlier choice of the same agent is the same rate here: the same runs."""
    earlier = [other for other in study.methods if (other.agent, other.variant) == (method.agent, method.variant)]
    order = ["", "tuned", *SECOND]
    return method.choice in SECOND and any(
        order.index(other.choice) < order.index(method.choice) and other.rates.get(env) == method.rates.get(env)
        for other in earlier
    )


def _image(study: Study, name: str, env: str, methods: Sequence[Method]) -> Image:
    curves: dict[str, tuple[stats.Array, stats.Interval, int]] = {}
    for method in methods:
        seeds = study.curves_of(method, env)
        # If no floor is known, a run without an episode has no curve.
        known = np.isfinite(seeds).all(axis=0)
        band = np.full((3, study.n_bins), np.nan)
        if known.any():
            band[:, known] = stats.learning_curve([seeds[:, known]], n_resamples=compare.FEWER // 2)
        # Algorithms differ in how many steps they need, and a bin is a share of them.
        curves[method.name] = (seeds, stats.Interval(*band), int(method.on(env).requested_timesteps.max()))
    picture = figures.draw(name, lambda figure: figures.learning_curves(figure, curves, indices_of(study)))
    last = ", ".join(f"{name_} at {returned(np.asarray(iqm.estimate)[-1])}" for name_, (_, iqm, _) in curves.items())
    counts = ", ".join(f"{method.name} {of(len(method.on(env)), study.requested(method))}" for method in methods)
    caption = f"{env}, {algorithm(methods[0].algo)}. IQM over seeds with its pointwise 95 % interval. Seeds: {counts}."
    alt = f"Learning curves on {env}: return against environment steps; at the end {last}."
    return Image(name, caption, alt, picture)
