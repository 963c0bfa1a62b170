"""The run folder: what a run leaves on disk, and how it is written so that nothing is ever half there.

``config.json`` (the resolved recipe, versions, command, git commit), ``status.json`` (queued, running, finished,
interrupted or failed, and why), ``episodes.csv``, ``evaluations.csv``, ``heads.csv``, ``entropy.csv``, ``timing.csv``
(the only log that differs between two runs of one seed), ``agent.safetensors`` + ``agent.json`` (the best agent),
``last.*`` (the last one), and until the run is finished ``checkpoint/``, which it is continued from. Logs are appended,
and then cut back to the length they had at the checkpoint. ``sha256.json`` of a finished run holds the hash of every
other file. What a sweep keeps of it for reports and notebooks, everything but agents and checkpoints, goes into the
study's ``logs.jsonl.xz`` (:mod:`alrao_rl.runs.logs`).
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from alrao_rl.errors import FolderError, UserError
from alrao_rl.runs.atomic import as_json, write_atomically, write_json
from alrao_rl.runs.files import (
    AGENTS,
    CHECKPOINT,
    COLUMNS,
    KEPT,
    LOCK,
    MANIFEST,
    TENSORBOARD,
    TRACEBACK,
    TRACKING,
    RunConfig,
    RunStatus,
    State,
)  # fmt: skip
from alrao_rl.runs.lock import is_free, try_lock
from alrao_rl.runs.reading import read_json, sha256


class RunFolder:
    """One run on disk. Opening it for writing takes a lock that dies with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, TextIO] = {}
        self._lock: TextIO | None = None

    def config(self) -> dict[str, Any] | None:
        """What ``config.json`` says; None where there is no run.

        Raises:
            UserError: something else is there, or it cannot be read.
        """
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        if "config.json" in names:
            return read_json(self.path / "config.json")
        # A process that was killed while it wrote its very first file leaves no more than this.
        if any(not name.startswith((LOCK, ".config.json.")) for name in names):
            raise FolderError(f"{self.path} is not empty and no run folder")
        return None

    def status(self) -> dict[str, Any] | None:
        """What ``status.json`` says; None where there is none."""
        path = self.path / "status.json"
        return read_json(path) if path.exists() else None

    def set_status(self, state: State, **details: Any) -> None:
        """Write ``status.json``: a :class:`~alrao_rl.runs.files.RunStatus`."""
        write_atomically(self.path / "status.json", _status(state, details))

    def open(self) -> None:
        """Create the folder if need be and lock it.

        Raises:
            UserError: it cannot be written, is a file, or another process is writing to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("a")
        except OSError as error:
            raise self._unusable(error) from None
        try:
            if not try_lock(self._lock):
                raise FolderError(f"another process is writing to {self.path}: wait for it")
        except UserError:
            self.close()
            raise

    def _unusable(self, error: OSError) -> FolderError:
        return FolderError(f"cannot write to {self.path}: {error.strerror or error}")

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin the run anew: write ``config.json`` and the headers of the logs, drop what an unfinished run left.

        Raises:
            UserError: it cannot be written.
        """
        try:
            # First: it belongs to the logs that go.
            for name in (CHECKPOINT, TENSORBOARD):
                if (self.path / name).exists():
                    shutil.rmtree(self.path / name)
            self._write_config(config)
            self.set_status("running", pid=os.getpid())
            self._drop(TRACEBACK, TRACKING, MANIFEST, *AGENTS)
            for name, columns in COLUMNS.items():
                file = (self.path / name).open("w", newline="")
                self._files[name] = file
                csv.writer(file, lineterminator="\n").writerow(columns)
            self.flush()
        except OSError as error:
            raise self._unusable(error) from None

    def _write_config(self, config: Mapping[str, Any]) -> None:
        path = self.path / "config.json"
        RunConfig.of(config, path)  # nothing is written that could not be read
        write_json(path, config)

    def finish(self, **details: Any) -> None:
        """Write the hashes of all files, and last of all, that the run is finished."""
        status = _status("finished", details)
        self.flush()
        files = [path for name in (*KEPT, *AGENTS) if (path := self.path / name).is_file() and name != MANIFEST]
        hashes = {path.name: sha256(path.read_bytes()) for path in files}
        write_json(self.path / MANIFEST, hashes | {"status.json": sha256(status.encode())})
        write_atomically(self.path / "status.json", status)

    def resume(
        self, config: Mapping[str, Any], logs: Mapping[str, Mapping[str, Any]], agents: Mapping[str, bytes]
    ) -> None:
        """Continue the run: cut the logs back to where they were, put its best agent's files back.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self._write_config(config)
            self.set_status("running", pid=os.getpid())
            self._drop(TRACEBACK, MANIFEST, *(name for name in AGENTS if name not in agents))
            for name, data in agents.items():
                write_atomically(self.path / name, data)
            for name, columns in COLUMNS.items():
                file = self._files[name] = (self.path / name).open("a", newline="")
                file.truncate(logs[name]["bytes"] if name in logs else 0)
                if name not in logs:  # a checkpoint from before there was this log
                    csv.writer(file, lineterminator="\n").writerow(columns)
        except OSError as error:
            raise self._unusable(error) from None

    def logs(self) -> dict[str, dict[str, Any]]:
        """Length in ``bytes`` and ``sha256`` of every log, once the disk has them."""
        self.flush()
        for file in self._files.values():
            os.fsync(file.fileno())
        contents = {name: (self.path / name).read_bytes() for name in self._files}
        return {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in contents.items()}

    def changed(self, logs: Mapping[str, Mapping[str, Any]]) -> str | None:
        """How a log differs from what :meth:`logs` gave, rows after it apart; None where all are as they were."""
        for name, was in logs.items():
            path = self.path / name
            data = path.read_bytes() if path.is_file() else b""
            if len(data) < was["bytes"]:
                return f"{path} is shorter than it was"
            if sha256(data[: was["bytes"]]) != was["sha256"]:
                return f"{path} is damaged: it has another hash than it had"
        return None

    def _drop(self, *names: str) -> None:
        for path in (*(self.path / name for name in names), *self.path.glob(".*.tmp")):
            path.unlink(missing_ok=True)

    def append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows to a CSV log."""
        with self._naming(name):
            csv.writer(self._files[name], lineterminator="\n").writerows(rows)

    def flush(self) -> None:
        """Hand what was appended to the operating system."""
        for name, file in self._files.items():
            with self._naming(name):
                file.flush()

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Name the log that could not be written: an open file's errors do not."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path / name)
            raise

    def kept(self) -> dict[str, bytes]:
        """What outlives the folder: those of :data:`~alrao_rl.runs.files.KEPT` that are there, by name.

        Raises:
            OSError: one cannot be read.
        """
        return {name: path.read_bytes() for name in KEPT if (path := self.path / name).is_file()}

    def close(self) -> None:
        """Close the logs and give the lock back. Its file stays: deleting it could delete another process's lock."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk, of which a write has told already
                file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def is_given_up(path: Path, state: object) -> bool:
    """Whether a run that says it is ``running`` has lost its process: nobody has the lock of its folder."""
    return state == "running" and is_free(path / LOCK)


def _status(state: State, details: Mapping[str, Any]) -> str:
    return as_json(RunStatus(state=state, **details).model_dump(exclude_unset=True))
