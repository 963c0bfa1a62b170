"""What checkpoints cost: ``python benchmarks/checkpoint.py [--rows 100000] [--folder DIR]``.

Short runs on CartPole-v1 with a checkpoint every second instead of every minute, so that there are some to measure;
then a replay buffer of Atari's size. Everything goes to results/checkpoint.md. Needs twice the large buffer's bytes on
the disk of ``--folder``, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from alrao_rl.runs.checkpoint import Checkpoints, load
from alrao_rl.train import command, state
from alrao_rl.train.callback import TrainingCallback

RESULTS = Path(__file__).parent.parent / "results"
INTERVAL = command.parser().get_default("checkpoint_interval")
RUNS = {  # DQN's buffer, 50,000 transitions, is nearly full before it learns: what is measured comes after that
    "dqn": ["--timesteps", "52000", "--set", "learning_starts=49000"],
    "a2c": ["--timesteps", "40000"],
    "ppo": ["--timesteps", "40000"],
}
FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
TEXT = """# What checkpoints cost

{machine}. Remake: `make bench-checkpoint`.

## In training

The agents as they are, DQN's replay buffer of 50,000 transitions nearly full, with a checkpoint every second so that
there are some to measure; the share is that of the slowest tenth of them in {interval:.0f} seconds, the default
interval.

{small}

## A replay buffer of Atari's size

Full, and {new:,} new transitions between two checkpoints, {rate:.0f} a second at the default interval. The first two of
a process are written whole. Each after them writes what two intervals have changed and takes over the rest from the one
before the last, so that the two that are kept never share a file. With `optimize_memory_usage` a transition is half as
large.

{large}

Peak memory of the process: {peak:.1f} GB, of which the buffer is {buffer:.1f} GB.
"""


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def trained(algo: str, folder: Path) -> list[tuple[float, int]]:
    """Train as the command does; seconds and bytes of each checkpoint."""
    found = []
    save = TrainingCallback._save

    def timed(self: TrainingCallback) -> None:
        started = time.perf_counter()
        save(self)
        if self.num_timesteps > getattr(self.model, "learning_starts", 0):
            found.append((time.perf_counter() - started, size(self.checkpoints._folders()[0])))

    out = folder / algo
    args = ["--algo", algo, "--env", "CartPole-v1", "--quiet", "--out", str(out), "--eval-episodes", "2"]
    with mock.patch.object(TrainingCallback, "_save", timed):
        assert command.main([*args, *RUNS[algo], "--checkpoint-interval", "1"]) == 0
    return found


def runs(folder: Path) -> str:
    """Table of the cost in training: the last checkpoints are the largest, so the slowest tenth is told too."""
    lines = [
        f"| CartPole-v1 | checkpoints | kB, last one | ms, median | ms, 90 % | share, one every {INTERVAL:.0f} s |",
        "|---|---|---|---|---|---|",
    ]
    for algo in RUNS:
        found = trained(algo, folder)
        seconds = np.array([one[0] for one in found])
        share = np.quantile(seconds, 0.9) / INTERVAL
        lines.append(
            f"| {algo.upper()} | {len(found)} | {found[-1][1] / 1e3:,.0f} | {np.median(seconds) * 1e3:.0f} "
            f"| {np.quantile(seconds, 0.9) * 1e3:.0f} | {share:.2%} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def fill(buffer: ReplayBuffer, n: int, frames: np.ndarray) -> None:
    """Add transitions of frames drawn before: drawing them is not what is measured."""
    one = np.zeros(1, np.float32)
    for k in range(n):
        buffer.add(frames[k % 64], frames[(k + 1) % 64], one, one, one, [{}])


def atari(folder: Path, n_rows: int, n_new: int, optimize: bool) -> list[str]:
    """Rows of the table: checkpoints of a full buffer, ``n_new`` transitions apart, then the last one loaded."""
    kwargs = {"optimize_memory_usage": True, "handle_timeout_termination": False} if optimize else {}
    buffer = ReplayBuffer(n_rows, FRAMES, spaces.Discrete(4), device="cpu", **kwargs)
    frames = np.random.default_rng(0).integers(256, size=(64, 1, *FRAMES.shape), dtype=np.uint8)
    fill(buffer, n_rows, frames)
    name = f"{n_rows:,}, optimize_memory_usage" if optimize else f"{n_rows:,}"
    kept, lines, added = Checkpoints(folder / f"atari-{optimize}"), [], n_rows
    before: set[int] = set()
    path = kept.path

    def row(what: str, seconds: float, n_bytes: int) -> None:
        lines.append(f"| {name} | {what} | {seconds:.1f} | {n_bytes / 1e9:.2f} |")
        print(lines[-1], flush=True)

    for number in range(1, 6):
        started = time.perf_counter()
        path = kept.save(added, {"buffer": state._take_buffer(buffer, added)})
        seconds = time.perf_counter() - started
        new = sum(file.stat().st_size for file in path.iterdir() if file.stat().st_ino not in before)
        before = {file.stat().st_ino for one in kept._folders() for file in one.iterdir()}
        row(f"checkpoint {number}", seconds, new)
        fill(buffer, n_new, frames)
        added += n_new
    del buffer
    back = ReplayBuffer(n_rows, FRAMES, spaces.Discrete(4), device="cpu", **kwargs)
    started = time.perf_counter()
    state._put_buffer(back, load(path).state["buffer"])
    row("checked and loaded", time.perf_counter() - started, size(path))
    kept.remove()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="transitions of the large buffer (default 100,000)")
    parser.add_argument("--new", type=int, default=6_000, help="transitions between its checkpoints (default 6,000)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="alrao-checkpoint-"))
    try:
        small = runs(folder)
        large = ["| transitions of 84×84×4 | what | seconds | GB written or read |", "|---|---|---|---|"]
        for optimize in (False, True):  # of the same bytes
            large += atari(folder, args.rows * (1 + optimize), args.new, optimize)
    finally:
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (RESULTS / "checkpoint.md").write_text(
        TEXT.format(
            machine=f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores",
            interval=INTERVAL, small=small, large="\n".join(large), new=args.new, rate=args.new / INTERVAL,
            peak=peak / 1e9, buffer=2 * args.rows * np.prod(FRAMES.shape) / 1e9,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
