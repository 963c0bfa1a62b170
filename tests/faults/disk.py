"""A disk that is full, a limit of the size of files, and a state that cannot be written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from alrao_rl.runs.checkpoint import load
from faults.harness import Fault, Missed, Result, check
from faults.kill import CELLS, CONTINUOUS, read_log, run_command, same, straight
from faults.processes import done, finish, started, wait_for


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[tuple[Path, Path, list[object]]]:
    """A tmpfs in a namespace of its own, which needs no root.

    Yields:
        Its path in there, its path from outside, and what to put before a command to run it there.
    """
    disk = place / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size={size} none "$0" && echo ready && exec cat'
    with subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script, disk], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        if holder.stdout.readline() != "ready\n":
            pytest.skip("no namespace to mount a small disk in")
        enter = ["nsenter", "-t", holder.pid, "-U", "-m", "--preserve-credentials"]
        yield disk, Path(f"/proc/{holder.pid}/root{disk}"), enter
        holder.stdin.close()


def fill(disk: Path, leave: int) -> Path:
    """Fill the disk but for a few bytes."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(path, max(path.stat().st_size - leave, 0))
    return path


def contents(folder: Path) -> dict[str, dict[str, str]]:
    """Hashes of all files of all checkpoints."""
    return {
        step.name: {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in step.iterdir()}
        for step in folder.glob("step-*")
    }


class Broken:
    """A run that is stopped after two checkpoints, for something to be done to it, and then goes on into its end."""

    def __init__(
        self, cell: tuple[str, str], place: Path, seen: Path, before: list[object], **environment: str
    ) -> None:
        self.algo, self.env = cell
        self.place, self.seen, self.environment = place, seen, environment
        self.out, self.facts = place / "run", place / "facts"
        (seen / "facts").mkdir()
        self.command = [*before, *self._run(self.facts, 0.05)]

    def _run(self, facts: Path, interval: float) -> list[object]:
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", *settings, *run_command(facts, self.algo, self.env, self.out, interval)]

    def breaks(self, fault: object, says: str) -> str:
        """Do it, and check how the run ended."""
        checkpoints = self.seen / "run" / "checkpoint"
        with started(self.command) as process:
            wait_for(lambda: len(list(checkpoints.glob("step-*"))) > 1, process)
            check(process.poll() is None, f"the run ended too early: {process.stderr.read() if process.poll() else ''}")
            process.send_signal(signal.SIGSTOP)
            before = contents(checkpoints)
            fault(process.pid)
            process.send_signal(signal.SIGCONT)
            said = process.stderr.read()
            code = process.wait()
        check(code == 1, f"exit status {code}")
        lines = said.strip().splitlines()
        check(len(lines) == 1, f"said {said!r}")
        check(says in said and str(self.out) in said, f"names no path or no cause: {said!r}")
        after = contents(checkpoints)
        kept = before.keys() & after.keys()
        check(all(before[name] == after[name] for name in kept), "an earlier checkpoint has changed")
        check(max(after) >= max(before), f"{max(before)} is gone")
        for folder in checkpoints.glob("step-*"):
            load(folder)
        return lines[0].split(": ", 2)[-1][-150:]

    def mends(self, before: list[object]) -> None:
        """The same command again, with nothing in its way."""
        reference, final, _ = straight(self.algo, self.env)
        again = self.seen / "again"
        again.mkdir()
        self.environment = {}
        said = finish([*before, *self._run(self.place / "again", 60)])
        check(not said, f"said {said!r}")
        same(reference, self.seen / "run", final, again)


def full_disk(cells: list[tuple[str, str]], number: int, place: Path) -> Result:
    """Nothing fits any more, or the first kilobytes of the next file do."""
    leave = int(np.random.default_rng(number).integers(0, 12_000))
    with small_disk(place, "6m") as (disk, seen, enter):
        run = Broken(cells[number % len(cells)], disk, seen, enter)
        said = run.breaks(lambda _: fill(seen, leave), "No space left on device")
        (seen / "filler").unlink()
        run.mends(enter)
    return Result(detail=said)


def file_size_limit(number: int, place: Path) -> Result:
    """RLIMIT_FSIZE, as a quota or a shell's ``ulimit -f`` sets it."""
    limit = int(np.random.default_rng(number).integers(1, 8000))
    run = Broken(CELLS[number % len(CELLS)], place, place, [])
    said = run.breaks(lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit)), "File too large")
    run.mends([])
    return Result(detail=said)


def serializer(number: int, place: Path) -> Result:
    """A part of the state that no checkpoint can hold."""
    run = Broken(CELLS[number % len(CELLS)], place, place, [], BREAK_AT=str(4 + number % 5))
    said = run.breaks(lambda _: None, "/training/odd is a set")
    run.mends([])
    log = read_log(run.seen / "again")
    check(len(log) < 2 or log[1][2] > 0, "it did not continue")
    return Result(detail=said)


STOCK = """
import os, resource, signal, sys, threading, time
from stable_baselines3 import DQN
fault, target = sys.argv[1:]
model = DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=100)
model.save(target)
if fault == "disk":
    if (filler := os.fork()) == 0:  # others go on writing: what a truncated file frees is gone
        with open(os.path.dirname(target) + "/filler", "wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    pass
    time.sleep(0.5)
elif fault == "size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
else:
    model.odd = threading.Lock()
try:
    model.save(target)
except Exception as error:
    print(type(error).__name__, error)
if fault == "disk":
    os.kill(filler, signal.SIGKILL)
try:
    DQN.load(target)
except Exception as error:
    sys.exit(f"the previous file is unreadable after a failed save: {type(error).__name__}")
"""


def stock(fault: str, before: list[object], target: Path) -> Result:
    end = done([*before, sys.executable, "-c", STOCK, fault, target / "model.zip"])
    if end.returncode:
        raise Missed(end.stderr.strip().splitlines()[-1])
    return Result(detail="the previous file is readable")


def stock_full_disk(number: int, place: Path) -> Result:
    with small_disk(place, "300k") as (disk, _, enter):
        return stock("disk", enter, disk)


FAULTS = [
    Fault(
        "disk", "disk full while a run writes (tmpfs)",
        "earlier checkpoints byte for byte as they were, exit status not 0, path and cause named; continued exactly",
        partial(full_disk, CELLS), asked=20, stock=stock_full_disk,
    ),
    Fault(
        "disk-continuous", "the same, SAC, TD3, TQC, CrossQ, DDPG", "the same",
        partial(full_disk, CONTINUOUS), asked=10,
    ),
    Fault(
        "size", "limit of the file size (RLIMIT_FSIZE) while a run writes", "the same",
        file_size_limit, asked=20, stock=lambda _, place: stock("size", [], place),
    ),
    Fault(
        "serializer", "a state that cannot be serialized", "the same",
        serializer, asked=12, stock=lambda _, place: stock("serializer", [], place),
    ),
]  # fmt: skip
