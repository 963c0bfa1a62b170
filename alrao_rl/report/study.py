"""What was requested and what was run: methods, their seeds and rates, and what is missing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, groupby, product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from alrao_rl import stats
from alrao_rl.checks import is_number
from alrao_rl.errors import UserError, first_line, suggest
from alrao_rl.notation import parse_seeds
from alrao_rl.recipes.algorithms import ALGORITHMS
from alrao_rl.report import twice
from alrao_rl.runs import logs
from alrao_rl.runs.configuration import flatten
from alrao_rl.runs.names import RunName, setting_names
from alrao_rl.runs.results import SCORED, each_row, load_curves, load_results, with_floors

Choice: TypeAlias = Literal["", "tuned", "shared rate", "default rate"]
SECOND = ("shared rate", "default rate")
"""Choices that a tuned rate, of the same agent, is better than by definition."""
Key: TypeAlias = tuple[str, str, str, int]
"""What distinguishes a run from every other: environment, agent, setting, seed."""
MOST_POINTS = 55_000
"""Points of all curves together: 550 runs at 100 bins keep the file below 2 MB."""


@dataclass(frozen=True, eq=False)
class Method:
    """An agent as it is compared: one configuration, at the learning rate chosen for each environment.

    Attributes:
        name: what the report calls it.
        agent: name of its recipe.
        variant: what distinguishes its configuration from others of the recipe, except for the rate; mostly empty.
        policy: ``alrao`` or ``stock``.
        algo: ``dqn``, ``a2c``, ``ppo``.
        runs: rows of ``load_results`` with the reported seeds, whatever their state.
        rates: learning rate by environment, if there was one to choose.
        choice: ``tuned``, a rate for each environment; ``shared rate``, one for all of them; ``default rate``, that of
            Stable-Baselines3; empty without a choice.
        tuning_steps: environment steps of the runs that were only used to choose.
        tuned_on: the seeds on which rates were chosen, if none of them is reported; else empty.
        basis: the runs at its rates by which these were chosen, or all of ``runs`` if there was nothing to choose.
    """

    name: str
    agent: str
    variant: str
    policy: str
    algo: str
    runs: pd.DataFrame
    rates: Mapping[str, float] = field(default_factory=dict)
    choice: Choice = ""
    tuning_steps: int = 0
    tuned_on: tuple[int, ...] = ()
    basis: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def held_out(self) -> bool:
        """Whether its rates were chosen on seeds that are not reported."""
        return bool(self.tuned_on)

    @property
    def scored(self) -> pd.DataFrame:
        """Its runs that have a score."""
        return self.runs[self.runs.state.isin(SCORED)]

    def on(self, env: str) -> pd.DataFrame:
        """Its scored runs on one environment."""
        return self.scored[self.scored.env == env]

    def comparable(self, score: str = "auc_normalised") -> list[str]:
        """Environments on which it has runs and all of them have this score: a run left out would flatter the rest."""
        known = self.scored[score].astype(float).map(np.isfinite).groupby(self.scored.env).all()
        return [str(env) for env in known.index[known]]

    def scores(self, envs: Iterable[str], score: str = "auc_normalised") -> dict[str, stats.Array]:
        """Scores ``(n_seeds,)`` by environment."""
        return stats.by_environment(self.scored[self.scored.env.isin(list(envs))], score)


class Study:
    """All runs in a folder, and the methods that they belong to.

    Args:
        root: the folder.

    Raises:
        UserError: if there is no run in it, or its ``sweep.toml`` is not valid.

    Attributes:
        frame: rows of ``load_results``; ``env`` is the ``id`` with its variant, ``agent`` includes the folder if that
            distinguishes two of its runs, ``configuration`` is the setting without the rate.
        warnings: about runs that are left out, or distinguished by their folders.
        substituted: by environment without a floor, how many runs without a score get its lowest return.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        frame = load_results(root)
        # What is damaged beyond the name of its run belongs to no environment.
        nameless = frame.path.map(lambda path: logs.nameless(Path(path)))
        damage = [f"{run.path}: {run.error}" for run in each_row(frame[nameless])]
        frame = frame[~nameless].reset_index(drop=True)
        if not len(frame):
            raise UserError(f"{root} holds no run that can be read: {damage[0]}")
        for column in ("env", "agent", "algo", "policy", "variant", "setting", "error"):
            frame[column] = frame[column].map(clean)
        self.sweep = _sweep(root / "sweep.toml")
        self.tuning_seeds = self.sweep["tuning_seeds"]
        # A run that cannot be read has no rate and no setting, and its agent is the name of its folder.
        names = frame.path.map(RunName.parse)
        cells, agents, settings = (
            names.map(lambda name, part=part: clean(getattr(name, part))) for part in ("cell", "agent", "setting")
        )
        frame["agent"] = frame.agent.mask(frame.agent == cells, agents)
        frame["cell"] = settings if self.sweep["grid"] else frame.setting
        # From here on, a variant is a separate environment.
        frame = frame.assign(id=frame.env, env=stats.environments(frame)).drop(columns="variant")
        frame["configuration"] = frame.setting.map(_without_rate)
        frame, lines = twice.resolved(frame, root)
        frame["agent"], self.warnings = frame.agent.map(clean), [clean(line) for line in [*damage, *lines]]
        frame, self.substituted = with_floors(frame)
        self.frame = frame
        # A sweep requests an id, which stands for all variants that an agent has run.
        seen_as = frame.groupby(["agent", "id"]).env.unique()
        self._asked_of = {
            agent: [name for env in self.sweep["envs"] for name in seen_as.get((agent, env), [env])]
            for agent in self.sweep["agents"]
        }
        seen = self.without_tuning(frame).seed.dropna().astype(int)
        self.seeds = sorted({*self.sweep["seeds"], *seen} - set(self.tuning_seeds))
        self.envs = sorted({*frame.env, *chain(*self._asked_of.values())})
        self.scaled = [env for env in self.envs if frame[frame.env == env].auc_normalised.notna().any()]
        self.methods = self._methods()

    def _methods(self) -> list[Method]:
        """The methods, Alrao's first, then by name."""
        whole = self.frame[self.frame.state != "broken"]
        methods = []
        for (agent, variant), rows in whole.groupby(["agent", "configuration"]):
            name = f"{agent} ({variant})" if variant else str(agent)
            made = (
                self._at_rates(name, rows)
                if rows.learning_rate.nunique() > 1
                else [_method(name, self.without_tuning(rows))]
            )
            methods += [method for method in made if len(method.runs)]
        return sorted(methods, key=lambda method: (method.policy != "alrao", method.name))

    def without_tuning(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The runs on reported seeds."""
        return rows[~rows.seed.isin(self.tuning_seeds)]

    def _at_rates(self, name: str, rows: pd.DataFrame) -> list[Method]:
        """A stock agent with several rates: at the best one for each environment, and at the best one for all."""
        scored = rows[rows.state.isin(SCORED) & rows.auc.notna()]
        tuning = scored[scored.seed.isin(self.tuning_seeds)]
        # If some rates have no run on a tuning seed yet, the choice would be among the others only.
        held_out = len(tuning) > 0 and _places(self.without_tuning(scored)) <= _places(tuning)
        chosen_on = tuning if held_out else self.without_tuning(scored)
        choices: dict[Choice, Mapping[str, float]] = dict(stats.chosen_rates(chosen_on).items())
        if self.sweep["tune"]:
            default = dict.fromkeys(rows.env.unique(), ALGORITHMS[rows.algo.iloc[0]].learning_rate)
            if default not in choices.values():
                choices["default rate"] = default
        methods = []
        for choice, rates in choices.items():
            chosen = rows.learning_rate == rows.env.map(rates)
            # With tuning seeds, only their runs were needed to choose; without, those at all other rates were.
            others = rows[rows.seed.isin(self.tuning_seeds)] if held_out else self.without_tuning(rows[~chosen])
            is_default = choice == "default rate"
            steps = 0 if is_default else int(others.timesteps.fillna(0).sum())
            seeds = tuple(sorted(tuning.seed.astype(int).unique())) if held_out and not is_default else ()
            basis = chosen_on[chosen_on.learning_rate == chosen_on.env.map(rates)]
            runs = self.without_tuning(rows[chosen])
            methods.append(_method(f"{name} ({choice})", runs, rates, choice, steps, seeds, basis))
        return methods

    # --- what is missing --------------------------------------------------------------------------------------------

    @cached_property
    def states(self) -> dict[Key, str]:
        """The state of every run that was requested or exists; ``not started`` if it does not exist."""
        frame = self.frame[self.frame.seed.notna()]
        keys = zip(frame.env, frame.agent, frame.cell, frame.seed.astype(int), strict=True)
        there = list(zip(keys, frame.state, strict=True))
        found: dict[Key, str] = dict.fromkeys(self._asked(), "not started")
        found |= {key: state for key, state in there if state != "broken"}
        absent = {(env, agent, seed) for (env, agent, _, seed), state in found.items() if state == "not started"}
        for key in (key for key, state in there if state == "broken"):
            env, agent, _, seed = key
            # The setting of a run that cannot be read may be unknown: then it is one of those that seem absent.
            if key in found or (env, agent, seed) not in absent:
                found[key] = "broken" if found.get(key, "not started") == "not started" else found[key]
        return found

    def _asked(self) -> Iterable[Key]:
        frame = self.frame[self.frame.state != "broken"]
        for agent in sorted({*self.sweep["agents"], *frame.agent}):
            rows = frame[frame.agent == agent]
            for env, cell in product(sorted({*self._asked_of.get(agent, []), *rows.env}), self._cells_of(rows)):
                if self._is_asked(agent, env):
                    tested = not cell or not self.sweep["tune"] or (env, agent, cell) in self._reported_cells
                    seeds = [*(self.asked_seeds if tested else []), *(self.tuning_seeds if cell else [])]
                    yield from ((env, agent, cell, seed) for seed in seeds)

    @cached_property
    def _reported_cells(self) -> set[tuple[str, str, str]]:
        """Environments, agents and settings at the rates that the methods report."""
        rates = [(m, env, rate) for m in self.methods for env, rate in m.rates.items()]
        found = set()
        for method, env, rate in rates:
            rows = self.frame[(self.frame.agent == method.agent) & (self.frame.configuration == method.variant)]
            cells = rows.cell[(rows.env == env) & (rows.learning_rate == rate)]
            found |= {(env, method.agent, str(cell)) for cell in cells}
        return found

    def _is_asked(self, agent: str, env: str) -> bool:
        """Whether ``sweep.toml`` requests an agent on an environment; a list that is missing excludes nothing."""
        agents, envs = self.sweep["agents"], self.sweep["envs"]
        ids = {env, *self.frame[self.frame.env == env].id}
        return (not agents or agent in agents) and (not envs or not ids.isdisjoint(envs))

    @property
    def asked_seeds(self) -> list[int]:
        """The reported seeds that ``sweep.toml`` requests; none without such a file."""
        return [seed for seed in self.sweep["seeds"] if seed not in self.tuning_seeds]

    def requested(self, *methods: Method) -> int:
        """The number of seeds requested for any of the methods; 0 if none was."""
        asked = any(self._is_asked(m.agent, env) for m in methods for env in self.envs if self.expects(m, env))
        return len(self.asked_seeds) if asked else 0

    def _cells_of(self, rows: pd.DataFrame) -> list[str]:
        """Settings of an agent: those of its runs, and the others of the grid's keys that its runs are named by."""
        seen = list(rows.cell.unique())
        asked = setting_names(self.sweep["grid"], rows.agent.iloc[0], seen) if seen else []
        return list(dict.fromkeys([*asked, *seen])) or [""]

    def missing(self) -> Iterator[tuple[str, str, str, int, list[tuple[int, str]]]]:
        """Environment, agent, setting, number of runs requested, and those without a score, with the reason."""
        for (env, agent, cell), keys in groupby(sorted(self.states), lambda key: key[:3]):
            runs = [(key[3], self.states[key]) for key in keys]
            if absent := [(seed, state) for seed, state in runs if state not in SCORED]:
                yield env, agent, cell, len(runs), absent

    @property
    def in_all(self) -> tuple[int, int]:
        """Runs that finished, and how many were requested or exist."""
        return sum(state == "finished" for state in self.states.values()), len(self.states)

    def expects(self, method: Method, env: str) -> bool:
        """Whether a method was requested or run on an environment."""
        frame = self.frame[self.frame.agent == method.agent]
        there = frame[(frame.configuration == method.variant) | (frame.state == "broken")]
        return env in self._asked_of.get(method.agent, []) or env in set(there.env)

    def finished(self, methods: Iterable[Method], envs: Iterable[str] | None = None) -> tuple[int, int]:
        """Runs of methods that finished, and how many were requested or exist."""
        pairs = [(m, env) for m in methods for env in (self.envs if envs is None else envs) if self.expects(m, env)]
        done = sum(int(((m.runs.env == env) & (m.runs.state == "finished")).sum()) for m, env in pairs)
        return done, sum(len(self._seeds_of(m, env)) for m, env in pairs)

    def _seeds_of(self, method: Method, env: str) -> set[int]:
        """Reported seeds of a method on an environment: requested, run, or of a run that cannot be read."""
        frame = self.without_tuning(self.frame)
        broken = frame[(frame.state == "broken") & (frame.agent == method.agent) & (frame.env == env)]
        asked = self.asked_seeds if self._is_asked(method.agent, env) else []
        runs = method.runs[method.runs.env == env]
        return {*asked, *runs.seed.astype(int), *broken.seed.dropna().astype(int)}

    # --- curves -----------------------------------------------------------------------------------------------------

    @cached_property
    def compared(self) -> pd.DataFrame:
        """Every scored run that a method reports, once."""
        rows = pd.concat([method.scored for method in self.methods]) if self.methods else self.frame.iloc[:0]
        return rows[~rows.index.duplicated()].sort_index()

    @cached_property
    def n_bins(self) -> int:
        """Bins of the curves: 100, or fewer to keep the report small."""
        return next((n for n in (100, 50, 25, 20) if n * len(self.compared) <= MOST_POINTS), 10)

    @cached_property
    def curves(self) -> pd.Series[Any]:
        """Curve ``(n_bins,)`` of every compared run, by its row."""
        return pd.Series(list(load_curves(self.compared, self.n_bins)), index=self.compared.index, dtype=object)

    def curves_of(self, method: Method, env: str) -> stats.Array:
        """Curves ``(n_seeds, n_bins)`` of a method's scored runs on an environment."""
        return np.array([self.curves[i] for i in method.on(env).sort_values("seed").index]).reshape(-1, self.n_bins)

    def constants(self, env: str) -> pd.Series[Any]:
        """The constants of an environment: ``random_score``, ``reference_score``, ``floor``; nan if unknown."""
        rows = self.frame[self.frame.env == env]
        return rows[["random_score", "reference_score", "floor"]].max()

    def baseline(self, name: str) -> Method:
        """The method that ``--baseline`` names: an agent, at its best rates, or a method of the report.

        Raises:
            UserError: if there is no method of that name.
        """
        for method in self.methods:
            if name == method.name or (name == method.agent and method.choice not in SECOND):
                return method
        names = sorted({method.agent for method in self.methods} | {method.name for method in self.methods})
        raise UserError(f"--baseline is {name!r}, expected one of {', '.join(names)}{suggest(name, names)}")


def clean(text: object) -> str:
    """Text from a run as one printable line: no control, bidirectional or other unprintable character."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _places(runs: pd.DataFrame) -> set[tuple[str, float]]:
    """Pairs of environment and rate for which there are runs."""
    return set(zip(runs.env, runs.learning_rate, strict=True))


def _method(name: str, runs: pd.DataFrame, rates: Mapping[str, float] | None = None, *choice: Any) -> Method:
    agent, variant, policy, algo = (
        str(runs[fact].iloc[0]) if len(runs) else "" for fact in ("agent", "configuration", "policy", "algo")
    )
    return Method(name, agent, variant, policy, algo, runs, rates or {}, *(choice or ("", 0, (), runs)))


def _without_rate(setting: str) -> str:
    return re.sub(r"hyperparameters\.learning_rate=[^,]*(, |$)", "", setting).removesuffix(", ")


# --- sweep.toml -----------------------------------------------------------------------------------------------------


def _sweep(path: Path) -> dict[str, Any]:
    """The requested ``agents``, ``envs``, ``seeds``, ``tuning_seeds``, ``grid`` and ``tune``; empty without the file.

    Raises:
        UserError: if it is not TOML, or holds something else under those names.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        data = {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a TOML file: {first_line(error)}") from None
    asked: dict[str, Any] = {key: _seeds(path, key, data.get(key, [])) for key in ("seeds", "tuning_seeds")}
    asked["tune"] = data.get("tune", False) is True
    for key in ("agents", "envs"):
        names = data.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key} is {names!r}, expected a list of names")
        # A recipe may be given as a path; runs are named by the file.
        asked[key] = [clean(Path(name).stem if name.endswith(".toml") else name) for name in names]
    grid = data.get("grid", {})
    asked["grid"] = dict(flatten(grid)) if isinstance(grid, dict) else {"": grid}
    for key, values in asked["grid"].items():
        if not isinstance(values, list):
            name = f"grid.{key}" if key else "grid"
            raise UserError(f"{path}: {name} is {values!r}, expected lists of values by key")
    return asked


def _seeds(path: Path, key: str, value: Any) -> list[int]:
    """Seeds as a list of whole numbers, or as on the command line: ``"0-9"``, ``"0,3,7"``."""
    if isinstance(value, str):
        return parse_seeds([value], f"{path}: {key}")
    if isinstance(value, list) and all(is_number(seed) and isinstance(seed, int) and seed >= 0 for seed in value):
        return value
    raise UserError(f"{path}: {key} is {value!r}, expected a list of whole numbers such as [0, 1, 2]")
