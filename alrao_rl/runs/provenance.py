"""What a run was made with, and where on its way that changed.

``provenance`` in ``config.json`` is of the run's beginning. Its ``continued`` lists the stretches that were made with
something else, each with the ``timestep`` of the checkpoint it goes on from.
"""

from __future__ import annotations

import contextlib
import dis
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from alrao_rl import __version__

_CODE = ("alrao_rl", "agents", "envs")
"""Not results/, where a sweep that goes on changes files that are tracked."""
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy")
_OTHERS = frozenset((
    *sys.stdlib_module_names, "__main__", "__mp_main__", "alrao_rl", *(name.replace("-", "_") for name in PACKAGES),
    "pygame", "matplotlib", "seaborn", "PIL", "imageio", "moviepy", "glfw", "OpenGL", "tqdm", "rich", "absl",
    "colorama", "packaging", "typing_extensions", "cloudpickle", "farama_notifications",
))  # fmt: skip
"""Modules that say nothing of one run: those that every run has, and those that only draw, save or say something."""


def versions(*classes: type) -> dict[str, str]:
    """Those of alrao-rl, of the packages that decide on what every run computes, and of those behind ``classes``.

    Behind a class are the packages that define it and its bases, and those that they import: an environment is seldom
    its own engine. A file of the user's own is of no package, but what it imports is.
    """
    found = {"alrao-rl": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    further = sorted(_behind(*classes) - found.keys())
    return found | {name: importlib.metadata.version(name) for name in further}


def installed(provenance: object, step: int) -> dict[str, str]:
    """Versions that are installed here of what a checkpoint was made with; what is not installed is left out."""
    last = _until(provenance, step)
    found = versions()
    for name in _table(last[-1].get("versions") if last else None).keys() - found.keys():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
            found[name] = importlib.metadata.version(name)
    return found


def _behind(*classes: type) -> set[str]:
    """Names of the installed packages behind these classes.

    Only what is loaded is looked at, by what modules hold: no code is read, and nothing is imported for it.
    """
    bases = {base for one in classes for base in one.__mro__}
    start = {_module(base) for base in bases}
    inside = {_top(name) for name in start}
    todo = [*start, *(name for base in bases for name in _imported_in_methods(base))]
    seen, found = set(todo), set()
    while todo:
        name = todo.pop()
        if (top := _top(name)) not in _OTHERS:
            found.add(top)
            # Of a package that only is imported, its version is enough.
            if top not in inside and top in _packages():
                continue
        elif name not in start:
            continue
        further = set(_imported(name)) - seen
        seen |= further
        todo += further
    return {package for top in found for package in _packages().get(top, ())}


def _top(module: str) -> str:
    return module.partition(".")[0]


def _module(owner: object) -> str:
    """Where a class or a function is defined; of some that are compiled it is not known, and is then Python's own."""
    module = getattr(owner, "__module__", None)
    return module if isinstance(module, str) else "builtins"


@cache
def _packages() -> Mapping[str, list[str]]:
    """Installed packages by the modules they have; it takes up to half a second, and not every run needs it."""
    return importlib.metadata.packages_distributions()


def _imported(name: str) -> Iterator[str]:
    """Modules that a loaded module holds, or that what it holds is defined in."""
    for key, value in list(getattr(sys.modules.get(name), "__dict__", {}).items()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif not key.startswith("__"):
            owner = value if isinstance(value, (type, FunctionType, BuiltinFunctionType)) else type(value)
            yield _module(owner)


def _imported_in_methods(one: type) -> Iterator[str]:
    """Modules that methods of a class import, as those of wrappers do that need no package unless they are used."""
    for method in vars(one).values():
        if isinstance(method, FunctionType) and not _OTHERS.issuperset(method.__code__.co_names):
            yield from (each.argval for each in dis.get_instructions(method) if each.opname == "IMPORT_NAME")


def current(command: str, device: str, backend: str, *classes: type) -> dict[str, Any]:
    """What a run that begins now is made with.

    Args:
        command: that makes it.
        device: torch device that it uses.
        backend: what computes small heads, ``compiled`` or ``torch``, which round differently.
        classes: of the algorithm, and of the environments with their wrappers and what they hold.
    """
    return {
        "command": command,
        "versions": versions(*classes),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
        "device": device,
        "loops": backend,
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
    """In which versions, device and backend a checkpoint was made otherwise: ``torch: 2.13.0 -> 2.14.0``.

    Args:
        provenance: of its run.
        step: its timestep.
        now: what it would be continued with; only the versions, device and backend that are named there are compared.
    """
    last = _until(provenance, step)
    old, new = _compared(last[-1] if last else {}), _compared(now)
    # What an older version of alrao-rl did not record may have been the same.
    always = {"alrao-rl", *PACKAGES, "device", "loops"}
    return [
        f"{name}: {old.get(name, 'unknown')} -> {value}"
        for name, value in new.items()
        if old.get(name) != value and (name in old or name in always)
    ]


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
    return {
        **_table(facts.get("versions")),
        **{name: facts[name] for name in ("device", "loops") if name in facts},
    }


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


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
    here = Path(__file__).resolve().parent.parent.parent
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
