"""Runs that are ended in order, continued as another, or by two at once."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from common import arguments, command

from faults.damage import ALGO, ENV, interrupted
from faults.disk import contents
from faults.harness import Fault, Missed, Result, check
from faults.kill import CELLS, STEPS, run_command, same, straight
from faults.processes import done, finish, started, wait_for

LIMIT = 10.0
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def interrupt(number: int, place: Path, in_time: bool = True) -> Result:
    """SIGTERM or Ctrl-C at a random moment: a checkpoint, the exit status of the signal, and the rest as in one go."""
    algo, env = CELLS[number % len(CELLS)]
    which = list(STATUS)[number // len(CELLS) % 2]
    reference, final, seconds = straight(algo, env)
    draw = np.random.default_rng(number)
    for attempt in range(10):
        out, facts = place / f"run-{attempt}", place / f"facts-{attempt}"
        # An interval that never comes: the checkpoint is that of the signal.
        with started(run_command(facts, algo, env, out, 3600)) as process:
            wait_for(lambda facts=facts: (facts / "log").exists() and (facts / "log").stat().st_size, process)
            time.sleep(draw.uniform(0.02, seconds))
            before = time.perf_counter()
            process.send_signal(which)
            code = process.wait()
            took = time.perf_counter() - before
            said = process.stderr.read()
        if code and not (facts / "final.json").exists():  # else training was over
            break
    else:
        raise Missed("the run was always over before")
    check(code == STATUS[which], f"exit status {code}: {said}")
    check(took <= LIMIT or not in_time, f"it took {took:.1f} s")
    check("Traceback" not in said, f"said {said!r}")
    status = json.loads((out / "status.json").read_text())
    check(status["state"] == "interrupted", f"status {status}")
    check(contents(out / "checkpoint") or not in_time, f"it left no checkpoint, at step {status['timestep']}")
    again = place / "again"
    finish(run_command(again, algo, env, out, 3600))
    same(reference, out, final, again)
    return Result(took, f"{which.name}, {algo} on {env}")


OTHERS = {
    "another gamma": ["--set", "gamma=0.5"],
    "another width": ["--set", "net_arch=[9]"],
    "more heads": ["--set", "alrao.n_heads=4"],
    "another interval": ["--set", "alrao.lr_range=[1e-4, 1e-2]"],
    "another seed": ["--seed", "7"],
    "another length": ["--timesteps", "2100"],
    "another environment": ["--env", "Acrobot-v1"],
    "another algorithm": ["--agent", "dqn-paper"],
    "no normalisation": ["--set", "normalize_observations=false"],
}


def files(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


def another_recipe(number: int, place: Path) -> Result:
    """Refused with the difference, and every file is as it was."""
    name, change = list(OTHERS.items())[number]
    out = place / "run"
    shutil.copytree(interrupted(), out)
    before = files(out)
    end = done(command(*arguments(ALGO, ENV, STEPS[ALGO]), "--out", out, *change))
    check(end.returncode == 2, f"{name}: exit status {end.returncode}: {end.stderr}")
    line = end.stderr
    check(line.count("\n") == 1 and " -> " in line and str(out) in line, f"{name}: said {line!r}")
    check(files(out) == before, f"{name}: a file has changed")
    return Result(detail=f"{name}: {line[7:]}")


VERSIONS = ("torch", "stable-baselines3", "alrao-rl", "gymnasium", "numpy")


def another_version(number: int, place: Path) -> Result:
    """Refused with the difference, no file changed; with --allow-mismatch it goes on and says so."""
    name, out = VERSIONS[number], place / "run"
    shutil.copytree(interrupted(), out)
    config = json.loads((out / "config.json").read_text())
    config["provenance"]["versions"][name] = "0.0.1"
    (out / "config.json").write_text(json.dumps(config))
    before = files(out)
    again = command(*arguments(ALGO, ENV, STEPS[ALGO]), "--out", out)
    end = done(again)
    check(end.returncode == 2, f"exit status {end.returncode}: {end.stderr}")
    check(end.stderr.count("\n") == 1 and name in end.stderr and "0.0.1" in end.stderr, f"said {end.stderr!r}")
    check(files(out) == before, "a file has changed")
    said = finish([*again, "--allow-mismatch"])
    check(said.startswith("warning: ") and said.count("\n") == 1, f"said {said!r}")
    check("0.0.1" in (out / "config.json").read_text(), "config.json does not tell")
    return Result(detail=end.stderr[7:])


def two_at_once(number: int, place: Path) -> Result:
    """One trains, the other is refused, and what is there at the end is one run."""
    algo, env = CELLS[number % len(CELLS)]
    reference, final, _ = straight(algo, env)
    out = place / "run"
    commands = [run_command(place / name, algo, env, out, 60) for name in ("one", "two")]
    with started(commands[0]) as first:
        time.sleep(float(np.random.default_rng(number).uniform(0, 0.2)))
        with started(commands[1]) as second:
            said = [process.communicate()[1] for process in (first, second)]
            codes = [first.returncode, second.returncode]
    check(sorted(codes) == [0, 2], f"exit status {codes}: {said}")
    refused = said[codes.index(2)]
    check("another process is writing to" in refused and refused.count("\n") == 1, f"said {refused!r}")
    same(reference, out, final, place / ("one", "two")[codes.index(0)])
    return Result(detail=f"{algo} on {env}: the {('second', 'first')[codes.index(0)]} was refused")


FAULTS = [
    Fault(
        "signal", "SIGTERM or Ctrl-C at a random moment of training",
        "checkpoint and exit within 10 s; the command again ends as in one go", interrupt, asked=36, value="seconds",
        short_run=lambda number, place: interrupt(number, place, in_time=False),  # the machine may be busy
    ),
    Fault(
        "recipe-differs", "continuing a run with another recipe",
        "refused with the difference, no file changed", another_recipe, asked=len(OTHERS),
    ),
    Fault(
        "version-differs", "continuing a run with another version of a package",
        "refused with the difference; --allow-mismatch goes on and notes it", another_version, asked=len(VERSIONS),
    ),
    Fault(
        "two", "two processes on one run folder", "the second is refused, no corrupt row", two_at_once, asked=20,
    ),
]  # fmt: skip
