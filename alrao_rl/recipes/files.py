"""Recipes on disk: agents/*.toml and envs/*.toml, found and read."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError, suggest, suggest_path
from alrao_rl.recipes.schema import Agent, Environment
from alrao_rl.recipes.validation import check_agent, validate

MAX_BYTES = 200_000
MAX_DEPTH = 20
_LONG_KEY = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")


@cache
def recipe_folder() -> Path:
    """The folder that holds ``agents/`` and ``envs/``: inside the installed package, else the checkout's root."""
    package = Path(__file__).parent.parent
    if (package / "_recipes").is_dir():
        return package / "_recipes"
    root = package.parent
    project = root / "pyproject.toml"
    if project.is_file() and 'name = "alrao-rl"' in project.read_text():
        return root
    raise UserError(f"no recipes next to {package}: the installation is incomplete; install alrao-rl again")


def recipe_names(kind: str) -> list[str]:
    """Names of the shipped recipes; ``kind`` is ``agents`` or ``envs``."""
    folder = recipe_folder() / kind
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: if it cannot be read, is not TOML, or is far too large.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UserError(f"cannot read {path}: it is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes, expected a recipe of a few lines")
        return parse_toml(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a recipe: expected TOML text") from None
    except RecursionError:
        raise UserError(f"{path} is not a recipe: it is nested more than {MAX_DEPTH} tables deep") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{suggest_path(path)}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML, except for text that would take minutes or exhaust the stack.

    Raises:
        TOMLDecodeError: if it is not TOML.
        RecursionError: if it is nested too deeply.
    """
    if _LONG_KEY.search(text):  # the library's time grows with the square of its length
        raise RecursionError
    data = tomllib.loads(text)
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        tables = [value for value in level if isinstance(value, (dict, list))]
        level = [inner for table in tables for inner in (table.values() if isinstance(table, dict) else table)]
        if not level:
            return data
    raise RecursionError


def load_agent_recipe(name: str) -> tuple[str, Agent, str]:
    """Read an agent by name or by the path of a TOML file; return its name, its content and its origin."""
    path = _locate(name, "agents", "agent")
    return path.stem, check_agent(read_toml(path), str(path)), str(path)


def _locate(name: str, kind: str, what: str) -> Path:
    if name.endswith(".toml"):
        # The name ends up in folder names and messages.
        if Path(name).stem.startswith(".") or not Path(name).stem.isprintable():
            raise UserError(f"{what} {name!r}: expected a file name of printable characters, not beginning with a dot")
        return Path(name)
    choices = recipe_names(kind)
    if name not in choices:
        raise UserError(
            f"unknown {what} {name!r}, expected one of {', '.join(choices)} or the path of a .toml file"
            f"{suggest(name, choices)}"
        )
    return recipe_folder() / kind / f"{name}.toml"


def load_environment(name: str) -> tuple[Environment, str]:
    """Find an environment: a recipe's name, the path of a TOML file, or any Gymnasium id (``package:Id`` too)."""
    if name.endswith(".toml") or name in recipe_names("envs"):
        path = _locate(name, "envs", "environment")
        return validate(Environment, read_toml(path), str(path)), str(path)
    return Environment.model_construct(id=name), "--env"


def check_trust(env_id: object, where: str, trust: bool) -> None:
    """Refuse an environment whose package a file names: a stranger's file may come with a package of that name.

    Raises:
        UserError: if its id names a package that the user has not allowed to be imported.
    """
    package, colon, _ = str(env_id).rpartition(":")
    if colon and not trust:
        raise UserError(
            f"{where} names the environment {env_id!r}, for which the package {package!r} would be imported: "
            "if you trust it, add --trust"
        )
