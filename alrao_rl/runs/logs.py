"""``logs.jsonl.xz`` of a study: what it keeps of its runs for reports and notebooks, all of them in one file.

JSON lines, one a run: ``env``, ``agent``, ``setting`` and ``seed``, then each of :data:`~alrao_rl.runs.files.KEPT` by
its name, with its exact text. The last line of a run counts. Each line is an xz stream of its own, so a sweep appends
one whenever a run is over, ``pandas.read_json(path, lines=True)`` and ``xzcat`` read them all, and what a crash has cut
short, or a disk has damaged, costs that run alone. Whoever writes holds the sweep's lock; readers need none.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError, first_line
from alrao_rl.runs.atomic import sync_folder, write_atomically
from alrao_rl.runs.files import KEPT
from alrao_rl.runs.names import RunName

FILE = "logs.jsonl.xz"

_MOST_BYTES = 2**30
"""No run has longer logs; a stream may claim anything."""
_CHUNK = 2**16
_NAMED = b', "config.json": '
"""What follows the name of a run in a line."""
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**20}]
_START = lzma.compress(b"", filters=_FILTERS)[:12]
"""What every stream of ours begins with, and nothing else in the file: where to read on behind a damaged one."""
_TORN = "its last line was never completed"
_WRITTEN = "not as a sweep writes it"


@dataclass(frozen=True)
class Entry:
    """A line of the file.

    Attributes:
        name: of the run; None where damage has taken even that.
        files: bytes by name; empty where there is an error.
        error: what is wrong with it, on one line; empty if nothing.
        begin: where its stream begins in the file.
        end: where that ends.
        line: number of the line in its stream: 0, but in a file that something else has written.
    """

    name: RunName | None
    files: Mapping[str, bytes]
    error: str
    begin: int
    end: int
    line: int = 0


def entries(path: Path) -> Iterator[Entry]:
    """The lines of a file in their order, also those that later ones of the same run replace.

    What is not whole at its end is left out: a sweep may be writing it at this moment.

    Raises:
        OSError: the file cannot be read.
    """
    return _entries(path.read_bytes(), 0)


def find(folder: Path) -> Entry | None:
    """What is kept of a run in the file of its study; None if nothing.

    Args:
        folder: where the run's folder lies, or lay: ``STUDY/ENV/AGENT/seed-N``.

    Raises:
        OSError: the file cannot be read.
    """
    index = _index(folder.absolute().parents[2]) if len(folder.absolute().parts) > 3 else None
    return None if index is None else index.find(Path(*folder.absolute().parts[-3:]))


def append(study: Path, runs: Iterable[tuple[RunName, Mapping[str, bytes]]]) -> None:
    """Add lines, which are on the disk when this returns. What a crash has left unfinished at the end is cut off.

    Args:
        study: its folder.
        runs: names, and files by their names.

    Raises:
        UserError: the file that is there is no such file.
        OSError: it cannot be written; it is then as it was.
    """
    path, end = study / FILE, length(study)
    new = not path.exists()
    # Without a buffer, which would write the rest of a line when it is closed.
    with path.open("ab", buffering=0) as file:
        file.truncate(end)
        try:
            for name, files in runs:
                data = memoryview(encoded(name, files))
                while data:
                    data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            error.filename = str(path)
            raise
    if new:
        sync_folder(study)


def length(study: Path) -> int:
    """How many bytes of a study's file there are, without what a crash has left unfinished at its end.

    Raises:
        UserError: it is no such file, or cannot be read.
    """
    try:
        index = _index(study)
    except OSError as error:
        raise UserError(f"cannot read {study / FILE}: {error.strerror}") from None
    if index is not None and index.end and not index.readable:
        raise UserError(f"{study / FILE} is {_WRITTEN}: restore an earlier version, or move it away")
    return 0 if index is None else index.end


def damaged(study: Path) -> int:
    """How many lines of a study's file are damaged, without those that a later line of their run replaces.

    Raises:
        UserError: it is no such file, or cannot be read.
    """
    length(study)
    index = _index(study)
    return 0 if index is None else index.nameless + sum(bool(place.error) for place in index.places.values())


def nameless(path: Path) -> bool:
    """Whether the path of a run is only the place of a line that is damaged beyond its name."""
    return path.name.startswith(f"{FILE}@")


def tidy(study: Path) -> None:
    """Cut off what a crash has left unfinished; drop replaced and damaged lines if they are more than half of the file.

    Raises:
        UserError: it is no such file, or cannot be read.
        OSError: it cannot be written.
    """
    path, end = study / FILE, length(study)
    if (index := _index(study)) is None:
        return
    if path.stat().st_size > end:
        os.truncate(path, end)
    if 2 * index.live < end:
        found = [index.find(folder) for folder in index.places]
        lines = [encoded(one.name, one.files) for one in found if one and one.name and not one.error]
        write_atomically(path, b"".join(lines))


def encoded(name: RunName, files: Mapping[str, bytes]) -> bytes:
    """A line as it stands in the file: the same run gives the same bytes, ``timing.csv`` and clocks apart."""
    line: dict[str, Any] = {"env": name.env, "agent": name.agent, "setting": name.setting, "seed": name.seed}
    # Bytes that are not UTF-8, in a damaged log, become lone surrogates, and come back from them.
    line |= {key: files[key].decode(errors="surrogateescape") for key in KEPT if key in files}
    return lzma.compress(json.dumps(line).encode() + b"\n", filters=_FILTERS)


# --- reading --------------------------------------------------------------------------------------------------------


def _entries(data: bytes, start: int) -> Iterator[Entry]:
    while start < len(data):
        text, end, error = _stream(data, start)
        if error:
            found = data.find(_START, start + 1)
            if found < 0 and error == _TORN:
                return
            end = found if found >= 0 else len(data)
            yield Entry(_name(_beginning(data, start)), {}, error, start, end)
        else:
            for number, line in enumerate(text.splitlines()):
                yield _entry(line, start, end, number)
        start = end


def _stream(data: bytes, start: int) -> tuple[bytes, int, str]:
    """The text of the stream that begins there, where it ends, and what is wrong with it if anything is."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    parts: list[bytes] = []
    size, at = 0, start
    begun = _START.startswith(data[start : start + len(_START)].rstrip(b"\0"))
    try:
        while not decoder.eof:
            chunk = data[at : at + _CHUNK] if decoder.needs_input else b""
            if decoder.needs_input and not chunk:
                return b"", at, _TORN
            at += len(chunk)
            parts.append(decoder.decompress(chunk, _MOST_BYTES + 1 - size))
            size += len(parts[-1])
            if size > _MOST_BYTES:
                return b"", at, "it claims to be larger than any log"
    except (lzma.LZMAError, MemoryError) as error:
        # Power that fails can leave zeros where the rest was to be written.
        torn = begun and data.endswith(b"\0")
        return b"", at, _TORN if torn else f"it is damaged: {first_line(error)}"
    return b"".join(parts), at - len(decoder.unused_data), ""


