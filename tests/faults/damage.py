"""Files that were cut or in which a bit was flipped."""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from common import SAME, bits, flip

from alrao_rl import load_agent, load_results
from alrao_rl.errors import UserError
from alrao_rl.runs.checkpoint import Checkpoints
from faults.harness import Fault, Missed, Result, check
from faults.kill import run_command, straight
from faults.processes import done, started, wait_for

ALGO, ENV = "dqn", "CartPole-v1"
RUN_FILES = ("config.json", "status.json", "episodes.csv", "evaluations.csv", "heads.csv", "agent.safetensors")


@cache
def interrupted() -> Path:
    """A run that was killed with two checkpoints and some evaluations behind it."""
    place = Path(tempfile.mkdtemp(prefix="alrao-faults-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)

    def enough() -> bool:
        files = [*(place / "run" / "checkpoint").glob("step-*/agent.json")]
        return len(files) > 1 and len((place / "run" / "evaluations.csv").read_text().splitlines()) > 2

    with started(run_command(place / "facts", ALGO, ENV, place / "run", 0.05)) as process:
        wait_for(enough, process)
        process.send_signal(signal.SIGKILL)
    return place / "run"


def damage(path: Path, how: str, draw: np.random.Generator) -> str:
    """Cut a file anywhere, or flip any bit of it; say what was done."""
    size = path.stat().st_size
    if how == "truncated":
        data = path.read_bytes()[: draw.integers(0, size)]
        path.write_bytes(data)
        return f"{path.name} cut at byte {len(data)} of {size}"
    bit = int(draw.integers(0, 8 * size))
    flip(path, bit)
    return f"{path.name}, bit {bit} of {8 * size}"


def of_checkpoint(how: str, number: int, place: Path) -> Result:
    """The newest is told of and passed over, the one before comes back whole."""
    draw, out = np.random.default_rng(number), place / "run"
    shutil.copytree(interrupted(), out)
    checkpoints = Checkpoints(out / "checkpoint")
    before, newest = sorted((out / "checkpoint").glob("step-*"))
    whole = dict(bits(Checkpoints(interrupted() / "checkpoint").newest(print, lambda _: None).state))
    check(whole["/step"] == int(newest.name.removeprefix("step-")), "the newest does not come back undamaged")
    files = sorted(newest.iterdir())
    said = damage(files[number % len(files)], how, draw)
    complaints: list[tuple[Path, str]] = []
    found = checkpoints.newest(lambda path, reason: complaints.append((path, reason)), lambda _: None)
    check([path for path, _ in complaints] == [newest], f"{said}: not detected")
    check(found is not None and found.path == before, f"{said}: the one before is not used")
    check(found.state["step"] == int(before.name.removeprefix("step-")), f"{said}: half-loaded")
    return Result(detail=f"{said}: {complaints[0][1]}")


def of_run_file(how: str, number: int, place: Path) -> Result:
    """Of a run that goes on or, every other trial, of a finished one that is read."""
    return (of_finished_run if number % 2 else of_unfinished_run)(how, number, place)


def of_unfinished_run(how: str, number: int, place: Path) -> Result:
    """The command again refuses on one line, or ends with the files of a run in one go."""
    draw, out = np.random.default_rng(number), place / "run"
    reference, _, _ = straight(ALGO, ENV)
    shutil.copytree(interrupted(), out)
    said = damage(out / RUN_FILES[number // 2 % len(RUN_FILES)], how, draw)
    end = done(run_command(place / "facts", ALGO, ENV, out, 60))
    lines = end.stderr.strip().splitlines()
    if end.returncode == 2:
        check(len(lines) == 1 and str(out) in lines[0], f"{said}: said {end.stderr!r}")
        return Result(detail=f"{said}: refused: {lines[0]}")
    check(end.returncode == 0, f"{said}: exit status {end.returncode}: {end.stderr}")
    check(all(line.startswith("warning: ") for line in lines), f"{said}: said {end.stderr!r}")
    files = [name for name in SAME if (reference / name).read_bytes() != (out / name).read_bytes()]
    check(not files, f"{said}: half-loaded: {files} differ")
    return Result(detail=f"{said}: {lines[0] if lines else 'put back from the checkpoint, or not needed'}")


def of_finished_run(how: str, number: int, place: Path) -> Result:
    """``load_results`` says broken, ``load_agent`` refuses."""
    draw, out = np.random.default_rng(number), place / "CartPole-v1" / "dqn" / "seed-0"
    shutil.copytree(straight(ALGO, ENV)[0], out)
    check(load_results(out).state[0] == "finished", "undamaged, it is not finished")
    load_agent(out)
    name = RUN_FILES[number // 2 % len(RUN_FILES)]
    said = damage(out / name, how, draw)
    if name.endswith(".safetensors"):
        try:
            load_agent(out)
        except UserError as error:
            return Result(detail=f"{said}: {error}")
        raise Missed(f"{said}: loaded")
    row = load_results(out).iloc[0]
    check(row.state == "broken" and name in row.error, f"{said}: {row.state}, {row.error!r}")
    check(np.isnan(row.auc), f"{said}: it still has a score")
    return Result(detail=f"{said}: {row.error}")


def stock(how: str, number: int, place: Path) -> Result:
    """``DQN.load`` of a damaged zip: refused, or loaded as it was."""
    import torch
    from stable_baselines3 import DQN

    model = DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=10)
    path = place / "model.zip"
    model.save(path)
    said = damage(path, how, np.random.default_rng(number))
    try:
        loaded = DQN.load(path)
    except Exception as error:
        return Result(detail=f"{said}: {type(error).__name__}, and there is no file before it")
    same = all(torch.equal(a, b) for a, b in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True))
    raise Missed(f"{said}: loaded without a word, {'the same' if same else 'other'} weights")


def _fault(what: str, how: str, run: object) -> Fault:
    checkpoint = what == "checkpoint"
    return Fault(
        f"{how}-{what}",
        f"{what.replace('-', ' ')} {'cut anywhere' if how == 'truncated' else 'with a flipped bit'}",
        "detected, the one before used, never half-loaded"
        if checkpoint
        else "refused, marked as broken, or the run ends as in one go; never half-loaded",
        lambda number, place: run(how, number, place),
        asked=100,
        short=2,
        stock=(lambda number, place: stock(how, number, place)) if checkpoint else None,
        stock_asked=20,
    )


FAULTS = [_fault(what, how, run) for what, run in (("checkpoint", of_checkpoint), ("run-file", of_run_file))
          for how in ("truncated", "flipped")]  # fmt: skip
