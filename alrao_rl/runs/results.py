"""A folder of run folders as one table, for people's own notebooks and for the report."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl import stats
from alrao_rl.checks import first_value
from alrao_rl.errors import UserError, first_line, suggest_path
from alrao_rl.runs import logs
from alrao_rl.runs.configuration import flatten, identity
from alrao_rl.runs.files import COLUMNS, EnvironmentRecord, RunConfig, RunStatus
from alrao_rl.runs.folder import is_given_up
from alrao_rl.runs.names import RunName
from alrao_rl.runs.provenance import PACKAGES, stretches
from alrao_rl.runs.reading import RunFiles, read_run_file

SCORED = ("finished", "failed", "diverged")
"""States of runs that have a score; of those, failed and diverged ones score the environment's floor."""

_FILES = {"config.json", "status.json", "episodes.csv"}
_NOT_A_SETTING = ("agent", "env", "seed", "timesteps")
_OF_ACTIONS = ("normalize_observations", "normalize_rewards")
"""What recipes leave to the kind of actions: a setting only where runs of one environment differ in it."""
_NOT_A_VARIANT = ("id", "random_score", "reference_score", "floor")
_NOT_OF_ENVIRONMENTS = {"alrao-rl", "sb3-contrib", *PACKAGES}
"""Distributions that decide on the agent's side of a run, or on every run."""


def load_results(path: str | Path) -> pd.DataFrame:
    """All runs under a folder, one row each, whatever state they are in.

    =====================  ============================================================================================
    ``env, agent, seed``   of the run; from the folder's path where its configuration cannot be read
    ``algo, policy``       such as ``dqn``, ``a2c``, ``ppo``; ``alrao`` or ``stock``
    ``state``              finished, failed, interrupted (or killed), running, queued; **diverged**: a return is not
                           finite; **broken**: a file is missing, half-written or not what a run writes
    ``timesteps``          done, and ``requested_timesteps``
    ``episodes``           number of them
    ``auc``                return averaged over the timesteps of training (:func:`alrao_rl.stats.auc`)
    ``final_return``       the same over the last fifth of them
    ``auc_normalised``     scaled to random policy = 0, reference score = 1; so is ``final_normalised``
    ``learning_rate``      of a stock agent, where it falls the first one; nan for Alrao, whose interval is ``lr_min``
                           to ``lr_max``
    ``setting``            what distinguishes the configuration from other runs of the agent, such as
                           ``hyperparameters.gamma=0.9``; empty if nothing does
    ``variant``            what distinguishes the environment from that of other runs here with its id, such as
                           ``kwargs.gain=5.0``: keyword arguments, wrappers, versions of the packages it is made of,
                           or the timesteps asked for from those of other runs of the algorithm; empty if nothing does
    ``floor``              what failed and diverged runs score: the environment's, where it names none its
                           ``random_score``, nan without either
    ``random_score``       and ``reference_score``: the constants of the normalised scores, nan where there are none;
                           the first of them counts before the first episode ends
    ``last_evaluation``    mean return of the last evaluation; no comparison is made by the best one
    ``wall_seconds``       of the run
    ``lowest_return``      of its episodes
    ``path``               where the run's folder lies, or lay, if only the study's ``logs.jsonl.xz`` has it now; a run
                           that is broken there beyond its name has the place in that file, and no env, agent and seed
    ``error``              why it failed or what is broken; empty otherwise
    =====================  ============================================================================================

    Scores are nan for runs that are not over and for broken ones: nobody knows what they would have been. No score
    depends on another run.

    Args:
        path: a folder such as ``results/NAME``, any folder above or below it, or one run; where only the study's logs
            have its runs, it need not be there.

    Raises:
        UserError: it is no folder, or there is no run in it.
    """
    root = Path(path)
    # One after the other, and of those that are there several times the last.
    found = {files.path: _Run(files) for files in _all_files(root)}
    if not found and not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}, expected one with runs{suggest_path(root)}")
    runs = [found[place] for place in sorted(found)]
    if not runs:
        raise UserError(f"{root} holds no run: expected folders such as ENV/AGENT/seed-0 with a config.json in them")
    frame = pd.DataFrame([run.row() for run in runs])
    frame["variant"], frame["setting"] = _variants(runs), _settings(runs)
    order = [*frame.columns.drop(["path", "error", "variant", "setting"]), "variant", "setting", "path", "error"]
    whole = dict.fromkeys(["seed", "timesteps", "requested_timesteps", "episodes"], "Int64")
    return frame[order].astype(whole).sort_values(["env", "variant", "agent", "seed", "path"], ignore_index=True)


