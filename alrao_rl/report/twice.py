"""Duplicate runs: copies are left out, and runs that differ are distinguished by their folders.

Two runs are duplicates if environment, agent, configuration, learning rate and seed are the same. They may differ
nonetheless: one may be from an earlier version, in a backup.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from alrao_rl.notation import plural
from alrao_rl.runs.reading import read_json, read_run_file
from alrao_rl.runs.results import each_row

_IDENTITY = ["env", "agent", "configuration", "learning_rate", "seed"]


def resolved(frame: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """The runs, each once, and lines that say how duplicates were resolved.

    A run with the configuration and the episodes of another one is a copy, and left out. If two differ, the agent's
    name includes the folder for all of its runs, ``ppo [backup]``, without the parts that every path has: ENV, AGENT
    and seed-N.

    Args:
        frame: runs with the columns of ``_IDENTITY``, and ``id`` of the environment.
        root: folder of the report.
    """
    frame, copies = _without_copies(frame, root)
    more = plural(len(copies) - 1, "more run is a copy", "more runs are copies")
    lines = [f"{run} is a copy of {original}, and left out" for run, original in list(copies.items())[:1]]
    lines += [f"{more} of others, and left out"] if len(copies) > 1 else []
    for agent, runs in _twice(frame).groupby("agent"):
        one, other = (within(root, path) for path in runs.path.iloc[:2])
        lines.append(f"{one} and {other} are one run and differ: {agent} is compared folder by folder")
        rows = frame[frame.agent == agent]
        places = [_place(root, run) for run in each_row(rows)]
        frame.loc[rows.index, "agent"] = [f"{agent} [{place}]" if place else agent for place in places]
    # Paths may differ only in parts that every path has.
    still = _twice(frame)
    frame.loc[still.index, "agent"] = [f"{run.agent} [{within(root, run.path)}]" for run in each_row(still)]
    return frame, lines


def within(root: Path, path: str) -> str:
    """Path of a run within the folder of the report, whether it is a folder or the zip of one."""
    return Path(path).relative_to(root).as_posix().removesuffix(".zip")


def _twice(frame: pd.DataFrame) -> pd.DataFrame:
    runs = frame[frame.state != "broken"]
    return runs[runs.duplicated(_IDENTITY, keep=False)].sort_values([*_IDENTITY, "path"])


def _without_copies(frame: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The runs that are not copies, and the original of each copy; the original is the run in the usual folder."""
    originals: dict[object, str] = {}
    copies = {}
    for run in sorted(each_row(_twice(frame)), key=lambda run: (_place(root, run), Path(run.path).parts)):
        original = originals.setdefault(_content(Path(run.path), run.state), run.path)
        if original != run.path:
            copies[run.path] = original
    there = {within(root, path): within(root, original) for path, original in copies.items()}
    return frame[~frame.path.isin(list(copies))].copy(), there


def _content(run: Path, state: str) -> object:
    """What a run and its copy have in common."""
    config = {key: value for key, value in read_json(run / "config.json").items() if key != "provenance"}
    try:
        episodes = read_run_file(run, "episodes.csv")
    except OSError:  # a run that has not begun, or failed early, may have none
        episodes = b""
    return state, json.dumps(config, sort_keys=True), episodes


def _place(root: Path, run: Any) -> str:
    """Path of a run without the parts that every run of its agent, environment and seed has."""
    env = re.sub("[:/]", "-", run.id)
    usual = re.compile(rf"{re.escape(env)}|{re.escape(run.agent)}(@.*)?|seed-[0-9]+")
    return "/".join(part for part in Path(within(root, run.path)).parts if not usual.fullmatch(part))
