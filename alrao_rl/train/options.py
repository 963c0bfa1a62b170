"""Options that define a run, and how it is carried out: a command line describes one run, a sweep many."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.cli.arguments import parse_count
from alrao_rl.environments.ids import check_id
from alrao_rl.errors import UserError, suggest
from alrao_rl.notation import literal
from alrao_rl.recipes.fields import MAX_COUNT
from alrao_rl.recipes.resolve import resolve
from alrao_rl.runs.configuration import EVALUATION
from alrao_rl.runs.names import RunName

if TYPE_CHECKING:
    from alrao_rl.recipes.schema import Recipe

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""What ``--track`` takes; each is the name of its package."""


@dataclass(frozen=True)
class RunOptions:
    """The options that define a run. Two runs with the same options are the same, bit for bit.

    Args:
        agent: name of an agent recipe, or the path of a ``.toml`` file.
        env: environment: a recipe, a Gymnasium id, ``package:Id``, or a ``.toml`` file.
        seed: of everything.
        overrides: ``KEY=TOML``, in the order in which they are applied.
        timesteps: environment steps; None for the environment's budget.
        env_kwargs: arguments of the environment, in addition to those of its recipe.
        eval_episodes: episodes per evaluation; 0 for no evaluations.
        eval_freq: timesteps between evaluations; None for a fiftieth of the run.
        eval_budget: most steps of evaluation per timestep of training.
        trust: import the package of an environment that a file names.
    """

    agent: str
    env: str
    seed: int = 0
    overrides: tuple[str, ...] = ()
    timesteps: int | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    eval_episodes: int = 20
    eval_freq: int | None = None
    eval_budget: float = 0.1
    trust: bool = False

    def check(self) -> None:
        """Reject numbers that are out of range.

        Raises:
            UserError: with the option and its value.
        """
        if self.timesteps is not None and not 1 <= self.timesteps <= MAX_COUNT:
            raise UserError(f"--timesteps is {self.timesteps}, expected a whole number from 1 to {MAX_COUNT:,}")
        check_evaluation(**self.evaluation)
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed is {self.seed}, expected a whole number from 0 to {2**31 - 1}")

    def recipe(self, flag: str = "--set") -> Recipe:
        """The recipe that the options name; if it depends on the environment's actions, one environment is made.

        Args:
            flag: the flag that overrides were given with, for errors.

        Raises:
            UserError: one line with the file or flag, the key and the nearest valid choice.
        """
        recipe = resolve(self.agent, self.env, self.overrides, self.timesteps, self.env_kwargs, self.trust, flag)
        check_id(recipe.environment.id)
        if recipe.is_settled:
            return recipe
        from alrao_rl.environments.make import settle  # imported here, because it imports SB3 and torch

        return settle(recipe)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The options of :data:`~alrao_rl.runs.configuration.EVALUATION`."""
        return {key: getattr(self, key) for key in EVALUATION}

    def configuration(self, recipe: Recipe) -> dict[str, Any]:
        """Content of ``config.json``: what determines the result of a run, and how it is evaluated on the way.

        The evaluation does not affect any score; of its options, only the number of episodes is always included.
        """
        evaluation = {key: value for key, value in self.evaluation.items() if value != DEFAULT_EVALUATION[key]}
        return {**recipe.as_dict(), "seed": self.seed, "eval_episodes": self.eval_episodes, **evaluation}

    def name(self, recipe: Recipe) -> RunName:
        """The run's name, which includes the overrides, as in a sweep."""
        return RunName(recipe.environment.id, recipe.agent_name, ",".join(self.overrides), self.seed)

    def arguments(self) -> tuple[str, ...]:
        """The command line of ``alrao_rl.train`` for this run."""
        arguments = ["--agent", self.agent, "--env", self.env, *(["--trust"] if self.trust else [])]
        if self.env_kwargs:
            arguments += ["--env-kwargs", literal(self.env_kwargs)]
        for key, value in self.evaluation.items():
            if value != DEFAULT_EVALUATION[key]:
                arguments += [_flag(key), str(value)]
        for override in self.overrides:
            arguments += ["--set", override]
        arguments += [] if self.timesteps is None else ["--timesteps", str(self.timesteps)]
        return (*arguments, "--seed", str(self.seed))


DEFAULT_EVALUATION: dict[str, Any] = {
    option.name: option.default for option in fields(RunOptions) if option.name in EVALUATION
}
"""Defaults of the evaluations during training."""


