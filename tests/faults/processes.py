"""Commands in processes of their own, watched and killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common import ENVIRON, ROOT

from faults.harness import Missed

PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
CHILD = [sys.executable, str(Path(__file__).with_name("child.py"))]


def environ(*site: Path) -> dict[str, str]:
    """Of a process that finds the package, the tests and what lies in these folders."""
    return ENVIRON | {"PYTHONPATH": os.pathsep.join([PATHS, *map(str, site)])}


@contextlib.contextmanager
def started(command: Sequence[object], *site: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """The command, running; killed at the end if it still does."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(
        [*map(str, command)], text=True, env=environ(*site), **{**streams, **options}
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def done(command: Sequence[object], *site: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """The command, at its end."""
    return subprocess.run(
        [*map(str, command)], text=True, capture_output=True, env=environ(*site), timeout=1800, **options
    )  # fmt: skip


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Until something is so, while the process runs; it may end first."""
    deadline = time.monotonic() + seconds
    while not what() and process.poll() is None:
        if time.monotonic() > deadline:
            raise Missed(f"waited for {seconds} s in vain")
        time.sleep(0.002)


def finish(command: Sequence[object], *site: Path, **options: object) -> str:
    """Run a command that must succeed; return what it wrote to stderr."""
    end = done(command, *site, **options)
    if end.returncode:
        raise Missed(f"exit status {end.returncode}: {end.stderr.strip()[-200:]}")
    return end.stderr
