"""``runs.csv`` of a sweep: one row for every run that is over, so that a study outlives its run folders.

Run folders are large and stay where they were made; the rows are small, tracked by git, and move from one machine to
the next. Whoever writes must hold the sweep's lock.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from alrao_rl.errors import UserError
from alrao_rl.runs.atomic import write_atomically

COLUMNS = (
    "env", "agent", "setting", "seed", "state", "timesteps", "auc", "final_return", "seconds", "reason",
    "configuration", "alrao-rl", "torch", "stable-baselines3", "gymnasium", "commit",
)  # fmt: skip
"""``seconds`` is wall time, ``configuration`` the digest of what determines the result, ``commit`` that of the code."""
_NUMBER = re.compile(r"(\d+(\.\d+)?(e\+\d+)?)?")
"""A number as :func:`_text` writes it, or nothing."""
KEY = ("env", "agent", "setting", "seed")
STATES = ("finished", "failed", "diverged", "broken")
FILE = "runs.csv"

Key = tuple[str, ...]
Row = dict[str, str]


class Rows:
    """The rows of a sweep in the order in which the runs ended; at most one per run.

    Args:
        path: the file; it need not exist.

    Raises:
        UserError: if it cannot be read or is not valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[Key, Row] = {}
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
        reader = csv.DictReader(io.StringIO(text), strict=True)
        try:
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"expected the columns {','.join(COLUMNS)}")
            for row in reader:
                if len(row) != len(COLUMNS) or None in row.values():
                    raise ValueError(f"line {reader.line_num} does not have {len(COLUMNS)} values")
                if row["state"] not in STATES:
                    raise ValueError(f"line {reader.line_num} has the state {row['state']!r}, not {', '.join(STATES)}")
                for name in ("timesteps", "seconds"):
                    if not _NUMBER.fullmatch(row[name]):
                        raise ValueError(f"line {reader.line_num} has {name} {row[name]!r}, not a number")
                key = tuple(row[name] for name in KEY)
                if key in self._rows:
                    raise ValueError(f"line {reader.line_num} is a second row of {', '.join(filter(None, key))}")
                self._rows[key] = row
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not a valid runs.csv: {error}; fix it or restore an earlier version") from None

    def get(self, key: Key) -> Row | None:
        """The row of a run."""
        return self._rows.get(tuple(map(_text, key)))

    def values(self) -> list[Row]:
        """All rows."""
        return list(self._rows.values())

    def put(self, row: Mapping[str, object]) -> None:
        """Add the row of a run, replacing an earlier one. The file is rewritten atomically."""
        text = {name: _text(row.get(name)) for name in COLUMNS}
        self._rows[tuple(text[name] for name in KEY)] = text
        lines = io.StringIO()
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_atomically(self.path, lines.getvalue())


def _text(value: object) -> str:
    """A value in a cell: on one line, numbers with six significant digits, nothing for None and nan."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
