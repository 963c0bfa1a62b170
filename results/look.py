"""The tables of a sweep with few seeds, as Markdown: ``python results/look.py FOLDER [--scores SCORE ...]``.

For each environment a row an agent, in bold with Alrao, and learning rate or other setting: what each seed has of the
first score, and of every score the mean with its 95 % interval (Student's t). Scores are columns of
``alrao_rl.load_results``; a run that failed has the environment's floor, and the state of one that has not ended stands
in its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from alrao_rl.runs.names import RunName
from alrao_rl.runs.results import SCORED, load_results
from alrao_rl.stats import environments, mean_interval

SCORES = {"auc": "over training", "final_return": "last fifth", "last_evaluation": "last evaluation"}


def tables(folder: str, scores: list[str]) -> Iterator[str]:
    """One for each environment, under its name where there are several."""
    runs = load_results(folder)
    first, *others = [SCORES[score] for score in scores]
    names = environments(runs)
    for env, here in runs.groupby(names, sort=False):
        if names.nunique() > 1:
            yield f"{env}:\n"
        digits = 0 if here[scores].abs().max(axis=None) >= 100 else 1
        seeds = f"seeds {here.seed.min()} to {here.seed.max()}"
        columns = ["agent", f"{seeds}, {first}", "mean", *others]
        yield f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
        settings = here.path.map(lambda path: RunName.parse(path).setting).rename("setting")
        methods = [here.agent, here.policy, here.learning_rate, settings]
        for (agent, policy, rate, setting), rows in here.groupby(methods, dropna=False):
            rows = rows.sort_values("seed")
            name = f"**{agent}** {setting}".strip() if policy == "alrao" else f"{agent} at {rate:g}"
            each = [f"{row[scores[0]]:.{digits}f}" if row.state in SCORED else row.state for _, row in rows.iterrows()]
            over = rows[rows.state.isin(SCORED)]
            means = ["–" if over.empty else mean_interval(over[score]).plus_minus(digits) for score in scores]
            yield f"| {name} | {', '.join(each)} | {' | '.join(means)} |"
        yield ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="of a sweep")
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=["auc", "final_return"])
    given = parser.parse_args()
    print("\n".join(tables(given.folder, given.scores)))
