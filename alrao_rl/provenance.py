"""What a run was made with, and where on its way that changed.

``provenance`` in ``config.json`` is of the run's beginning. Its ``continued`` lists the stretches that were made with
something else, each with the ``timestep`` of the checkpoint it goes on from.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alrao_rl import __version__

_CODE = ("alrao_rl", "agents", "envs")
"""Not results/, where a sweep that goes on changes files that are tracked."""
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy")


def versions(*classes: type) -> dict[str, str]:
    """Those of alrao-rl, of the packages that decide on what every run computes, and of those that define ``classes``.

    A class that no installed package has, such as one of a file of the user's own, adds nothing.
    """
    found = {"alrao-rl": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    modules = {one.__module__.partition(".")[0] for one in classes} - {name.replace("-", "_") for name in found}
    if modules:
        # Not for every run: it takes half a second.
        packages = importlib.metadata.packages_distributions()
        further = sorted({name for module in modules for name in packages.get(module, ())} - found.keys())
        found |= {name: importlib.metadata.version(name) for name in further}
    return found


def current(command: str, device: str, loops: str, *classes: type) -> dict[str, Any]:
    """What a run that begins now is made with.

    Args:
        command: that makes it.
        device: torch device that it uses.
        loops: what computes small heads, ``compiled`` or ``torch``, which round differently.
        classes: of the algorithm and of the environments.
    """
    return {
        "command": command,
        "versions": versions(*classes),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
        "device": device,
        "loops": loops,
        "git_commit": _git_commit(),
    }


def stretches(provenance: object) -> list[Mapping[str, Any]]:
    """What each stretch of a run was made with, the first one first; whatever else a file may hold is left out."""
    if not isinstance(provenance, Mapping):
        return []
    later = provenance.get("continued")
    later = [one for one in later if isinstance(one, Mapping)] if isinstance(later, list) else []
    return [provenance, *(one for one in later if isinstance(one.get("timestep"), int))]


def mismatches(provenance: object, step: int, now: Mapping[str, Any]) -> list[str]:
    """In which versions, device and loops a checkpoint was made otherwise: ``torch: 2.13.0 -> 2.14.0``.

    Args:
        provenance: of its run.
        step: its timestep.
        now: what it would be continued with; only the versions, device and loops that are named there are compared.
    """
    last = _until(provenance, step)
    before = last[-1] if last else {}
    old, new = _compared(before), _compared(now)
    return [f"{name}: {old.get(name, 'unknown')} -> {value}" for name, value in new.items() if old.get(name) != value]


def continued(provenance: object, step: int, now: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a run that goes on from the checkpoint at ``step``, with a further stretch if it differs."""
    kept = _until(provenance, step)
    facts = {key: value for key, value in now.items() if key != "command"}
    later = [dict(one) for one in kept[1:]]
    if not kept or any(kept[-1].get(key) != value for key, value in facts.items()):
        later.append({"timestep": step, **facts})
    first = {key: value for key, value in kept[0].items() if key != "continued"} if kept else {}
    return first | ({"continued": later} if later else {})


def _until(provenance: object, step: int) -> list[Mapping[str, Any]]:
    """The stretches before a checkpoint: what came after it is lost with what is done again."""
    return [one for i, one in enumerate(stretches(provenance)) if i == 0 or one["timestep"] < step]


def _compared(facts: Mapping[str, Any]) -> dict[str, Any]:
    found = facts.get("versions")
    return {
        **(found if isinstance(found, Mapping) else {}),
        **{name: facts[name] for name in ("device", "loops") if name in facts},
    }


def _hardware() -> str:
    """Processor, cores and memory, as far as the system says."""
    said = []
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        said += [found[1]] if found else []
    said += [f"{os.cpu_count()} cores"]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        said += [f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"]
    return ", ".join(said)


def _git_commit() -> str | None:
    """Commit of the checkout the package runs from, with ``+`` if its code is changed; None outside of one."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "-uno", "--", *_CODE], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
