"""How long a sweep takes: on two cores, on one, and rl-baselines3-zoo for the same: ``python benchmarks/sweep.py``.

Twenty runs of stock PPO on CartPole-v1, of ten to forty seconds each, by ``alrao_rl.sweep`` with ``-j 1`` and ``-j 2``
and by ``rl_zoo3.train``, two processes at a time. All have the hyperparameters of agents/ppo-adam.toml, one thread a
run, and fifty evaluations of five episodes each, on five environments. The three take turns, in another order each
round. Every time goes to results/sweep-speed.csv as it is measured; the same command again goes on with the rounds that
are not there yet, and writes results/sweep-speed.md. To measure anew delete the table. The zoo has an environment
of its own in the user's cache, which is made the first time.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alrao_rl.recipes.resolve import resolve
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.train.callback import N_EVALUATIONS

ROOT = Path(__file__).parent.parent
SHARED = ("torch", "stable_baselines3", "gymnasium", "numpy")
"""Packages that decide on the speed: the zoo gets our versions of them."""
RELEASE = "rl_zoo3==2.9.2"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "alrao-rl", "rl-zoo3")
ZOO = CACHE / "bin" / "python"
AGENT, ENV, EVAL_EPISODES = "ppo-adam", "CartPole-v1", 5
COLUMNS = ["round", "what", "runs", "timesteps", "seconds"]
ONE, TWO, OTHER = "alrao_rl.sweep -j 1", "alrao_rl.sweep -j 2", "rl_zoo3.train, two at a time"
MOST = {(TWO, ONE): 0.60, (TWO, OTHER): 1.00}
"""What a ratio of times may be at the most."""


def install_zoo() -> None:
    """Make the zoo's virtual environment unless it is there, as constraints.txt and its own release say."""
    if (CACHE / "installed").exists():
        return
    print(f"installing rl_zoo3 into {CACHE}", flush=True)
    shutil.rmtree(CACHE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", CACHE], check=True)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.split("==")[0] in SHARED]
    pip = [ZOO, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and alone: with it in place nothing pulls another build of it.
    subprocess.run([*pip, *(pin for pin in pins if pin.startswith("torch=="))], check=True)
    subprocess.run([*pip, *pins, RELEASE], check=True)
    (CACHE / "installed").touch()


def ours(folder: Path, n_runs: int, timesteps: int, jobs: int) -> None:
    """A sweep."""
    command = [sys.executable, "-m", "alrao_rl.sweep", "--agents", AGENT, "--envs", ENV, "--seeds", f"0-{n_runs - 1}"]
    command += ["--timesteps", str(timesteps), "--eval-episodes", str(EVAL_EPISODES), "-j", str(jobs)]
    command += ["--eval-budget", "1000"]  # the zoo has none
    _run([*command, "--out", folder / "sweep"], folder)


def zoo(folder: Path, n_runs: int, timesteps: int, jobs: int) -> None:
    """The same runs by the zoo, each in a process and with a folder of its own."""
    recipe = resolve(AGENT, ENV, [], timesteps, {})
    agent, options = recipe.agent, recipe.agent.policy_options
    policy_kwargs = f"dict(net_arch={options['net_arch']}, activation_fn=nn.Tanh)"
    assert options.keys() == {"net_arch", "activation_fn"}
    assert options["activation_fn"] == "tanh"
    settings = {"n_envs": agent.n_envs, "n_timesteps": timesteps, "policy": "MlpPolicy", "policy_kwargs": policy_kwargs}
    (folder / "ppo.yml").write_text(json.dumps({ENV: settings | agent.hyperparameters}))  # JSON is YAML

    def train(seed: int) -> None:
        command = [ZOO, "-m", "rl_zoo3.train", "--algo", agent.algo, "--env", ENV, "--conf-file", folder / "ppo.yml"]
        command += ["--seed", str(seed), "--num-threads", "1", "--device", "cpu", "--verbose", "0"]
        command += ["--eval-freq", str(timesteps // N_EVALUATIONS), "--eval-episodes", str(EVAL_EPISODES)]
        command += ["--n-eval-envs", str(EVAL_EPISODES), "--log-folder", folder / f"seed-{seed}"]
        _run(command, folder)
        assert list(folder.glob(f"seed-{seed}/**/{ENV}.zip")), f"seed {seed} has left no agent"

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, range(n_runs)))


CONTESTANTS: dict[str, tuple[Callable[[Path, int, int, int], None], int]] = {
    ONE: (ours, 1),
    TWO: (ours, 2),
    OTHER: (zoo, 2),
}


def _run(command: list[str | Path], cwd: Path) -> None:
    """Run it with one thread for each process; what it says is shown only if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))} ended with exit status {done.returncode}")


def measure(path: Path, n_runs: int, timesteps: int, n_rounds: int) -> list[dict[str, str]]:
    """Add to the table the wall seconds of every contestant in every round, and return it.

    A round that was cut off is made anew: its times are compared with one another.
    """
    rows = _read(path)
    whole = [n for n in range(1, n_rounds + 1) if sum(row["round"] == str(n) for row in rows) == len(CONTESTANTS)]
    rows = [row for row in rows if int(row["round"]) in whole]
    if any((row["runs"], row["timesteps"]) != (str(n_runs), str(timesteps)) for row in rows):
        sys.exit(f"{path} holds times of other runs than {n_runs} of {timesteps} steps: delete it, or give --out")
    names = list(CONTESTANTS)
    for number in range(1, n_rounds + 1):
        if number in whole:
            continue
        for name in names[number % 3 :] + names[: number % 3]:
            function, jobs = CONTESTANTS[name]
            with tempfile.TemporaryDirectory(prefix="alrao-bench-") as folder:
                started = time.perf_counter()
                function(Path(folder), n_runs, timesteps, jobs)
                seconds = time.perf_counter() - started
            values = (number, name, n_runs, timesteps, f"{seconds:.1f}")
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
            _write(path, rows)
            print(f"round {number}: {name}: {seconds:.1f} s", flush=True)
    return rows


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())  # what was measured in half an hour outlives being killed here


def report(rows: list[dict[str, str]], n_runs: int, timesteps: int) -> str:
    """The tables as Markdown: medians, and in brackets the least and the greatest."""
    times = {name: [float(row["seconds"]) for row in rows if row["what"] == name] for name in CONTESTANTS}
    lines = [f"| {name} | {_spread(seconds, 1)} |" for name, seconds in times.items()]
    ratios = []
    for (above, below), most in MOST.items():
        of = [a / b for a, b in zip(times[above], times[below], strict=True)]
        kept = "yes" if statistics.median(of) <= most else "no"
        ratios.append(f"| {above} : {below} | {_spread(of, 2)} | {most:.2f} | {kept} |")
    return f"""# Time of a sweep

{n_runs} runs of {AGENT} on {ENV}, {timesteps:,} steps each, seconds of wall time from the command to its end; medians
of {len(times[ONE])} rounds, in brackets the least and the greatest. On all sides the same hyperparameters, one thread a
run, {N_EVALUATIONS} evaluations of {EVAL_EPISODES} episodes on {EVAL_EPISODES} environments; ours evaluates where
training looks as good as ever, what may be the best agent up to four times more, and writes all its logs. `-j 1` is
not bound to a core.
Remake: `make bench-sweep`. Every time: `sweep-speed.csv`.

| | seconds |
|---|---|
{chr(10).join(lines)}

| | ratio of a round | at the most | kept |
|---|---|---|---|
{chr(10).join(ratios)}

{_versions()}
"""


def _spread(values: list[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def _versions() -> str:
    """Of both virtual environments."""
    script = (
        "import importlib.metadata as m, sys;"
        "print(', '.join(f'{name} {m.version(name)}' for name in sys.argv[1:]), end='')"
    )
    common = ["torch", "stable-baselines3", "gymnasium", "numpy"]
    both = {sys.executable: [*common, "distributed"], str(ZOO): [*common, "rl_zoo3"]}
    ours_, theirs = (
        subprocess.run([python, "-c", script, *names], capture_output=True, text=True, check=True).stdout
        for python, names in both.items()
    )
    return f"{os.cpu_count()} cores, Python {platform.python_version()}; {ours_}. The zoo's: {theirs}."


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--timesteps", type=int, default=12_288)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of sweep-speed.md and .csv")
    args = parser.parse_args()
    install_zoo()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = measure(args.out / "sweep-speed.csv", args.runs, args.timesteps, args.rounds)
    text = report(rows, args.runs, args.timesteps)
    (args.out / "sweep-speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
