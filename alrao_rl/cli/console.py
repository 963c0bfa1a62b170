"""Output of commands: one-line errors, and printing that survives a lost terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from alrao_rl.errors import UserError, suggest


class CommandLine(argparse.ArgumentParser):
    """An argument parser with one-line errors that name the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UserError` instead of printing the usage."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        hint = suggest(unknown.split("=")[0].split()[0], self._option_string_actions) if unknown.strip() else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def say(*lines: object) -> None:
    """Print lines to stdout."""
    _put("\n".join(map(str, lines)), sys.stdout)


def print_error(message: object) -> None:
    """Print one line ``error: …`` to stderr, even if a quoted value contains line breaks."""
    _print_line("error", message)


def print_warning(message: object) -> None:
    """Print one line ``warning: …`` to stderr, for what may differ from what the user expects."""
    _print_line("warning", message)


def _print_line(kind: str, message: object) -> None:
    # The name or content of a stranger's file must not send control sequences to the terminal.
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(str(message).splitlines()))
    _put(f"{kind}: {text}", sys.stderr)


def _put(text: str, stream: TextIO) -> None:
    """Print. A closed pipe, a lost terminal or a full disk ends the printing, not the run."""
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), file=stream, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def python() -> str:
    """How the user would call this interpreter: ``python`` if that finds it, else its path, relative if below here."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
