"""The run folder: what a run leaves on disk, and how it is written so that nothing is ever half there.

``config.json`` (the resolved recipe, versions, command, git commit), ``status.json`` (queued, running, finished,
interrupted or failed, and why), ``episodes.csv``, ``evaluations.csv``, ``heads.csv``, ``timing.csv`` (the only log
that differs between two runs of one seed), ``agent.safetensors`` + ``agent.json`` (the best agent), ``last.*`` (the
last one), and until the run is finished ``checkpoint/``, which it is continued from. Logs are appended, and then cut
back to the length they had at the checkpoint. ``sha256.json`` of a finished run holds the hash of every other file.
``seed-N.zip`` beside a run folder is what a sweep keeps of it for reports and notebooks: everything but agents and
checkpoints.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from alrao_rl.errors import UserError

COLUMNS = {
    "episodes.csv": ("timestep", "return", "length"),
    "evaluations.csv": ("timestep", "episodes", "mean_return", "std_return", "min_return", "max_return"),
    "heads.csv": ("timestep", "layer", "head", "learning_rate", "weight", "reclones"),
    "timing.csv": ("timestep", "wall_seconds", "steps_per_second"),
}
AGENTS = tuple(f"{name}.{suffix}" for name in ("agent", "last") for suffix in ("safetensors", "json"))
STATES = ("queued", "running", "interrupted", "finished", "failed")
"""Of a run folder."""
EVALUATION = ("eval_episodes", "eval_freq", "eval_budget")
"""Keys of ``config.json`` that decide on no score: training is the same however it is evaluated."""
TRACEBACK = "traceback.txt"
CHECKPOINT = "checkpoint"
MANIFEST = "sha256.json"
PACKED = ("config.json", "status.json", MANIFEST, TRACEBACK, *COLUMNS)
"""What is kept of a run in a zip."""
_MOST_BYTES = 2**30
"""No log is longer; a zip may claim anything."""
TRACKING, TENSORBOARD = "tracking.json", "tensorboard"
"""Of a run with ``--track``: what it is called at the trackers, and a folder that is one's own."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, finds the old one or the new one and nothing between.

    A temporary file beside the target, fsync, rename.
    """
    data = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, _as_json(value))


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the file may lie in the zip of a run.

    Raises:
        UserError: the file is not there, not JSON or not an object.
    """
    try:
        value = json.loads(read_run_file(path.parent, path.name))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def read_run_file(run: Path, name: str) -> bytes:
    """A file of a run, which is a folder or what :meth:`RunFolder.pack` has written.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if run.suffix != ".zip" or run.is_dir():
        return (run / name).read_bytes()
    try:
        with zipfile.ZipFile(run) as file:
            if file.getinfo(name).file_size > _MOST_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(run / name))
            return file.read(name)
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run / name)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise OSError(errno.EIO, f"{run.name} is damaged: {error}", str(run / name)) from None


def check_manifest(run: Path, *names: str) -> None:
    """Check files of a run, all but the weights if none is named, against its manifest, where it has one.

    Raises:
        UserError: one is not what it was when the run was finished.
    """
    try:
        read_run_file(run, MANIFEST)
    except FileNotFoundError:
        return  # not finished, or an agent by itself
    except OSError:
        pass  # read_json says so
    expected = read_json(run / MANIFEST)
    kept = [name for name in expected if not name.endswith(".safetensors") and (run.is_dir() or name in PACKED)]
    for name in names or kept:
        try:
            data = read_run_file(run, name)
        except OSError as error:
            raise UserError(f"cannot read {run / name}: {error.strerror}") from None
        if _sha256(data) != expected.get(name):
            raise UserError(f"{run / name} is damaged: it has another hash than {MANIFEST} says")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
        if any(not name.startswith((".lock", ".config.json.")) for name in names):
            raise UserError(f"{self.path} is not empty and no run folder: choose another with --out")
        return None

    def status(self) -> dict[str, Any] | None:
        """What ``status.json`` says; None where there is none."""
        path = self.path / "status.json"
        return read_json(path) if path.exists() else None

    def set_status(self, state: str, **details: Any) -> None:
        """Write ``status.json``; ``state`` is one of :data:`STATES`."""
        write_json(self.path / "status.json", {"state": state, **details})

    def open(self) -> None:
        """Create the folder if need be and lock it.

        Raises:
            UserError: it cannot be written, is a file, or another process is writing to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise self._unusable(error) from None
        try:
            if not try_lock(self._lock):
                raise UserError(f"another process is writing to {self.path}: wait for it or choose another --out")
        except UserError:
            self.close()
            raise

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"cannot write to {self.path}: {error.strerror or error}; choose another folder with --out")

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
            write_json(self.path / "config.json", config)
            self.set_status("running", pid=os.getpid())
            self._drop(TRACEBACK, TRACKING, MANIFEST, *AGENTS)
            for name, columns in COLUMNS.items():
                file = (self.path / name).open("w", newline="")
                self._files[name] = file
                csv.writer(file, lineterminator="\n").writerow(columns)
            self.flush()
        except OSError as error:
            raise self._unusable(error) from None

    def finish(self, **details: Any) -> None:
        """Write the hashes of all files, and last of all, that the run is finished."""
        status = _as_json({"state": "finished", **details})
        self.flush()
        files = [path for name in (*PACKED, *AGENTS) if (path := self.path / name).is_file() and name != MANIFEST]
        hashes = {path.name: _sha256(path.read_bytes()) for path in files}
        write_json(self.path / MANIFEST, hashes | {"status.json": _sha256(status.encode())})
        write_atomically(self.path / "status.json", status)

    def resume(
        self, config: Mapping[str, Any], logs: Mapping[str, Mapping[str, Any]], agents: Mapping[str, bytes]
    ) -> None:
        """Continue the run: cut the logs back to where they were, put its best agent's files back.

        Raises:
            UserError: it cannot be written.
        """
        try:
            write_json(self.path / "config.json", config)
            self.set_status("running", pid=os.getpid())
            self._drop(TRACEBACK, MANIFEST, *(name for name in AGENTS if name not in agents))
            for name, data in agents.items():
                write_atomically(self.path / name, data)
            for name in COLUMNS:
                file = self._files[name] = (self.path / name).open("a", newline="")
                file.truncate(logs[name]["bytes"])
        except OSError as error:
            raise self._unusable(error) from None

    def logs(self) -> dict[str, dict[str, Any]]:
        """Length in ``bytes`` and ``sha256`` of every log, once the disk has them."""
        self.flush()
        for file in self._files.values():
            os.fsync(file.fileno())
        contents = {name: (self.path / name).read_bytes() for name in self._files}
        return {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in contents.items()}

    def changed(self, logs: Mapping[str, Mapping[str, Any]]) -> str | None:
        """How a log differs from what :meth:`logs` gave, rows after it apart; None where all are as they were."""
        for name in COLUMNS:
            path, was = self.path / name, logs[name]
            data = path.read_bytes() if path.is_file() else b""
            if len(data) < was["bytes"]:
                return f"{path} is shorter than it was"
            if _sha256(data[: was["bytes"]]) != was["sha256"]:
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

    def pack(self) -> Path:
        """Keep what reports are made of as one small file beside the folder, ``seed-N.zip``; return its path.

        The same run gives the same bytes, ``timing.csv`` and clocks apart.

        Raises:
            OSError: it cannot be written.
        """
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for name in PACKED:
                if (path := self.path / name).is_file():
                    # Without the date of the file.
                    file.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
        target = packed(self.path)
        write_atomically(target, data.getvalue())
        return target

    def close(self) -> None:
        """Close the logs and give the lock back. Its file stays: deleting it could delete another process's lock."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk, of which a write has told already
                file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def packed(folder: Path) -> Path:
    """Where the zip of a run folder lies."""
    return folder.with_name(f"{folder.name}.zip")


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file, until it is closed or the process ends; False where another process has it.

    Raises:
        UserError: there are no locks on this file system.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(
            f"cannot lock {file.name}: {error.strerror}; choose a place on a file system that has locks (flock)"
        ) from None
    _locked.add(file)
    return True


_locked: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _leave_locks() -> None:
    """In a process that was forked, by an environment perhaps, which would hold them after its parent's end."""
    for file in list(_locked):
        file.close()


os.register_at_fork(after_in_child=_leave_locks)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another run, of what ``config.json`` holds."""
    return {key: value for key, value in config.items() if key not in ("provenance", *EVALUATION)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines ``key: old value -> new value`` for everything in which two nested mappings differ."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {json.dumps(before)} -> {json.dumps(after)}"