def _beginning(data: bytes, start: int) -> bytes:
    """What can be read of a damaged stream, not much beyond the name of its run."""
    decoder, text = lzma.LZMADecompressor(lzma.FORMAT_XZ), b""
    with contextlib.suppress(lzma.LZMAError, MemoryError, EOFError):
        # In small steps: one that meets the damage returns nothing.
        step = decoder.decompress(data[start : start + _CHUNK], 16)
        while step and _NAMED not in text and len(text) < _CHUNK:
            text += step
            step = decoder.decompress(b"", 16)
    return text


def _entry(line: bytes, begin: int, end: int, number: int) -> Entry:
    try:
        value = json.loads(line)
        name = _checked_name(value)
        files = {key: value[key] for key in KEPT if value.get(key) is not None}
        return Entry(name, {key: text.encode(errors="surrogateescape") for key, text in files.items()}, "",
                     begin, end, number)  # fmt: skip
    except (ValueError, AttributeError, RecursionError) as error:
        return Entry(_name(line), {}, f"line is {_WRITTEN}: {first_line(error)}", begin, end, number)


def _name(text: bytes) -> RunName | None:
    """The name of a run from the beginning of its line; None if that cannot be read either."""
    with contextlib.suppress(ValueError, RecursionError):
        return _checked_name(json.loads(text.partition(_NAMED)[0].removesuffix(b"}") + b"}"))
    return None


def _checked_name(line: Any) -> RunName:
    """The name in a line.

    Raises:
        ValueError: there is none, or one that is no run folder's.
    """
    if not isinstance(line, dict):
        raise ValueError(f"it holds a {type(line).__name__}, expected a JSON object")
    env, agent, setting, seed = (line.get(key) for key in ("env", "agent", "setting", "seed"))
    texts = (env, agent, setting)
    if not (all(isinstance(text, str) for text in texts) and type(seed) is int and 0 <= seed < 10**18):
        raise ValueError("env, agent, setting and seed do not name a run")
    name = RunName(str(env), str(agent), str(setting), seed)
    folder = name.folder.as_posix()
    folder.encode()  # a lone surrogate is in no name
    if len(name.folder.parts) != 3 or ".." in name.folder.parts or "\0" in folder or "" in (env, agent):
        raise ValueError(f"{folder!r} is not the folder of a run")
    return name


class _Index:
    """Where each run stands in a file; brought up to date by reading what was appended since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, ...] = ()
        self._forget()

    def _forget(self) -> None:
        self.end = 0
        self.readable = False
        self.nameless = 0
        self.places: dict[Path, Entry] = {}

    @property
    def live(self) -> int:
        """Bytes of the lines that count."""
        there = {(place.begin, place.end) for place in self.places.values() if not place.error}
        return sum(end - begin for begin, end in there)

    def update(self) -> None:
        with self.path.open("rb") as file:
            now = os.fstat(file.fileno())
            identity = (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_size)
            if identity == self._file:
                return
            if identity[:2] != self._file[:2] or now.st_size < self.end:
                self._forget()
            file.seek(self.end)
            data = file.read()
        start = self.end
        for entry in _entries(data, 0):
            self.end = start + entry.end
            self.readable |= not entry.error
            self.nameless += entry.name is None
            if entry.name is not None:
                place = Entry(entry.name, {}, entry.error, start + entry.begin, self.end, entry.line)
                self.places[entry.name.folder] = place
        self._file = identity

    def find(self, folder: Path) -> Entry | None:
        """The last line of a run, read from the file."""
        place = self.places.get(folder)
        if place is None or place.error:
            return place
        with self.path.open("rb") as file:
            file.seek(place.begin)
            data = file.read(place.end - place.begin)
        found = [entry for entry in _entries(data, 0) if entry.line == place.line]
        if len(found) != 1 or found[0].name != place.name:
            return Entry(place.name, {}, "the file has changed while it was read", place.begin, place.end)
        return found[0]


_indices: dict[Path, _Index] = {}


def _index(study: Path) -> _Index | None:
    """The index of a study's file as it is now; None where there is none."""
    path = Path(os.path.abspath(study)) / FILE  # noqa: PTH100 (links are not followed)
    index = _indices.setdefault(path, _Index(path))
    try:
        index.update()
    except FileNotFoundError:
        del _indices[path]
        return None
    return index
