"""Recipes and sweeps that no one should have written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from faults.harness import Fault, Missed, Result, check
from faults.processes import done

SECONDS, MEGABYTES = 1.0, 200.0
# What the process itself has used: the time of others on a busy machine, and the memory of its parent, are not its own.
MEASURED = """
import re, sys, time
from importlib import import_module
code = import_module(f"{sys.argv[1]}.command").main(sys.argv[2:])
peak = re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())
print("used", time.process_time(), int(peak[1]) / 1024)
sys.exit(code)
"""
AGENT = 'algo = "dqn"\npolicy = "alrao"\n'
SWEEP = 'name = "x"\nagents = ["dqn"]\nenvs = ["CartPole-v1"]\nseeds = [0]\n'
DEEP = {"brackets": "x = " + "[" * 90_000, "lists": f"x = {'[' * 300}{']' * 300}", "tables": "[" + "a." * 25 + "b]\n",
        "dots": "a" + ".a" * 90_000 + " = 1", "inline": "x = " + "{a = " * 200 + "1" + "}" * 200}  # fmt: skip

Case = tuple[str, str | Callable[[Path], object], str]
"""File, its text or what makes it, module that reads it."""
CASES: dict[str, Case] = {
    "unknown key of an agent": ("a.toml", f"{AGENT}learning = 1\n", "agent"),
    "unknown key of an environment": ("e.toml", 'id = "CartPole-v1"\nlearning_rate = 1.0\n', "env"),
    "unknown key of a sweep": ("s.toml", f"{SWEEP}sedes = 3\n", "sweep"),
    "nan in an agent": ("a.toml", f"{AGENT}[hyperparameters]\ngamma = nan\n", "agent"),
    "inf in an environment": ("e.toml", 'id = "CartPole-v1"\nfloor = inf\n', "env"),
    "nan in a sweep": ("s.toml", f"{SWEEP}budget = nan\n", "sweep"),
    "a billion runs by seeds": ("s.toml", SWEEP.replace("[0]", str(list(range(10_001)))), "sweep"),
    "a billion runs by a grid": (
        "s.toml", SWEEP + "[grid]\n" + "".join(f"{key} = {list(range(2, 102))}\n" for key in
        ("batch_size", "train_freq", "n_steps", "learning_starts")) + "buffer_size = [1000, 2000, 3000]\n" , "sweep",
    ),
    "a billion agents": ("s.toml", SWEEP.replace('["dqn"]', str([f"a{n}" for n in range(20_000)])), "sweep"),
    "100 MB": ("a.toml", lambda path: path.write_bytes(b"#" * 10**8), "agent"),
    "100 MB of a sweep": ("s.toml", lambda path: path.write_bytes(b"x = 1\n" * (10**8 // 6)), "sweep"),
    "an endless file": ("a.toml", lambda path: path.symlink_to("/dev/zero"), "agent"),
    "a pipe": ("a.toml", os.mkfifo, "agent"),
    **{f"deep nesting, {name}": ("a.toml", text, "agent") for name, text in DEEP.items()},
    **{f"deep nesting of a sweep, {name}": ("s.toml", f"{SWEEP}[grid]\n{text}", "sweep") for name, text in DEEP.items()
       if name != "tables"},
    "a name that goes up": ("s.toml", SWEEP.replace('"x"', '"../x"'), "sweep"),
    "an absolute name": ("s.toml", SWEEP.replace('"x"', '"/tmp/x"'), "sweep"),
    "an agent that goes up": ("s.toml", SWEEP.replace('"dqn"', '"../../dqn"'), "sweep"),
    "an environment that goes up": ("e.toml", 'id = "../../x"\n', "env"),
    "an absolute environment": ("e.toml", 'id = "/etc/passwd"\n', "env"),
    "control characters in a name": ("s.toml", SWEEP.replace('"x"', '"x\\u001b[31m"'), "sweep"),
    "control characters in an environment": ("e.toml", 'id = "CartPole\\u0007-v1"\n', "env"),
    "control characters in a key": ("a.toml", f'{AGENT}"\\u001b[2J" = 1\n', "agent"),
    "control characters in the name of a file": ("a\x1b[31m.toml", AGENT, "agent"),
    "a name of a file that is none": ("..toml", AGENT, "agent"),
    "no text": ("a.toml", lambda path: path.write_bytes(b"\xff\xfe\x00"), "agent"),
}  # fmt: skip


def reject(number: int, place: Path) -> Result:
    """One line, exit status 2, no file, within a second of processor time and 200 MB."""
    name, (file, make, kind) = list(CASES.items())[number]
    path = place / file
    make(path) if callable(make) else path.write_text(make)
    train = {"agent": ["--agent", path, "--env", "CartPole-v1"], "env": ["--algo", "dqn", "--env", path]}
    line = ["alrao_rl.sweep", path, "-j", 1] if kind == "sweep" else ["alrao_rl.train", *train[kind], "--timesteps", 10]
    before = sorted(place.iterdir())
    end = done([sys.executable, "-c", MEASURED, *line], cwd=place)
    path.unlink()
    used = end.stdout.split()
    if end.returncode != 2 or used[:1] != ["used"]:
        raise Missed(f"{name}: exit status {end.returncode}: {end.stderr[-200:]}")
    check(end.stderr.startswith("error: ") and end.stderr.count("\n") == 1, f"{name}: said {end.stderr!r}")
    check(all(char.isprintable() for char in end.stderr[:-1]), f"{name}: control characters in {end.stderr!r}")
    check(sorted(place.iterdir()) == [one for one in before if one != path], f"{name}: left files")
    seconds, megabytes = map(float, used[1:])
    check(seconds < SECONDS and megabytes < MEGABYTES, f"{name}: {seconds:.2f} s, {megabytes:.0f} MB: {end.stderr}")
    return Result(seconds, f"{name}: {megabytes:.0f} MB: {end.stderr[7:150]}")


FAULTS = [
    Fault(
        "recipe",
        "unknown keys, nan, 10⁹ runs, 100 MB, deep nesting, names that go up, are absolute or hold control characters",
        "rejected in < 1 s of processor time and < 200 MB with one line",
        reject, asked=len(CASES), short=3, value="seconds of processor time, Python's start included",
    ),
]  # fmt: skip
