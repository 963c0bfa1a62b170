"""One run, continued from its last checkpoint if there is one, until its folder records the end."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.cli.console import print_error, print_warning, python, say
from alrao_rl.cli.interruption import Interruption
from alrao_rl.errors import FolderError, UserError, first_line
from alrao_rl.notation import plural
from alrao_rl.numbers import significant
from alrao_rl.runs import provenance
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.runs.configuration import differences, identity
from alrao_rl.runs.files import AGENTS, CHECKPOINT, MANIFEST, STATES, TRACEBACK
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.reading import check_manifest
from alrao_rl.train.options import DEFAULT_EVALUATION, Execution, RunOptions

if TYPE_CHECKING:
    import gymnasium as gym
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from alrao_rl.recipes.schema import Recipe
    from alrao_rl.runs.checkpoint import Checkpoints, Saved
    from alrao_rl.train.callback import TrainingCallback

PATIENCE, LIMIT = 6.0, 8.5
"""Seconds after Ctrl-C or SIGTERM: to wait for a checkpoint, and until the process ends."""


def prepare(
    recipe: Recipe, seed: int, device: str = "cpu", make: Callable[[], gym.Env[Any, Any]] | None = None
) -> tuple[VecEnv, BaseAlgorithm]:
    """The training environments and the model on them: whatever cannot be trained is rejected here.

    ``make`` makes one of the environments, instead of the recipe's: a sweep checks all of its cells on one.

    Raises:
        UserError: with the reason.
    """
    from alrao_rl.agents.build import build, check_device, refuse_no_update
    from alrao_rl.environments.make import make_env

    check_device(device, "--device")
    env = make_env(recipe, seed, training=True, make=make)
    model = build(recipe.agent, env, seed, device)
    refuse_no_update(model, recipe.timesteps)
    return env, model


def train(options: RunOptions, recipe: Recipe, how: Execution) -> int:
    """Train in the run folder, continuing from its last checkpoint if there is one.

    A finished run prints its summary; a folder with another configuration is refused. So are, without
    ``--allow-mismatch``, versions, a device or a backend other than the checkpoint's. A configuration never changes on
    the way, except for evaluations, which do not affect training: schedules are fractions of the timesteps, so the run
    would be neither the old one nor the new one.

    Args:
        options: what defines the run.
        recipe: that of the options.
        how: how it is carried out.

    Returns:
        0; 1 for a failed run, whose folder then holds the reason and the traceback; 130 or 143 if interrupted.

    Raises:
        UserError: if the run cannot be trained like this; no file is left behind.
    """
    folder = RunFolder(how.folder(options, recipe))
    config = options.configuration(recipe)
    if _is_finished(folder, config):
        # The process may have been killed between finishing the run and removing its checkpoints.
        shutil.rmtree(folder.path / CHECKPOINT, ignore_errors=True)
        return _finished_before(recipe, folder, config, how.quiet)
    from alrao_rl.checks import SkippedUpdateWarning
    from alrao_rl.environments.make import classes, close
    from alrao_rl.fast import kernels
    from alrao_rl.train.callback import TrainingCallback
    from alrao_rl.train.tracking import Subject, tracked

    limit_threads()
    env, model = prepare(recipe, options.seed, how.device)
    warn_of_time_limits(recipe)
    made_with = provenance.current(
        shlex.join(["python", "-m", "alrao_rl.train", *sys.argv[1:]]),
        str(model.device),
        kernels.LOOPS,
        type(model),
        *classes(env),
    )
    interruption = Interruption(PATIENCE, LIMIT, lambda: _interrupted(folder, callback, interruption.exit_status))
    callback = TrainingCallback(
        recipe, folder, options.seed, options.evaluation, how.quiet, config, how.checkpoint_interval, interruption
    )
    process, begun = os.getpid(), False
    with interruption:
        folder.open()
        try:
            # Another process may have finished it since.
            if _is_finished(folder, config):
                return _finished_before(recipe, folder, config, how.quiet)
            callback.saved = _begin(folder, callback.checkpoints, config, made_with, how.allow_mismatch)
            begun = True
            subject = Subject(folder, options.name(recipe), how.quiet)
            with contextlib.closing(callback), tracked(model, how.track, subject), warnings.catch_warnings():
                warnings.simplefilter("ignore", SkippedUpdateWarning)  # reported at the end
                model.learn(recipe.timesteps, callback=callback)
            # A signal from here on, or on the last steps, comes too late.
            if not interruption.stop_in_order():  # the environment has caught it
                raise KeyboardInterrupt
            folder.finish(timesteps=model.num_timesteps, **callback.result())
        except BaseException as error:
            if isinstance(error, UserError) and not begun:
                raise
            if os.getpid() != process:  # a child that an environment forked must not touch the folder
                raise
            # An environment may raise another exception instead, or have lost a process of its own to the same signal.
            if interruption.asked or isinstance(error, KeyboardInterrupt):
                return _interrupted(folder, callback, interruption.exit_status)
            return _fail(folder, error, model.num_timesteps)
        else:
            callback.checkpoints.remove()
            _warn_of_lost_heads(callback.lost_heads())
            _warn_of_skipped_updates(*callback.updates())
            return _finish(recipe, folder, how.quiet)
        finally:
            folder.close()
            close(env)


def _begin(
    folder: RunFolder,
    checkpoints: Checkpoints,
    config: dict[str, Any],
    made_with: dict[str, Any],
    allow_mismatch: bool,
) -> Saved | None:
    """Prepare the folder to continue from its newest usable checkpoint, which is returned, or to start from scratch.

    Raises:
        UserError: if the checkpoint was made with something else.
    """

    def complain(path: Path, reason: str) -> None:
        print_warning(f"the checkpoint {path} is not used: {reason}")

    def fits(state: dict[str, Any]) -> str | None:
        try:
            if changed := list(differences(identity(state["config"]), identity(config))):
                return f"it is of another configuration ({'; '.join(changed[:3])})"
            return folder.changed(state["logs"])
        except (AttributeError, KeyError, TypeError) as error:
            return f"its state is not that of a run ({type(error).__name__}: {first_line(error)})"

    saved = checkpoints.newest(complain, fits)
    if saved is None:
        folder.start({**config, "provenance": made_with})
        return None
    begun, step = (folder.config() or {}).get("provenance"), saved.state["step"]
    if changed := ", ".join(provenance.mismatches(begun, step, made_with)):
        if not allow_mismatch:
            raise FolderError(
                f"{saved.path} was made with something else ({changed}): --allow-mismatch continues from it all the "
                "same"
            )
        print_warning(f"continued from step {step} with something else ({changed}): the run may end differently")
    agents = {name: saved.read(name) for name in AGENTS if name in saved.files}
    folder.resume(
        {**config, "provenance": provenance.continued(begun, step, made_with)}, saved.state["logs"], agents
    )  # fmt: skip
    return saved


def _is_finished(folder: RunFolder, config: dict[str, Any]) -> bool:
    """Whether this very run is finished.

    Raises:
        UserError: if the folder holds something else, or a finished run that is damaged.
    """
    old = folder.config()
    if old is None:
        return False
    changed = list(differences(identity(old), identity(config)))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise FolderError(f"{folder.path} holds a run of another configuration ({'; '.join(changed[:3])}{more})")
    status, ended = folder.status(), (folder.path / MANIFEST).is_file()
    state = (status or {}).get("state")
    # A process may have been killed between its first two files, but then no run had ended there.
    if state not in STATES and (ended or status is not None):
        fault = "is missing" if status is None else f"has the state {state!r}, expected one of {', '.join(STATES)}"
        raise FolderError(f"{folder.path / 'status.json'} {fault}: the run is damaged")
    finished = state == "finished"
    if finished:
        if not ended:
            raise FolderError(
                f"{folder.path} says that it is finished but lacks {MANIFEST}, the last file of a run: it is damaged"
            )
        check_manifest(folder.path)
        weights = [name for name in AGENTS if name.endswith(".safetensors") and (folder.path / name).exists()]
        if weights:  # left out above, where reading results need not wait for them
            check_manifest(folder.path, *weights)
    return finished


def _finished_before(recipe: Recipe, folder: RunFolder, config: dict[str, Any], quiet: bool) -> int:
    was, now = (
        {key: configuration.get(key, default) for key, default in DEFAULT_EVALUATION.items()}
        for configuration in (folder.config() or {}, config)
    )
    if changed := "; ".join(differences(was, now)):
        print_warning(
            f"the run is finished and was evaluated differently ({changed}): another --out evaluates it anew, and "
            "trains it again"
        )
    return _finish(recipe, folder, quiet, f"{folder.path} is finished:")


def _finish(recipe: Recipe, folder: RunFolder, quiet: bool, *lines: str) -> int:
    if not quiet:
        say(*lines, _summary(recipe, folder))
    return 0


def _fail(folder: RunFolder, error: BaseException, timestep: int) -> int:
    """Record the reason in the folder, and print it; also if an environment has called ``sys.exit``."""
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    try:
        folder.set_status("failed", reason=reason, timestep=timestep)
        write_atomically(folder.path / TRACEBACK, "".join(traceback.format_exception(error)))
        more = f"see {folder.path / TRACEBACK}"
    except OSError as problem:  # a full disk, or a folder that is gone, may be what stopped the run
        more = f"nothing can be written to {folder.path} ({problem.strerror})"
    if not isinstance(error, (Exception, SystemExit)):
        raise error
    print_error(f"the run failed at step {timestep}: {type(error).__name__}: {first_line(error)}; {more}")
    return 1


def _interrupted(folder: RunFolder, callback: TrainingCallback, exit_status: int) -> int:
    """Record the state in the folder and say how the run continues; in another thread if this one does not stop."""
    step, last = callback.step, callback.checkpoints.last_step()
    # Only if there is a run: a signal may come before its first file, or after its last.
    with contextlib.suppress(OSError, UserError):
        if (folder.status() or {}).get("state") == "finished":
            print(f"interrupted after the end; {folder.path} is finished", file=sys.__stderr__, flush=True)
            return exit_status
        if folder.config() is not None:
            folder.set_status("interrupted", timestep=step)
    how = ("continues" if step == last else f"continues from step {last}") if last else "starts over"
    with contextlib.suppress(OSError):
        # Not through a live display, which may still be shown.
        print(f"interrupted at step {step}; the same command {how}", file=sys.__stderr__, flush=True)
    return exit_status


def _warn_of_lost_heads(times: int) -> None:
    if times:
        print_warning(
            f"{plural(times, 'output head')} became non-finite and {'was' if times == 1 else 'were'} re-cloned from "
            "the average: a learning rate or a reward is far too large (counted under reclones in heads.csv, with "
            "those of heads without weight)"
        )


def _warn_of_skipped_updates(skipped: int, n_updates: int) -> None:
    if skipped:
        from alrao_rl.checks import NOT_FINITE

        print_warning(
            f"{skipped:,} of {plural(n_updates, 'update')} {'was' if skipped == 1 else 'were'} skipped, wholly or in "
            f"part: a loss or its gradient was nan or infinite, {NOT_FINITE}"
        )


def warn_of_time_limits(recipe: Recipe) -> None:
    """Warn of what ``optimize_memory_usage`` costs."""
    if recipe.agent.hyperparameters.get("optimize_memory_usage"):
        print_warning(
            "with optimize_memory_usage an episode that a time limit cuts off counts as terminated, with nothing to "
            "gain after it: Stable-Baselines3's buffer then cannot tell them apart"
        )


def limit_threads() -> None:
    """Use one torch thread, unless the user asked for more: small networks only get slower with several."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _has_rows(log: Path) -> bool:
    with log.open("rb") as file:
        return len(file.read(200).splitlines()) > 1


