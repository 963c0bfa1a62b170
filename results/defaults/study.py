"""Which single setting should be Alrao's default? Compare candidates with stock SB3 at three rates.

    python results/defaults/study.py [-j 2]

appends one row per finished run to runs.csv beside this file and skips the rows that are there, so it goes on where it
was cut off. A run is ``python -m alrao_rl.train`` in a process of its own, with one torch thread. A failed run is a row
too, at the environment's floor. First a cut at seeds 0 and 1, then seeds 2 to 4 for what was kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from alrao_rl import stats

HERE = Path(__file__).parent
RUNS = HERE / "runs.csv"
COLUMNS = ["algo", "setting", "env", "seed", "state", "auc", "final", "last_evaluation", "timesteps", "seconds"]
TIMESTEPS = {"dqn": 30_000, "a2c": 150_000, "ppo": 60_000}
FLOORS = {"CartPole-v1": 0.0, "Acrobot-v1": -500.0}
STOCK = {"dqn": "dqn-adam", "a2c": "a2c-rmsprop", "ppo": "ppo-adam"}
DEFAULT_RATES = {"dqn": "1e-4", "a2c": "7e-4", "ppo": "3e-4"}

EARLIER = ["alrao.base_kwargs={eps=1e-5}"]
"""ε of RMSprop, inside the root, when the rules were compared."""
ALRAO: dict[str, list[str]] = {
    "whiteness": ["alrao.value_averaging=whiteness", *EARLIER],
    "whiteness, window 20": ['alrao.value_averaging={rule="whiteness", window=20}', *EARLIER],
    "switch": ["alrao.value_averaging=switch", *EARLIER],
    "whiteness, adam": ["alrao.value_averaging=whiteness", "alrao.base=adam"],
    "ε 1e-8": ["alrao.base_kwargs={eps=1e-8}"],  # and the rule that is better for the algorithm, the default
    "ε 1e-8, bias correction": ["alrao.base_kwargs={eps=1e-8, bias_correction=true}"],
}
# DQN's recipe divides observations by their root mean square.
OBSERVATIONS = {
    "switch, raw observations": ["alrao.value_averaging=switch", "normalize_observations=false", *EARLIER],
    "switch, centred observations": ["alrao.value_averaging=switch", "normalize_observations=true", *EARLIER],
}
PAPER = "paper: sgd, (1e-5, 10), switch"
KEPT = [*product(STOCK, ["switch", "ε 1e-8", "ε 1e-8, bias correction"]), ("dqn", "whiteness")]
"""Algorithm and setting of what went on to five seeds."""


def settings(algo: str) -> dict[str, tuple[str, list[str]]]:
    """Agent and overrides of every setting of an algorithm."""
    rates = dict.fromkeys(["1e-4", DEFAULT_RATES[algo], "3e-3"])
    stock = {f"stock {rate}": (STOCK[algo], [f"learning_rate={rate}"]) for rate in rates}
    paper = {} if algo == "ppo" else {PAPER: (f"{algo}-paper", [])}
    alrao = ALRAO | (OBSERVATIONS if algo == "dqn" else {})
    return {name: (algo, overrides) for name, overrides in alrao.items()} | stock | paper


def plan() -> list[tuple[str, str, str, int]]:
    """All runs, in the order they are made."""
    cells = list(product(("a2c", "ppo", "dqn"), FLOORS))
    all_of = [(algo, name, env, seed) for algo, env in cells for seed in range(5) for name in settings(algo)]
    kept = [one for one in all_of if one[:2] in KEPT or one[1].startswith("stock")]
    return kept + [one for one in all_of if one[3] < 2 and one not in kept]


def score(episodes: Path, timesteps: int, floor: float) -> tuple[float, float]:
    """Mean over the steps and over the last fifth of them, from the floor until the first episode ends."""
    rows = pd.read_csv(episodes)
    run = (rows["timestep"], rows["return"], timesteps, floor)
    return stats.auc(*run, start=floor), stats.final_return(*run, start=floor)


def run(algo: str, name: str, env: str, seed: int) -> dict[str, Any]:
    """Train once and return the row."""
    agent, overrides = settings(algo)[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [sys.executable, "-m", "alrao_rl.train", "--agent", agent, "--env", env, "--seed", str(seed)]
        command += ["--timesteps", str(TIMESTEPS[algo]), "--out", str(out), "--quiet", "--eval-episodes", "5"]
        command += [part for override in overrides for part in ("--set", override)]
        started = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        row: dict[str, Any] = {"algo": algo, "setting": name, "env": env, "seed": seed, "timesteps": TIMESTEPS[algo]}
        if done.returncode == 2:
            raise SystemExit(f"{command}: {done.stderr}")
        if done.returncode:
            return row | {"state": "failed", "auc": FLOORS[env], "final": FLOORS[env], "seconds": round(seconds, 1)}
        auc, final = score(out / "episodes.csv", TIMESTEPS[algo], FLOORS[env])
        last = json.loads((out / "status.json").read_text())["last_return"]
        return row | {
            "state": "finished",
            "auc": round(auc, 2),
            "final": round(final, 2),
            "last_evaluation": round(last, 2),
            "seconds": round(seconds, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-j", type=int, default=2, help="runs at a time")
    jobs = parser.parse_args().j
    done = set()
    if RUNS.exists():
        with RUNS.open() as file:
            done = {(r["algo"], r["setting"], r["env"], int(r["seed"])) for r in csv.DictReader(file)}
    todo = [one for one in plan() if one not in done]
    lock, started = threading.Lock(), time.perf_counter()
    finished = 0

    def one(key: tuple[str, str, str, int]) -> None:
        nonlocal finished
        row = run(*key)
        with lock:
            new = not RUNS.exists()
            with RUNS.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            finished += 1
            left = (time.perf_counter() - started) / finished * (len(todo) - finished) / 60
            print(f"{finished}/{len(todo)} {' / '.join(map(str, key))}: {row['auc']} ({left:.0f} min left)", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, todo))


if __name__ == "__main__":
    main()
