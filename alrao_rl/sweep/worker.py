"""A run as a task of a Dask worker: a separate process that dies with the worker; how it ends is always recorded.

Imports nothing heavy: every worker loads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from alrao_rl.cli.interruption import EXIT_STATUSES
from alrao_rl.errors import UserError
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.runs.files import LOCK, TRACEBACK
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.lock import try_lock

ATTEMPTS = 3
"""Attempts in all at a run whose process is ended by a signal; each continues from the last checkpoint."""
_STOP = 10.0
"""Seconds for a run that is stopped to write a checkpoint."""
_GRACE = 5.0
"""Seconds for a run that is out of time to write its traceback."""
_TICK = 0.1
"""Seconds between two checks of whether a run has ended."""
_TAIL = 8192
"""Bytes of a run's output that are kept."""

_lock = threading.Lock()
_processes: dict[str, set[subprocess.Popen[bytes]]] = {}
_stopped: set[str] = set()


@dataclass(frozen=True)
class Task:
    """A run to do.

    Args:
        sweep: id of this call of the command.
        arguments: of ``alrao_rl.train``.
        config: content of its ``config.json``, without provenance.
        folder: the run folder, absolute.
        cwd: where the command runs: paths in the arguments may be relative to it. A run folder below it is named
            relative to it too, so that the command recorded in the run works in any checkout.
        timeout: wall seconds; None for no limit.
    """

    sweep: str
    arguments: tuple[str, ...]
    config: Mapping[str, Any]
    folder: str
    cwd: str
    timeout: float | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``finished``, ``failed`` with a reason, or ``stopped``; its warnings, and wall seconds."""

    state: str
    reason: str
    warnings: tuple[str, ...]
    seconds: float


def dask_setup(_: object) -> None:
    """Called when a local worker starts: only the sweep handles Ctrl-C, which reaches all processes of a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def execute(task: Task) -> Outcome:
    """Do the run, whatever happens in it; the reason and the traceback of a failure are left in its folder."""
    started = time.monotonic()
    deadline = None if task.timeout is None else started + task.timeout
    warnings: list[str] = []
    for _ in range(ATTEMPTS):
        try:
            _wait_for_lock(task, deadline)
            code, output = _train(task, deadline)
        except TimeoutError as error:
            code, output = -signal.SIGKILL, str(error)
            reason = f"it was not finished after {task.timeout:g} seconds (--run-timeout)"
            break
        warnings += [line.removeprefix("warning: ") for line in output.splitlines() if line.startswith("warning: ")]
        reason = _reason(code, output)
        if (code >= 0 and code not in EXIT_STATUSES) or task.sweep in _stopped:
            break
    seconds = time.monotonic() - started
    if task.sweep in _stopped:
        return Outcome("stopped", "", tuple(warnings), seconds)
    if code == 0:
        return Outcome("finished", "", tuple(warnings), seconds)
    return outcome_of_failure(Path(task.folder), task.config, reason, output, code == 1, warnings, seconds)


async def stop(sweep: str) -> None:
    """Let the runs of a sweep in this worker write a checkpoint and end, then kill the rest; start no more of them."""
    with _lock:
        _stopped.add(sweep)
        processes = list(_processes.get(sweep, ()))
        for process in processes:
            # Not the run's own child processes: an environment may need them until there is a checkpoint.
            process.terminate()
    deadline = time.monotonic() + _STOP
    while any(process.returncode is None for process in processes) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    for process in processes:
        _kill(process)


def outcome_of_failure(
    path: Path,
    config: Mapping[str, Any],
    reason: str,
    output: str = "",
    said: bool = True,
    warnings: Sequence[str] = (),
    seconds: float = 0.0,
) -> Outcome:
    """The outcome of a run whose process failed; the reason is recorded in its folder, which is created if missing.

    Args:
        path: the run folder.
        config: of the run, for the folder of a run that failed before it began.
        reason: why it failed, as far as is known from outside.
        output: the end of what it printed.
        said: whether a reason that is recorded already is the run's own, and a better one.
        warnings: of the run.
        seconds: wall time.
    """
    folder = RunFolder(path)
    # A full disk may be what stopped the run; then the row of the sweep must suffice.
    with contextlib.suppress(OSError, UserError):
        status = folder.status() or {}
        if status.get("state") == "finished":  # its process failed when all was done
            return Outcome("finished", "", (*warnings, f"it is finished, but {reason}"), seconds)
        if said and status.get("state") == "failed":
            return Outcome("failed", str(status.get("reason", reason)), tuple(warnings), seconds)
        begun = folder.config() is not None
        with contextlib.closing(folder):
            folder.open()
            if not begun:
                folder.start(config)
            folder.set_status("failed", reason=reason, **({} if begun else {"timestep": 0}))
            write_atomically(path / TRACEBACK, output or f"{reason}\n")
    return Outcome("failed", reason, tuple(warnings), seconds)


def _wait_for_lock(task: Task, deadline: float | None) -> None:
    """Wait while another process writes to the run folder: a lost worker's run, or one that the user started."""
    lock = Path(task.folder, LOCK)
    while lock.exists() and task.sweep not in _stopped:
        with lock.open("a") as file, contextlib.suppress(UserError):  # the run will report it
            if try_lock(file):
                return
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError("another process was writing to the run folder all the time")
        time.sleep(0.5)


def _train(task: Task, deadline: float | None) -> tuple[int, str]:
    """Run the command; return its exit status, negative for a signal, and the end of its output.

    Raises:
        TimeoutError: if it is out of time; with the end of its output, which says where it was.
    """
    folder = Path(task.folder)
    out = str(folder.relative_to(task.cwd) if folder.is_relative_to(task.cwd) else folder)
    command = [sys.executable, "-m", "alrao_rl.train", *task.arguments, "--out", out, "--quiet"]
    wrapped = [sys.executable, "-m", "alrao_rl.sweep.die_with_parent", str(os.getpid()), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    with tempfile.TemporaryFile() as log:
        with _lock:
            if task.sweep in _stopped:
                return -signal.SIGKILL, ""
            # In a new session: Ctrl-C is for the sweep, which then stops its runs cleanly.
            process = subprocess.Popen(
                wrapped, cwd=task.cwd, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            _processes.setdefault(task.sweep, set()).add(process)
        try:
            if not _ends(process, deadline):
                process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread is
                _ends(process, time.monotonic() + _GRACE)
                raise TimeoutError(_end(log))
        finally:
            _kill(process)
            code = process.wait()
            with _lock:
                _processes[task.sweep].discard(process)
        return code, _end(log)


def _ends(process: subprocess.Popen[bytes], deadline: float | None) -> bool:
    """Wait; return whether it ends in time. Its id stays reserved for :func:`_kill`: its children may live on."""
    while deadline is None or time.monotonic() < deadline:
        try:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return True
        except ChildProcessError:  # someone else has collected its exit status
            return True
        time.sleep(_TICK)
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a run and its children, unless it was waited for: its id may belong to another process then."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(size - _TAIL, 0))
    return log.read().decode(errors="replace")


def _reason(code: int, output: str) -> str:
    """Why a process ended."""
    if code < 0 or code in EXIT_STATUSES:
        number = -code if code < 0 else code - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"its process was killed by {name}, {ATTEMPTS} times"
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors and code == 2:
        return errors[-1]
    last = f": {lines[-1].strip()}" if lines else ""
    return f"its process ended with exit status {code}{last}"
