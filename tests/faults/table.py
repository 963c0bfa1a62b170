"""``results/reliability.md`` from ``results/reliability.csv``: ``python tests/faults/table.py``; in ``make faults``."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.faults import FAULTS
from faults.harness import CSV, OURS, STOCK, TABLE, Fault, Record

Row = dict[str, str]


def reached(rows: list[Row], asked: int) -> str:
    """How many trials reached the figure; fewer than asked are a look."""
    if not rows:
        return "not run"
    look = "" if len(rows) >= asked else f" (a look: {asked} asked)"
    return f"{sum(row['reached'] == '1' for row in rows)} of {len(rows)}{look}"


def measured(fault: Fault, rows: list[Row]) -> str:
    """The numbers of the trials that reached it."""
    values = [float(row["value"]) for row in rows if row["value"] and row["reached"] == "1"]
    if not values:
        return ""
    if fault.total:
        return f"; {sum(values):,.0f} {fault.total}"
    return f"; {fault.value}: median {statistics.median(values):.3g}, most {max(values):.3g}" if fault.value else ""


def failures(rows: list[Row]) -> list[str]:
    """What trials that missed the figure said, each once."""
    return list(dict.fromkeys(row["detail"] for row in rows if row["reached"] != "1"))


def line(fault: Fault, rows: list[Row]) -> str:
    """A row of the table."""
    ours, stock = ([row for row in rows if row["subject"] == subject] for subject in (OURS, STOCK))
    beside = "–"
    if fault.stock:
        said = failures(stock)
        beside = reached(stock, fault.stock_asked) + (f"; {said[0][:110]}" if said else "")
    figure = reached(ours, fault.asked) + measured(fault, ours)
    cells = (f"{fault.what} (`{fault.name}`)", fault.figure, figure, beside)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(record: Record) -> str:
    """The whole page."""
    rows = record.rows()
    of = {fault.name: [row for row in rows if row["fault"] == fault.name] for fault in FAULTS}
    dates = sorted({row["date"] for row in rows}) or ["-"]
    seconds = sum(float(row["processor_seconds"]) for row in rows)
    text = [
        "# Faults, injected for real", "",
        "Each fault is done to real processes and files; a trial counts if it reached the figure. Beside it the same",
        "fault on stock Stable-Baselines3 with its own means (`save`, `load`, `learn`). Remake: `make faults`, which",
        f"goes on where it was ended: trials whose rows are in `{CSV.name}` are not done again, so move that away, or",
        "remove some of its rows, to measure anew.", "",
        f"* date: {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else ""),
        f"* commit: {', '.join(sorted({row['commit'] for row in rows})) or '-'}",
        f"* versions: {'; '.join(sorted({row['versions'] for row in rows})) or '-'}",
        f"* {len(rows):,} trials, {seconds / 60:.0f} minutes of one core; one fault alone: "
        "`python -m pytest -m faults -k NAME tests/faults`", "",
        "| fault | figure to reach | reached | stock Stable-Baselines3 |",
        "|---|---|---|---|",
        *(line(fault, of[fault.name]) for fault in FAULTS),
    ]  # fmt: skip
    missed = [(f, said) for f in FAULTS for said in failures([r for r in of[f.name] if r["subject"] == OURS])]
    if missed:
        text += ["", "Not reached:", "", *(f"* `{fault.name}`: {said}" for fault, said in missed)]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(Record(CSV)), encoding="utf-8")
    print(f"wrote {TABLE}")
