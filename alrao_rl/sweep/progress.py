"""Progress of a sweep: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alrao_rl.cli.console import say
from alrao_rl.notation import plural
from alrao_rl.numbers import significant
from alrao_rl.sweep.plan import Cell, Run
from alrao_rl.sweep.runs_csv import Rows
from alrao_rl.sweep.states import Speeds, State, reached

LINE_INTERVAL = 30.0
"""Seconds between lines if there is no terminal."""
_REFRESH = 1.0


class Progress:
    """The state of a sweep.

    Args:
        root: its folder.
        states: of every run; the caller keeps them up to date.
        rows: of the runs that are over.
        speeds: measured so far; :meth:`ended` adds to them.
    """

    def __init__(self, root: Path, states: Mapping[Run, State], rows: Rows, speeds: Speeds) -> None:
        self._root, self._states, self._rows, self._speeds = root, states, rows, speeds
        self._queued = {run: state.step for run, state in states.items() if state.name == "queued"}
        self._gained: dict[Run, int] = {}
        self._returns: dict[Run, float] = {}
        self._running: list[Run] = []
        console = Console()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._started = self._shown = time.monotonic()
        self._n_workers = 0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, running: Iterable[Run], n_workers: int, final: bool = False) -> None:
        """Show the state, if it is time to or if it is ``final``."""
        self._running, self._n_workers = list(running), n_workers
        now = time.monotonic()
        if now - self._shown < (_REFRESH if self._live else LINE_INTERVAL) and not final:
            return
        self._shown = now
        for run in self._running:
            step, self._returns[run] = reached(self._root, run)
            self._gained[run] = max(step - self._queued.get(run, 0), 0)
        if self._live:
            self._live.update(Group(self._table(self._live.console.height - 4), Text(self.line())), refresh=True)
        else:
            say(self.line())

    def ended(self, run: Run, state: State, seconds: float, steps: int) -> None:
        """Report that a run is over."""
        self._gained[run] = max(steps - self._queued.pop(run, 0), 0)
        if state.name == "finished" and self._gained[run]:
            self._speeds.add(run.cell.env, run.cell.agent, self._gained[run], seconds)
        row = self._rows.get(run.key) or {}
        auc = significant(float(row["auc"])) if row.get("auc") else ""
        what = f"return {auc} over training" if reached(self._root, run)[0] else "no episode ended"
        what = what if state.name == "finished" else state.reason
        self.note(f"{state.name}: {run.label}: {what} ({seconds:.0f} s)")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if self._live:
            self._live.console.print(Text(text))
        else:
            say(text)

    def line(self) -> str:
        """The whole state in one line."""
        names = [state.name for state in self._states.values()]
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = sum(self._gained.values()) / elapsed
        waiting = "" if self._n_workers else "waiting for workers, "
        return (
            f"{waiting}{names.count('finished')} of {plural(len(names), 'run')} finished, "
            f"{len(self._running)} running, {names.count('failed')} failed; {rate:,.0f} steps/s in all, "
            f"{self._left(rate)}"
        )

    def _left(self, rate: float) -> str:
        if not self._queued:
            return "nothing left to do"
        todo = [(run, step + self._gained.get(run, 0)) for run, step in self._queued.items()]
        seconds = self._speeds.time_left(todo, self._n_workers)
        if seconds is None and rate > 0:
            seconds = sum(max(run.cell.recipe.timesteps - step, 0) for run, step in todo) / rate
        return time_left(seconds)

    def _table(self, height: int) -> Table:
        """One line per cell, those with running runs first, as many as there is room for."""
        cells: dict[Cell, list[Run]] = {}
        for run in self._states:
            cells.setdefault(run.cell, []).append(run)
        order = sorted(cells, key=lambda cell: not any(run in self._running for run in cells[cell]))
        table = Table(box=None, expand=True)
        for name in ("environment", "agent", "finished", "running", "failed", "return"):
            table.add_column(name, justify="left" if name in ("environment", "agent") else "right")
        for cell in order[: max(height, 1)]:
            table.add_row(*self._cells_row(cell, cells[cell]))
        return table

    def _cells_row(self, cell: Cell, runs: list[Run]) -> list[str | Text]:
        names = [self._states[run].name for run in runs]
        running = [run for run in runs if run in self._running]
        shares = [(self._gained.get(run, 0) + self._queued.get(run, 0)) / cell.recipe.timesteps for run in running]
        finals = [row["final_return"] for run in runs if (row := self._rows.get(run.key)) and row["final_return"]]
        returns = [float(value) for value in finals] + [self._returns[run] for run in running if run in self._returns]
        returns = [value for value in returns if value == value]
        return [
            Text(cell.env),  # brackets in a name are not markup
            Text(cell.name().cell),
            f"{names.count('finished')} of {len(runs)}",
            ", ".join(f"{min(share, 1):.0%}" for share in shares),
            str(names.count("failed") or ""),
            significant(sum(returns) / len(returns)) if returns else "",
        ]


def time_left(seconds: float | None) -> str:
    """The time left, in words."""
    if seconds is None:
        return "time left not known yet"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 120 else f"about {minutes // 60} h {minutes % 60:02} min left"
