"""Train one agent on one environment: ``python -m alrao_rl.train --algo dqn --env CartPole-v1``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alrao_rl.cli.arguments import parse_count, parse_seed
from alrao_rl.cli.console import CommandLine, print_error, say
from alrao_rl.errors import FolderError, UserError, suggest
from alrao_rl.recipes.algorithms import ALGORITHMS
from alrao_rl.recipes.files import load_agent_recipe, load_environment, recipe_names
from alrao_rl.recipes.overrides import parse_env_kwargs
from alrao_rl.recipes.resolve import sb3_defaults
from alrao_rl.train.options import Execution, RunOptions, add_shared_options, execution, given_evaluation
from alrao_rl.train.run import prepare, train, warn_of_time_limits

if TYPE_CHECKING:
    from alrao_rl.recipes.schema import Recipe


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.train",
        description="Train an agent without a learning rate. Results go to results/train/ENV/AGENT/seed-N.",
        epilog="Ctrl-C and SIGTERM stop the run at its next checkpoint; the same command again continues it. "
        "Example: python -m alrao_rl.train --algo dqn --env CartPole-v1 --set alrao.n_heads=20",
    )
    which = p.add_mutually_exclusive_group()
    which.add_argument("--algo", metavar="ALGO", help=f"{', '.join(ALGORITHMS)}: the Alrao agent of that name")
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
    add_shared_options(p)
    p.add_argument("--dry-run", action="store_true", help="print every value with its origin and stop")
    p.add_argument("--list", action="store_true", help="list agents and environments and stop")
    p.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status.

    0; 1 for a failed run; 2 for a mistake in the arguments; 130 or 143 if interrupted by Ctrl-C or SIGTERM.
    """
    try:
        args = parser().parse_args(argv)
        if args.list:
            print_list()
            return 0
        options, how = from_arguments(args)
        recipe = options.recipe()
        if args.dry_run:
            print_plan(options, recipe, how)
            return 0
        return train(options, recipe, how)
    except FolderError as error:
        print_error(f"{error}; choose another folder with --out")
        return 2
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:  # before there was a run
        return 130


def from_arguments(args: argparse.Namespace) -> tuple[RunOptions, Execution]:
    """The run's options, and how to carry it out, from the parsed arguments, checked.

    Raises:
        UserError: one line with the option, its value and the nearest valid choice.
    """
    if args.algo is not None and args.algo not in ALGORITHMS:
        hint = suggest(args.algo, ALGORITHMS)
        raise UserError(f"--algo is {args.algo!r}, expected one of {', '.join(ALGORITHMS)}{hint}")
    agent = args.algo or args.agent
    if agent is None or args.env is None:
        missing = "--algo (or --agent)" if agent is None else "--env"
        raise UserError(f"{missing} is missing: python -m alrao_rl.train --algo dqn --env CartPole-v1")
    options = RunOptions(
        agent, args.env, args.seed, tuple(args.overrides), args.timesteps, parse_env_kwargs(args.env_kwargs),
        trust=args.trust, **given_evaluation(args),
    )  # fmt: skip
    options.check()
    return options, execution(args, out=args.out, device=args.device, quiet=args.quiet)


def print_list() -> None:
    """Print the shipped agents and environments."""
    say(f"agents (--agent NAME; --algo takes the Alrao agents {', '.join(ALGORITHMS)}):")
    for name in recipe_names("agents"):
        agent = load_agent_recipe(name)[1]
        rate = (
            f"learning rate {agent.hyperparameters['learning_rate']}" if agent.policy == "stock" else "no learning rate"
        )
        say(f"  {name:<18} {agent.algo:<13} {rate}")
    say("environments (--env ID; any other Gymnasium id works too, with default budgets):")
    for name in recipe_names("envs"):
        environment = load_environment(name)[0]
        steps = ", ".join(f"{algo} {n:,}" for algo, n in environment.timesteps.items())
        known = {"random": environment.random_score, "reference": environment.reference_score}
        scores = ", ".join(f"{what} score {score}" for what, score in known.items() if score is not None)
        say(f"  {name:<26} steps: {steps}; {scores}")


def print_plan(options: RunOptions, recipe: Recipe, how: Execution) -> None:
    """Print every value and where it comes from."""
    from alrao_rl.agents.build import algorithm, timesteps_of

    env, model = prepare(recipe, options.seed, how.device)
    env.close()
    warn_of_time_limits(recipe)
    origins = sb3_defaults(algorithm(recipe.agent), recipe.agent) | recipe.origins
    if (steps := timesteps_of(model, recipe.timesteps)) != recipe.timesteps:
        origins["timesteps"] = (recipe.timesteps, f"{origins['timesteps'][1]}; {steps:,} in whole rollouts")
    width = max(len(key) for key in origins)
    for key, (value, origin) in origins.items():
        say(f"{key:<{width}} = {value!s:<22} {origin}")
    say(f"run folder: {how.folder(options, recipe)}")
