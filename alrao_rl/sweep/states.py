"""State of every run of a sweep, read from its folder and runs.csv."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from alrao_rl.errors import FolderError, UserError
from alrao_rl.runs import logs, zips
from alrao_rl.runs.checkpoint import Checkpoints
from alrao_rl.runs.configuration import differences, identity
from alrao_rl.runs.files import CHECKPOINT, COLUMNS
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.provenance import installed, mismatches, stretches
from alrao_rl.runs.reading import RunFiles
from alrao_rl.runs.results import load_results
from alrao_rl.sweep.plan import Run
from alrao_rl.sweep.runs_csv import Row, Rows

_TAIL = 4096
_RECENT = 20
"""Episodes whose mean return is shown while a run goes on."""


@dataclass(frozen=True)
class State:
    """Of a run: ``finished``, ``failed`` with its ``reason``, or ``queued``, with the ``step`` it continues from.

    ``elsewhere``: its row is there and its folder is not, so it was done on another machine, or the folder is gone.
    ``lost``: nor do the study's logs have it undamaged, so that no report can have it.
    """

    name: Literal["finished", "failed", "queued"]
    reason: str = ""
    step: int = 0
    elsewhere: bool = False
    lost: bool = False


def state(root: Path, run: Run, rows: Rows) -> State:
    """The state of a run whose sweep lies in ``root``. The folder has the say; without one, the row.

    Raises:
        UserError: the folder or the row is of another configuration.
    """
    folder, row = RunFolder(root / run.folder), rows.get(run.key)
    if row is not None and row["configuration"] not in run.digests:
        raise FolderError(
            f"{rows.path} has a row for {run.label} of another configuration, as by other recipes or another version "
            "of alrao-rl"
        )
    config = folder.config()
    if config is not None and (changed := list(differences(identity(config), identity(run.config)))):
        raise FolderError(f"{folder.path} holds a run of another configuration ({'; '.join(changed[:3])})")
    status = (folder.status() or {}) if config is not None else {}
    name, reason = status.get("state"), str(status.get("reason", ""))
    gone = config is None
    lost = False
    if gone and row is not None:
        there = _undamaged(folder.path)
        if there is not None and (changed := list(differences(identity(there), identity(run.config)))):
            raise UserError(
                f"{root / logs.FILE} has {run.label} of another configuration ({'; '.join(changed[:3])}): choose "
                "another --name"
            )
        # One that failed before it made a folder never had logs.
        lost = there is None and row["timesteps"] != ""
    if name == "finished" or (row is not None and row["state"] == "finished"):
        return State("finished", elsewhere=gone, lost=lost)
    if name == "failed":
        return State("failed", reason)
    if row is not None and name is None:
        return State("failed", row["reason"], elsewhere=gone, lost=lost)
    return queued(root, run)


def queued(root: Path, run: Run) -> State:
    """The state of a run that is to be done: how far it is."""
    return State("queued", step=Checkpoints(root / run.folder / CHECKPOINT).last_step())


def refuse_mismatch(root: Path, todo: Iterable[tuple[Run, int]]) -> None:
    """Refuse to continue runs from checkpoints of other versions than those that are installed here.

    Of the packages that a run has recorded; what it needs of others, it finds out for itself.

    Args:
        root: folder of the sweep.
        todo: runs with the steps that they continue from.

    Raises:
        UserError: with the first one that would be.
    """
    for run, step in todo:
        config = RunFolder(root / run.folder).config() if step else None
        made_with = None if config is None else config.get("provenance")
        now = {"versions": installed(made_with, step)}
        if config is not None and (changed := ", ".join(mismatches(made_with, step, now))):
            raise FolderError(
                f"the checkpoint of {run.label} was made with something else ({changed}): --allow-mismatch continues "
                "all runs all the same"
            )


def reached(root: Path, run: Run) -> tuple[int, float]:
    """How far a run is that goes on: step of its last episode's end, and the mean return of its recent episodes."""
    with contextlib.suppress(OSError, ValueError), (root / run.folder / "episodes.csv").open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL, len(",".join(COLUMNS["episodes.csv"])) + 1))
        lines = file.read().split(b"\n")
        # The first may begin and the last may end within a line.
        whole = [line.split(b",") for line in lines[size > _TAIL : -1]]
        if whole:
            returns = [float(line[1]) for line in whole[-_RECENT:]]
            return int(whole[-1][0]), sum(returns) / len(returns)
    return 0, math.nan


def is_kept(root: Path, run: Run, rows: Rows) -> bool:
    """Whether all is there that outlives the folder of a run that is over."""
    folder = RunFolder(root / run.folder)
    if rows.get(run.key) is None or folder.config() is None:
        return rows.get(run.key) is not None
    entry = logs.find(folder.path)
    return entry is not None and entry.files == folder.kept()


