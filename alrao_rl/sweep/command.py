"""Train many agents on many environments: ``python -m alrao_rl.sweep --agents dqn --envs CartPole-v1 --seeds 0-9``.

Every run is ``python -m alrao_rl.train`` in a separate process, scheduled by Dask. The disk is the only record: the
same command again continues what is unfinished and repeats nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.cli.arguments import parse_count
from alrao_rl.cli.console import CommandLine, print_error, print_warning, say
from alrao_rl.cli.interruption import Interruption
from alrao_rl.errors import FolderError, UserError, first_line, suggest
from alrao_rl.notation import parse_seeds, plural, seeds_as_text
from alrao_rl.runs.configuration import EVALUATION
from alrao_rl.runs.names import is_cut
from alrao_rl.sweep.cluster import SchedulerGoneError, connect, local_cluster
from alrao_rl.sweep.folder import locked, refuse_if_locked
from alrao_rl.sweep.run import drive
from alrao_rl.train.options import Execution, add_shared_options, execution, given_evaluation
from alrao_rl.train.run import prepare

if TYPE_CHECKING:
    from alrao_rl.sweep.plan import Cell, Run, Sweep
    from alrao_rl.sweep.runs_csv import Rows
    from alrao_rl.sweep.states import Speeds, State

LIMIT = 14.0
"""Seconds after Ctrl-C or SIGTERM until the command ends, whatever its runs and workers do."""


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.sweep",
        description="Train agents on environments at many seeds. Results go to results/NAME, which keeps the sweep in "
        "sweep.toml; options that are not given are read from it.",
        epilog="The same command again continues what is unfinished and repeats nothing. Example: "
        "python -m alrao_rl.sweep --agents dqn dqn-adam --envs CartPole-v1 --seeds 0-9 --grid learning_rate=1e-4,1e-3",
    )
    p.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a sweep.toml with the keys of these options")
    p.add_argument("--agents", nargs="+", metavar="NAME|PATH", help="agents by name, or .toml files")
    p.add_argument(
        "--envs", nargs="+", metavar="ID", help="environments: recipes, Gymnasium ids, package:Id, .toml files"
    )
    p.add_argument("--seeds", nargs="+", metavar="SEEDS", help="such as 0-9 or 0,3,5-7")
    p.add_argument(
        "--tuning-seeds", nargs="+", metavar="SEEDS", help="further seeds, for choosing among the values of the grid"
    )
    p.add_argument(
        "--tune",
        action="store_true",
        default=None,
        help="run the learning rates of the grid on the tuning seeds only, then the best one of each environment, the "
        "best one for all and Stable-Baselines3's default on --seeds",
    )
    p.add_argument(
        "--grid", nargs="+", action="extend", metavar="KEY=V1,V2", help="values to try, such as learning_rate=1e-4,1e-3"
    )
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--timesteps", type=parse_count, metavar="N", help="environment steps of every run, such as 50000, 5e4 or 50k"
    )
    length.add_argument("--budget", type=float, metavar="X", help="times the environment's own timesteps (default 1)")
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="runs at a time on this machine (default: its cores)"
    )
    where.add_argument("--scheduler", metavar="ADDR", help="your own Dask cluster: tcp://HOST:8786 or tls://HOST:8786")
    p.add_argument("--name", help="name of the sweep (default: the file's, else sweep)")
    p.add_argument("--out", type=Path, metavar="DIR", help="its folder (default results/NAME)")
    p.add_argument("--run-timeout", type=float, metavar="SECONDS", help="a run that takes longer has failed")
    add_shared_options(p)
    p.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    p.add_argument("--dry-run", action="store_true", help="print what there is to do and stop")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: all runs are finished; 1: some failed, or are not done; 2: a mistake in the arguments; 130 or 143: interrupted by
    Ctrl-C or SIGTERM, on which its runs stop as ``alrao_rl.train`` does.
    """
    with Interruption(0.0, LIMIT) as interruption:
        try:
            return sweep(parser().parse_args(argv))
        except FolderError as error:
            print_error(f"{error}; choose another --name or --out")
            return 2
        except UserError as error:
            print_error(error)
            return 2
        except SchedulerGoneError as error:
            print_error(error)
            return 1
        except OSError as error:  # such as a full disk
            where = f"{error.filename}: " if error.filename else ""
            print_error(
                f"the sweep stopped: {where}{error.strerror or first_line(error)}; the same command continues it"
            )
            return 1
        except KeyboardInterrupt:
            print_error("interrupted; the same command continues, each run from its last checkpoint")
            return interruption.exit_status


