"""What a run is called: environment, agent, setting and seed, and the folder ``ENV/AGENT@SETTING/seed-N``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError
from alrao_rl.notation import literal

MAX_NAME = 255
"""Bytes of a file's name: no common file system takes more."""
_DIGITS = 12


@dataclass(frozen=True)
class RunName:
    """The name of a run, in a study or by itself.

    Args:
        env: id of the environment; of a name that was parsed, as the folder has it.
        agent: name of the agent.
        setting: what distinguishes it from other settings of the agent, see :func:`setting_name`; empty if nothing.
        seed: of the run; None in a name that has none.
    """

    env: str
    agent: str
    setting: str = ""
    seed: int | None = None

    @property
    def cell(self) -> str:
        """Agent and setting: ``dqn-adam@learning_rate=0.001``."""
        return f"{self.agent}@{self.setting}" if self.setting else self.agent

    @property
    def group(self) -> str:
        """What its seeds have in common, ``ENV/AGENT@SETTING``."""
        return f"{self.env.replace(':', '-').replace('/', '-')}/{self.cell}"

    @property
    def folder(self) -> Path:
        """Of the run, in that of its study."""
        return Path(self.group, f"seed-{self.seed}")

    @property
    def label(self) -> str:
        """What people read."""
        return f"{self.cell} on {self.env}, seed {self.seed}"

    @classmethod
    def parse(cls, path: str | Path) -> RunName:
        """The name that a run folder, or its zip, has."""
        path = Path(path).absolute()
        agent, _, setting = path.parent.name.partition("@")
        found = re.fullmatch(r"seed-([0-9]{1,18})(?:\.zip)?", path.name)
        return cls(path.parent.parent.name, agent, setting, int(found[1]) if found else None)


def setting_name(values: Mapping[str, Any], agent: str = "") -> str:
    """What follows the agent's name and ``@`` in a folder's: ``learning_rate=0.001``; the values of a grid by key.

    Where the folder's name would be too long it is cut, and ends with a digest of the whole.

    Raises:
        UserError: the agent's name leaves no place for that.
    """
    name = ",".join(f"{key}={_word(literal(value)) or 'empty'}" for key, value in values.items())
    room = MAX_NAME - len(f"{agent}@".encode())
    if len(name) <= room:
        return name
    end = f"...{hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]}"
    if room < 2 * len(end):
        raise UserError(f"agent {agent!r} has too long a name for folders that name settings too: rename its file")
    return name[: room - len(end)] + end


def is_cut(name: str) -> bool:
    """Whether :func:`setting_name` has cut a name."""
    return re.search(rf"\.\.\.[0-9a-f]{{{_DIGITS}}}$", name) is not None


def setting_names(grid: Mapping[str, list[Any]], agent: str, seen: Iterable[str]) -> list[str]:
    """Names of an agent's settings: all combinations of those keys that the names which are there have.

    A key that does nothing to an agent is in no name. Where names are cut it has all keys, or nothing is known.
    """
    seen = set(seen)
    cut = any(map(is_cut, seen))
    keys = [key for key in grid if cut or any(f"{key}=" in name for name in seen)]
    named = [
        setting_name(dict(zip(keys, values, strict=True)), agent) for values in product(*(grid[key] for key in keys))
    ]
    return [] if not keys or (cut and not seen <= set(named)) else named


def _word(text: str) -> str:
    """What a folder may be called by; a number keeps its sign."""
    word = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")
    return f"-{word}" if re.match(r"-[0-9.]", text) else word
