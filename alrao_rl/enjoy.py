"""Watch a trained agent play: ``python -m alrao_rl.enjoy RUN``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from alrao_rl.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m alrao_rl.enjoy", description="Play a trained agent and print its returns."
    )
    p.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as results/train/CartPole-v1/dqn/seed-0")
    p.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes to play (default 10)")
    p.add_argument("--seed", type=int, default=2_000_000, metavar="N", help="seed of the environment")
    p.add_argument("--last", action="store_true", help="the last agent of the run instead of the best one")
    p.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most likely one")
    p.add_argument("--render", action="store_true", help="open a window")
    p.add_argument("--video", type=Path, metavar="FILE.mp4", help="record the first episode")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parser().parse_args(argv)
    try:
        _check(args)
        returns = play(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    mean = sum(returns) / len(returns)
    print(f"mean return over {len(returns)} episodes: {mean:.1f}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.episodes < 1:
        raise UserError(f"--episodes is {args.episodes}, expected a whole number of at least 1")
    if args.render and args.video:
        raise UserError("--render and --video exclude each other: choose one")
    if args.video and args.video.suffix != ".mp4":
        raise UserError(f"--video is {str(args.video)!r}, expected a file name that ends in .mp4")
    if args.video and not args.video.absolute().parent.is_dir():
        raise UserError(f"--video is {str(args.video)!r}: the folder {args.video.absolute().parent} does not exist")
    if args.video:
        _import_moviepy()


def play(args: argparse.Namespace) -> list[float]:
    """Play episodes and return their returns."""
    from alrao_rl.agent import load_agent, read_agent
    from alrao_rl.envs import make_one
    from alrao_rl.recipes import Environment

    which = "last" if args.last else "agent"
    model = load_agent(args.run, which)
    description, _ = read_agent(args.run / f"{which}.safetensors")
    environment = Environment.model_validate(description["environment"])
    mode = "human" if args.render else "rgb_array" if args.video else None
    if args.video:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    env = make_one(environment, **({"render_mode": mode} if mode else {}))
    if args.video and env.render_mode != "rgb_array":
        raise UserError(f"{environment.id} cannot be recorded: it has no rgb_array rendering")
    from stable_baselines3.common.preprocessing import is_image_space_channels_first

    frames: list[Any] = []
    returns: list[float] = []
    transpose = model.observation_space.shape != env.observation_space.shape and not is_image_space_channels_first(
        env.observation_space  # type: ignore[arg-type]
    )
    for episode in range(args.episodes):
        observation, _ = env.reset(seed=args.seed if episode == 0 else None)
        total, done = 0.0, False
        while not done:
            if args.video and episode == 0:
                frames.append(env.render())
            observation = observation.transpose(2, 0, 1) if transpose else observation
            action, _ = model.predict(observation, deterministic=not args.stochastic)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
        print(f"episode {episode + 1}: return {total:.1f}", flush=True)
    if args.video:
        _write_video(args.video, frames, env.metadata.get("render_fps", 30))
        print(f"video: {args.video}")
    env.close()
    return returns


def _import_moviepy() -> Any:
    try:
        from moviepy import ImageSequenceClip
    except ImportError:
        raise UserError("--video needs moviepy; install it with: pip install 'alrao-rl[video]'") from None
    return ImageSequenceClip


def _write_video(path: Path, frames: list[Any], fps: float) -> None:
    """Write beside the target and rename, so that a failure leaves no half video."""
    clip = _import_moviepy()(frames, fps=fps)
    temporary = path.with_name(f".{path.stem}.part.mp4")
    try:
        clip.write_videofile(str(temporary), logger=None, audio=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