@dataclass(frozen=True)
class Execution:
    """How a run is carried out; results do not depend on it, except for rounding on another device.

    Args:
        out: the run folder; None for its place under ``results/train``.
        device: torch device.
        checkpoint_interval: wall seconds between checkpoints; 0 for none.
        allow_mismatch: continue from a checkpoint that was made with something else.
        track: trackers to log to.
        quiet: print errors and warnings only.
    """

    out: Path | None = None
    device: str = "cpu"
    checkpoint_interval: float = 60.0
    allow_mismatch: bool = False
    track: tuple[str, ...] = ()
    quiet: bool = False

    def check(self) -> None:
        """Reject options that cannot be used.

        Raises:
            UserError: with the option and its value.
        """
        if not 0 <= self.checkpoint_interval < float("inf"):
            raise UserError(
                f"--checkpoint-interval is {self.checkpoint_interval}, expected seconds, or 0 for no checkpoints"
            )
        for name in self.track:
            _check_tracker(name)

    def folder(self, options: RunOptions, recipe: Recipe) -> Path:
        """The run folder; overrides are not part of the default path, so that forgetting them does not go unnoticed."""
        place = RunName(recipe.environment.id, recipe.agent_name, "", options.seed).folder
        return Path("results", "train", place) if self.out is None else self.out

    def arguments(self) -> tuple[str, ...]:
        """The arguments that a sweep passes to its runs: all but the folder, the device and ``--quiet``."""
        arguments = ["--checkpoint-interval", str(self.checkpoint_interval)]
        arguments += ["--allow-mismatch"] if self.allow_mismatch else []
        return (*arguments, *(["--track", *self.track] if self.track else []))


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def check_evaluation(
    eval_episodes: int | None = None, eval_freq: int | None = None, eval_budget: float | None = None
) -> None:
    """Reject options of evaluations that are out of range; None is for one that was not given.

    Raises:
        UserError: with the option and its value.
    """
    if eval_episodes is not None and not 0 <= eval_episodes <= MAX_COUNT:
        raise UserError(f"--eval-episodes is {eval_episodes}, expected a whole number from 1, or 0 for none")
    if eval_freq is not None and not 1 <= eval_freq <= MAX_COUNT:
        raise UserError(f"--eval-freq is {eval_freq}, expected a whole number of timesteps, at least 1")
    if eval_budget is not None and not 0 <= eval_budget <= MAX_COUNT:
        raise UserError(
            f"--eval-budget is {eval_budget}, expected a number of at least 0, such as 0.1 for a step of "
            "evaluation every ten timesteps"
        )


def _check_tracker(name: str) -> None:
    """Reject an unknown tracker, or one whose package is missing."""
    if name not in TRACKERS:
        hint = suggest(name, TRACKERS)
        raise UserError(f"--track is {name!r}, expected one of {', '.join(TRACKERS)}{hint}")
    spec = importlib.util.find_spec(name)
    # A folder of that name, such as W&B leaves behind, is not a package.
    if spec is None or spec.origin is None:
        raise UserError(f"--track {name} needs {name}: pip install 'alrao-rl[tracking]'")


# --- options shared by train and sweep ------------------------------------------------------------------------------


def add_shared_options(p: argparse.ArgumentParser) -> None:
    """Add the options that a sweep passes to its runs: evaluations, checkpoints, trackers, ``--trust``."""
    p.add_argument(
        "--eval-freq",
        type=parse_count,
        metavar="N",
        help="timesteps between evaluations (default: a fiftieth of the run)",
    )
    p.add_argument(
        "--eval-episodes", type=int, metavar="N",
        help="episodes per evaluation (default 20), fewer if the budget allows no more; 0: none at all, and the best "
        "agent is the last one; neither training nor its scores depend on evaluations",
    )  # fmt: skip
    p.add_argument(
        "--eval-budget", type=float, metavar="X",
        help="at most X steps of evaluation for every timestep of training (default 0.1)",
    )  # fmt: skip
    p.add_argument(
        "--checkpoint-interval", type=float, default=60.0, metavar="SECONDS",
        help="between checkpoints (default 60; 0: none), more if one takes long; results do not depend on it",
    )  # fmt: skip
    p.add_argument(
        "--allow-mismatch", action="store_true",
        help="continue from a checkpoint made with other versions, another device or another backend, and note it in "
        "config.json; never from one of another configuration, which would be neither run",
    )  # fmt: skip
    p.add_argument(
        "--track", nargs="+", action="extend", default=[], metavar="TRACKER",
        help=f"log to {', '.join(TRACKERS)} too; results do not depend on it",
    )  # fmt: skip
    p.add_argument("--trust", action="store_true", help="import the package of an environment that a file names")


def given_evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """The options of evaluations that were given, checked.

    Raises:
        UserError: with the value.
    """
    given = {key: value for key in EVALUATION if (value := getattr(args, key)) is not None}
    check_evaluation(**given)
    return given


def execution(args: argparse.Namespace, **more: Any) -> Execution:
    """How runs are to be carried out, from the parsed arguments of either command, checked.

    Raises:
        UserError: with the option and its value.
    """
    track = tuple(dict.fromkeys(args.track))
    how = Execution(
        checkpoint_interval=args.checkpoint_interval, allow_mismatch=args.allow_mismatch, track=track, **more
    )
    how.check()
    return how
