"""Train one agent on one environment: ``python -m alrao_rl.train --algo dqn --env CartPole-v1``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.interruption import Interruption, exit_at_once, leave

if __name__ == "__main__":  # the imports below take a moment
    exit_at_once()

from alrao_rl import provenance, recipes
from alrao_rl.errors import CommandLine, UserError, first_line, print_error, print_warning, python, say, suggest
from alrao_rl.notation import parse_count, parse_seed
from alrao_rl.numbers import significant
from alrao_rl.runs import (
    AGENTS,
    CHECKPOINT,
    EVALUATION,
    MANIFEST,
    STATES,
    TRACEBACK,
    RunFolder,
    check_manifest,
    differences,
    identity,
    write_atomically,
)

if TYPE_CHECKING:
    import gymnasium as gym
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from alrao_rl.checkpoint import Checkpoints, Saved
    from alrao_rl.recipes import Recipe
    from alrao_rl.training import TrainingCallback

PATIENCE, LIMIT = 6.0, 8.5
"""Seconds after Ctrl-C or SIGTERM: how long a checkpoint is waited for, and until the process ends."""

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""What ``--track`` takes; each is the name of its package."""

DEFAULT_EVALUATION: dict[str, Any] = {"eval_episodes": 20, "eval_freq": None, "eval_budget": 0.1}
"""Of the agent while it trains; no freq is a fiftieth of the timesteps."""


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.train",
        description="Train an agent without a learning rate. Results go to results/train/ENV/AGENT/seed-N.",
        epilog="Ctrl-C and SIGTERM stop the run at its next checkpoint; the same command again continues it. "
        "Example: python -m alrao_rl.train --algo dqn --env CartPole-v1 --set alrao.n_heads=20",
    )
    which = p.add_mutually_exclusive_group()
    which.add_argument("--algo", metavar="ALGO", help=f"{', '.join(recipes.ALGORITHMS)}: the Alrao agent of that name")
    which.add_argument("--agent", metavar="NAME|PATH", help="an agent recipe by name (see --list) or a .toml file")
    p.add_argument("--env", metavar="ID", help="environment: a recipe, any Gymnasium id, package:Id, or a .toml file")
    p.add_argument("--env-kwargs", metavar="TOML", help="arguments of the environment, such as '{gravity = -5.0}'")
    p.add_argument("--seed", type=parse_seed, default=0, metavar="N", help="seed of everything (default 0)")
    p.add_argument(
        "--timesteps",
        type=parse_count,
        metavar="N",
        help="environment steps, such as 50000, 5e4 or 50k (default: the environment's budget)",
    )
    p.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="overrides", metavar="KEY=TOML",
        help="override values: batch_size=64 alrao.n_heads=20 n_envs=4",
    )  # fmt: skip
    p.add_argument("--out", type=Path, metavar="DIR", help="the run folder itself")
    p.add_argument("--device", default="cpu", metavar="DEV", help="cpu (default), cuda, cuda:1 or auto")
    add_evaluation_options(p, DEFAULT_EVALUATION)
    add_checkpoint_options(p)
    add_track(p)
    add_trust(p)
    p.add_argument("--dry-run", action="store_true", help="print every value with its origin and stop")
    p.add_argument("--list", action="store_true", help="list agents and environments and stop")
    p.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    return p


def add_evaluation_options(p: argparse.ArgumentParser, defaults: Mapping[str, Any] | None = None) -> None:
    """Add ``--eval-freq``, ``--eval-episodes`` and ``--eval-budget``, which a sweep hands on to its runs."""
    p.add_argument(
        "--eval-freq",
        type=parse_count,
        metavar="N",
        help="timesteps between evaluations (default: a fiftieth of the run)",
    )
    p.add_argument(
        "--eval-episodes", type=int, metavar="N",
        help="episodes an evaluation (default 20), fewer where the budget allows no more; 0: none at all, and the best "
        "agent is the last one; neither training nor its scores depend on evaluations",
    )  # fmt: skip
    p.add_argument(
        "--eval-budget", type=float, metavar="X",
        help="at most X steps of evaluation for every timestep of training (default 0.1)",
    )  # fmt: skip
    p.set_defaults(**(defaults or {}))