def sweep(args: argparse.Namespace) -> int:
    """Plan the sweep, and unless it is a dry run, run it.

    Raises:
        UserError: if it cannot be run; then nothing was started or written.
    """
    how = _check(args)
    given = from_arguments(args)
    if args.envs is None:
        _check_trust(given.get("envs"), args)
    root = _root(args, given)
    if not args.dry_run:
        refuse_if_locked(root)
    from alrao_rl.sweep import plan

    kept = plan.checked(plan.read(root / plan.FILE), str(root / plan.FILE)) if (root / plan.FILE).exists() else None
    if kept and "envs" not in given:
        _check_trust(kept.envs, args)
    call = plan.checked(_completed(kept, given, root), str(args.file or "the sweep"))
    whole = plan.extended(kept, call, str(root / plan.FILE)) if kept else call
    cells = plan.cells(call, args.trust)
    # Imported here because these load pandas: a sweep that cannot be run is refused without waiting for it.
    from alrao_rl.runs import logs
    from alrao_rl.sweep import runs_csv
    from alrao_rl.sweep import states as survey

    lengths = _check_cells(cells, args.scheduler is None)
    with contextlib.ExitStack() as stack:
        client = (
            stack.enter_context(connect(args.scheduler)) if args.scheduler is not None and not args.dry_run else None
        )
        if not args.dry_run:
            stack.enter_context(locked(root))
        if damaged := logs.damaged(root):
            print_warning(
                f"the logs in {root} are damaged in {plural(damaged, 'place')}: restore an earlier version "
                "of logs.jsonl.xz; runs that have folders are kept anew"
            )
        table = runs_csv.Rows(root / runs_csv.FILE)
        states = _states(root, plan.runs(call, cells), table, args)
        states |= _states(root, _second_stage(root, call, cells, states), table, args)
        todo = _queued(states)
        speeds = survey.Speeds(table.values())
        n_workers = sum(client.nthreads().values()) if client else args.jobs
        _print_plan(root, call, states, lengths, speeds, n_workers)
        if args.dry_run:
            return 0
        plan.write(root / plan.FILE, whole)
        survey.take_in(root)
        for run, state in states.items():
            # A driver may have been killed between a run's end and its row.
            if state.name != "queued" and not survey.is_kept(root, run, table):
                survey.keep(root, run, state, table)
        while todo:
            client = client or stack.enter_context(local_cluster(min(args.jobs, len(todo))))
            drive(client, root, todo, states, table, speeds, how, args.run_timeout)
            states |= _states(root, _second_stage(root, call, cells, states), table, args)
            todo = _queued(states)
    return _conclude(root, states)


def _second_stage(root: Path, call: Sweep, cells: list[Cell], states: Mapping[Run, State]) -> list[Run]:
    """With ``--tune``, the runs at the rates that are chosen, once all runs are over; less those that have a state."""
    if not call.tune or _queued(states):
        return []
    from alrao_rl.sweep.plan import Run
    from alrao_rl.sweep.tuning import chosen

    best = chosen(root, cells, call.tuning_seeds)
    return [run for seed in call.seeds for cell in best if (run := Run(cell, seed)) not in states]


def _states(root: Path, runs: list[Run], table: Rows, args: argparse.Namespace) -> dict[Run, State]:
    """The state of each of the runs.

    Raises:
        UserError: one of them is of another configuration, or was begun with other versions.
    """
    from alrao_rl.sweep import states as survey

    states = {run: survey.state(root, run, table) for run in runs}
    if args.retry_failed:
        states |= {run: survey.queued(root, run) for run, state in states.items() if state.name == "failed"}
    # A cluster may have other versions: there each run checks for itself.
    if not args.allow_mismatch and args.scheduler is None:
        survey.refuse_mismatch(root, [(run, states[run].step) for run in _queued(states)])
    return states


def _queued(states: Mapping[Run, State]) -> list[Run]:
    return [run for run, state in states.items() if state.name == "queued"]


