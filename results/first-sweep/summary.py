"""Figure and tables of the READMEs from the report beside this file: ``python results/first-sweep/summary.py``.

After ``python -m alrao_rl.report results/first-sweep --out results/first-sweep``, whose numbers these are.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from alrao_rl import load_results

HERE = Path(__file__).parent
ENVS = ("CartPole-v1", "Acrobot-v1")
STOCK = {"dqn": "dqn-adam", "a2c": "a2c-rmsprop", "ppo": "ppo-adam"}
CELLS = [(algo, env) for algo in STOCK for env in ENVS]
REPORTED, BEFORE = range(10), range(5)
"""Seeds that are reported, and those of them that Alrao's default setting was chosen on, on these environments."""


def whole(value: float) -> str:
    """A return without decimals."""
    return f"{value:.0f}".replace("-", "−")


def span(row: pd.Series, column: str = "auc") -> str:
    """``392 [373, 409]``: mean and 95 % bootstrap interval."""
    low, mean, high = (whole(row[name]) for name in (f"{column}_low", column, f"{column}_high"))
    return f"{mean} [{low}, {high}]"


def table(rows: dict[str, list[str]]) -> str:
    """Markdown, a row a name, a column a cell."""
    head = "| | " + " | ".join(f"{algo.upper()} {env}" for algo, env in CELLS) + " |\n|---|" + "---|" * len(CELLS)
    return "\n".join([head, *(f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items())])