def add_checkpoint_options(p: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint-interval`` and ``--allow-mismatch``, which a sweep hands on to its runs."""
    p.add_argument(
        "--checkpoint-interval", type=float, default=60.0, metavar="SECONDS",
        help="between checkpoints (default 60; 0: none), more where one takes long; results do not depend on it",
    )  # fmt: skip
    p.add_argument(
        "--allow-mismatch", action="store_true",
        help="continue from a checkpoint that other versions, another device or other loops made, and note it in "
        "config.json; never from one of another configuration, which would be neither run",
    )  # fmt: skip


def add_trust(p: argparse.ArgumentParser) -> None:
    """Add ``--trust``."""
    p.add_argument("--trust", action="store_true", help="import the package of an environment that a file names")


def check_evaluation(args: argparse.Namespace) -> None:
    """Refuse what cannot be evaluated by.

    Raises:
        UserError: with the value.
    """
    if args.eval_episodes is not None and not 0 <= args.eval_episodes <= recipes.MAX_COUNT:
        raise UserError(f"--eval-episodes is {args.eval_episodes}, expected a whole number from 1, or 0 for none")
    if args.eval_freq is not None and not 1 <= args.eval_freq <= recipes.MAX_COUNT:
        raise UserError(f"--eval-freq is {args.eval_freq}, expected a whole number of timesteps, at least 1")
    if args.eval_budget is not None and not 0 <= args.eval_budget <= recipes.MAX_COUNT:
        raise UserError(
            f"--eval-budget is {args.eval_budget}, expected a number of at least 0, such as 0.1 for a step of "
            "evaluation every ten timesteps"
        )


def check_checkpoint_interval(args: argparse.Namespace) -> None:
    """Refuse what is no number of seconds.

    Raises:
        UserError: with the value.
    """
    if not 0 <= args.checkpoint_interval < float("inf"):
        raise UserError(
            f"--checkpoint-interval is {args.checkpoint_interval}, expected seconds, or 0 for no checkpoints"
        )


def add_track(p: argparse.ArgumentParser) -> None:
    """Add ``--track``, which a sweep hands on to its runs."""
    p.add_argument(
        "--track", nargs="+", action="extend", default=[], metavar="TRACKER",
        help=f"log to {', '.join(TRACKERS)} too; results do not depend on it",
    )  # fmt: skip


def check_track(args: argparse.Namespace) -> None:
    """Refuse an unknown tracker, and one whose package is missing.

    Raises:
        UserError: with what to do about it.
    """
    for name in args.track:
        if name not in TRACKERS:
            hint = suggest(name, TRACKERS)
            raise UserError(f"--track is {name!r}, expected one of {', '.join(TRACKERS)}{hint}")
        spec = importlib.util.find_spec(name)
        # A folder of that name, as W&B leaves them, is no package.
        if spec is None or spec.origin is None:
            raise UserError(f"--track {name} needs {name}: pip install 'alrao-rl[tracking]'")
    args.track = list(dict.fromkeys(args.track))


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status.

    0; 1 for a failed run; 2 for a mistake in the arguments; 130 or 143 for one that Ctrl-C or SIGTERM has interrupted.
    """
    try:
        args = parser().parse_args(argv)
        if args.list:
            print_list()
            return 0
        recipe = from_arguments(args)
        if args.dry_run:
            print_plan(recipe, args)
            return 0
        return train(recipe, args)
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:  # before there was a run
        return 130


def from_arguments(args: argparse.Namespace) -> Recipe:
    """Resolve the recipe that the arguments name; where that depends on the environment's actions, make it."""
    if args.algo is not None and args.algo not in recipes.ALGORITHMS:
        hint = suggest(args.algo, recipes.ALGORITHMS)
        raise UserError(f"--algo is {args.algo!r}, expected one of {', '.join(recipes.ALGORITHMS)}{hint}")
    agent = args.algo or args.agent
    if agent is None or args.env is None:
        missing = "--algo (or --agent)" if agent is None else "--env"
        raise UserError(f"{missing} is missing: python -m alrao_rl.train --algo dqn --env CartPole-v1")
    if args.timesteps is not None and not 1 <= args.timesteps <= recipes.MAX_COUNT:
        raise UserError(f"--timesteps is {args.timesteps}, expected a whole number from 1 to {recipes.MAX_COUNT:,}")
    check_evaluation(args)
    check_checkpoint_interval(args)
    check_track(args)
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed is {args.seed}, expected a whole number from 0 to {2**31 - 1}")
    kwargs = recipes.parse_env_kwargs(args.env_kwargs)
    recipe = recipes.resolve(agent, args.env, args.overrides, args.timesteps, kwargs, args.trust)
    if recipe.is_settled:
        return recipe
    from alrao_rl.envs import settle  # here, not above: it is of SB3, and of torch

    return settle(recipe)


# --- printing -------------------------------------------------------------------------------------------------------


def print_list() -> None:
    """Print the agents and environments that are shipped."""
    say(f"agents (--agent NAME; --algo takes the Alrao agents {', '.join(recipes.ALGORITHMS)}):")
    for name in recipes.names("agents"):
        agent = recipes.load_agent_recipe(name)[1]
        rate = (
            f"learning rate {agent.hyperparameters['learning_rate']}" if agent.policy == "stock" else "no learning rate"
        )
        say(f"  {name:<18} {agent.algo:<13} {rate}")
    say("environments (--env ID; any other Gymnasium id works too, with default budgets):")
    for name in recipes.names("envs"):
        environment = recipes.load_environment(name)[0]
        steps = ", ".join(f"{algo} {n:,}" for algo, n in environment.timesteps.items())
        known = {"random": environment.random_score, "reference": environment.reference_score}
        scores = ", ".join(f"{what} score {score}" for what, score in known.items() if score is not None)
        say(f"  {name:<26} steps: {steps}; {scores}")


def print_plan(recipe: Recipe, args: argparse.Namespace) -> None:
    """Print every value and where it comes from."""
    from alrao_rl.agent import algorithm, timesteps_of

    env, model = prepare(recipe, args)
    env.close()
    _warn_of_time_limits(recipe)
    origins = recipes.defaults(algorithm(recipe.agent), recipe.agent) | recipe.origins
    if (steps := timesteps_of(model, recipe.timesteps)) != recipe.timesteps:
        origins["timesteps"] = (recipe.timesteps, f"{origins['timesteps'][1]}; {steps:,} in whole rollouts")
    width = max(len(key) for key in origins)
    for key, (value, origin) in origins.items():
        say(f"{key:<{width}} = {value!s:<22} {origin}")
    say(f"run folder: {run_folder(recipe, args)}")


# --- training -------------------------------------------------------------------------------------------------------


def prepare(
    recipe: Recipe, args: argparse.Namespace, make: Callable[[], gym.Env[Any, Any]] | None = None
) -> tuple[VecEnv, BaseAlgorithm]:
    """The training environments and the model on them: whatever cannot be trained is refused here.

    ``make`` makes one of the environments, if not the recipe's: a sweep checks all of its cells on one.

    Raises:
        UserError: with the reason.
    """
    from alrao_rl.agent import build, check_device, refuse_no_update
    from alrao_rl.envs import make_env

    check_device(args.device, "--device")
    env = make_env(recipe, args.seed, training=True, make=make)
    model = build(recipe.agent, env, args.seed, args.device)
    refuse_no_update(model, recipe.timesteps)
    return env, model


def run_folder(recipe: Recipe, args: argparse.Namespace) -> Path:
    """Where the run is written: ``--out``, or results/train/ENV/AGENT/seed-N."""
    if args.out is not None:
        return Path(args.out)
    return Path("results", "train", env_folder(recipe), recipe.agent_name, f"seed-{args.seed}")


def env_folder(recipe: Recipe) -> str:
    """What the folder of an environment is called."""
    return recipe.environment.id.replace(":", "-").replace("/", "-")


def _label(recipe: Recipe, args: argparse.Namespace) -> str:
    """The agent with what was set, as a sweep calls it too."""
    return recipe.agent_name + ("@" + ",".join(args.overrides) if args.overrides else "")


def configuration(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """What ``config.json`` holds: what decides on the result of a run, and how it is evaluated on the way.

    Of :data:`~alrao_rl.runs.EVALUATION`, which decides on no score, the first key is always there.
    """
    given = {key: getattr(args, key) for key in EVALUATION}
    evaluation = {key: value for key, value in given.items() if value != DEFAULT_EVALUATION[key]}
    return {**recipe.as_dict(), "seed": args.seed, "eval_episodes": args.eval_episodes, **evaluation}


def train(recipe: Recipe, args: argparse.Namespace) -> int:
    """Train into the run folder, from its last checkpoint on if there is one.

    A finished run prints its summary, another configuration there is refused. So are, unless ``--allow-mismatch`` is
    given, other versions, device and loops than the checkpoint was made with. A configuration is never changed on the
    way, but for evaluations, of which training knows nothing: schedules are fractions of the timesteps, and the run
    would be neither the one nor the other.

    Returns:
        0, 1 for a run that failed, whose folder then holds the reason and the traceback, or 130 and 143.

    Raises:
        UserError: nothing can be trained so; no file is left behind.
    """
    folder = RunFolder(run_folder(recipe, args))
    config = configuration(recipe, args)
    if _is_finished(folder, config):
        # A process may have been killed between its last two acts.
        shutil.rmtree(folder.path / CHECKPOINT, ignore_errors=True)
        return _finished_before(recipe, folder, config, args.quiet)
    from alrao_rl.core.optim import SkippedUpdateWarning
    from alrao_rl.envs import classes, close
    from alrao_rl.fast import kernels
    from alrao_rl.tracking import Subject, tracked
    from alrao_rl.training import TrainingCallback

    _limit_threads()
    env, model = prepare(recipe, args)
    _warn_of_time_limits(recipe)
    made_with = provenance.current(
        shlex.join(["python", "-m", "alrao_rl.train", *sys.argv[1:]]),
        str(model.device),
        kernels.LOOPS,
        type(model),
        *classes(env),
    )
    interruption = Interruption(PATIENCE, LIMIT, lambda: _interrupted(folder, callback, interruption.exit_status))
    evaluation = {key: getattr(args, key) for key in EVALUATION}
    callback = TrainingCallback(
        recipe, folder, args.seed, evaluation, args.quiet, config, args.checkpoint_interval, interruption
    )
    process, begun = os.getpid(), False
    with interruption:
        folder.open()
        try:
            # Another process may have finished it since.
            if _is_finished(folder, config):
                return _finished_before(recipe, folder, config, args.quiet)
            callback.saved = _begin(folder, callback.checkpoints, config, made_with, args.allow_mismatch)
            begun = True
            subject = Subject(folder, env_folder(recipe), _label(recipe, args), args.seed, args.quiet)
            with contextlib.closing(callback), tracked(model, args.track, subject), warnings.catch_warnings():
                warnings.simplefilter("ignore", SkippedUpdateWarning)  # said at the end
                model.learn(recipe.timesteps, callback=callback)
            # What is asked for from here on, or was on the last steps, comes too late.
            if not interruption.stop_in_order():  # the environment has caught it
                raise KeyboardInterrupt
            folder.finish(timesteps=model.num_timesteps, **callback.result())
        except BaseException as error:
            if isinstance(error, UserError) and not begun:
                raise
            if os.getpid() != process:  # an environment's child, which has no business with the folder
                raise
            # An environment may turn one exception into another, or have lost a process of its own to the same signal.
            if interruption.asked or isinstance(error, KeyboardInterrupt):
                return _interrupted(folder, callback, interruption.exit_status)
            return _fail(folder, error, model.num_timesteps)
        else:
            callback.checkpoints.remove()
            _warn_of_lost_heads(callback.lost_heads())
            _warn_of_skipped_updates(*callback.updates())
            return _finish(recipe, folder, args.quiet)
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
    """Prepare the folder for the run as it goes on from its newest usable checkpoint, which is returned, or anew.

    Raises:
        UserError: that was made with something else.
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
            raise UserError(
                f"{saved.path} was made with something else ({changed}): --allow-mismatch continues from it all the "
                "same; or choose another folder with --out"
            )
        print_warning(f"continued from step {step} with something else ({changed}): the run may end otherwise")
    agents = {name: saved.read(name) for name in AGENTS if name in saved.files}
    folder.resume(
        {**config, "provenance": provenance.continued(begun, step, made_with)}, saved.state["logs"], agents
    )  # fmt: skip
    return saved


def _is_finished(folder: RunFolder, config: dict[str, Any]) -> bool:
    """Whether this very run is finished.

    Raises:
        UserError: the folder holds something else, or a finished run that is damaged.
    """
    old = folder.config()
    if old is None:
        return False
    changed = list(differences(identity(old), identity(config)))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{folder.path} holds a run of another configuration ({'; '.join(changed[:3])}{more}): "
            "choose another folder with --out"
        )
    status, ended = folder.status(), (folder.path / MANIFEST).is_file()
    state = (status or {}).get("state")
    # A process may have been killed between its first two files, but then no run had ended there.
    if state not in STATES and (ended or status is not None):
        said = "is not there" if status is None else f"has the state {state!r}, expected one of {', '.join(STATES)}"
        raise UserError(f"{folder.path / 'status.json'} {said}: the run is damaged, choose another folder with --out")
    finished = state == "finished"
    if finished:
        if not ended:
            raise UserError(
                f"{folder.path} says that it is finished and has no {MANIFEST}, with which a run ends: it is damaged, "
                "choose another folder with --out"
            )
        check_manifest(folder.path)
        weights = [name for name in AGENTS if name.endswith(".safetensors") and (folder.path / name).exists()]
        if weights:  # what notebooks do not wait for
            check_manifest(folder.path, *weights)
    return finished


def _finished_before(recipe: Recipe, folder: RunFolder, config: dict[str, Any], quiet: bool) -> int:
    was, now = (
        {key: one.get(key, default) for key, default in DEFAULT_EVALUATION.items()}
        for one in (folder.config() or {}, config)
    )
    if changed := "; ".join(differences(was, now)):
        print_warning(
            f"the run is finished and was evaluated otherwise ({changed}): another --out evaluates it anew, and "
            "trains it again"
        )
    return _finish(recipe, folder, quiet, f"{folder.path} is finished:")


def _finish(recipe: Recipe, folder: RunFolder, quiet: bool, *lines: str) -> int:
    if not quiet:
        say(*lines, _summary(recipe, folder))
    return 0


def _fail(folder: RunFolder, error: BaseException, timestep: int) -> int:
    """Leave the reason in the folder, and say it; also where an environment has called ``sys.exit``."""
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
    """Leave the state in the folder and say how the run goes on; in another thread where this one does not stop."""
    step, last = callback.step, callback.checkpoints.last_step()
    # Only where there is a run: a signal may come before its first file, or after its last.
    with contextlib.suppress(OSError, UserError):
        if (folder.status() or {}).get("state") == "finished":
            print(f"interrupted after the end; {folder.path} is finished", file=sys.__stderr__, flush=True)
            return exit_status
        if folder.config() is not None:
            folder.set_status("interrupted", timestep=step)
    how = ("continues" if step == last else f"continues from step {last}") if last else "begins anew"
    with contextlib.suppress(OSError):
        # Past a live display, which may still stand.
        print(f"interrupted at step {step}; the same command {how}", file=sys.__stderr__, flush=True)
    return exit_status


def _warn_of_lost_heads(times: int) -> None:
    if times:
        print_warning(
            f"{times} output heads became non-finite and were re-cloned from the average: a learning rate or a reward "
            "is far too large (counted under reclones in heads.csv, with those of heads without weight)"
        )


def _warn_of_skipped_updates(skipped: int, n_updates: int) -> None:
    if skipped:
        from alrao_rl.core.optim import NOT_FINITE

        print_warning(
            f"{skipped:,} of {n_updates:,} updates were skipped, wholly or in part: a loss or its gradient was nan or "
            f"infinite, {NOT_FINITE}"
        )


def _warn_of_time_limits(recipe: Recipe) -> None:
    if recipe.agent.hyperparameters.get("optimize_memory_usage"):
        print_warning(
            "with optimize_memory_usage an episode that a time limit cuts off counts as one that has ended, with "
            "nothing to gain after it: Stable-Baselines3's buffer cannot tell them apart then"
        )


def _limit_threads() -> None:
    """One torch thread, unless the user asked for more: small networks only lose by sharing work."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _summary(recipe: Recipe, folder: RunFolder) -> str:
    status, environment = folder.status() or {}, recipe.environment
    known = {"reference": environment.reference_score, "random": environment.random_score}
    scores = ", ".join(f"{name} {significant(score)}" for name, score in known.items() if score is not None)
    trust = " --trust" if ":" in environment.id else ""
    try:
        steps, seconds = status["timesteps"], status["wall_seconds"]
        best, last = status["best_return"], status["last_return"]
        if best is None:
            budget = "--eval-budget allowed no whole episode, a larger one does"
            without = (folder.config() or {}).get("eval_episodes") == 0
            evaluated = f"not evaluated ({'--eval-episodes 0' if without else budget})"
        else:
            of_last = "not evaluated" if last is None else significant(last)
            evaluated = f"best evaluation {significant(best)} at step {status['best_timestep']:,}, last {of_last}"
        which = "agent.safetensors is the last agent, as last.safetensors is"
        if best is not None:
            which = "agent.safetensors is the best agent, last.safetensors the last"
        return "\n".join([
            f"{recipe.agent_name} on {environment.id}: {evaluated} ({scores or 'no reference score'})",
            f"{steps:,} steps in {seconds:.0f} s, {steps / max(seconds, 0.1):,.0f} steps/s",
            f"files: {folder.path} ({which})",
            f"play it: {python()} -m alrao_rl.enjoy {shlex.quote(str(folder.path))}{trust}",
        ])  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.path / 'status.json'} is not as a finished run leaves it ({first_line(error)}): "
            "choose another folder with --out"
        ) from None


if __name__ == "__main__":
    leave(main())