def with_floors(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The runs, with the lowest return seen on the environment as its floor if none is known.

    It is the score of runs that have none. No other run's score depends on it.

    Args:
        frame: rows of :func:`load_results`.

    Returns:
        The runs, and by environment how many of them got such a score.
    """
    floor = frame.floor.fillna(frame.env.map(frame.groupby("env").lowest_return.min()))
    without = frame.state.isin(SCORED) & frame.auc.isna() & floor.notna()
    scores = {name: frame[name].where(~without, floor) for name in ("auc", "final_return")}
    counts = {str(env): len(runs) for env, runs in frame[without].groupby("env")}
    return frame.assign(floor=floor, **scores), counts


def load_curves(runs: pd.DataFrame, n_bins: int = stats.N_BINS) -> stats.Array:
    """The return over training of each run (:func:`alrao_rl.stats.curve`).

    Args:
        runs: rows of :func:`load_results`.
        n_bins: equally long stretches of the timesteps asked for.

    Returns:
        ``(n_runs, n_bins)``; the floor throughout for failed and diverged runs and those without an episode, nan for
        those without a score.

    Raises:
        UserError: a file has changed since the rows were made.
    """
    curves = np.full((len(runs), n_bins), np.nan)
    for i, run in enumerate(each_row(runs)):
        if run.state == "finished":
            steps, returns = _episodes(RunFiles(Path(str(run.path))), complete=True)
            curves[i] = stats.curve(steps, returns, run.requested_timesteps, run.floor, n_bins, run.random_score)
        elif run.state in SCORED:
            curves[i] = run.floor
    return curves


def each_row(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, columns as attributes; the type checker believes any of a cell."""
    return iter(frame.itertuples(index=False))


def load_heads(run: str | Path) -> pd.DataFrame:
    """The averaging weights of a run over time, and how often each head was re-cloned by then, from its ``heads.csv``.

    Returns:
        ``timestep, layer, head, learning_rate, weight, reclones``; no row for a stock agent and where the file cannot
        be read: nothing but a picture hangs on it.
    """
    return _load_log(run, "heads.csv")


def load_entropy(run: str | Path) -> pd.DataFrame:
    """The entropy coefficient of a run over time, from its ``entropy.csv``.

    Returns:
        ``timestep, ent_coef``; no row where none was learned and where the file cannot be read.
    """
    return _load_log(run, "entropy.csv")


def _load_log(run: str | Path, name: str) -> pd.DataFrame:
    columns = list(COLUMNS[name])
    try:
        data = io.BytesIO(read_run_file(Path(run), name))
        table = pd.read_csv(data, dtype={"layer": str}, on_bad_lines="skip", encoding_errors="replace")
        table = table[columns].dropna()
        numbers = [name for name in columns if name != "layer"]
        return table.astype(dict.fromkeys(numbers, np.float64)).reset_index(drop=True)
    except (OSError, ValueError, KeyError, pd.errors.ParserError):
        return pd.DataFrame(columns=columns)


def _all_files(root: Path) -> Iterator[RunFiles]:
    """Folders named as a run's is, or with two of its files, and where there is no folder what is kept of a run.

    What lies inside a run is its own. A run in the logs of a study comes as often as it has lines there.
    """
    is_run, logged = root.is_dir() and RunName.parse(root).seed is not None, set[Path]()
    for depth in range(0 if is_run else 4):
        for files in _logged(root, depth):
            logged.add(files.path)
            yield files
    for place, folders, names in walk(root):
        if len(_FILES.intersection(names)) > 1 or (_seed(place) is not None and not place.endswith(".zip")):
            yield RunFiles(Path(place))
            folders.clear()
        elif logs.FILE in names and Path(place) != root:
            for files in _logged(Path(place)):
                logged.add(files.path)
                yield files
        named = [Path(place, name) for name in names if _seed(name) is not None]
        for path in named:
            if path.suffix != ".zip":
                if not path.exists():  # a link that leads nowhere
                    yield RunFiles(path)
            elif path.stem not in folders and path.with_suffix("") not in logged:
                yield RunFiles(path)


def _logged(root: Path, depth: int = 0) -> Iterator[RunFiles]:
    """The runs under a folder that the logs of a study have, without those that have a folder there.

    Args:
        root: the folder.
        depth: how far the study's folder is above it.
    """
    parts = root.absolute().parts
    if len(parts) <= depth:
        return
    study, inner = Path(*parts[: len(parts) - depth]), parts[len(parts) - depth :]
    try:
        for entry in logs.entries(study / logs.FILE):
            folder = Path(f"{logs.FILE}@{entry.begin}") if entry.name is None else entry.name.folder
            path = root.joinpath(*folder.parts[depth:])
            if folder.parts[:depth] == inner and not path.is_dir():
                yield RunFiles(path, entry)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"cannot read {study / logs.FILE}: {error.strerror}") from None


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk`` does, sorted and without hidden folders; symbolic links are followed, each real folder seen once.

    What lies in the tree itself comes before what links lead to.
    """
    seen, starts = set[str](), [root]
    for start in starts:  # the list grows
        for place, folders, files in os.walk(start):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            yield place, folders, sorted(files)
            starts += [path for name in folders if (path := Path(place, name)).is_symlink()]


class _Run:
    """What is read of one run; ``broken`` says what could not be.

    ``configuration`` is all that ``config.json`` holds, by which runs are distinguished; empty where that is broken.
    """

    def __init__(self, files: RunFiles) -> None:
        self.path = path = files.path
        self.broken = ""
        self.configuration: dict[str, Any] = {}
        self.config: RunConfig | None = None
        self.status: RunStatus | None = None
        self.steps = self.returns = np.empty(0)
        self.diverged = ""
        try:
            data = files.json("config.json")
            self.config, self.configuration = RunConfig.of(data, path / "config.json"), data
            self.status = status = RunStatus.of(files.json("status.json"), path / "status.json")
            if (named := _seed(path)) not in (None, self.config.seed):
                raise UserError(f"{path / 'config.json'} is of seed {self.config.seed}, not {named} as its folder")
            if status.state == "finished":
                files.check_manifest()
            if status.state != "queued":
                self.steps, self.returns = _episodes(files, status.state == "finished")
        except UserError as error:
            # A path in the message would only repeat the row's.
            self.broken = str(error).replace(f"{path}{os.sep}", "")
        bad = np.flatnonzero(~np.isfinite(self.returns))
        if bad.size:
            self.diverged = f"the return is {self.returns[bad[0]]} at timestep {self.steps[bad[0]]:.0f}"
        folder = "" if logs.nameless(path) else path.absolute().parent.parent.name
        environment = self.config.env if self.config else EnvironmentRecord(id=folder)
        self.env = environment.id
        self.start, self.reference = _number(environment.random_score), _number(environment.reference_score)
        self.floor = self.start if environment.floor is None else environment.floor

    @property
    def state(self) -> str:
        """The state in ``status.json``, unless the files say more. A failed run may well leave a torn file."""
        state = self.status.state if self.status else "broken"
        if is_given_up(self.path, state):
            state = "interrupted"
        if self.broken:
            return state if state == "failed" else "broken"
        return "diverged" if self.diverged and state == "finished" else state

    def row(self) -> dict[str, Any]:
        """Its row of the table."""
        config, status, state = self.config, self.status, self.state
        rate = None if config is None or config.policy == "alrao" else config.hyperparameters.get("learning_rate")
        rates = config.alrao.get("lr_range", (math.nan, math.nan)) if config else (math.nan, math.nan)
        auc, final = self._scores(state)
        finite = self.returns[np.isfinite(self.returns)]
        reason = status.reason if status and state == "failed" else self.broken or self.diverged
        return {
            "env": self.env,
            "agent": config.agent if config else "" if logs.nameless(self.path) else self.path.absolute().parent.name,
            "seed": config.seed if config else _seed(self.path),
            "algo": config.algo if config else "",
            "policy": config.policy if config else "",
            "state": state,
            "timesteps": self._timesteps(),
            "requested_timesteps": config.timesteps if config else None,
            "episodes": len(self.returns),
            "auc": auc,
            "final_return": final,
            "auc_normalised": float(stats.normalise(auc, self.start, self.reference)),
            "final_normalised": float(stats.normalise(final, self.start, self.reference)),
            "learning_rate": first_value(rate),
            "lr_min": rates[0],
            "lr_max": rates[1],
            "floor": self.floor,
            "random_score": self.start,
            "reference_score": self.reference,
            "lowest_return": float(finite.min()) if finite.size else math.nan,
            "last_evaluation": _number(status.last_return if status else None),
            "wall_seconds": _number(status.wall_seconds if status else None),
            "path": str(self.path),
            "error": reason,
        }

    def _scores(self, state: str) -> tuple[float, float]:
        """AUC and final return: nan without a score, the floor for a failure."""
        if state not in SCORED or self.config is None:
            return math.nan, math.nan
        if state != "finished":
            return self.floor, self.floor
        episodes = (self.steps, self.returns, self.config.timesteps, self.floor, self.start)
        return stats.auc(*episodes), stats.final_return(*episodes)

    def _timesteps(self) -> int | None:
        """How far it came: what the run says itself, else the end of its last episode."""
        said = [self.status.timesteps, self.status.timestep] if self.status else []
        return next((steps for steps in said if steps is not None), int(self.steps.max()) if self.steps.size else None)


# --- reading --------------------------------------------------------------------------------------------------------


def _episodes(files: RunFiles, complete: bool) -> tuple[stats.Array, stats.Array]:
    """Timesteps and returns of the episodes of a run. Only one that is not complete may end within a line.

    Raises:
        UserError: the file is missing, half-written, or not what a run writes.
    """
    path = files.path / "episodes.csv"
    try:
        data = files.read(path.name)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not complete:
        data = data[: data.rfind(b"\n") + 1]
    header, names = data.partition(b"\n")[0].decode(errors="replace"), COLUMNS["episodes.csv"]
    if header != ",".join(names):
        raise UserError(f"{path} begins with {header[:80]!r}, expected {','.join(names)}")
    if not data.endswith(b"\n"):
        raise UserError(f"{path} is half-written: its last line has no end")
    try:
        # An empty cell must not pass for a return that is nan: that run would count as diverged.
        columns = {name: np.float64 for name in names}
        table = pd.read_csv(io.BytesIO(data), dtype=columns, keep_default_na=False, na_values=["nan"])
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is not as a run writes it: {first_line(error)}") from None
    steps, lengths = table["timestep"].to_numpy(), table["length"].to_numpy()
    if not (isinstance(table.index, pd.RangeIndex) and np.isfinite(lengths).all()):
        raise UserError(f"{path} is not as a run writes it: a line does not have {len(names)} numbers")
    if not (np.isfinite(steps) & (steps >= 0) & (steps < 2**53)).all():
        raise UserError(f"{path} is not as a run writes it: timestep must be an integer ≥ 0")
    return steps, table["return"].to_numpy()


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _seed(path: str | Path) -> int | None:
    """The seed that a run folder, or its zip, is named by."""
    return RunName.parse(path).seed


# --- over all runs --------------------------------------------------------------------------------------------------


def _variants(runs: list[_Run]) -> list[str]:
    """For each run ``key=value, …`` of what differs between the environments of one id."""
    readable = [run for run in runs if run.configuration]
    ids = [run.env for run in readable]
    environments = [
        {key: value for key, value in run.configuration["env"].items() if key not in _NOT_A_VARIANT and value != []}
        for run in readable
    ]
    # Algorithms have budgets of their own on one and the same environment.
    lengths = [{"timesteps": str(run.configuration["timesteps"])} for run in readable]
    of_algorithms = [(run.env, run.configuration["algo"]) for run in readable]
    parts = [
        _differing(map(_texts, environments), ids),
        _differing(lengths, of_algorithms),
        # A version that was not recorded is no other one.
        _differing([_versions(run.configuration) for run in readable], ids, absent=None),
    ]
    texts = {run.path: ", ".join(filter(None, part)) for run, *part in zip(readable, *parts, strict=True)}
    return [texts.get(run.path, "") for run in runs]


def _versions(config: Mapping[str, Any]) -> dict[str, str]:
    """Those of the packages that the environment is made of, all of a run that was continued with others."""
    found: dict[str, list[str]] = {}
    for stretch in stretches(config.get("provenance")):
        versions = stretch.get("versions")
        for name, version in versions.items() if isinstance(versions, Mapping) else ():
            if name not in _NOT_OF_ENVIRONMENTS:
                found.setdefault(name, []).append(str(version))
    return {name: " -> ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def _settings(runs: list[_Run]) -> list[str]:
    """For each run ``key=value, …`` of what differs between the configurations of its agent."""
    readable = [run for run in runs if run.configuration]
    told = [
        {key: one for key, one in identity(run.configuration).items() if key not in _NOT_A_SETTING} for run in readable
    ]
    agents = [run.configuration["agent"] for run in readable]
    for key in _OF_ACTIONS:
        seen: dict[str, dict[str, set[object]]] = {}
        for run, agent, table in zip(readable, agents, told, strict=True):
            seen.setdefault(agent, {}).setdefault(run.env, set()).add(table.get(key) or False)
        for agent, table in zip(agents, told, strict=True):
            if all(len(values) == 1 for values in seen[agent].values()):
                table.pop(key, None)
    differing = _differing(map(_texts, told), agents)
    texts = {run.path: text for run, text in zip(readable, differing, strict=True)}
    return [texts.get(run.path, "") for run in runs]


def _texts(table: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in flatten(table)}


def _differing(tables: Iterable[Mapping[str, str]], groups: Sequence[object], absent: str | None = "none") -> list[str]:
    """For each table ``key=value, …`` of what differs within its group.

    Args:
        tables: texts by key.
        groups: of each table.
        absent: value of a key that a table lacks; None says that it is unknown, which is no difference.
    """
    tables = list(tables)
    keys = dict.fromkeys(key for table in tables for key in table)
    values: dict[tuple[object, str], set[str]] = {}
    for table, group in zip(tables, groups, strict=True):
        for key in keys:
            if (value := table.get(key, absent)) is not None:
                values.setdefault((group, key), set()).add(value)
    return [
        ", ".join(
            f"{key}={table.get(key, absent or 'unknown')}" for key in keys if len(values.get((group, key), ())) > 1
        )
        for table, group in zip(tables, groups, strict=True)
    ]
