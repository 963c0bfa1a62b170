"""Make README.md and figure.svg beside this file from runs.csv: ``python results/supervised/report.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

HERE = Path(__file__).parent
SEEDS = 10
UNITS = {
    "digits, MLP": "nats", "digits, ConvNet": "nats", "help texts, LSTM": "nats a character",
    "diabetes, MLP": "variances of the target",
}  # fmt: skip
TEXT = """# Alrao in supervised learning, as it was published

SGD at seven learning rates, Adam at its default, and Alrao as in the paper (SGD, rates from 1e-5 to 10, switch), which
has no rate. {n} of {requested} runs, {seeds}; loss on held-out data after the last epoch, mean with its 95 % interval
(Student's t). A run whose loss is not finite counts with the loss of a guess that knows nothing; brackets say how many.
Bold: the best rate of SGD, chosen on these very runs.

{table}

{words}

![Loss against learning rate](figure.svg)

Data, networks and lengths are in [study.py](study.py): scikit-learn's digits (1,797 images of 8 × 8) and diabetes (442
patients), and the help texts that come with Python. Remake: `python results/supervised/study.py`, which needs
scikit-learn and goes on where it was cut off, then `python results/supervised/report.py`.
"""


def interval(values: pd.Series) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of the mean."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 2 else float("nan")
    return float(values.mean()), float(half)


def cell(rows: pd.DataFrame, best: bool) -> str:
    """``mean ± half width (2 diverged)``."""
    if rows.empty:
        return "–"
    mean, half = interval(rows.loss)
    text = f"{mean:.3f}" if np.isnan(half) else f"{mean:.3f} ± {half:.3f}"
    diverged = int((rows.state == "diverged").sum())
    return (f"**{text}**" if best else text) + (f" ({diverged} diverged)" if diverged else "")


def best_rate(rows: pd.DataFrame) -> str:
    """The rate of SGD with the lowest mean loss."""
    sgd = rows[rows.method.str.startswith("SGD")]
    return str(sgd.groupby("method").loss.mean().idxmin())


def words(runs: pd.DataFrame) -> str:
    """How Alrao compares, a sentence a task."""
    lines = []
    for task in UNITS:
        rows = runs[runs.task == task]
        if not {"Alrao", "Adam 1e-3"} <= set(rows.method):
            continue
        best = best_rate(rows)
        mean = rows.groupby("method").loss.mean()
        lost = int((rows[rows.method == "Alrao"].state == "diverged").sum())
        lines.append(
            f"* {task}: against {best}, the best, Alrao's loss is {100 * (mean['Alrao'] / mean[best] - 1):+.1f} %, "
            f"against Adam {100 * (mean['Alrao'] / mean['Adam 1e-3'] - 1):+.1f} %; {lost} of its runs diverged."
        )
    return "\n".join(lines)


def figure(runs: pd.DataFrame) -> None:
    """Loss against the rate of SGD; Alrao as a level band across, Adam as a line."""
    mpl.rcParams["svg.hashsalt"] = "supervised"
    picture, axes = plt.subplots(1, len(UNITS), figsize=(12, 3.2), layout="constrained")
    for ax, (task, unit) in zip(axes, UNITS.items(), strict=True):
        rows = runs[runs.task == task]
        sgd = {float(m.split()[1]): interval(g.loss) for m, g in rows.groupby("method") if m.startswith("SGD")}
        ax.errorbar(sgd.keys(), [m for m, _ in sgd.values()], [h for _, h in sgd.values()], marker="o", label="SGD")
        if len(alrao := rows[rows.method == "Alrao"]):
            mean, half = interval(alrao.loss)
            ax.axhspan(mean - half, mean + half, color="C1", alpha=0.3, linewidth=0)
            ax.axhline(mean, color="C1", label="Alrao")
        if len(adam := rows[rows.method == "Adam 1e-3"]):
            ax.axhline(interval(adam.loss)[0], color="C2", linestyle="--", label="Adam 1e-3")
        ax.set(xscale="log", title=task, xlabel="learning rate of SGD", ylabel=f"loss, {unit}")
    axes[0].legend()
    picture.savefig(HERE / "figure.svg", metadata={"Date": None})


def main() -> None:
    runs = pd.read_csv(HERE / "runs.csv")
    methods = [
        "Alrao",
        "Adam 1e-3",
        *sorted({m for m in runs.method if m[0] == "S"}, key=lambda m: float(m.split()[1])),
    ]
    lines = [
        "| | " + " | ".join(f"{task} ({unit})" for task, unit in UNITS.items()) + " |",
        "|---|" + "---|" * len(UNITS),
    ]
    for method in methods:
        cells = []
        for task in UNITS:
            rows = runs[runs.task == task]
            cells.append(cell(rows[rows.method == method], len(rows) > 0 and method == best_rate(rows)))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    requested = len(UNITS) * len(methods) * SEEDS
    fewest = int(runs.groupby(["task", "method"]).seed.nunique().min())
    seeds = f"{SEEDS} seeds" if len(runs) == requested else f"a look: {fewest} to {SEEDS} seeds, the study goes on"
    text = TEXT.format(n=len(runs), requested=requested, seeds=seeds, table="\n".join(lines), words=words(runs))
    (HERE / "README.md").write_text(text, encoding="utf-8")
    figure(runs)


if __name__ == "__main__":
    main()
