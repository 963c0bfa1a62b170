"""Files of a run, whether it is a folder or what a study has kept of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError
from alrao_rl.runs import logs, zips
from alrao_rl.runs.files import KEPT, MANIFEST


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, wherever they are: in its folder, in the logs of its study, or in a zip.

    Args:
        path: where the run's folder lies, or lay; or its zip.
        entry: its line of the logs, where that has been read already.
    """

    path: Path
    entry: logs.Entry | None = None

    def read(self, name: str) -> bytes:
        """One of its files. A folder that is there has the say, then the logs, then a zip of an earlier version.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        where = self.path / name
        if self.entry is None:
            if self.path.is_dir():
                return where.read_bytes()
            packed = self.path if self.path.suffix == ".zip" else self.path.with_name(f"{self.path.name}.zip")
            if self.path == packed or (self._logged is None and packed.is_file()):
                return zips.read_member(packed, name)
        entry = self.entry or self._logged
        if entry is not None and entry.error:
            raise OSError(errno.EIO, entry.error, str(where))
        if entry is None or name not in entry.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(where))
        return entry.files[name]

    @cached_property
    def _logged(self) -> logs.Entry | None:
        """Its line, read once for all of its files."""
        return logs.find(self.path)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            UserError: the file is not there, not JSON or not an object.
        """
        path = self.path / name
        try:
            value = json.loads(self.read(name))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a JSON file: {error}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
        return value

    def check_manifest(self, *names: str) -> None:
        """Check files, all but the weights if none is named, against the run's manifest, where it has one.

        Raises:
            UserError: one is not what it was when the run was finished.
        """
        try:
            self.read(MANIFEST)
        except FileNotFoundError:
            return  # not finished, or an agent by itself
        except OSError:
            pass  # the next line says so
        expected = self.json(MANIFEST)
        there = expected if self.entry is None and self.path.is_dir() else KEPT
        for name in names or [one for one in expected if one in there and not one.endswith(".safetensors")]:
            try:
                data = self.read(name)
            except OSError as error:
                raise UserError(f"cannot read {self.path / name}: {error.strerror}") from None
            if sha256(data) != expected.get(name):
                raise UserError(f"{self.path / name} is damaged: it has another hash than {MANIFEST} says")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the file may be one of a run that only its study's logs have.

    Raises:
        UserError: the file is not there, not JSON or not an object.
    """
    return RunFiles(path.parent).json(path.name)


def read_run_file(run: Path, name: str) -> bytes:
    """A file of a run, which need not be a folder: see :class:`RunFiles`.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    return RunFiles(run).read(name)


def check_manifest(run: Path, *names: str) -> None:
    """As :meth:`RunFiles.check_manifest` does."""
    RunFiles(run).check_manifest(*names)


def sha256(data: bytes) -> str:
    """As a manifest has it, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
