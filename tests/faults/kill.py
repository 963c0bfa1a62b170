"""SIGKILL at a random moment of a run, and inside the writing of a checkpoint."""

from __future__ import annotations

import atexit
import json
import shutil
import signal
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
from common import SAME, arguments, differing

from alrao_rl.runs.checkpoint import CheckpointError, Checkpoints, load
from faults.harness import Fault, Missed, Result, check
from faults.processes import CHILD, finish, started, wait_for

STEPS = {
    "dqn": 1200, "a2c": 6000, "ppo": 4096, "sac": 900, "td3": 900, "ddpg": 900, "tqc": 700, "crossq": 700,
}  # fmt: skip
CELLS = [(algo, env) for algo in ("dqn", "a2c", "ppo") for env in ("CartPole-v1", "LunarLander-v3")]
CONTINUOUS = [(algo, "Pendulum-v1") for algo in ("sac", "td3", "tqc", "crossq", "ddpg")]
STOCK = ("DQN", "A2C", "PPO")
INTERVAL = 0.2


def run_command(facts: Path, algo: str, env: str, out: Path, interval: float = INTERVAL) -> list[object]:
    facts.mkdir(parents=True, exist_ok=True)
    return [*CHILD, facts, *arguments(algo, env, STEPS[algo]), "--checkpoint-interval", interval, "--out", out]


