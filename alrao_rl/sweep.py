"""Train many agents on many environments: ``python -m alrao_rl.sweep --agents dqn --envs CartPole-v1 --seeds 0-9``.

Every run is ``python -m alrao_rl.train`` in a process of its own, given out by Dask. The disk is the truth: the same
command again continues what is unfinished and repeats nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.interruption import Interruption, exit_at_once, leave

if __name__ == "__main__":  # the imports below take a moment
    exit_at_once()

from alrao_rl import train
from alrao_rl.errors import CommandLine, UserError, first_line, print_error, print_warning, say
from alrao_rl.notation import is_cut, parse_count, parse_seeds, seeds_as_text
from alrao_rl.runs import EVALUATION, try_lock

if TYPE_CHECKING:
    from alrao_rl.plan import Cell, Run, Sweep
    from alrao_rl.rows import Rows
    from alrao_rl.survey import Speeds, State

ALLOWED_DEATHS = 10
"""A run that more local workers have died under is a failed one; a user's cluster has its own setting."""
CONNECT_TIMEOUT = 5
"""Seconds to wait for a scheduler."""
LIMIT = 14.0
"""Seconds after Ctrl-C or SIGTERM until the command ends, whatever its runs and workers do."""
_TICK = 0.2


class SchedulerGoneError(Exception):
    """The user's cluster has ended before the sweep."""

    def __init__(self) -> None:
        super().__init__("the scheduler is gone; the same command continues, each run from its last checkpoint")


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.sweep",
        description="Train agents on environments at many seeds. Results go to results/NAME, which keeps the sweep in "
        "sweep.toml; what is not given is as it is there.",
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
        "--grid", nargs="+", action="extend", metavar="KEY=V1,V2", help="values to try, such as learning_rate=1e-4,1e-3"
    )
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--timesteps", type=parse_count, metavar="N", help="environment steps of every run, such as 50000, 5e4 or 50k"
    )
    length.add_argument("--budget", type=float, metavar="X", help="times the environment's own timesteps (default 1)")
    train.add_evaluation_options(p)
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="runs at a time on this machine (default: its cores)"
    )
    where.add_argument("--scheduler", metavar="ADDR", help="your own Dask cluster: tcp://HOST:8786 or tls://HOST:8786")
    p.add_argument("--name", help="name of the sweep (default: the file's, else sweep)")
    p.add_argument("--out", type=Path, metavar="DIR", help="its folder (default results/NAME)")
    p.add_argument("--run-timeout", type=float, metavar="SECONDS", help="a run that takes longer has failed")
    train.add_checkpoint_options(p)
    train.add_track(p)
    train.add_trust(p)
    p.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    p.add_argument("--dry-run", action="store_true", help="say what there is to do and stop")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: all runs are finished; 1: some failed, or are not done; 2: a mistake in the arguments; 130 or 143: interrupted by
    Ctrl-C or SIGTERM, which its runs heed as ``alrao_rl.train`` does.
    """
    with Interruption(0.0, LIMIT) as interruption:
        try:
            return sweep(parser().parse_args(argv))
        except UserError as error:
            print_error(error)
            return 2
        except SchedulerGoneError as error:
            print_error(error)
            return 1
        except OSError as error:  # a disk that is full
            where = f"{error.filename}: " if error.filename else ""
            print_error(
                f"the sweep stopped: {where}{error.strerror or first_line(error)}; the same command continues it"
            )
            return 1
        except KeyboardInterrupt:
            print_error("interrupted; the same command continues, each run from its last checkpoint")
            return interruption.exit_status


def sweep(args: argparse.Namespace) -> int:
    """Plan, and unless that is all, run.

    Raises:
        UserError: nothing can be run so; nothing was started or written.
    """
    _check(args)
    given = from_arguments(args)
    if args.envs is None:
        _check_trust(given.get("envs"), args)
    root = _root(args, given)
    if not args.dry_run:
        refuse_if_locked(root)
    from alrao_rl import plan

    kept = plan.checked(plan.read(root / plan.FILE), str(root / plan.FILE)) if (root / plan.FILE).exists() else None
    if kept and "envs" not in given:
        _check_trust(kept.envs, args)
    call = plan.checked(_completed(kept, given), str(args.file or "the sweep"))
    whole = plan.extended(kept, call, str(root / plan.FILE)) if kept else call
    cells = plan.cells(call, args.trust)
    # Here, not above: these load pandas, and what cannot be run is refused without waiting for it.
    from alrao_rl import rows, survey

    _check_cells(cells, args.scheduler is None)
    runs = plan.runs(call, cells)
    with contextlib.ExitStack() as stack:
        client = (
            stack.enter_context(connect(args.scheduler)) if args.scheduler is not None and not args.dry_run else None
        )
        if not args.dry_run:
            stack.enter_context(locked(root))
        table = rows.Rows(root / rows.FILE)
        states = {run: survey.state(root, run, table) for run in runs}
        if args.retry_failed:
            states = {
                run: survey.queued(root, run) if state.name == "failed" else state for run, state in states.items()
            }
        todo = [run for run, state in states.items() if state.name == "queued"]
        # A cluster's versions are its own: there each run finds out for itself.
        if not args.allow_mismatch and args.scheduler is None:
            survey.refuse_mismatch(root, [(run, states[run].step) for run in todo])
        speeds = survey.Speeds(table.values())
        n_workers = sum(client.nthreads().values()) if client else args.jobs
        _print_plan(root, call, states, speeds, n_workers)
        if args.dry_run:
            return 0
        plan.write(root / plan.FILE, whole)
        for run, state in states.items():
            # A driver may have been killed between a run's end and its row.
            if state.name != "queued" and not survey.is_kept(root, run, table):
                survey.keep(root, run, state, table)
        if todo:
            client = client or stack.enter_context(local_cluster(min(args.jobs, len(todo))))
            drive(client, root, todo, states, table, speeds, args)
    return _conclude(root, states)


# --- arguments ------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    if args.jobs is None:
        args.jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= args.jobs <= 1024:
        raise UserError(f"-j is {args.jobs}, expected a whole number from 1 to 1024")
    if args.run_timeout is not None and not 0 < args.run_timeout < float("inf"):
        raise UserError(f"--run-timeout is {args.run_timeout}, expected seconds above 0")
    train.check_evaluation(args)
    train.check_checkpoint_interval(args)
    train.check_track(args)


def from_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of a ``sweep.toml`` that are given, by the file or, first of all, by an option.

    Raises:
        UserError: the file cannot be read, seeds or a grid cannot be understood.
    """
    from alrao_rl import plan

    given = {} if args.file is None else plan.read(args.file)
    for key in ("agents", "envs", "timesteps", "budget", *EVALUATION, "name"):
        if (value := getattr(args, key)) is not None:
            given[key] = value
            # One length takes the place of the other.
            given.pop({"timesteps": "budget", "budget": "timesteps"}.get(key, ""), None)
    for key in ("seeds", "tuning_seeds"):
        if (texts := getattr(args, key)) is not None:
            given[key] = parse_seeds(texts, f"--{key.replace('_', '-')}")
    if args.grid is not None:
        given["grid"] = plan.parse_grid(args.grid)
    return given