def methods(environments: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """Alrao, and stock at the rate that was chosen for each cell and at the one chosen for both environments."""
    at = environments.set_index(["method", "environment"])
    rows = {"**Alrao, no learning rate**": [span(at.loc[cell], column) for cell in CELLS]}
    for variant, name in {"tuned": "stock, tuned", "shared rate": "stock, one rate for both"}.items():
        rows[name] = []
        for algo, env in CELLS:
            key = f"{STOCK[algo]} ({variant})", env
            # Where both are one rate the report has it once.
            row = at.loc[key if key in at.index else (f"{STOCK[algo]} (tuned)", env)]
            rows[name].append(f"{span(row, column)} at {row.learning_rate:g}")
    return rows


def by_rate(rates: pd.DataFrame) -> dict[str, list[str]]:
    """Stock at every rate."""
    named = rates.rename(columns={"estimate": "auc", "low": "auc_low", "high": "auc_high"})
    at = named.set_index(["agent", "environment", "learning_rate"])
    return {
        f"stock at {rate:g}": [span(at.loc[STOCK[algo], env, rate]) for algo, env in CELLS]
        for rate in sorted(rates.learning_rate.unique())
    }


def comparisons(found: pd.DataFrame) -> str:
    """A line for every algorithm: what the report says of Alrao against stock at the tuned rate."""
    lines = []
    for algo, agent in STOCK.items():
        pair = found[(found.method == algo) & (found.baseline == f"{agent} (tuned)")].set_index("score")
        columns = ("difference", "difference_low", "difference_high")
        said = []
        for score, name in {"auc": "averaged over training", "final": "over its last fifth"}.items():
            mean, low, high = (f"{pair[column][score]:+.3f}" for column in columns)
            said.append(f"{mean} [{low}, {high}] {name}")
        lines.append(f"* {algo.upper()}: " + ", ".join(said))
    return "\n".join(lines).replace("-0", "−0")


def losses(environments: pd.DataFrame) -> str:
    """Cells where stock at the tuned rate has the higher mean."""
    at = environments.set_index(["method", "environment"])
    lines = []
    for column, when in {"auc": "averaged over training", "final": "over the last fifth"}.items():
        for algo, env in CELLS:
            ours, tuned = at.loc[(algo, env), column], at.loc[(f"{STOCK[algo]} (tuned)", env), column]
            if tuned > ours:
                lines.append(f"* {algo.upper()} on {env}, {when}: {whole(tuned)}, Alrao {whole(ours)}")
    return "\n".join(lines) or "* nowhere"


def unseen(runs: pd.DataFrame, environments: pd.DataFrame) -> dict[str, list[str]]:
    """Means of Alrao and of stock at the tuned rate on the seeds that Alrao's default was not chosen on."""
    rest = runs[~runs.seed.isin(BEFORE)]
    rates = environments.set_index(["method", "environment"]).learning_rate
    rows: dict[str, list[str]] = {"Alrao, the seeds from 5 on alone": [], "stock, tuned, those seeds alone": []}
    for algo, env in CELLS:
        stock = rest[(rest.agent == STOCK[algo]) & (rest.learning_rate == rates[f"{STOCK[algo]} (tuned)", env])]
        for row, group in zip(rows.values(), (rest[rest.agent == algo], stock), strict=True):
            row.append(whole(group[group.env == env].auc.mean()))
    return rows


def collapses(environments: pd.DataFrame) -> str:
    """Cells where runs collapsed, as the report has it."""
    at = environments.set_index(["method", "environment"]).collapsed
    found = {(algo, env): (at[algo, env], at[f"{STOCK[algo]} (tuned)", env]) for algo, env in CELLS}
    return "; ".join(f"{a.upper()} on {env} {n} of 10, stock {m}" for (a, env), (n, m) in found.items() if n or m)


def figure(runs: pd.DataFrame, rates: pd.DataFrame, environments: pd.DataFrame) -> None:
    """Return against learning rate for the stock agents, Alrao as a level band across."""
    mpl.rcParams.update({"svg.hashsalt": "alrao", "font.size": 9, "svg.fonttype": "path"})
    fig, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharex=True, layout="constrained")
    for row, env in enumerate(ENVS):
        for column, (algo, agent) in enumerate(STOCK.items()):
            ax = axes[row, column]
            curve = rates[(rates.agent == agent) & (rates.environment == env)].sort_values("learning_rate")
            error = [curve.estimate - curve.low, curve.high - curve.estimate]
            ax.errorbar(curve.learning_rate, curve.estimate, error, marker="o", ms=4, capsize=3, color="#7a7a7a",
                        label="stock SB3, by learning rate")  # fmt: skip
            seeds = runs[(runs.agent == agent) & (runs.env == env)]
            ax.plot(seeds.learning_rate, seeds.auc, ".", color="#7a7a7a", alpha=0.3, ms=4)
            level = environments[(environments.method == algo) & (environments.environment == env)].iloc[0]
            ax.axhline(level.auc, color="#c2410c", label="Alrao, no learning rate")
            ax.axhspan(level.auc_low, level.auc_high, color="#c2410c", alpha=0.18, lw=0)
            ax.set_xscale("log")
            ax.set_title(f"{algo.upper()}, {env}", fontsize=9)
            if column == 0:
                ax.set_ylabel("mean return over training")
            if row == 1:
                ax.set_xlabel("learning rate of the stock agent")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    fig.savefig(HERE / "figure.svg", metadata={"Date": None})
    plt.close(fig)


def fill(readme: Path, text: str) -> None:
    """Put ``text`` between the marks in a README."""
    start, end = "<!-- from results/first-sweep/summary.py -->\n", "<!-- end -->"
    head, rest = readme.read_text().split(start)
    readme.write_text(head + start + text + end + rest.split(end, 1)[1])


def main() -> None:
    environments, rates, found = (
        pd.read_csv(HERE / "tables" / f"{name}.csv") for name in ("environments", "rates", "comparisons")
    )
    runs = load_results(HERE)
    reported = runs[runs.seed.isin(REPORTED)]
    figure(reported, rates, environments)
    means = methods(environments, "auc")
    differences = f"""Scores scaled to random policy = 0 and reference = 1, interquartile mean over seeds and
environments, Alrao less stock at the tuned rates, with 95 % intervals:

{comparisons(found)}

Where stock at the tuned rate has the higher mean:

{losses(environments)}

Collapsed, that is ended nearer to the random score than to the best that the run had held: {collapses(environments)}.
"""
    fill(HERE.parent.parent / "README.md", f"{table(means)}\n\n{differences}")
    fill(
        HERE / "README.md",
        f"""Return averaged over training:

{table(means | by_rate(rates) | unseen(reported, environments))}

Return over the last fifth of training:

{table(methods(environments, "final"))}

{differences}""",
    )


if __name__ == "__main__":
    main()
