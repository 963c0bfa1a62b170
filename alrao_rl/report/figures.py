"""The figures: SVG in which text stays text, the same bytes for the same data, and the same picture as PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alrao_rl import stats

INK, FAINT, PAPER = "#14171a", "#c9ced4", "#fefefe"
SERIES = ("#0b6fb8", "#d1600a", "#12855f", "#a8478f", "#8a6d00", "#b3323c", "#5a5fc7", "#4d6470")
"""Readable on white; the page has a lighter version of each for dark mode."""
SIZE = (5.0, 3.2)
"""Inches: no wider, so that the text is still readable if a figure is as wide as a phone."""
_STYLE: dict[Any, Any] = {
    # Text as text: searchable, small, and never taken for a formula, however many dollar signs a name has.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """A figure as files.

    Attributes:
        svg: stands alone, on white.
        png: the same, 150 dots per inch.
    """

    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG for a page: without header, size and paper, in the page's colours."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
        svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (?:width|height)="[\d.]+pt"', "", svg, count=4)
        svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
        colours = {INK: "currentColor", FAINT: "var(--faint)", PAPER: "var(--paper)"}
        colours |= {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)}
        pattern = rf"(fill|stroke): ({'|'.join(colours)})\b"
        return re.sub(pattern, lambda found: f"{found[1]}: {colours[found[2]]}", svg.replace("xlink:href", "href"))


def draw(name: str, plot: Callable[[Figure], None], size: tuple[float, float] = SIZE) -> Picture:
    """Draw a figure.

    Args:
        name: of the figure; identifiers in the SVG derive from it, so that they differ between figures of a page.
        plot: draws into an empty figure.
        size: inches.
    """
    with _style(name):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        # The layout is the same for both: computing it once saves half of the time.
        figure.set_layout_engine("none")
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return Picture(_smaller(svg.getvalue()), png.getvalue())


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Matplotlib's own defaults, not the user's, with the report's style on top."""
    with mpl.style.context("default"), mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # A glyph that the font lacks is missing in the PNG only.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _smaller(svg: str) -> str:
    """Round to a tenth of a point, which is precise enough, and drop ids of groups, which nothing refers to."""

    def rounded(found: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), found[0])

    svg = re.sub(r"(?<= d=\")[^\"]*", lambda path: rounded(path).replace(" \n", " ").strip(), svg)
    svg = re.sub(r"(?<= )[xy]=\"[-\d.]+\"", rounded, svg)
    return re.sub(r'(<g\b[^>]*?) id="[A-Za-z0-9.]+_\d+"', r"\1", svg)


def short(name: str, most: int = 44) -> str:
    """Shorten a name to fit into a legend, which would omit one that begins with an underscore."""
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return f"\N{HAIR SPACE}{name}" if name.startswith("_") else name