def _summary(recipe: Recipe, folder: RunFolder) -> str:
    status, environment = folder.status() or {}, recipe.environment
    known = {"reference": environment.reference_score, "random": environment.random_score}
    scores = ", ".join(f"{name} {significant(score)}" for name, score in known.items() if score is not None)
    trust = " --trust" if ":" in environment.id else ""
    try:
        steps, seconds = status["timesteps"], status["wall_seconds"]
        best, last = status["best_return"], status["last_return"]
        if best is None:
            why = "--eval-budget allowed no whole episode, a larger one would"
            if not _has_rows(folder.path / "episodes.csv"):
                why = "no episode ended in training"
            if (folder.config() or {}).get("eval_episodes") == 0:
                why = "--eval-episodes 0"
            evaluated = f"not evaluated ({why})"
        else:
            of_last = "not evaluated" if last is None else significant(last)
            evaluated = f"best evaluation {significant(best)} at step {status['best_timestep']:,}, last {of_last}"
        which = "agent.safetensors is the last agent, as last.safetensors is"
        if best is not None:
            which = "agent.safetensors is the best agent, last.safetensors the last"
        return "\n".join([
            f"{recipe.agent_name} on {environment.id}: {evaluated} ({scores or 'no reference score'})",
            f"{plural(steps, 'step')} in {seconds:.0f} s, {steps / max(seconds, 0.1):,.0f} steps/s",
            f"files: {folder.path} ({which})",
            f"play it: {python()} -m alrao_rl.enjoy {shlex.quote(str(folder.path))}{trust}",
        ])  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(
            f"{folder.path / 'status.json'} is not that of a finished run ({first_line(error)})"
        ) from None