@cache
def straight(algo: str, env: str) -> tuple[Path, dict[str, str], float]:
    """A run in one go, the same for all trials: its folder, its final state, the seconds of training."""
    place = Path(tempfile.mkdtemp(prefix="alrao-faults-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    finish(run_command(place / "facts", algo, env, place / "run", interval=0))
    log = read_log(place / "facts")
    final = json.loads((place / "facts" / "final.json").read_text())
    return place / "run", final, log[-1][1] - log[0][1]


def read_log(facts: Path) -> list[tuple[str, float, int, float]]:
    """What child.py tells: (what, clock, step, when the next checkpoint is due); whole lines only."""
    text = (facts / "log").read_text()
    lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
    return [(what, float(clock), int(step), float(due)) for what, clock, step, due in lines]


def same(one: Path, two: Path, final: dict[str, str], facts: Path) -> None:
    """Miss the figure where two runs differ in a file or in what they held at their end."""
    files = [name for name in SAME if (one / name).read_bytes() != (two / name).read_bytes()]
    check(not files, f"differ in {files}")
    keys = differing(final, json.loads((facts / "final.json").read_text()))
    check(not keys and len(final) > 50, f"differ in {keys[:3]}")


def kill_at_random(cells: list[tuple[str, str]], number: int, place: Path) -> Result:
    """Kill a run at a random moment of its training, give the command again, compare with a run in one go."""
    algo, env = cells[number % len(cells)]
    reference, final, seconds = straight(algo, env)
    draw = np.random.default_rng(number)
    for attempt in range(10):
        out, facts = place / f"run-{attempt}", place / f"facts-{attempt}"
        command = run_command(facts, algo, env, out)
        with started(command) as process:
            wait_for(lambda facts=facts: (facts / "log").exists() and (facts / "log").stat().st_size, process)
            time.sleep(draw.uniform(0, seconds))
            killed = time.perf_counter()
            process.send_signal(signal.SIGKILL)
            process.wait()
        if not (facts / "final.json").exists():
            break
    else:
        raise Missed("training was always over before the kill")
    log = read_log(facts)
    again = place / "again"
    said = finish(run_command(again, algo, env, out, 60))
    check(not said, f"said {said!r}")
    same(reference, out, final, again)
    saved = [entry for entry in log if entry[0] == "checkpoint"]
    _, since, step, due = saved[-1] if saved else log[0]
    # A rollout that began after the checkpoint was due would have written it: only the last one may have been about to.
    late = [entry for entry in log[:-1] if entry[0] == "rollout" and entry[1] > due]
    check(not late, f"{len(late)} rollouts were begun after a checkpoint was due")
    resumed = read_log(again)
    check(resumed[0][2] == 0, "the second process did not start anew")
    came_back = resumed[1][2] if len(resumed) > 1 else step
    check(came_back >= step, f"continued from before step {step}")
    return Result(killed - since, f"{algo} {env}: killed at step {log[-1][2]}, continued from step {step}")


# --- inside a save --------------------------------------------------------------------------------------------------

SAVER = """
import sys, time
import numpy as np
from alrao_rl.runs.checkpoint import Checkpoints
state = {"rows": np.random.default_rng(0).standard_normal((50, 2500)), "more": [np.arange(n) for n in range(40)]}
checkpoints = Checkpoints(__import__("pathlib").Path(sys.argv[1]))
for step in range(1, 100000):
    print("begin", step, time.perf_counter(), flush=True)
    checkpoints.save(step, {**state, "step": step}, {"agent.json": b"{}" * 100})
    print("end", step, time.perf_counter(), flush=True)
"""

STOCK_SAVER = """
import sys, time
from stable_baselines3 import DQN
model = DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=100)
for step in range(1, 100000):
    print("begin", step, time.perf_counter(), flush=True)
    model.save(sys.argv[1])
    print("end", step, time.perf_counter(), flush=True)
"""


def kill_inside(code: str, target: Path, number: int) -> int:
    """Kill a process that writes again and again while it does; return the number of writes that were complete."""
    draw = np.random.default_rng(number)
    with started([sys.executable, "-c", code, target], stdout=-1) as process:
        spans, begun = [], 0.0
        for line in process.stdout:
            what, step, clock = line.split()
            if what == "begin":
                begun = float(clock)
            else:
                spans.append(float(clock) - begun)
            if what == "begin" and len(spans) >= 4:
                # The median: the first one is slow, and some wait for the disk.
                time.sleep(draw.uniform(0, float(np.median(spans))))
                process.send_signal(signal.SIGKILL)
                break
        lines = process.stdout.read().split("\n")
        process.wait()
    ended = [line.split()[1] for line in lines[:-1] if line.startswith("end")]
    return int(ended[-1]) if ended else int(step) - 1


def kill_inside_save(number: int, place: Path) -> Result:
    """Every checkpoint that is there is whole, and the one before the save that was cut is among them."""
    for attempt in range(20):
        target = place / str(attempt)
        complete = kill_inside(SAVER, target, number + 1000 * attempt)
        inside = any(path.name.endswith(".tmp") for path in target.iterdir())
        for folder in target.glob("step-*"):
            try:
                load(folder)
            except CheckpointError as error:
                raise Missed(f"{folder.name} is there and {error}") from None
        complaints: list[str] = []
        found = Checkpoints(target).newest(lambda _, reason, to=complaints: to.append(reason), lambda _: None)
        check(found is not None, f"no checkpoint is usable: {complaints}")
        check(found.state["step"] >= complete, f"step {complete} was saved and {found.state['step']} came back")
        check(not complaints, f"passed over: {complaints}")
        if inside:
            return Result(detail=f"killed within save {complete + 1}, step {found.state['step']} came back")
        shutil.rmtree(target)
    raise Missed("no kill fell into a save")


def stock_kill_inside_save(number: int, place: Path) -> Result:
    """``model.save`` over an existing file, then ``DQN.load``."""
    from stable_baselines3 import DQN

    target = place / "model.zip"
    kill_inside(STOCK_SAVER, target, number)
    try:
        DQN.load(target)
    except Exception as error:
        raise Missed(f"unreadable: {type(error).__name__}: {error}") from None
    return Result(detail="readable")


def stock_resume(names: tuple[str, ...], number: int, place: Path) -> Result:
    """The last ``CheckpointCallback`` file, ``load`` and ``learn(reset_num_timesteps=False)`` against one go."""
    import gymnasium as gym
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import CheckpointCallback

    name = names[number % len(names)]
    algo, env = getattr(stable_baselines3, name), "CartPole-v1" if name in STOCK else "Pendulum-v1"
    replays = name not in ("A2C", "PPO")
    kwargs = {"n_steps": 64, "batch_size": 64} if name == "PPO" else {"learning_starts": 50} if replays else {}
    saving = CheckpointCallback(512, str(place), "model", save_replay_buffer=True)

    def weights(model: object) -> list[torch.Tensor]:
        return list(model.policy.state_dict().values())

    whole = algo("MlpPolicy", env, seed=number, **kwargs).learn(1024, callback=saving)
    model = algo.load(place / "model_512_steps.zip", env=gym.make(env))
    if replays:
        model.load_replay_buffer(place / "model_replay_buffer_512_steps.pkl")
    model.learn(512, reset_num_timesteps=False)
    equal = all(torch.equal(one, two) for one, two in zip(weights(whole), weights(model), strict=True))
    check(equal, f"{name}: other weights than in one go")
    return Result()


FAULTS = [
    Fault(
        "kill",
        "SIGKILL at a random moment of training, DQN, A2C and PPO on CartPole-v1 and LunarLander-v3; the command again",
        "weights, optimizer, averaging weights, logs and generators bit for bit as in one go; at most one checkpoint "
        "interval redone",
        partial(kill_at_random, CELLS),
        asked=300,
        value=f"seconds redone (interval {INTERVAL} s)",
        stock=partial(stock_resume, STOCK),
        stock_asked=12,
    ),
    Fault(
        "kill-continuous",
        "the same, SAC, TD3, TQC, CrossQ and DDPG on Pendulum-v1",
        "the same, with all optimizers, α and the replay buffer",
        partial(kill_at_random, CONTINUOUS),
        asked=100,
        value=f"seconds redone (interval {INTERVAL} s)",
        stock=partial(stock_resume, ("SAC", "TD3", "DDPG")),
        stock_asked=6,
    ),
    Fault(
        "save",
        "SIGKILL inside the writing of a checkpoint",
        "none unreadable, the previous one usable",
        kill_inside_save,
        asked=200,
        stock=stock_kill_inside_save,
        stock_asked=20,
    ),
]
