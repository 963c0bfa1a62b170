"""What the README promises of CartPole-v1, for ten seeds: half an hour, run by ``make test-long``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_and_play(algo, seed, folder):
    """Mean return of the best agent over 100 fresh episodes, and the seconds the run took."""
    out = str(folder / f"{algo}-{seed}")
    command("alrao_rl.train", "--algo", algo, "--env", "CartPole-v1", "--seed", str(seed), "--out", out, "--quiet")
    last = command("alrao_rl.enjoy", out, "--episodes", "100").strip().splitlines()[-1]
    return float(last.split(":")[1]), json.loads(Path(out, "status.json").read_text())["wall_seconds"]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algo", ["dqn", "a2c", "ppo"])
def test_ten_seeds_of_cartpole(algo, tmp_path):
    results = [train_and_play(algo, seed, tmp_path) for seed in range(10)]
    print(f"{algo}: return over 100 episodes and seconds, seeds 0 to 9: {results}")
    assert sum(score >= 475 for score, _ in results) >= 8, results
    assert sorted(seconds for _, seconds in results)[5] < 180, results
