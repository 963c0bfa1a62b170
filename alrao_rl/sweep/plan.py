"""What a sweep consists of: its file ``sweep.toml``, the cells (environment × agent × setting) and the runs in them.

A cell is one recipe; a run is a cell at one seed. As elsewhere, runs are in ``ENV/AGENT/seed-N`` of the sweep's folder;
the folder of an agent at a value of the grid is named ``AGENT@KEY=VALUE``, shortened if that is too long.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from alrao_rl.errors import FolderError, UserError
from alrao_rl.notation import MAX_SEEDS, literal, parse_seeds, toml_key
from alrao_rl.recipes.algorithms import ALGORITHMS
from alrao_rl.recipes.fields import MAX_COUNT, Count, Table, json_value
from alrao_rl.recipes.files import load_agent_recipe, read_toml
from alrao_rl.recipes.overrides import find_key, parse_value
from alrao_rl.recipes.schema import Agent, Recipe
from alrao_rl.recipes.validation import validate
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.runs.configuration import EVALUATION, differences, flatten, identity
from alrao_rl.runs.names import RunName, setting_name
from alrao_rl.train.options import RunOptions

MAX_RUNS = 100_000
FILE = "sweep.toml"

Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MAX_SEEDS)]
Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1000)]
Values = Annotated[list[Any], Field(min_length=1, max_length=1000), AfterValidator(json_value)]


def _timesteps(value: Any) -> Any:
    numbers = list(value.values()) if isinstance(value, dict) else [value]
    if not numbers or not all(type(number) is int and 1 <= number <= MAX_COUNT for number in numbers):
        raise ValueError("expected a whole number of at least 1, or a table of such numbers by environment")
    return value


# Not validated as a union, of which an error would quote the first member.
Timesteps = Annotated[int | dict[str, int], PlainValidator(_timesteps)]


class Sweep(Table):
    """A ``sweep.toml``.

    ``tuning_seeds`` are for choosing among the values of the grid, so that values are not chosen by the scores that are
    reported; with ``tune``, the reported seeds run only at the rates chosen on them. In a file both kinds of seeds may
    be written as on the command line, ``"0-9"``. ``timesteps`` applies to every run or, as a table, to those on each
    environment; ``budget`` is a fraction of the timesteps in each environment's file.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    agents: Names
    envs: Names
    seeds: Annotated[Seeds, Field(min_length=1)]
    tuning_seeds: Seeds = Field(default_factory=list)
    tune: bool = False
    grid: dict[str, Values] = Field(default_factory=dict)
    eval_episodes: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    eval_freq: Count | None = None
    eval_budget: Annotated[float, Field(ge=0, le=MAX_COUNT)] | None = None
    timesteps: Timesteps | None = None
    budget: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        lists: dict[str, list[Any]] = {f"grid.{key}": values for key, values in self.grid.items()}
        lists |= {key: getattr(self, key) for key in ("agents", "envs", "seeds", "tuning_seeds")}
        for key, values in lists.items():
            _no_duplicates(key, values)
        seeds = len(self.seeds) + len(self.tuning_seeds)
        n_runs = math.prod(map(len, [self.agents, self.envs, *self.grid.values()]), start=seeds)
        if n_runs > MAX_RUNS:
            raise ValueError(f"these are {n_runs:,} runs, expected at most {MAX_RUNS:,} in a sweep")
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(
                f"seed {both[0]} is in seeds and in tuning_seeds: settings must not be chosen by reported scores"
            )
        if self.tuning_seeds and not self.grid:
            raise ValueError("tuning_seeds are for choosing among the values of a grid, and there is no grid")
        if self.tune and not self.tuning_seeds:
            raise ValueError("tune chooses learning rates on tuning_seeds, and there are none")
        if self.tune and not any(key.split(".")[-1] == "learning_rate" for key in self.grid):
            raise ValueError("tune chooses among the values of grid.learning_rate, and there are none")
        if isinstance(self.timesteps, dict) and (without := [env for env in self.envs if env not in self.timesteps]):
            there = ", ".join(self.timesteps)
            raise ValueError(f"timesteps has no {without[0]}, which is one of envs; it has {there}")
        if self.timesteps is not None and self.budget is not None:
            raise ValueError("timesteps and budget exclude each other: give one of them")
        return self

    def as_toml(self) -> str:
        """The file's text."""
        data = self.model_dump(exclude_none=True, exclude={"grid"} if self.tune else {"grid", "tune"})
        lines = [f"{key} = {literal(value)}" for key, value in data.items() if value != []]
        if self.grid:
            lines += ["", "[grid]", *(f"{toml_key(key)} = {literal(values)}" for key, values in self.grid.items())]
        return "\n".join(lines) + "\n"


