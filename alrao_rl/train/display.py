"""Progress of a run: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from alrao_rl.cli.console import say
from alrao_rl.notation import plural
from alrao_rl.numbers import significant
from alrao_rl.recipes.schema import Recipe

_BARS = " ▁▂▃▄▅▆▇█"


class Display:
    """Progress: a live bar in a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, recipe: Recipe, quiet: bool) -> None:
        self._name = f"{recipe.agent_name} on {recipe.environment.id}"
        self._total = self._asked = recipe.timesteps
        self._quiet = quiet
        console = Console()
        self._live = console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # brackets in a name are not markup
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}"),
            console=console,
            expand=True,
        )
        self._screen = Live(console=console, auto_refresh=False)
        self._started = self._shown = 0.0
        self._first = 0
        self._returns: Sequence[float] = ()
        self._weights: Callable[[], dict[str, Any]] = dict

    def start(self, total: int, first: int = 0) -> None:
        """Begin, with step ``first`` of ``total``; the clock starts here."""
        self._started, self._first, self._total = time.perf_counter(), first, total
        more = f" in whole rollouts, for {self._asked:,}" if total != self._asked else ""
        more += f", continued from step {first:,}" if first else ""
        if not self._quiet and (more or not self._live):
            say(f"{self._name}: {plural(total, 'step')}{more}")
        if self._live:
            self._task = self._progress.add_task(self._name, total=self._total, rate="-", score=self._score())
            self._screen.start()

    def update(
        self, step: int, returns: Sequence[float], weights: Callable[[], dict[str, Any]], final: bool = False
    ) -> None:
        """Show the state: in a terminal four times a second, elsewhere with the next row of the logs."""
        self._returns, self._weights = returns, weights
        if not self._live:
            return
        now = time.perf_counter()
        if now - self._shown < 0.25 and not final:
            return
        self._shown = now
        rate = f"{(step - self._first) / max(now - self._started, 1e-9):,.0f}"
        bars = "  ".join(f"{layer} |{bar_chart(stats['weights'])}|" for layer, stats in weights().items())
        completed = min(step, self._total)
        self._progress.update(self._task, completed=completed, rate=rate, score=self._score())
        with contextlib.suppress(OSError):  # the terminal may have gone away
            self._screen.update(Group(self._progress, Text(bars)), refresh=True)

    def logged(self, step: int, evaluation: float | None) -> None:
        """Print the progress if there is no live bar, with the mean return of the latest evaluation, if any."""
        if self._live or self._quiet:
            return
        seconds = max(time.perf_counter() - self._started, 1e-9)
        done = max(step - self._first, 1)
        left = (self._total - step) * seconds / done
        bars = "".join(f", {layer} |{bar_chart(stats['weights'])}|" for layer, stats in self._weights().items())
        evaluated = "" if evaluation is None else f"evaluation {significant(evaluation)}, "
        say(
            f"step {min(step, self._total):,} of {self._total:,}: {self._score()}, {evaluated}"
            f"{done / seconds:,.0f} steps/s, {max(left, 0):.0f} s left{bars}"
        )

    def _score(self) -> str:
        return f"return {significant(float(np.mean(self._returns)))}" if self._returns else "no episode has ended"

    def stop(self) -> None:
        """End the live bar."""
        if self._live:
            with contextlib.suppress(OSError):
                self._screen.stop()


def bar_chart(weights: Any) -> str:
    """Averaging weights as one character per head, slowest first: ``▁▁▃█▂``."""
    top = max(float(np.max(weights)), 1e-12)
    return "".join(_BARS[round(float(weight) / top * 8)] for weight in weights)