def _check_trust(envs: Any, args: argparse.Namespace) -> None:
    """Refuse packages that a sweep's file names, unless they are trusted."""
    from alrao_rl.recipes import check_trust

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
                f"--name is {name!r}, expected a word such as first-sweep; another place is chosen with --out DIR"
            )
        root = Path("results", name)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is no folder: choose another --name or --out")
    return root


def _completed(kept: Sweep | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and for the rest what the sweep has been so far.

    Raises:
        UserError: a key is missing.
    """
    data = dict(given)
    if kept is not None:
        before = kept.model_dump(exclude_none=True)
        if "timesteps" in data or "budget" in data:
            before = {key: value for key, value in before.items() if key not in ("timesteps", "budget")}
        data = before | data | {"name": kept.name}
    for key in ("agents", "envs", "seeds"):
        if key not in data:
            here = f", and there is no sweep called {data['name']!r} to go on with" if "name" in data else ""
            example = "python -m alrao_rl.sweep --agents dqn dqn-adam --envs CartPole-v1 --seeds 0-9"
            raise UserError(f"--{key} is missing{here}: {example}")
    return data


def _check_cells(cells: list[Cell], here: bool) -> None:
    """Prepare every cell as its runs will, all of an environment on one: what cannot be trained shows now.

    Args:
        cells: in the order of their environments.
        here: on this machine; another one may have the memory for a replay buffer that this one lacks.

    Raises:
        UserError: of the first cell that cannot, with the reason.
    """
    from alrao_rl.agent import with_small_buffer
    from alrao_rl.envs import Shared, close, make_one, warn

    for environment, of in groupby(cells, lambda cell: cell.recipe.environment):
        env = make_one(environment, training=True)
        warn(environment, env)
        for cell in of:
            recipe = cell.recipe if here else replace(cell.recipe, agent=with_small_buffer(cell.recipe.agent))
            try:
                train.prepare(recipe, train.parser().parse_args(cell.arguments), partial(Shared, env))
            except UserError as error:
                close(env)
                raise UserError(f"{cell.label}: {error}".replace("--set", "--grid", 1)) from None
        close(env)


# --- the folder -----------------------------------------------------------------------------------------------------


def _lock_file(root: Path) -> Path:
    return root / ".lock"


def refuse_if_locked(root: Path) -> None:
    """Refuse at once if another sweep writes there; leaves no file where none is.

    Raises:
        UserError: another one does.
    """
    if _lock_file(root).exists():
        with locked(root):
            pass


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Make the folder if need be, and lock it; the lock dies with the process.

    Raises:
        UserError: it cannot be written, or another sweep writes there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = _lock_file(root).open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror or error}; choose another --out") from None
    with file:
        if not try_lock(file):
            file.seek(0)
            by = f" (process {file.read(20).strip()})"
            raise UserError(f"another sweep{by} is at work in {root}: wait for it or choose another --name")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


# --- the cluster ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def local_cluster(n_workers: int) -> Iterator[Any]:
    """Workers on this machine, reachable from it only; one that is killed is replaced.

    Yields:
        A ``distributed.Client``.
    """
    import logging
    import tempfile

    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,  # runs are long: no worker sets one aside for later
        "distributed.worker.daemon": True,
        # A worker only waits. Dask would have it look at its own stack 100 times a second, and at its clock 50 times.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.comm.timeouts.connect": "30s",
    }
    with (
        tempfile.TemporaryDirectory(prefix="alrao-sweep-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(settings),
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=None,
            silence_logs=logging.CRITICAL, local_directory=scratch, preload=["alrao_rl.worker"],
            # Without a dashboard there still is a server of numbers; at a free port, or a second sweep would complain.
            dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """The user's cluster.

    Yields:
        A ``distributed.Client``.

    Raises:
        UserError: there is none, after a few seconds.
    """
    import logging

    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    with silence_logging_cmgr(logging.CRITICAL):
        try:
            client = Client(address, timeout=CONNECT_TIMEOUT)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            expected = "one such as tcp://HOST:8786"
            if address.startswith("tls:"):
                expected = (
                    "one that knows the certificate DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT, see docs/sweeps.md"
                )
            raise UserError(
                f"no Dask scheduler answers at --scheduler {address}, expected {expected} ({first_line(error)})"
            ) from None
        with client:
            yield client


# --- running --------------------------------------------------------------------------------------------------------


def drive(
    client: Any,
    root: Path,
    todo: list[Run],
    states: dict[Run, State],
    table: Rows,
    speeds: Speeds,
    args: argparse.Namespace,
) -> None:
    """Give out the runs and wait for them; each one that is over gets its row at once. An interrupt lets all stop."""
    from alrao_rl import worker
    from alrao_rl.progress import Progress

    call, cwd = uuid.uuid4().hex, str(Path.cwd())
    more = ["--checkpoint-interval", str(args.checkpoint_interval)]
    more += ["--allow-mismatch"] if args.allow_mismatch else []
    more += ["--track", *args.track] if args.track else []
    tasks = [
        worker.Task(
            call, (*run.cell.arguments, "--seed", str(run.seed), *more), run.config,
            str((root / run.folder).absolute()), cwd, args.run_timeout,
        )
        for run in todo
    ]  # fmt: skip
    futures = dict(zip(give_out(client, worker.execute, tasks, f"run-{call}"), todo, strict=True))
    by_key = {future.key: run for future, run in futures.items()}
    pending = dict(futures)
    try:
        with Progress(root, states, table, speeds) as progress:
            while pending:
                time.sleep(_TICK)
                for future in [future for future in pending if future.done()]:
                    _settle(future, pending.pop(future), root, states, table, progress)
                progress.update(*_running(client, by_key))
            progress.update([], sum(client.nthreads().values()), final=True)
    except SchedulerGoneError:
        raise
    except BaseException:
        with contextlib.suppress(Exception):
            client.cancel(list(pending), asynchronous=False)
            client.run(worker.stop, call)
        raise


def give_out(client: Any, function: Callable[[Any], Any], tasks: Sequence[Any], name: str) -> list[Any]:
    """A future for ``function`` of each task, begun in their order, each by a worker that has time for it.

    At once: one by one, the scheduler would hand two to every worker before it sees that there are more, and the third
    would wait behind the first, however long that takes. Two a worker or fewer it still hands out beforehand.
    """
    # Nothing is repeated by Dask: a task raises nothing, and what it does about a failure it does itself.
    futures: list[Any] = client.map(function, tasks, key=[(name, n) for n in range(len(tasks))], pure=False, retries=0)
    return futures


def _running(client: Any, by_key: Mapping[Any, Run]) -> tuple[list[Run], int]:
    """The runs that workers are at, and for how many at a time there are workers."""
    try:
        threads, processing = client.nthreads(), client.processing()
    except OSError:
        raise SchedulerGoneError from None
    running = []
    for address, keys in processing.items():
        mine = [by_key[key] for key in keys if key in by_key]
        running += mine[: threads.get(address, 1)]
    return running, sum(threads.values())


def _settle(future: Any, run: Run, root: Path, states: dict[Run, State], table: Rows, progress: Any) -> None:
    """Take note of a run that is over."""
    from alrao_rl import survey, worker

    if future.status == "finished":
        outcome = future.result()
    elif future.status == "error":
        error = future.exception()
        killed = type(error).__name__ == "KilledWorker"
        reason = "too many workers died under it" if killed else f"no worker could run it: {first_line(error)}"
        trace = "".join(traceback.format_exception(error))
        outcome = worker.outcome_of_failure(root / run.folder, run.config, reason, trace)
    else:
        raise SchedulerGoneError
    for warning in outcome.warnings:
        progress.note(f"warning: {run.label}: {warning}")
    states[run] = survey.State(outcome.state, outcome.reason)
    row = survey.keep(root, run, states[run], table, outcome.seconds)
    progress.ended(run, states[run], outcome.seconds, row.get("timesteps") or 0)


# --- printing -------------------------------------------------------------------------------------------------------


def _print_plan(root: Path, call: Sweep, states: Mapping[Run, State], speeds: Speeds, n_workers: int) -> None:
    """Say what there is, cell by cell, and what is to do."""
    from alrao_rl.progress import time_left

    cells: dict[Any, dict[int, State]] = {}
    for run, state in states.items():
        cells.setdefault(run.cell, {})[run.seed] = state
    width = max(len(cell.label) for cell in cells)
    for cell, of in cells.items():
        notes = "".join(f"; {note}" for note in _notes(cell, of))
        say(f"{cell.label:<{width}}  seeds {seeds_as_text(of)}, {cell.recipe.timesteps:,} steps each{notes}")
    if call.tuning_seeds:
        say(f"tuning seeds: {seeds_as_text(call.tuning_seeds)}, only where there is a setting to choose")
    todo = [(run, state.step) for run, state in states.items() if state.name == "queued"]
    names = [state.name for state in states.values()]
    left = time_left(speeds.time_left(todo, n_workers)) if todo else "nothing to do"
    workers = f" on {n_workers} worker{'s' * (n_workers != 1)}" if todo else ""
    say(
        f"{root}: {len(names)} runs, {names.count('finished')} finished, {names.count('failed')} failed, "
        f"{len(todo)} to do{workers}: {left}"
    )


def _notes(cell: Cell, states: Mapping[int, State]) -> Iterator[str]:
    """What is to be said of a cell; which seeds, where it is not all of them."""
    if is_cut(cell.folder.name):
        yield f"its folder's name is cut, the setting is {cell.setting}"
    if cell.inert:
        yield f"{', '.join(cell.inert)} does nothing to this agent, which runs once a seed"
    kinds = {
        "finished": [seed for seed, state in states.items() if state.name == "finished"],
        "of them finished on another machine (runs.csv)": [
            seed for seed, state in states.items() if state.elsewhere and state.name == "finished"
        ],
        "failed": [seed for seed, state in states.items() if state.name == "failed"],
        "with logs missing here, so reports omit them: copy their seed-N.zip, or delete their rows in runs.csv to "
        "train them again": [seed for seed, state in states.items() if state.lost],
        "begun": [seed for seed, state in states.items() if state.step > 0],
    }
    for what, seeds in kinds.items():
        if seeds:
            yield f"{len(seeds)} {what}" + (f" ({seeds_as_text(seeds)})" if len(seeds) < len(states) else "")


def _conclude(root: Path, states: Mapping[Run, State]) -> int:
    """List what failed; the exit status."""
    failed = [(run, state) for run, state in states.items() if state.name != "finished"]
    for run, state in failed:
        folder = root / run.folder
        see = f"; see {folder}" if folder.exists() else ""  # its row may be from another machine
        print_error(f"{state.name}: {run.label}: {state.reason}{see}")
    if failed:
        print_warning(f"{len(failed)} of {len(states)} runs are not finished; --retry-failed tries failed ones again")
    else:
        say(f"all {len(states)} runs are finished: {root}")
    return 1 if failed else 0


if __name__ == "__main__":
    leave(main())
