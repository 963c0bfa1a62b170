"""The lock of a sweep's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alrao_rl.errors import FolderError
from alrao_rl.runs.lock import try_lock

if TYPE_CHECKING:
    pass


def _lock_file(root: Path) -> Path:
    return root / ".lock"


def refuse_if_locked(root: Path) -> None:
    """Fail at once if another sweep is writing there; creates no file.

    Raises:
        UserError: if another sweep is writing there.
    """
    if _lock_file(root).exists():
        with locked(root):
            pass


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Create the folder if necessary, and lock it; the lock ends with the process.

    Raises:
        UserError: if it cannot be written, or another sweep is writing there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = _lock_file(root).open("a+")
    except OSError as error:
        raise FolderError(f"cannot write to {root}: {error.strerror or error}") from None
    with file:
        if not try_lock(file):
            file.seek(0)
            by = f" (process {file.read(20).strip()})"
            raise FolderError(f"another sweep{by} is running in {root}: wait for it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
