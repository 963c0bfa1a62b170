"""What a fault is, and the record of its trials: one line a finished trial, so that a suite that is killed goes on."""

from __future__ import annotations

import csv
import datetime
import fcntl
import io
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from common import ROOT

CSV, TABLE = ROOT / "results" / "reliability.csv", ROOT / "results" / "reliability.md"
OURS, STOCK = "alrao-rl", "stable-baselines3"
COLUMNS = ("fault", "subject", "trial", "reached", "value", "detail", "processor_seconds", "date", "commit", "versions")


class Missed(Exception):  # noqa: N818
    """The figure was not reached in this trial, and why."""


def check(condition: object, otherwise: object) -> None:
    """Miss the figure unless the condition holds; in words, because they go into the record."""
    if not condition:
        raise Missed(str(otherwise))


@dataclass(frozen=True)
class Result:
    """What a trial measured: a number, of which the table gives the median and the greatest, and words."""

    value: float | None = None
    detail: str = ""


Trial = Callable[[int, Path], Result | None]


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Args:
        name: what ``-k`` selects it by.
        what: is done, in words.
        figure: to reach, in words; every trial must reach it.
        run: a trial, of its number and an empty folder; raises :class:`Missed`.
        asked: trials of the whole suite.
        short: trials in the fast suite.
        value: what :attr:`Result.value` is, with its unit.
        total: what the values of all trials are the number of, where that is to be told.
        stock: the same fault on stock Stable-Baselines3; what it raises is a result, not an error.
        stock_asked: trials of that.
        short_run: a smaller trial for the fast suite.
    """

    name: str
    what: str
    figure: str
    run: Trial
    asked: int
    short: int = 1
    value: str = ""
    total: str = ""
    stock: Trial | None = None
    stock_asked: int = 10
    short_run: Trial | None = None

    def trials(self) -> list[tuple[str, int]]:
        """Subject and number of all."""
        stock = self.stock_asked if self.stock else 0
        return [(OURS, number) for number in range(self.asked)] + [(STOCK, number) for number in range(stock)]


class Record:
    """The trials that are over.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, str]]:
        """All rows. A line that a killed suite left without its end is none."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))

    def has(self, fault: str, subject: str, number: int) -> bool:
        """Whether the trial is over."""
        key = (fault, subject, str(number))
        return any((row["fault"], row["subject"], row["trial"]) == key for row in self.rows())

    def add(self, fault: str, subject: str, number: int, reached: bool, result: Result, seconds: float) -> None:
        """Append a row; several processes may do so at once."""
        values = (
            fault, subject, number, int(reached), "" if result.value is None else f"{result.value:.6g}",
            " ".join(result.detail.split())[:300], f"{seconds:.2f}", datetime.date.today().isoformat(), *provenance(),
        )  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            file.truncate(len(text[: text.rfind("\n") + 1].encode()))
            writer = csv.writer(file, lineterminator="\n")
            if not text:
                writer.writerow(COLUMNS)
            writer.writerow(values)


@cache
def provenance() -> tuple[str, str]:
    """Commit of the checkout, with + if it is changed, and versions."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    paths = ["--", "alrao_rl", "tests"]
    changed = subprocess.run([*git, "status", "--porcelain", "-uno", *paths], capture_output=True, text=True).stdout
    names = ("alrao-rl", "stable-baselines3", "torch", "gymnasium", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return commit + ("+" if changed.strip() else ""), f"{versions}, Python {platform.python_version()}"
