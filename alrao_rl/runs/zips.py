"""``seed-N.zip`` beside a run's folder, in which earlier versions kept a run: read, and taken into the study's logs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from alrao_rl.runs import logs
from alrao_rl.runs.files import KEPT
from alrao_rl.runs.names import RunName

_MOST_BYTES = 2**30
"""No log is longer; a zip may claim anything."""


def read_member(path: Path, name: str) -> bytes:
    """A file of a run, by its name.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if file.getinfo(name).file_size > _MOST_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path / name))
            return file.read(name)
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path / name)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise OSError(errno.EIO, f"{path.name} is damaged: {error}", str(path / name)) from None


def take_in(study: Path) -> None:
    """Move what the zips of a study hold into its logs: they go once the logs on the disk have the same.

    A zip that is damaged, or of a run of which the logs have something else, stays.

    Raises:
        UserError: the logs are no such file.
        OSError: they cannot be written.
    """
    zips = sorted(study.glob("*/*/seed-*.zip"))
    new = [path for path in zips if (entry := logs.find(path.with_suffix(""))) is None or entry.error]
    if new:
        logs.append(study, ((_name(path, files), files) for path in new if (files := _files(path))))
    for path in zips:
        entry = logs.find(path.with_suffix(""))
        if entry is not None and entry.files and entry.files == _files(path):
            path.unlink()
            for folder in (path.parent, path.parent.parent):
                with contextlib.suppress(OSError):  # other things lie there
                    folder.rmdir()


def _name(path: Path, files: dict[str, bytes]) -> RunName:
    """The name of a zip's run: as its configuration has it, where that is what the folder is called after."""
    parsed = RunName.parse(path)
    try:
        config = json.loads(files["config.json"])
        agent = str(config["agent"])
        named = RunName(str(config["env"]["id"]), agent, parsed.cell[len(agent) + 1 :], parsed.seed)
    except (KeyError, TypeError, ValueError, RecursionError):
        return parsed
    return named if named.folder == parsed.folder else parsed


def _files(path: Path) -> dict[str, bytes]:
    """All that a zip holds of a run; nothing if it is damaged."""
    try:
        return dict(_members(path))
    except OSError:
        return {}


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    for name in KEPT:
        with contextlib.suppress(FileNotFoundError):
            yield name, read_member(path, name)
