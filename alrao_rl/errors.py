"""User errors: one clear line that names the value, with the nearest valid choice."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake in the user's input; commands print it as one line and exit with status 2."""


class FolderError(UserError):
    """A folder that cannot be used, where another one would do: the command adds how to choose another."""


ALIASES = {
    "lr": "learning_rate", "step_size": "learning_rate", "discount": "gamma", "discount_factor": "gamma",
    "lambda": "gae_lambda", "entropy_coef": "ent_coef", "entropy_coefficient": "ent_coef", "value_coef": "vf_coef",
    "clip": "clip_range", "clip_coef": "clip_range", "epochs": "n_epochs", "update_epochs": "n_epochs",
    "hidden_sizes": "net_arch", "layers": "net_arch", "activation": "activation_fn", "replay_size": "buffer_size",
    "memory_size": "buffer_size", "num_heads": "alrao.n_heads", "heads": "alrao.n_heads",
}  # fmt: skip
"""What other libraries and papers call a key, where the spelling is too different to match."""


def suggest(value: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``value``, or an empty string."""
    return _as_question(_nearest(value, choices, cutoff))


def suggest_path(path: Path) -> str:
    """The same for a path that does not exist: each part that is missing is replaced by the nearest name there."""
    found = Path(path.anchor)
    with contextlib.suppress(OSError, ValueError):
        for part in path.relative_to(found).parts:
            if not (found / part).exists():
                names = [entry.name for entry in found.iterdir() if not entry.name.startswith(".")]
                part = _nearest(part, names)
                if not part:
                    return ""
            found /= part
        return _as_question(str(found)) if found != path else ""
    return ""


def _as_question(choice: str) -> str:
    return f"; did you mean {choice!r}?" if choice else ""


def _nearest(value: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """The choice nearest to ``value``, or an empty string.

    Typos rarely hit the first letter, so a choice that starts differently must match closely.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    if (meant := ALIASES.get(value.lower())) in by_lower:
        return by_lower[meant]
    for near in difflib.get_close_matches(value.lower(), by_lower, 3, cutoff):
        if (
            near.split(".")[-1].lstrip("-")[:1] == value.lstrip("-")[:1].lower()
            or difflib.SequenceMatcher(None, near, value.lower()).ratio() >= 0.75
        ):
            return by_lower[near]
    return ""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