def _check(args: argparse.Namespace) -> Execution:
    """Check the options; return how the runs are to be carried out."""
    if args.jobs is None:
        args.jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= args.jobs <= 1024:
        raise UserError(f"-j is {args.jobs}, expected a whole number from 1 to 1024")
    if args.run_timeout is not None and not 0 < args.run_timeout < float("inf"):
        raise UserError(f"--run-timeout is {args.run_timeout}, expected seconds above 0")
    given_evaluation(args)
    return execution(args)


def from_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of a ``sweep.toml`` given by the file or by options; options take precedence.

    Raises:
        UserError: if the file cannot be read, or seeds or a grid cannot be parsed.
    """
    from alrao_rl.sweep import plan

    if args.file is not None and args.file.is_dir():
        raise UserError(f"{args.file} is a folder, expected a file such as {args.file / plan.FILE}")
    given = {} if args.file is None else plan.read(args.file)
    for key in ("agents", "envs", "tune", "timesteps", "budget", *EVALUATION, "name"):
        if (value := getattr(args, key)) is not None:
            given[key] = value
            # Each way of giving the length replaces the other.
            given.pop({"timesteps": "budget", "budget": "timesteps"}.get(key, ""), None)
    for key in ("seeds", "tuning_seeds"):
        if (texts := getattr(args, key)) is not None:
            given[key] = parse_seeds(texts, f"--{key.replace('_', '-')}")
    if args.grid is not None:
        given["grid"] = plan.parse_grid(args.grid)
    return given


def _check_trust(envs: Any, args: argparse.Namespace) -> None:
    """Refuse packages that a sweep's file names, unless the user trusts them."""
    from alrao_rl.recipes.files import check_trust

    for env in envs if isinstance(envs, list) else ():
        check_trust(env, str(args.file or "the sweep"), args.trust)


def _root(args: argparse.Namespace, given: dict[str, Any]) -> Path:
    """The sweep's folder; its name is then in ``given``."""
    if args.out is not None:
        given.setdefault("name", args.out.absolute().name)
        root: Path = args.out
    else:
        name = given.setdefault("name", "sweep")
        is_word = isinstance(name, str) and Path(name).name == name and not name.startswith(".")
        if not is_word or len(name.encode()) > 200:  # a file system takes 255 bytes
            raise UserError(
                f"--name is {name!r}, expected a word such as first-sweep; choose another place with --out DIR"
            )
        root = Path("results", name)
    if root.exists() and not root.is_dir():
        raise FolderError(f"{root} is not a folder")
    return root


