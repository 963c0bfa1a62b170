"""The second stage of ``--tune``: which cells are run on the reported seeds, chosen by the runs on the tuning seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from alrao_rl import stats
from alrao_rl.recipes.overrides import find_key
from alrao_rl.runs.names import RunName
from alrao_rl.runs.results import SCORED, load_results, with_floors
from alrao_rl.sweep.plan import Cell


def chosen(root: Path, cells: Sequence[Cell], tuning_seeds: Sequence[int]) -> list[Cell]:
    """Of the cells with a setting, those at the rates that a report compares with.

    That is, of every agent, at every combination of the other keys of the grid: the best rate of each environment, the
    one that is best for all of them, and Stable-Baselines3's default if it is in the grid.

    Args:
        root: folder of the sweep, with the runs of these cells on the tuning seeds.
        cells: of the sweep.
        tuning_seeds: the seeds.
    """
    runs = with_floors(load_results(root))[0]
    runs = runs[runs.seed.isin(tuning_seeds) & runs.state.isin(SCORED) & runs.auc.notna()]
    runs = runs.assign(group=[RunName.parse(path).group for path in runs.path])
    found: set[str] = set()
    candidates = sorted((cell for cell in cells if cell.setting), key=_method)
    for _, alike in groupby(candidates, _method):
        envs = {cell.name().group: cell for cell in alike}
        rows = runs[runs.group.isin(list(envs))]
        rows = rows.assign(env=[envs[group].env for group in rows.group])
        choices = list(stats.chosen_rates(rows).values()) if len(rows) else []
        agent = next(iter(envs.values())).recipe.agent
        choices.append(dict.fromkeys(rows.env, agent.algorithm.learning_rate))
        for rates in choices:
            found.update(rows.group[rows.learning_rate == rows.env.map(rates)])
    return [cell for cell in cells if cell.name().group in found]


def _method(cell: Cell) -> tuple[str, str]:
    """What a rate is chosen for: an agent, and its setting without the rate."""
    agent = cell.recipe.agent
    others = {key: value for key, value in cell.values.items() if find_key(key, agent)[-1] != "learning_rate"}
    return cell.agent, repr(others)
