"""Locks that die with their process."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path
from typing import IO, Any

from alrao_rl.errors import UserError


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file, until it is closed or the process ends; False where another process has it.

    Raises:
        UserError: there are no locks on this file system.
    """
    try:
        _lock_soon(file)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(
            f"cannot lock {file.name}: {error.strerror}; choose a place on a file system that has locks (flock)"
        ) from None
    _locked.add(file)
    return True


def _lock_soon(file: IO[Any]) -> None:
    """Lock an open file; :func:`is_free` may have it for a moment."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        time.sleep(0.05)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_free(path: Path) -> bool:
    """Whether this is the file of a lock that no process has any more; False where that cannot be found out."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_locked: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _leave_locks() -> None:
    """In a process that was forked, by an environment perhaps, which would hold them after its parent's end."""
    for file in list(_locked):
        file.close()


os.register_at_fork(after_in_child=_leave_locks)
