"""Send what SB3 logs to TensorBoard, Weights & Biases or MLflow: ``--track wandb``.

Each of them is a ``KVWriter`` of SB3's logger. The run does not depend on them: one that fails is dropped with a
warning, and none advances a random generator. ``tracking.json`` in the run folder keeps the run's id there and the
last step that was sent, so that a continued run goes on in the same place and sends no point twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import numbers
import os
import random
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from alrao_rl.cli.console import print_warning
from alrao_rl.errors import UserError, first_line
from alrao_rl.runs.atomic import write_json
from alrao_rl.runs.configuration import flatten
from alrao_rl.runs.files import TENSORBOARD, TRACKING
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.names import RunName
from alrao_rl.runs.reading import read_json

PROJECT = "alrao-rl"
"""Project at W&B and experiment in MLflow, unless ``WANDB_PROJECT`` or ``MLFLOW_EXPERIMENT_NAME`` names another."""
PATIENCE = 60
"""Seconds that W&B may keep a run waiting at its start, and again at its end."""
_PARAMS = 100
"""Parameters that MLflow takes at a time; it takes ten times as many metrics."""


@dataclass(frozen=True)
class Subject:
    """The run to be tracked.

    Args:
        folder: its folder, open, with ``config.json`` in it.
        name: its name, including overrides.
        quiet: print nothing.
    """

    folder: RunFolder
    name: RunName
    quiet: bool

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``."""
        return self.folder.config() or {}


@contextlib.contextmanager
def tracked(model: BaseAlgorithm, trackers: Sequence[str], subject: Subject) -> Iterator[None]:
    """In this context the model's logger writes to these trackers, and nowhere else."""
    path = subject.folder.path / TRACKING
    notes: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        notes = read_json(path)
    writers = [_Guarded(name, subject, notes) for name in trackers]
    model.set_logger(Logger(None, [*writers]))
    failed = True
    try:
        yield
        failed = False
    finally:
        for writer in writers:
            writer.end(failed)


class _Guarded(KVWriter):
    """A tracker whose failure does not stop the run."""

    def __init__(self, name: str, subject: Subject, notes: dict[str, Any]) -> None:
        self._name, self._path, self._notes = name, subject.folder.path / TRACKING, notes
        self._writer: Any = None
        self._sent = -1
        with self._guard():
            known = notes.get(name, {})
            self._sent = int(known.get("step", -1))
            self._writer = WRITERS[name](subject, known.get("id"))
            self._note(self._sent)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send the values, unless they were sent before the run was interrupted."""
        if self._writer is None or step <= self._sent:
            return
        with self._guard():
            # First, so that if the process is killed in between, a point is missing rather than sent twice.
            self._note(step)
            self._writer.write(key_values, key_excluded, step)

    def end(self, failed: bool) -> None:
        """End the run at the tracker."""
        if self._writer is not None:
            with self._guard():
                self._writer.end(failed)

    def _note(self, step: int) -> None:
        self._notes[self._name] = {"id": self._writer.id, "step": step}
        write_json(self._path, self._notes)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        # Trackers draw names, and pauses between attempts, from generators that an environment may use too.
        states = random.getstate(), np.random.get_state()
        try:
            yield
        except Exception as error:  # networks, servers and disks may fail in any way
            self._writer = None
            cause = f"{type(error).__name__}: {first_line(error)}"
            print_warning(f"--track {self._name} has failed and the run continues without it: {cause}")
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


# --- the trackers ---------------------------------------------------------------------------------------------------
# Each takes the subject and, for a continued run, the ``id`` it had.


class _TensorBoard(TensorBoardOutputFormat):
    """Writes to ``tensorboard/`` in the run folder: ``tensorboard --logdir results/NAME`` shows all runs of a sweep."""

    def __init__(self, subject: Subject, known: str | None) -> None:
        super().__init__(str(subject.folder.path / TENSORBOARD))
        self.id = TENSORBOARD
        if known is None:
            config = json.dumps(subject.config, indent=2)
            self.writer.add_text("config", "\n".join(f"    {line}" for line in config.splitlines()), 0)

    def end(self, failed: bool) -> None:
        self.close()


class _Wandb(KVWriter):
    """A run at W&B. Its local files are in ``wandb/`` in the run folder."""

    def __init__(self, subject: Subject, known: str | None) -> None:
        wandb = importlib.import_module("wandb")
        self.id = known or secrets.token_hex(8)
        settings = wandb.Settings(
            console="off", silent=subject.quiet, init_timeout=PATIENCE, finish_timeout=PATIENCE,
            finish_timeout_raises=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=subject.name.group[:128],
            name=subject.name.folder.as_posix()[:128],
            config=subject.config, id=self.id, resume="allow", dir=subject.folder.path, settings=settings,
        )  # fmt: skip

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self._run.log(_numbers(key_values, key_excluded, "wandb"), step=step)

    def end(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow(KVWriter):
    """A run in MLflow, at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, subject: Subject, known: str | None) -> None:
        # By default MLflow waits for minutes for a server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow = importlib.import_module("mlflow")
        if subject.quiet:
            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.WARNING)
        self._entities = mlflow.entities
        with _alone(mlflow.get_tracking_uri()):
            self._client = mlflow.MlflowClient()
            experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        tags = {"env": subject.name.env, "agent": subject.name.cell, "seed": str(subject.name.seed)}
        run = self._client.create_run(experiment.experiment_id, tags=tags, run_name=subject.name.folder.as_posix())
        self.id = run.info.run_id
        params = [mlflow.entities.Param(key, str(value)) for key, value in flatten(subject.config)]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self.id, params=params[first : first + _PARAMS])

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        now = int(time.time() * 1000)
        values = _numbers(key_values, key_excluded, "mlflow")
        metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
        for first in range(0, len(metrics), 10 * _PARAMS):
            self._client.log_batch(self.id, metrics=metrics[first : first + 10 * _PARAMS])

    def end(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


WRITERS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """A lock: MLflow creates the tables of a new database, and fails if two runs of a sweep do so at once."""
    if not uri.startswith("sqlite:"):
        yield
        return
    with Path(tempfile.gettempdir(), f".alrao-rl-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _numbers(values: Mapping[str, Any], excluded: Mapping[str, Any], tracker: str) -> dict[str, float]:
    """The numbers among the values that are for this tracker."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, numbers.Real) and tracker not in (excluded.get(key) or ())
    }