def _completed(kept: Sweep | None, given: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The given keys, completed by those of the sweep so far, whose folder would be ``root``.

    Raises:
        UserError: if a key is missing.
    """
    from alrao_rl.sweep import plan

    data = dict(given)
    if kept is not None:
        before = kept.model_dump(exclude_none=True)
        if "timesteps" in data or "budget" in data:
            before = {key: value for key, value in before.items() if key not in ("timesteps", "budget")}
        data = before | data | {"name": kept.name}
    for key in ("agents", "envs", "seeds"):
        if key not in data:
            here = f", and there is no sweep called {data['name']!r} to continue" if "name" in data else ""
            others = [path.parent.name for path in root.parent.glob(f"*/{plan.FILE}")]
            example = ": python -m alrao_rl.sweep --agents dqn dqn-adam --envs CartPole-v1 --seeds 0-9"
            raise UserError(f"--{key} is missing{here}{suggest(root.name, others) or example}")
    return data


def _check_cells(cells: list[Cell], here: bool) -> dict[Cell, int]:
    """Prepare every cell as its runs will, with one environment for all of its cells, to find what cannot be trained.

    Args:
        cells: in the order of their environments.
        here: whether runs are on this machine; another one may have memory for a replay buffer that this one lacks.

    Returns:
        Timesteps of the runs of each, in whole rollouts.

    Raises:
        UserError: for the first cell that cannot be trained, with the reason.
    """
    from alrao_rl.agents.build import timesteps_of, with_small_buffer
    from alrao_rl.environments.make import Shared, close, make_one, warn

    lengths = {}
    for environment, group in groupby(cells, lambda cell: cell.recipe.environment):
        env = make_one(environment, training=True)
        warn(environment, env)
        for cell in group:
            recipe = cell.recipe if here else replace(cell.recipe, agent=with_small_buffer(cell.recipe.agent))
            try:
                _, model = prepare(recipe, cell.options.seed, make=partial(Shared, env))
                lengths[cell] = timesteps_of(model, recipe.timesteps)
            except UserError as error:
                close(env)
                raise UserError(f"{cell.label}: {error}".replace("--set", "--grid", 1)) from None
        close(env)
    return lengths


def _print_plan(
    root: Path, call: Sweep, states: Mapping[Run, State], lengths: Mapping[Cell, int], speeds: Speeds, n_workers: int
) -> None:
    """Print what there is, cell by cell, and what there is to do."""
    from alrao_rl.sweep.progress import time_left

    cells: dict[Any, dict[int, State]] = {}
    for run, state in states.items():
        cells.setdefault(run.cell, {})[run.seed] = state
    width = max(len(cell.label) for cell in cells)
    for cell, by_seed in cells.items():
        notes = "".join(f"; {note}" for note in _notes(cell, by_seed))
        steps = plural(cell.recipe.timesteps, "step")
        whole = f" ({lengths[cell]:,} in whole rollouts)" if lengths[cell] != cell.recipe.timesteps else ""
        say(f"{cell.label:<{width}}  seeds {seeds_as_text(by_seed)}, {steps} each{whole}{notes}")
    if call.tuning_seeds:
        say(f"tuning seeds: {seeds_as_text(call.tuning_seeds)}, only for agents with a setting to choose")
    if call.tune and any(run.seed in call.tuning_seeds and state.name == "queued" for run, state in states.items()):
        say(f"then, at the rates that are chosen on them: seeds {seeds_as_text(call.seeds)}, not counted here yet")
    todo = [(run, state.step) for run, state in states.items() if state.name == "queued"]
    names = [state.name for state in states.values()]
    left = time_left(speeds.time_left(todo, n_workers)) if todo else "nothing to do"
    workers = f" on {plural(n_workers, 'worker')}" if todo else ""
    say(
        f"{root}: {plural(len(names), 'run')}, {names.count('finished')} finished, {names.count('failed')} failed, "
        f"{len(todo)} to do{workers}: {left}"
    )


def _notes(cell: Cell, states: Mapping[int, State]) -> Iterator[str]:
    """Notes on a cell; with the seeds they apply to, unless they apply to all."""
    if is_cut(cell.name().cell):
        yield f"its folder's name is cut, the setting is {cell.setting}"
    if cell.inert:
        yield f"{', '.join(cell.inert)} does nothing to this agent, which runs once per seed"
    kinds = {
        "finished": [seed for seed, state in states.items() if state.name == "finished"],
        "of them finished on another machine (runs.csv)": [
            seed for seed, state in states.items() if state.elsewhere and state.name == "finished"
        ],
        "failed": [seed for seed, state in states.items() if state.name == "failed"],
        "with logs missing or damaged here, so reports omit them: restore logs.jsonl.xz, or delete their rows in "
        "runs.csv to train them again": [seed for seed, state in states.items() if state.lost],
        "begun": [seed for seed, state in states.items() if state.step > 0],
    }
    for what, seeds in kinds.items():
        if seeds:
            yield f"{len(seeds)} {what}" + (f" ({seeds_as_text(seeds)})" if len(seeds) < len(states) else "")


def _conclude(root: Path, states: Mapping[Run, State]) -> int:
    """Print what failed; return the exit status."""
    failed = [(run, state) for run, state in states.items() if state.name != "finished"]
    for run, state in failed:
        folder = root / run.folder
        see = f"; see {folder}" if folder.exists() else ""  # its row may be from another machine
        print_error(f"{state.name}: {run.label}: {state.reason}{see}")
    if failed:
        print_warning(
            f"{len(failed)} of {plural(len(states), 'run is', 'runs are')} not finished; --retry-failed tries failed "
            "ones again"
        )
    else:
        say(f"{'the run is' if len(states) == 1 else f'all {len(states)} runs are'} finished: {root}")
    if lost := sum(state.lost for state in states.values()):
        print_warning(f"reports omit {lost} of {plural(len(states), 'run')}, whose logs are missing or damaged here")
    return 1 if failed else 0