def _undamaged(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run that has no folder, if what is kept of it is there and undamaged."""
    files = RunFiles(folder)
    with contextlib.suppress(UserError):
        files.check_manifest()
        return files.json("config.json")
    return None


def take_in(root: Path) -> None:
    """Bring the study's logs in order: nothing half-written at their end, and in them what earlier versions zipped.

    Raises:
        UserError: the file that is there is no such file.
        OSError: it cannot be written.
    """
    logs.tidy(root)
    zips.take_in(root)


def keep(root: Path, run: Run, over: State, rows: Rows, seconds: float | None = None) -> dict[str, Any]:
    """Keep what outlives the folder of a run that is over: its row, which is returned, and its logs.

    The arguments are those of :func:`row`.
    """
    folder = RunFolder(root / run.folder)
    kept = row(root, run, over, seconds)
    rows.put(kept)
    # Last: where they are the folder's, the row is too.
    if folder.config() is not None:
        logs.append(root, [(run.name, folder.kept())])
    return kept


def row(root: Path, run: Run, over: State, seconds: float | None = None) -> dict[str, Any]:
    """The row of a run that is over, for ``runs.csv``.

    Scores are those of :func:`alrao_rl.load_results`: a failed run has its environment's floor, where that has none the
    random policy's return, and none without either.

    Args:
        root: folder of the sweep.
        run: which.
        over: its state.
        seconds: wall time, if the run did not come as far as writing it down.
    """
    environment = run.cell.recipe.environment
    floor = environment.random_score if environment.floor is None else environment.floor
    result: dict[str, Any] = {
        **dict(zip(("env", "agent", "setting", "seed"), run.key, strict=True)),
        "state": over.name, "reason": over.reason, "seconds": seconds, "configuration": run.digests[0],
        "auc": floor, "final_return": floor,
    }  # fmt: skip
    folder = root / run.folder
    config = RunFolder(folder).config()
    if config is None:
        return result
    found = load_results(folder).iloc[0]
    if found["state"] in ("diverged", "broken"):
        result |= {"state": found["state"], "reason": found["error"]}
    result |= {name: found[name] for name in ("auc", "final_return")}
    result["timesteps"] = None if pd.isna(found["timesteps"]) else int(found["timesteps"])
    if not math.isnan(found["wall_seconds"]):
        result["seconds"] = float(found["wall_seconds"])
    made_with = [
        {**one.get("versions", {}), "commit": one.get("git_commit")} for one in stretches(config.get("provenance"))
    ]
    # All of a run that was continued with something else.
    facts = {key: [str(one[key]) for one in made_with if one.get(key)] for one in made_with for key in one}
    return result | {key: " -> ".join(dict.fromkeys(values)) for key, values in facts.items()}


class Speeds:
    """Measured steps a second, by environment and agent: a step costs ten times more here than there.

    Args:
        rows: runs that are over.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._measured: dict[tuple[str, str], tuple[float, float]] = {}
        for one in rows:
            if one["state"] == "finished" and one["timesteps"] and one["seconds"]:
                self.add(one["env"], one["agent"], float(one["timesteps"]), float(one["seconds"]))

    def add(self, env: str, agent: str, steps: float, seconds: float) -> None:
        """So many steps took so many seconds."""
        before = self._measured.get((env, agent), (0.0, 0.0))
        self._measured[env, agent] = before[0] + steps, before[1] + seconds

    def of(self, env: str, agent: str) -> float | None:
        """Steps a second of an agent there, else of the agent anywhere, else of all; None if nothing was measured."""
        fitting = [self._measured[env, agent]] if (env, agent) in self._measured else []
        fitting = fitting or [value for key, value in self._measured.items() if key[1] == agent]
        fitting = fitting or list(self._measured.values())
        steps, seconds = (sum(values) for values in zip(*fitting, strict=True)) if fitting else (0.0, 0.0)
        return steps / seconds if steps > 0 and seconds > 0 else None

    def time_left(self, todo: Iterable[tuple[Run, int]], n_workers: int) -> float | None:
        """Seconds until all runs are done, from the steps that each has; None if nothing was measured yet."""
        total = longest = 0.0
        for run, step in todo:
            speed = self.of(run.cell.env, run.cell.agent)
            if speed is None:
                return None
            seconds = max(run.cell.recipe.timesteps - step, 0) / speed
            total, longest = total + seconds, max(longest, seconds)
        # A run is not shared among workers.
        return max(total / max(n_workers, 1), longest)
