"""Rows that are written in turn, round and round, as a replay buffer's: on disk in chunks, so that what has not
changed need not be written again.

A buffer of a million Atari transitions is 28 GB, or twice that; between two checkpoints some thousands of them change.
A chunk is a file of a fixed number of rows, and nothing but their bytes: no second copy of the rows is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 2**24
"""Size of a chunk, in whole rows."""
LARGE = 2**26
"""Arrays of more bytes are worth their chunks."""

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Ring:
    """An array whose rows are written in turn, beginning again at its end.

    Args:
        rows: ``[n, ...]``, contiguous: those that are filled, ``n <= length``.
        length: rows of the whole ring.
        written: rows written so far; the next one is ``written % length``.
    """

    rows: _Array
    length: int
    written: int

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        row_bytes = math.prod(self.rows.shape[1:]) * self.rows.itemsize
        return max(CHUNK_BYTES // max(row_bytes, 1), 1)

    def chunks(self) -> Iterator[_Array]:
        """The chunks ``[chunk_rows, ...]``, the last of which may be shorter; views, not copies."""
        for start in range(0, len(self.rows), self.chunk_rows):
            yield self.rows[start : start + self.chunk_rows]

    def changed(self, since: int) -> set[int]:
        """Numbers of the chunks that may be others than when ``since`` rows had been written.

        Those of the rows written since, and of one row more at both ends: the row before is marked as the end of its
        episode where an environment cannot be replayed, and with SB3's ``optimize_memory_usage`` the row after holds
        the newest observation, until the next row takes its place.
        """
        n_touched = min(self.written - since + 2, self.length)
        rows = np.arange(since - 1, since - 1 + n_touched) % self.length
        return set(np.unique(rows // self.chunk_rows).tolist())


@dataclass(frozen=True)
class StoredRing:
    """A ring on disk.

    Args:
        paths: files of its chunks, in their order.
        dtype: of its rows.
        shape: ``(n, ...)`` of its rows.
        length: rows of the whole ring.
        written: rows written when it was stored.
        chunk_rows: rows of a chunk.
    """

    paths: tuple[Path, ...]
    dtype: str
    shape: tuple[int, ...]
    length: int
    written: int
    chunk_rows: int

    def unchanged(self, ring: Ring) -> dict[int, Path]:
        """Files of the chunks that are still as they are in the ring, by their numbers."""
        if (self.length, self.chunk_rows) != (ring.length, ring.chunk_rows):
            return {}
        changed = ring.changed(self.written)
        return {number: path for number, path in enumerate(self.paths) if number not in changed}

    def check(self) -> None:
        """Compare the files' sizes with the shape.

        Raises:
            ValueError: they are others.
        """
        expected = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        found = sum(path.stat().st_size for path in self.paths)
        if found != expected:
            raise ValueError(f"its chunks hold {found:,} bytes, expected {expected:,}")

    def read_into(self, array: _Array) -> None:
        """Read the rows into the first rows of an array, contiguous and of the same kind.

        Raises:
            ValueError: it is of another kind, or the files have changed since they were checked.
        """
        rows = array[: self.shape[0]]
        if (rows.shape, rows.dtype.name) != (self.shape, self.dtype):
            raise ValueError(f"{self.dtype} of shape {self.shape} does not fit {rows.dtype} of shape {rows.shape}")
        self.check()
        left = rows.reshape(-1).view(np.uint8).data
        for path in self.paths:
            with path.open("rb") as file:
                left = left[file.readinto(left) :]