def _no_duplicates(key: str, values: Sequence[Any]) -> None:
    seen: set[object] = set()
    for value in values:
        mark = value if isinstance(value, Hashable) else json.dumps(value, sort_keys=True, default=str)
        if mark in seen:
            raise ValueError(f"{key} holds {value!r} twice")
        seen.add(mark)


# --- reading --------------------------------------------------------------------------------------------------------


def parse_grid(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Grid axes such as ``learning_rate=1e-4,1e-3`` or ``net_arch=[32],[64,64]``.

    Raises:
        UserError: if there is no key or no value, a key is given twice, or values are not TOML.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, _, values = (part.strip() for part in text.partition("="))
        if not key or not values:
            raise UserError(f"--grid {text!r}: expected KEY=VALUE,VALUE,…, such as learning_rate=1e-4,1e-3")
        if key in grid:
            raise UserError(f"--grid {key} is given twice: give its values once, separated by commas")
        try:
            grid[key] = list(parse_value(f"[{values}]", f"--grid {key}"))
        except UserError:  # bare words
            grid[key] = [parse_value(value.strip(), f"--grid {key}") for value in values.split(",")]
    return grid


def read(path: Path) -> dict[str, Any]:
    """Content of a ``sweep.toml``, with a grid's dotted keys as one key each and seeds as numbers; not checked yet.

    Raises:
        UserError: if it cannot be read, or its seeds are a text that cannot be parsed.
    """
    data = read_toml(path)
    for key in ("seeds", "tuning_seeds"):
        if isinstance(data.get(key), str):
            data[key] = parse_seeds([data[key]], f"{path}: {key}")
    if isinstance(data.get("grid"), dict):
        data["grid"] = dict(flatten(data["grid"]))
    return data


def checked(data: Mapping[str, Any], where: str) -> Sweep:
    """Validate data as a sweep.

    Raises:
        UserError: if it is not valid; one line with what is wrong in ``where``, the file or the command line.
    """
    sweep: Sweep = validate(Sweep, dict(data), where)
    return sweep


def extended(kept: Sweep, call: Sweep, where: str) -> Sweep:
    """The kept sweep with what a call adds to it.

    Raises:
        UserError: if the call contradicts it, such as by other timesteps; names the differences.
    """
    if isinstance(kept.timesteps, dict) and isinstance(call.timesteps, dict):
        # Further environments have further timesteps.
        all_kept, all_called = call.timesteps | kept.timesteps, kept.timesteps | call.timesteps
        kept, call = (one.model_copy(update={"timesteps": of}) for one, of in ((kept, all_kept), (call, all_called)))
    old, new = (_meaning(sweep) for sweep in (kept, call))
    if changed := list(differences(old, new)):
        raise FolderError(f"{where} is another sweep ({'; '.join(changed[:3])})")
    lists = {key: _union(getattr(kept, key), getattr(call, key)) for key in ("agents", "envs", "seeds", "tuning_seeds")}
    grid = {key: _union(values, call.grid[key]) for key, values in kept.grid.items()}
    return checked(call.model_dump() | lists | {"grid": grid, "name": kept.name}, where)


def _meaning(sweep: Sweep) -> dict[str, Any]:
    """What may not change: the length of runs, and the keys that distinguish them."""
    same = {key: getattr(sweep, key) for key in ("timesteps", "budget")}
    return {**same, "keys of the grid": list(sweep.grid)}


def _union(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    return [*old, *(value for value in new if value not in old)]


def write(path: Path, sweep: Sweep) -> None:
    """Write a ``sweep.toml``, unless the file already says the same; it then keeps its comments."""
    if not path.exists() or checked(read(path), str(path)) != sweep:
        write_atomically(path, sweep.as_toml())


# --- cells and runs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cell:
    """An agent at one setting on one environment.

    Args:
        options: of its runs, except for the seed.
        recipe: that of the options.
        values: of the grid, by its keys; keys that do nothing to this agent are left out.
        inert: the keys left out.
    """

    options: RunOptions
    recipe: Recipe
    values: Mapping[str, Any]
    inert: tuple[str, ...]

    def name(self, seed: int | None = None) -> RunName:
        """Name of its run at a seed."""
        agent = self.recipe.agent_name
        setting = setting_name(self.values, agent) if self.values else ""
        return RunName(self.recipe.environment.id, agent, setting, seed)

    @property
    def setting(self) -> str:
        """The values of the grid, as ``load_results`` writes them."""
        agent = self.recipe.agent
        return ", ".join(f"{'.'.join(find_key(key, agent))}={json.dumps(value)}" for key, value in self.values.items())

    @property
    def env(self) -> str:
        """Id of the environment."""
        return self.recipe.environment.id

    @property
    def agent(self) -> str:
        """Name of the agent."""
        return self.recipe.agent_name

    @property
    def label(self) -> str:
        """The name in messages: agent with its setting, environment."""
        return f"{self.name().cell} on {self.env}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json`` of its runs, without seed and provenance."""
        return self.options.configuration(self.recipe)


@dataclass(frozen=True)
class Run:
    """A cell at one seed."""

    cell: Cell
    seed: int

    @property
    def options(self) -> RunOptions:
        """The options for ``alrao_rl.train``."""
        return replace(self.cell.options, seed=self.seed)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What distinguishes the run within the sweep: environment, agent, setting, seed."""
        return self.cell.env, self.cell.agent, self.cell.setting, str(self.seed)

    @cached_property
    def name(self) -> RunName:
        """Its name."""
        return self.cell.name(self.seed)

    @property
    def folder(self) -> Path:
        """Its folder, relative to that of the sweep."""
        return self.name.folder

    @property
    def label(self) -> str:
        """The name in messages."""
        return self.name.label

    @property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json``, without provenance."""
        return {**self.cell.config, "seed": self.seed}

    @property
    def digests(self) -> tuple[str, str]:
        """The configuration in twelve digits: with another one it is another run, whatever its name.

        The second is what earlier versions wrote, which includes ``eval_episodes``.
        """
        config = identity(self.config)
        return _digest(config), _digest({**config, "eval_episodes": self.config["eval_episodes"]})


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def cells(sweep: Sweep, trust: bool = False) -> list[Cell]:
    """All cells, each resolved and checked as ``alrao_rl.train`` will do it, with ``--trust`` or without.

    Raises:
        UserError: if an agent, an environment or a key is unknown, a value is invalid, or two cells have one folder.
    """
    found = [
        _cell(env, agent, sweep, values, trust)
        for env in sweep.envs
        for agent in sweep.agents
        for values in _settings(agent, sweep.grid)
    ]
    by_group: dict[str, Cell] = {}
    for cell in found:
        other = by_group.setdefault(cell.name().group, cell)
        if other is not cell:
            first, second = (" ".join(twin.options.arguments()) for twin in (other, cell))
            raise UserError(f"{cell.label} is in the sweep twice, as {first} and as {second}")
    return found


def _settings(agent: str, grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Values of the keys that the agent has, in every combination; a single empty dict if it has none."""
    recipe = load_agent_recipe(agent)[1]
    for key in grid:
        if not any(_has(other, key) for other in _every_kind()):
            find_key(key, recipe, flag="--grid")  # raises an error that says what is wrong
    keys = [key for key in grid if _has(recipe, key)]
    placed = [tuple(find_key(key, recipe)) for key in keys]
    if len(set(placed)) < len(placed):
        raise UserError(f"--grid: two of its keys, {', '.join(keys)}, are the same")
    return (dict(zip(keys, values, strict=True)) for values in product(*(grid[key] for key in keys)))


def _every_kind() -> Iterator[Agent]:
    for algo in ALGORITHMS:
        yield Agent(algo=algo, policy="stock")
        yield Agent(algo=algo, policy="alrao")


def _has(agent: Agent, key: str) -> bool:
    try:
        find_key(key, agent)
    except UserError:
        return False
    return True


def _cell(env: str, agent: str, sweep: Sweep, values: Mapping[str, Any], trust: bool) -> Cell:
    evaluation = {key: value for key in EVALUATION if (value := getattr(sweep, key)) is not None}
    overrides = tuple(f"{key}={literal(value)}" for key, value in values.items())
    timesteps = sweep.timesteps[env] if isinstance(sweep.timesteps, dict) else sweep.timesteps
    options = RunOptions(agent, env, overrides=overrides, timesteps=timesteps, trust=trust, **evaluation)
    options.check()
    recipe = options.recipe("--grid")
    if sweep.budget is not None:
        recipe = replace(recipe, timesteps=max(round(recipe.timesteps * sweep.budget), 1))
    options = replace(options, timesteps=recipe.timesteps)
    options.check()
    return Cell(options, recipe, values, inert=tuple(key for key in sweep.grid if key not in values))


def runs(sweep: Sweep, cells: Sequence[Cell]) -> list[Run]:
    """All runs, seed by seed, so that a sweep that is partly done is the whole table with fewer seeds.

    Tuning seeds are only for cells among which a setting is chosen. They come last; with ``tune`` they come first, and
    the reported seeds of those cells are left to :mod:`alrao_rl.sweep.tuning`.
    """
    tuning = [Run(cell, seed) for seed in sweep.tuning_seeds for cell in cells if cell.setting]
    tested = [Run(cell, seed) for seed in sweep.seeds for cell in cells if not (sweep.tune and cell.setting)]
    return tuning + tested if sweep.tune else tested + tuning
