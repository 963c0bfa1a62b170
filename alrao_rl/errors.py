"""What commands say: errors of the user's, each one clear line with the nearest valid choice, and lines of output."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, TextIO


class UserError(Exception):
    """A mistake in what the user gave; commands print it as one line and exit with status 2."""


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose errors are one line too, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UserError` in place of printing the usage."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        hint = suggest(unknown.split("=")[0].split()[0], self._option_string_actions) if unknown.strip() else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


ALIASES = {
    "lr": "learning_rate", "step_size": "learning_rate", "discount": "gamma", "discount_factor": "gamma",
    "lambda": "gae_lambda", "entropy_coef": "ent_coef", "entropy_coefficient": "ent_coef", "value_coef": "vf_coef",
    "clip": "clip_range", "clip_coef": "clip_range", "epochs": "n_epochs", "update_epochs": "n_epochs",
    "hidden_sizes": "net_arch", "layers": "net_arch", "activation": "activation_fn", "replay_size": "buffer_size",
    "memory_size": "buffer_size", "num_heads": "alrao.n_heads", "heads": "alrao.n_heads",
}  # fmt: skip
"""What other libraries and papers call a key, where its letters are too different to tell."""


def suggest(value: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``value``, or an empty string.

    Typos rarely hit the first letter, so a choice that starts differently must match closely.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    if (meant := ALIASES.get(value.lower())) in by_lower:
        return f"; did you mean {by_lower[meant]!r}?"
    for near in difflib.get_close_matches(value.lower(), by_lower, 3, cutoff):
        if (
            near.split(".")[-1].lstrip("-")[:1] == value.lstrip("-")[:1].lower()
            or difflib.SequenceMatcher(None, near, value.lower()).ratio() >= 0.75
        ):
            return f"; did you mean {by_lower[near]!r}?"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def say(*lines: object) -> None:
    """Print lines to stdout."""
    _put("\n".join(map(str, lines)), sys.stdout)


def _put(text: str, stream: TextIO) -> None:
    """Print. A reader that goes away, a lost terminal or a full disk ends the printing and not the run."""
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
    """How the user would call this interpreter: ``python`` if that is it, else its path, relative where it is near."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def print_error(message: object) -> None:
    """Print one line ``error: …`` to stderr, whatever line ends a quoted value holds."""
    _print_line("error", message)


def print_warning(message: object) -> None:
    """Print one line ``warning: …`` to stderr: what goes on otherwise than the user expects."""
    _print_line("warning", message)


def _print_line(kind: str, message: object) -> None:
    # What a stranger's file is called, or holds, must not command the terminal.
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(str(message).splitlines()))
    _put(f"{kind}: {text}", sys.stderr)
