"""Submit the runs of a sweep and wait for them."""

from __future__ import annotations

import contextlib
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.errors import first_line
from alrao_rl.sweep.cluster import SchedulerGoneError, give_out

if TYPE_CHECKING:
    from alrao_rl.sweep.plan import Run
    from alrao_rl.sweep.runs_csv import Rows
    from alrao_rl.sweep.states import Speeds, State
    from alrao_rl.train.options import Execution

_TICK = 0.2


def drive(
    client: Any,
    root: Path,
    todo: list[Run],
    states: dict[Run, State],
    table: Rows,
    speeds: Speeds,
    how: Execution,
    timeout: float | None,
) -> None:
    """Submit the runs and wait for them; each gets its row as soon as it is over. An interrupt stops them all."""
    from alrao_rl.sweep import worker
    from alrao_rl.sweep.progress import Progress

    call, cwd = uuid.uuid4().hex, str(Path.cwd())
    tasks = [
        worker.Task(
            call, (*run.options.arguments(), *how.arguments()), run.config,
            str((root / run.folder).absolute()), cwd, timeout,
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


def _running(client: Any, by_key: Mapping[Any, Run]) -> tuple[list[Run], int]:
    """The runs that workers are executing, and how many at a time there are workers for."""
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
    """Record a run that is over."""
    from alrao_rl.sweep import states as survey
    from alrao_rl.sweep import worker

    if future.status == "finished":
        outcome = future.result()
    elif future.status == "error":
        error = future.exception()
        killed = type(error).__name__ == "KilledWorker"
        reason = "too many workers died during it" if killed else f"no worker could run it: {first_line(error)}"
        trace = "".join(traceback.format_exception(error))
        outcome = worker.outcome_of_failure(root / run.folder, run.config, reason, trace)
    else:
        raise SchedulerGoneError
    for warning in outcome.warnings:
        progress.note(f"warning: {run.label}: {warning}")
    states[run] = survey.State(outcome.state, outcome.reason)
    row = survey.keep(root, run, states[run], table, outcome.seconds)
    progress.ended(run, states[run], outcome.seconds, row.get("timesteps") or 0)