def colour(index: int) -> dict[str, Any]:
    """Colour and line style of the method with that index; the first 32 differ."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": ("-", "--", "-.", ":")[index // len(SERIES) % 4]}


def marker(index: int) -> str:
    """Marker of the method with that index, where there is no line."""
    return "osD^"[index // len(SERIES) % 4]


# --- one function per figure ----------------------------------------------------------------------------------------


def learning_curves(
    figure: Figure, curves: Mapping[str, tuple[stats.Array, stats.Interval, int]], indices: Mapping[str, int]
) -> None:
    """IQM with band of each method, ``(n_bins,)``, over its seeds as thin lines, ``(n_seeds, n_bins)``.

    The third value of each is the environment steps of its runs.
    """
    axes = figure.subplots()
    for name, (seeds, band, steps) in curves.items():
        style = colour(indices[name])
        # A bin is drawn at its centre.
        x = (np.arange(seeds.shape[1]) + 0.5) * steps / seeds.shape[1]
        axes.plot(x, seeds.T, linewidth=0.5, alpha=0.35, color=style["color"])
        if np.isfinite(band.low).all():
            axes.fill_between(x, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(x, band.estimate, linewidth=2, label=short(name), **style)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_xlim(0, max(steps for _, _, steps in curves.values()))
    _legend(axes)


def intervals(
    figure: Figure,
    panels: Mapping[str, Mapping[str, stats.Interval]],
    indices: Mapping[str, int],
    marks: Sequence[float],
    limits: tuple[float, float] | None = None,
) -> None:
    """A panel for each statistic, a line for each method: its estimate and its interval; dashed lines at the marks.

    There are two panels side by side.
    """
    columns = min(len(panels), 2)
    rows = figure.subplots(-(-len(panels) // columns), columns, sharey=True, squeeze=False).flat
    for axes, (title, values) in zip(rows, panels.items(), strict=True):
        for y, (name, value) in enumerate(values.items()):
            hue = colour(indices.get(name, y))["color"]
            if np.isfinite(value.low):
                axes.plot([value.low, value.high], [y, y], color=hue, linewidth=6, alpha=0.35, solid_capstyle="butt")
            axes.plot([value.estimate], [y], marker="|", markersize=12, markeredgewidth=2, color=hue)
        axes.set_yticks(range(len(values)), [short(name) for name in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_title(title)
        axes.grid(visible=False, axis="y")
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=0.8, linestyle="--")
        if limits is not None:
            axes.set_xlim(limits)


def profiles(
    figure: Figure, shares: Mapping[str, stats.Interval], thresholds: stats.Array, indices: Mapping[str, int]
) -> None:
    """Share of runs above each normalised score, ``(n_thresholds,)``, with its band."""
    axes = figure.subplots()
    for name, value in shares.items():
        style = colour(indices[name])
        if np.isfinite(value.low).all():
            axes.fill_between(thresholds, value.low, value.high, color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(thresholds, value.estimate, label=short(name), **style)
    axes.set_xlabel("normalised score τ")
    axes.set_ylabel("share of runs above τ")
    axes.set_ylim(-0.02, 1.02)
    _legend(axes)


def rates(
    figure: Figure,
    stock: Mapping[str, pd.DataFrame],
    chosen: Mapping[str, float],
    levels: Mapping[str, stats.Interval],
    indices: Mapping[str, int],
) -> None:
    """Mean return against the learning rate of stock agents, a ring around the chosen one; Alrao as a level band."""
    axes = figure.subplots()
    for name, value in levels.items():
        style = colour(indices[name])
        if np.isfinite(value.low):
            axes.axhspan(float(value.low), float(value.high), color=style["color"], alpha=0.2, linewidth=0)
        axes.axhline(float(value.estimate), linewidth=2, label=short(name), **style)
    for name, points in stock.items():
        style = colour(indices[name])
        x, y = points.learning_rate.to_numpy(), points.estimate.to_numpy()
        ends = np.abs(np.nan_to_num(np.stack([y - points.low.to_numpy(), points.high.to_numpy() - y])))
        axes.errorbar(x, y, ends, marker="o", markersize=4, capsize=3, label=short(name), **style)
        ringed = x == chosen.get(name)
        axes.plot(x[ringed], y[ringed], marker="o", markersize=11, fillstyle="none", color=style["color"])
    axes.set_xscale("log")
    _rate_axis(axes, np.unique(np.concatenate([points.learning_rate for points in stock.values()])))
    axes.set_xlabel("learning rate of the stock agent")
    axes.set_ylabel("return averaged over training")
    _legend(axes)


def _rate_axis(axes: Axes, values: stats.Array) -> None:
    """Leave room beside the first and the last rate; label the decades, or if there are few of them, the rates."""
    logs = np.log10(values[values > 0])
    if not len(logs):
        return
    span = logs[-1] - logs[0]
    margin = max(0.05 * span, 0.1)
    axes.set_xlim(10 ** (logs[0] - margin), 10 ** (logs[-1] + margin))
    ticks = list(np.arange(np.ceil(logs[0] - 1e-9), logs[-1] + 1e-9))
    if len(ticks) < 3:
        ticks = [logs[0]]
        for log in logs:
            # Labels must not overlap.
            ticks += [log] if log - ticks[-1] > span / 7 else []
    axes.set_xticks(10 ** np.array(ticks), [f"{10**log:.3g}" for log in ticks])
    axes.xaxis.set_minor_formatter("")


def plane(
    figure: Figure, points: Mapping[str, tuple[stats.Interval, stats.Interval]], indices: Mapping[str, int]
) -> None:
    """The performance–sensitivity plane: score when tuned for each environment against what that tuning gains."""
    axes = figure.subplots()
    for name, (phi, tuned) in points.items():
        hue = colour(indices[name])["color"]
        for x, y in (([phi.low, phi.high], [tuned.estimate] * 2), ([phi.estimate] * 2, [tuned.low, tuned.high])):
            if np.isfinite([*x, *y]).all():
                axes.plot(x, y, color=hue, linewidth=1.2, alpha=0.6)
        mark = {"marker": marker(indices[name]), "linestyle": "none", "color": hue}
        axes.plot([phi.estimate], [tuned.estimate], label=short(name), **mark)
    axes.set_xlabel("sensitivity Φ: what tuning the rate for each environment gains")
    axes.set_ylabel("mean normalised score, tuned")
    _legend(axes)


def heads(
    weights: stats.Array,
    learning_rates: stats.Array,
    steps: stats.Array,
    effective: stats.Array,
    reclones: stats.Array,
    figure: Figure,
) -> None:
    """What heads do: averaging weights as a heat map, the effective learning rate as a line, re-clones as bars.

    Args:
        weights: ``(n_heads, n_times)``.
        learning_rates: ``(n_heads,)``.
        steps: ``(n_times,)``.
        effective: ``(n_times,)``.
        reclones: how often each head was re-cloned, ``(n_heads,)``.
        figure: drawn into.
    """
    axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1))
    image = axes.imshow(weights, aspect="auto", origin="lower", interpolation="none", vmin=0, cmap="viridis")
    logs = np.log(learning_rates)
    # Heads are drawn at their index, not at their rate: interpolate the effective rate between the nearest heads.
    axes.plot(np.interp(np.log(effective), logs, np.arange(len(logs))), color="white", linewidth=1.8)
    axes.plot(np.interp(np.log(effective), logs, np.arange(len(logs))), color="#b3006b", linewidth=0.9)
    axes.set_yticks(range(len(logs)), [f"{rate:.1e}" for rate in learning_rates])
    ticks = np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))
    axes.set_xticks(ticks, [_thousands(steps[i]) for i in ticks])
    axes.grid(visible=False)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("learning rate of the head")
    bars.barh(range(len(logs)), reclones, color=SERIES[0], height=0.7)
    bars.set_xlabel("re-clones")
    bars.set_xlim(0, max(reclones.max(), 1) * 1.05)
    figure.colorbar(image, ax=[axes, bars], label="averaging weight")


def entropy(figure: Figure, coefficients: Mapping[str, pd.Series[float]], indices: Mapping[str, int]) -> None:
    """The entropy coefficient of each method over its timesteps, which are the index."""
    axes = figure.subplots()
    for name, values in coefficients.items():
        axes.plot(values.index.to_numpy(), values.to_numpy(), linewidth=2, label=short(name), **colour(indices[name]))
    axes.set_yscale("log")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("entropy coefficient α")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_thousands)
    _legend(axes)


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no line."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
