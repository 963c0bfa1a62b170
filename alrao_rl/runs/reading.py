"""Files of a run, whether it is a folder or what a sweep has kept of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError
from alrao_rl.runs.files import MANIFEST, PACKED

_MOST_BYTES = 2**30
"""No log is longer; a zip may claim anything."""


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
        if sha256(data) != expected.get(name):
            raise UserError(f"{run / name} is damaged: it has another hash than {MANIFEST} says")


def sha256(data: bytes) -> str:
    """As a manifest has it, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
