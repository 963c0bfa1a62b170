"""Sweeps: environments that misbehave beside others, and two hundred runs in a row."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from common import SMALL, arguments, command

from faults.harness import Fault, Result, check
from faults.processes import done, started

KINDS = {
    "raises": "ValueError: broken at last",
    "exits": "its process ended with exit status 7",
    "hangs": "it was not finished after",
    "shape": "the observation is of shape (3,), expected (2,) at step 150",
    "one-number": "the observation is of shape (1,), expected (2,) at step 150",
    "dtype": "the observation holds <U1, expected float32 at step 150",
    "complex": "the observation holds complex128, expected float32 at step 150",
    "no-observation": "the observation is of shape (), expected (2,) at step 150",
    "word-reward": "ValueError: could not convert string to float",
    "rewards": "TypeError: ",
    "nan-reward": "the reward is nan at step 150",
}
"""What happens in an environment, and what the reason of its run says."""
TIMEOUT, GRACE = 60.0, 5.0


def sweep_command(*args: object) -> list[object]:
    always = ["--agents", "small.toml", "--eval-episodes", 1, "--name", "x"]
    return [sys.executable, "-m", "alrao_rl.sweep", *always, *args]


def rows(place: Path) -> list[dict[str, str]]:
    with (place / "results" / "x" / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def misbehave(number: int, place: Path) -> Result:
    """Each environment in a run of its own, two at a time; one fails as it does and two do their work."""
    (place / "small.toml").write_text(SMALL)
    envs = ["Good-v0", *(f"{kind.title()}-v0" for kind in KINDS)]
    names = [f"faults.faulty:{env}" for env in envs]
    seeds = ["--seeds", number, "--timesteps", 300, "--run-timeout", TIMEOUT, "-j", 2]
    end = done(sweep_command("--envs", *names, *seeds), cwd=place)
    check(end.returncode == 1, f"exit status {end.returncode}: {end.stderr[-200:]}")
    found = {row["env"].split(":")[1].removesuffix("-v0").lower(): row for row in rows(place)}
    check(found["good"]["state"] == "finished", f"the sibling is {found['good']['state']}")
    for kind, says in KINDS.items():
        row = found[kind]
        check(row["state"] == "failed" and says in row["reason"], f"{kind}: {row['state']}, {row['reason']!r}")
    late = float(found["hangs"]["seconds"]) - TIMEOUT
    check(late <= GRACE, f"the run that hung was killed {late:.1f} s after its timeout")
    return Result(late, f"{len(KINDS)} failed with their reason, the sibling finished")


def misbehave_alone(number: int, place: Path) -> Result:
    """The same without a sweep, one environment."""
    env = "faults.faulty:One-Number-v0"
    end = done(command(*arguments("dqn", env, 400), "--out", place / "run"))
    check(end.returncode == 1 and KINDS["one-number"] in end.stderr, f"exit status {end.returncode}: {end.stderr}")
    return Result()


# --- soak -----------------------------------------------------------------------------------------------------------

CACHES = ("torchinductor_", "dask-scratch-space")
"""Folders of torch's and Dask's own among the temporary files: one name each, however many runs."""
FLAT = 0.05
"""Growth of a process's memory that is none: in megabytes a run, ten over two hundred runs."""


def soak(n_runs: int, place: Path) -> Result:
    """Memory of driver and workers over many runs, by a straight line through it; what is left when it is over."""
    (place / "small.toml").write_text(SMALL)
    temporary = place / "tmp"
    temporary.mkdir()
    args = ["--envs", "faults.faulty:Good-v0", "--seeds", f"0-{n_runs - 1}", "--timesteps", 60, "-j", 2]
    samples: dict[str, list[tuple[int, float, int]]] = {}
    seen: set[psutil.Process] = set()
    with started(["env", f"TMPDIR={temporary}", *sweep_command(*args)], cwd=place, start_new_session=True) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            n = len(rows(place)) if (place / "results" / "x" / "runs.csv").exists() else 0
            try:
                below = driver.children(recursive=True)
                seen.update(below)
                lasting = [one for one in below if "alrao_rl.train" not in (line := " ".join(one.cmdline())) and line]
                for one in [driver, *lasting]:
                    point = (n, one.memory_info().rss / 2**20, one.num_fds())
                    samples.setdefault(f"{'driver' if one is driver else 'worker'} {one.pid}", []).append(point)
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.5)
        said = process.stderr.read()
    check(process.returncode == 0, f"exit status {process.returncode}: {said[-200:]}")
    check(len(rows(place)) == n_runs, f"{len(rows(place))} rows")
    time.sleep(1)
    left = [one for one in seen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    check(not left, f"{len(left)} processes are left")
    files = [path.name for path in temporary.iterdir() if not path.name.startswith(CACHES)]
    check(not files, f"{len(files)} temporary files are left: {files[:3]}")
    odd = [str(path.relative_to(place)) for path in (place / "results").rglob("*.tmp")]
    check(not odd, f"left {odd[:3]}")
    slopes = {}
    for name, points in samples.items():
        # The first runs fill caches.
        runs, megabytes, handles = (np.array(x) for x in zip(*points, strict=True))
        later = runs >= min(20, n_runs // 4)
        if not later.any() or np.ptp(runs[later]) < n_runs / 2:
            continue  # not there from the beginning to the end
        slopes[name.split()[0]] = max(
            slopes.get(name.split()[0], -1.0), float(np.polyfit(runs[later], megabytes[later], 1)[0])
        )
        grown = float(np.polyfit(runs[later], handles[later], 1)[0]) * n_runs
        check(grown < 5, f"{name} has {grown:.0f} more open files after {n_runs} runs")
    check(set(slopes) == {"driver", "worker"}, f"measured only {set(slopes)}")
    words = ", ".join(f"{name} {1024 * slope:+.1f} kB a run" for name, slope in slopes.items())
    if n_runs >= 100:
        check(max(slopes.values()) < FLAT, f"memory grows: {words}")
    return Result(1024 * max(slopes.values()), f"{n_runs} runs: {words}; no file, no process left")


FAULTS = [
    Fault(
        "environment", "an environment raises, hangs, exits, gives wrong shapes, dtypes, rewards, each beside others",
        "that run has failed with its reason, the others are finished, a hang is over within its timeout + 5 s",
        misbehave, asked=5, value="seconds after the timeout", short_run=misbehave_alone,
    ),
    Fault(
        "soak", "200 short runs in one sweep",
        "memory of driver and workers flat (under 50 kB a run), no file or process left",
        lambda _, place: soak(200, place), asked=1, value="kB a run", short_run=lambda _, place: soak(4, place),
    ),
]  # fmt: skip
