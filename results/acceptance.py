"""What ``make train`` hands over, of ten seeds: ``python results/acceptance.py [-j 2]``.

Trains Alrao's DQN, A2C and PPO on CartPole-v1 and plays 100 fresh episodes with the best agent of each run, by the
run's own evaluations. Appends one row per run to acceptance.csv beside this file and skips the rows that are there, so
it goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

RUNS = Path(__file__).with_suffix(".csv")
ALGORITHMS, SEEDS = ("dqn", "a2c", "ppo"), range(10)
COLUMNS = ("algo", "seed", "mean_return_100_episodes", "seconds")


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_and_play(algo: str, seed: int) -> tuple[float, float]:
    """Mean return of the best agent over 100 fresh episodes, and the seconds that its run took."""
    with tempfile.TemporaryDirectory() as out:
        run = ["--algo", algo, "--env", "CartPole-v1", "--seed", str(seed), "--eval-budget", "10"]
        command("alrao_rl.train", *run, "--out", out, "--quiet")
        last = command("alrao_rl.enjoy", out, "--episodes", "100").strip().splitlines()[-1]
        return float(last.split(":")[1]), json.loads(Path(out, "status.json").read_text())["wall_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-j", type=int, default=2, help="runs at a time")
    jobs = parser.parse_args().j
    rows = list(csv.DictReader(RUNS.read_text().splitlines())) if RUNS.exists() else []
    done = {(row["algo"], int(row["seed"])) for row in rows}
    with ThreadPoolExecutor(jobs) as pool, RUNS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not rows:
            writer.writerow(COLUMNS)
        runs = {pool.submit(train_and_play, *one): one for one in product(ALGORITHMS, SEEDS) if one not in done}
        for future in as_completed(runs):
            score, seconds = future.result()
            writer.writerow((*runs[future], score, round(seconds, 1)))
            file.flush()
            print(*runs[future], score, f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
