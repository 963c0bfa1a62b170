"""Checkpoints on disk: whole or not there, checked by hashes, and nothing in them is ever executed.

``checkpoint/step-000000012345/`` holds ``state.json`` (a tree of plain values), ``arrays.safetensors`` (the arrays of
that tree), copies of the best agent's files, and ``manifest.json``, the SHA-256 of every other file. All is written
into a temporary folder beside it, the manifest last, and renamed; only then the oldest of three is removed. So there
are always two, each complete in itself: should one be damaged, the other one serves.

A large replay buffer is written in chunks, ``ring-0-000000.bin`` and so on, described in ``rings.json``. Those that
have not changed are taken over as hard links, and that from the checkpoint which is removed next, the one before the
last: the two that stay never share a file, so that no damage is damage to both. The price is that the changes of two
intervals are written, not of one. A process writes its first two whole; the one it was continued from counts as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.numpy import load_file

from alrao_rl.errors import UserError, first_line
from alrao_rl.runs.atomic import sync_folder
from alrao_rl.runs.buffer_chunks import Ring, StoredRing

FORMAT = "alrao-rl checkpoint 4"
KEPT = 2
"""Checkpoints kept: the newest, and the one before in case that is damaged."""
MAX_SHARE = 0.05
"""At most this part of a run goes into writing checkpoints: where that takes long they become less frequent."""

_MANIFEST, _STATE, _ARRAYS, _RINGS = "manifest.json", "state.json", "arrays.safetensors", "rings.json"
_CHUNK = 2**24
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "int8": "I8", "int16": "I16",
    "int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Written:
    """What a later checkpoint may take over from one: its rings by their place in the tree, the hashes of its files."""

    rings: dict[str, StoredRing] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


class CheckpointError(Exception):
    """A checkpoint could not be written, or is not usable: names the path and the cause."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        path: folder of the checkpoints; made with the first one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: list[_Written] = []
        """Those of this process, the last one last; the first of them may be the one it was continued from."""

    def save(self, step: int, state: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Path:
        """Write a checkpoint; return its folder.

        Args:
            step: environment steps of the run so far.
            state: a tree of dicts, lists, tuples, numbers, strings, None, NumPy arrays, tensors and rings.
            files: contents of further files, by name.

        Raises:
            CheckpointError: with the path and the cause. Earlier checkpoints are as they were.
        """
        target = self.path / f"step-{step:012d}"
        temporary: Path | None = None
        try:
            self.path.mkdir(exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{target.name}.", suffix=".tmp"))
            temporary.chmod(0o755)
            before_last = self._written[-KEPT] if len(self._written) >= KEPT else _Written()
            written = _write(temporary, target, state, files or {}, before_last)
            _remove(target)  # only if it was passed over and could not be set aside
            temporary.replace(target)
            sync_folder(self.path)
        except Exception as error:
            self._written = []  # which ones there are now is not known
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            cause = (isinstance(error, OSError) and error.strerror) or first_line(error)
            raise CheckpointError(f"cannot write the checkpoint {target}: {type(error).__name__}: {cause}") from error
        self._written = [*self._written, written][-KEPT:]
        self._tidy()
        return target

    def newest(self, complain: Callable[[Path, str], None], fits: Callable[[Any], str | None]) -> Saved | None:
        """The newest checkpoint that is whole and fits; None where there is none.

        Those passed over are set aside, and removed with the next one that is written.

        Args:
            complain: called with every one that is not usable and the reason.
            fits: the reason why a state is not that of this run, or None if it is.

        Raises:
            UserError: there is one that cannot be read.
        """
        for folder in self._folders():
            try:
                saved = load(folder)
                if reason := fits(saved.state):
                    raise CheckpointError(reason)
            except CheckpointError as error:
                complain(folder, str(error))
                _set_aside(folder)
            else:
                self._written = [saved.written]
                return saved
        return None

    def last_step(self) -> int:
        """Step of the newest; 0 without one."""
        steps = (re.fullmatch(r"step-([0-9]+)", folder.name) for folder in self._folders())
        return max((int(found[1]) for found in steps if found), default=0)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted(self.path.glob("step-*"), reverse=True)

    def _tidy(self) -> None:
        """Remove the oldest, and what a process left that was killed while it wrote or removed one."""
        for folder in [*self._folders()[KEPT:], *self.path.glob(".*.tmp")]:
            _remove(folder)


class Timer:
    """When the next checkpoint is due. What is computed does not depend on it.

    Args:
        interval: seconds from one to the next; 0 for none at all.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = time.perf_counter() + interval

    def is_due(self) -> bool:
        """Whether the time has come."""
        return self._interval > 0 and time.perf_counter() >= self._next

    def wrote(self, seconds: float) -> None:
        """A checkpoint was written, in so many seconds."""
        self._next = time.perf_counter() + max(self._interval, seconds / MAX_SHARE - seconds)


class Saved:
    """A checkpoint that was read.

    ``path``, the ``state`` as it was given but for its rings, each of which is a
    :class:`~alrao_rl.runs.buffer_chunks.StoredRing`, and the names of its further ``files``.
    """

    def __init__(self, path: Path, state: Any, files: tuple[str, ...], written: _Written) -> None:
        self.path, self.state, self.files, self.written = path, state, files, written

    def read(self, name: str) -> bytes:
        """The contents of a further file."""
        return (self.path / name).read_bytes()


def load(folder: Path) -> Saved:
    """Read a checkpoint, after every file of it has been checked.

    Raises:
        CheckpointError: it is not whole, or of another format.
        UserError: it is there and cannot be read, which says nothing about what is in it.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"its format is {manifest['format']!r}, expected {FORMAT!r}")
        hashes = manifest["sha256"]
        present = {path.name for path in folder.iterdir()} - {_MANIFEST}
        for name in sorted(present ^ hashes.keys()):
            raise CheckpointError(f"its file {name} is {'missing' if name in hashes else 'not in its manifest'}")
        for name, expected in hashes.items():
            if _digest(folder / name) != expected:
                raise CheckpointError(f"its file {name} is damaged: it has another hash than the manifest says")
        rings = _read_rings(folder, hashes) if _RINGS in hashes else {}
        state = _unpack(json.loads((folder / _STATE).read_bytes()), {**load_file(folder / _ARRAYS), **rings})
    except CheckpointError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    except Exception as error:  # whatever a damaged file may lead to
        raise CheckpointError(f"it is damaged: {type(error).__name__}: {first_line(error)}") from None
    chunks = {path.name for ring in rings.values() for path in ring.paths}
    return Saved(folder, state, tuple(hashes.keys() - {_STATE, _ARRAYS, _RINGS} - chunks), _Written(rings, hashes))


def _write(
    folder: Path, target: Path, state: Mapping[str, Any], files: Mapping[str, bytes], before_last: _Written
) -> _Written:
    """Write all files of a checkpoint, the manifest last, and wait until the disk has them.

    The folder will be the target: there a later checkpoint finds what it takes over.
    """
    found: dict[str, _Array | Ring] = {}
    text = json.dumps(_pack(state, "", found))
    arrays = {name: array for name, array in found.items() if not isinstance(array, Ring)}
    rings = {name: ring for name, ring in found.items() if isinstance(ring, Ring)}
    written = _Written()
    descriptions = {}
    for number, (name, ring) in enumerate(rings.items()):
        chunks = _write_ring(folder, f"ring-{number}", ring, name, before_last)
        descriptions[name] = _describe(ring, list(chunks))
        written.rings[name] = _stored(descriptions[name], target)
        written.hashes.update(chunks)
    for name, pieces in {
        _ARRAYS: _safetensors(arrays),
        _STATE: iter([text.encode()]),
        **({_RINGS: iter([json.dumps(descriptions).encode()])} if rings else {}),
        **{name: iter([data]) for name, data in files.items()},
    }.items():
        written.hashes[name] = _create(folder / name, pieces)
    manifest = json.dumps({"format": FORMAT, "sha256": written.hashes}, indent=1)
    _create(folder / _MANIFEST, iter([manifest.encode()]))
    sync_folder(folder)
    return written


def _write_ring(folder: Path, prefix: str, ring: Ring, name: str, before_last: _Written) -> dict[str, str]:
    """Write what has changed of a ring and take over the rest; return the hashes of its chunks by their files."""
    stored, hashes = before_last.rings.get(name), {}
    unchanged = stored.unchanged(ring) if stored else {}
    for number, chunk in enumerate(ring.chunks()):
        path, old = folder / f"{prefix}-{number:06d}.bin", unchanged.get(number)
        if old and _link(old, path):
            hashes[path.name] = before_last.hashes[old.name]
        else:
            hashes[path.name] = _create(path, iter([_bytes(chunk)]))
    return hashes


def _create(path: Path, pieces: Iterator[bytes | memoryview]) -> str:
    """Write a file and return its SHA-256."""
    with path.open("wb") as file:
        return _copy(pieces, file)


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where it is gone, or the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _copy(chunks: Iterator[bytes | memoryview], file: BinaryIO) -> str:
    """Write, wait for the disk, return the SHA-256."""
    digest = hashlib.sha256()
    for chunk in chunks:
        file.write(chunk)
        digest.update(chunk)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _safetensors(arrays: Mapping[str, _Array]) -> Iterator[bytes | memoryview]:
    """A safetensors file of these arrays, piece by piece: the library's own writer first copies all of them."""
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        if array.nbytes:
            yield _bytes(array)


def _bytes(array: _Array) -> memoryview:
    """The bytes of an array; no copy of them where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _describe(ring: Ring, files: list[str]) -> dict[str, Any]:
    """A ring as JSON: what :class:`StoredRing` takes, and the names of its chunks."""
    return {
        "files": files,
        "dtype": ring.rows.dtype.name,
        "shape": ring.rows.shape,
        "length": ring.length,
        "written": ring.written,
        "chunk_rows": ring.chunk_rows,
    }


def _stored(description: dict[str, Any], folder: Path) -> StoredRing:
    """The ring that was described so, in the folder of its checkpoint."""
    rest = {key: value for key, value in description.items() if key not in ("files", "shape")}
    return StoredRing(tuple(folder / name for name in description["files"]), shape=tuple(description["shape"]), **rest)


def _read_rings(folder: Path, hashes: Mapping[str, str]) -> dict[str, StoredRing]:
    """The rings of a checkpoint: in files of its own, whose sizes are checked."""
    descriptions = json.loads((folder / _RINGS).read_bytes())
    for one in descriptions.values():
        for name in set(one["files"]) - hashes.keys():
            raise CheckpointError(f"its {_RINGS} names {name!r}, which is not in its manifest")
    rings = {name: _stored(one, folder) for name, one in descriptions.items()}
    for ring in rings.values():
        ring.check()
    return rings


def _pack(value: Any, name: str, arrays: dict[str, _Array | Ring]) -> Any:
    """A tree as JSON, its arrays and rings moved to ``arrays`` and called by where they are in the tree."""
    if value is None or isinstance(value, (bool, int, str)) or type(value) is float:
        return value
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor, Ring)):
        rows = value.rows if isinstance(value, Ring) else value
        array = rows.detach().cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"{name} holds {array.dtype}, expected numbers")
        while name in arrays:  # a key may look like a path
            name += "'"
        if isinstance(value, Ring):
            arrays[name] = value
            return {"$ring": name}
        arrays[name] = array
        return {"$tensor" if isinstance(value, torch.Tensor) else "$array": name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(inner, f"{name}/{key}", arrays) for key, inner in value.items()}
        return {"$dict": [[_pack(key, name, arrays), _pack(v, f"{name}/{key}", arrays)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        packed = [_pack(inner, f"{name}/{number}", arrays) for number, inner in enumerate(value)]
        return {"$tuple": packed} if isinstance(value, tuple) else packed
    raise TypeError(f"{name} is a {type(value).__name__}, expected numbers, strings and arrays")


def _unpack(value: Any, arrays: Mapping[str, Any]) -> Any:
    """What was given to :func:`_pack`."""
    if isinstance(value, list):
        return [_unpack(inner, arrays) for inner in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$array": name}:
            return arrays[name] if arrays[name].ndim else arrays[name][()]
        case {"$tensor": name}:
            # A copy of torch's own: what it computes may depend on how memory is aligned.
            return torch.from_numpy(arrays[name]).clone()
        case {"$ring": name}:
            return arrays[name]
        case {"$tuple": items}:
            return tuple(_unpack(inner, arrays) for inner in items)
        case {"$dict": items}:
            return {_unpack(key, arrays): _unpack(inner, arrays) for key, inner in items}
    return {key: _unpack(inner, arrays) for key, inner in value.items()}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _set_aside(folder: Path) -> Path:
    """Give a checkpoint a name that is none; return its new path."""
    aside = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.replace(aside)
    return aside


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed in between it leaves none that looks like one."""
    gone = folder if folder.name.endswith(".tmp") else _set_aside(folder)
    shutil.rmtree(gone, ignore_errors=True)
