"""What a run is asked to be."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.cli.arguments import parse_count
from alrao_rl.errors import UserError, suggest
from alrao_rl.recipes.algorithms import ALGORITHMS
from alrao_rl.recipes.fields import MAX_COUNT
from alrao_rl.recipes.overrides import parse_env_kwargs
from alrao_rl.recipes.resolve import resolve
from alrao_rl.runs.configuration import EVALUATION

if TYPE_CHECKING:
    from alrao_rl.recipes.schema import Recipe


TRACKERS = ("tensorboard", "wandb", "mlflow")
"""What ``--track`` takes; each is the name of its package."""
DEFAULT_EVALUATION: dict[str, Any] = {"eval_episodes": 20, "eval_freq": None, "eval_budget": 0.1}
"""Of the agent while it trains; no freq is a fiftieth of the timesteps."""


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
    if args.eval_episodes is not None and not 0 <= args.eval_episodes <= MAX_COUNT:
        raise UserError(f"--eval-episodes is {args.eval_episodes}, expected a whole number from 1, or 0 for none")
    if args.eval_freq is not None and not 1 <= args.eval_freq <= MAX_COUNT:
        raise UserError(f"--eval-freq is {args.eval_freq}, expected a whole number of timesteps, at least 1")
    if args.eval_budget is not None and not 0 <= args.eval_budget <= MAX_COUNT:
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


def from_arguments(args: argparse.Namespace) -> Recipe:
    """Resolve the recipe that the arguments name; where that depends on the environment's actions, make it."""
    if args.algo is not None and args.algo not in ALGORITHMS:
        hint = suggest(args.algo, ALGORITHMS)
        raise UserError(f"--algo is {args.algo!r}, expected one of {', '.join(ALGORITHMS)}{hint}")
    agent = args.algo or args.agent
    if agent is None or args.env is None:
        missing = "--algo (or --agent)" if agent is None else "--env"
        raise UserError(f"{missing} is missing: python -m alrao_rl.train --algo dqn --env CartPole-v1")
    if args.timesteps is not None and not 1 <= args.timesteps <= MAX_COUNT:
        raise UserError(f"--timesteps is {args.timesteps}, expected a whole number from 1 to {MAX_COUNT:,}")
    check_evaluation(args)
    check_checkpoint_interval(args)
    check_track(args)
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed is {args.seed}, expected a whole number from 0 to {2**31 - 1}")
    kwargs = parse_env_kwargs(args.env_kwargs)
    recipe = resolve(agent, args.env, args.overrides, args.timesteps, kwargs, args.trust)
    if recipe.is_settled:
        return recipe
    from alrao_rl.environments.make import settle  # here, not above: it is of SB3, and of torch

    return settle(recipe)


def run_folder(recipe: Recipe, args: argparse.Namespace) -> Path:
    """Where the run is written: ``--out``, or results/train/ENV/AGENT/seed-N."""
    if args.out is not None:
        return Path(args.out)
    return Path("results", "train", env_folder(recipe), recipe.agent_name, f"seed-{args.seed}")


def env_folder(recipe: Recipe) -> str:
    """What the folder of an environment is called."""
    return recipe.environment.id.replace(":", "-").replace("/", "-")


def label(recipe: Recipe, args: argparse.Namespace) -> str:
    """The agent with what was set, as a sweep calls it too."""
    return recipe.agent_name + ("@" + ",".join(args.overrides) if args.overrides else "")


def configuration(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """What ``config.json`` holds: what decides on the result of a run, and how it is evaluated on the way.

    Of :data:`~alrao_rl.runs.configuration.EVALUATION`, which decides on no score, the first key is always there.
    """
    given = {key: getattr(args, key) for key in EVALUATION}
    evaluation = {key: value for key, value in given.items() if value != DEFAULT_EVALUATION[key]}
    return {**recipe.as_dict(), "seed": args.seed, "eval_episodes": args.eval_episodes, **evaluation}
