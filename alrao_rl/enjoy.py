"""Watch a trained agent play: ``python -m alrao_rl.enjoy RUN``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alrao_rl.cli.console import CommandLine, print_error, say
from alrao_rl.errors import UserError, first_line
from alrao_rl.notation import plural
from alrao_rl.numbers import significant

if TYPE_CHECKING:
    from alrao_rl.recipes.schema import Environment


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.enjoy",
        description="Play a trained agent in the environment its file names and print its returns.",
    )
    p.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run folder, such as results/train/CartPole-v1/dqn/seed-0, or a .safetensors file",
    )
    p.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes to play (default 10)")
    p.add_argument("--seed", type=int, default=2_000_000, metavar="N", help="seed of the environment")
    p.add_argument("--last", action="store_true", help="the last agent of the run instead of the best one")
    p.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most likely one")
    p.add_argument("--trust", action="store_true", help="import the package of the environment, if the file names one")
    p.add_argument("--render", action="store_true", help="open a window")
    p.add_argument("--video", type=Path, metavar="FILE.mp4", help="record the first episode")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 if the environment failed, 2 for a mistake in the arguments."""
    try:
        args = parser().parse_args(argv)
        _check(args)
        returns = play(args)
    except UserError as error:
        print_error(error)
        return 2
    except PlayError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    mean = math.fsum(returns) / len(returns)
    say(f"mean return over {plural(len(returns), 'episode')}: {significant(mean)}")
    return 0


class PlayError(Exception):
    """The environment raised an error while it was played."""


def _check(args: argparse.Namespace) -> None:
    if args.episodes < 1:
        raise UserError(f"--episodes is {args.episodes}, expected a whole number of at least 1")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}, expected a whole number of at least 0")
    if args.render and args.video:
        raise UserError("--render and --video exclude each other: choose one")
    if args.video and args.video.suffix != ".mp4":
        raise UserError(f"--video is {str(args.video)!r}, expected a file name that ends in .mp4")
    if args.video:
        _check_writable(args.video)
        _import_moviepy()


def _check_writable(path: Path) -> None:
    """Check this before anything is played, not after."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--video is {str(path)!r}: the folder {folder} does not exist")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--video is {str(path)!r}, which cannot be written: {error.strerror}") from None


def play(args: argparse.Namespace) -> list[float]:
    """Play episodes and return their returns.

    Raises:
        UserError: if there is no such agent, or its environment cannot be made, shown or recorded.
        PlayError: if the environment raises an error; with its first line.
    """
    from gymnasium.error import DependencyNotInstalled

    from alrao_rl.agents.file import agent_path, load_agent
    from alrao_rl.environments.make import make_one
    from alrao_rl.environments.rendering import draw_without_display
    from alrao_rl.recipes.files import check_trust

    path = agent_path(args.run, "last" if args.last else "agent")
    model = load_agent(path)
    environment = _environment(path)
    check_trust(environment.id, str(path), args.trust)
    mode = "human" if args.render else "rgb_array" if args.video else None
    if args.video:
        draw_without_display(environment.id)
    options: dict[str, Any] = {"render_mode": mode} if mode else {}
    env = make_one(environment, **options)
    if args.video and env.render_mode != "rgb_array":
        raise UserError(f"{environment.id} cannot be recorded: it has no rgb_array rendering")
    frames: list[Any] = []
    returns: list[float] = []
    for episode in range(args.episodes):
        try:
            record = frames if args.video and episode == 0 else None
            returns.append(_episode(model, env, args.seed if episode == 0 else None, args.stochastic, record))
        except DependencyNotInstalled as error:  # what draws is imported for the first picture
            raise UserError(f"{environment.id} cannot be drawn: {first_line(error)}") from None
        except Exception as error:
            raise PlayError(f"{environment.id} failed: {type(error).__name__}: {first_line(error)}") from error
        say(f"episode {episode + 1}: return {significant(returns[-1])}")
    env.close()
    if args.video:
        _write_video(args.video, frames, env.metadata.get("render_fps", 30))
        say(f"video: {args.video}")
    return returns


def _environment(path: Path) -> Environment:
    """The environment that the agent's file says it was trained on."""
    from alrao_rl.agents.file import read_agent
    from alrao_rl.recipes.schema import Environment

    try:
        return Environment.model_validate(read_agent(path)[0]["environment"])
    except (KeyError, ValueError):
        raise UserError(f"{path} does not say which environment it plays: it was not saved by alrao_rl.train") from None


def _episode(model: Any, env: Any, seed: int | None, stochastic: bool, frames: list[Any] | None) -> float:
    """Play one episode, collect its frames if asked, return its return."""
    observation, _ = env.reset(seed=seed)
    done, state, step = False, None, 0
    masked = "action_masks" in inspect.signature(model.predict).parameters
    while not done:
        if frames is not None:
            frames.append(deepcopy(env.render()))  # some environments draw into the same array again
        if stochastic and model.use_sde and _draws_noise(step, model.sde_sample_freq):
            model.policy.reset_noise()
        masks = {"action_masks": env.get_wrapper_attr("action_masks")()} if masked else {}
        action, state = model.predict(observation, state, deterministic=not stochastic, **masks)
        observation, _, terminated, truncated, info = env.step(action.item() if action.ndim == 0 else action)
        done, step = terminated or truncated, step + 1
    if frames is not None:
        frames.append(deepcopy(env.render()))  # how it ended
    return float(info["episode"]["r"])


def _draws_noise(step: int, every: int) -> bool:
    """Whether gSDE resamples its noise at this step of an episode: at the first, and as often as in training."""
    return step == 0 or (every > 0 and step % every == 0)


def _import_moviepy() -> Any:
    try:
        return importlib.import_module("moviepy").ImageSequenceClip
    except ImportError:
        raise UserError("--video needs moviepy; install it with: pip install moviepy pygame-ce") from None


def _write_video(path: Path, frames: list[Any], fps: float) -> None:
    """Write next to the target and rename, so that a failure leaves no incomplete video."""
    clip = _import_moviepy()(frames, fps=fps)
    temporary = path.with_name(f".{path.stem}.part.mp4")
    try:
        clip.write_videofile(str(temporary), logger=None, audio=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
