"""Ctrl-C and SIGTERM: where a run stops, that it does, and that it goes on as if nothing had been."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest
from common import ENVIRON, ROOT, arguments, command, same_files

import alrao_rl.train.run
from alrao_rl.cli import interruption
from alrao_rl.cli.interruption import Interruption
from alrao_rl.runs.checkpoint import CheckpointError
from alrao_rl.runs.folder import RunFolder
from alrao_rl.train.callback import TrainingCallback
from alrao_rl.train.command import main

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
ODD = '''
import hashlib, os, pathlib, signal, time
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Odd(gym.Env):
    """Ten steps an episode; where a file ``go`` is missing, one step of the first instance does something odd."""

    metadata = {"render_modes": []}
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, what="", go=""):
        self.first, self.what, self.go, self.total = False, what, go, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.first = self.first or seed == 0
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        if self.first and self.total == 150 and self.what and not os.path.exists(self.go):
            pathlib.Path(self.go + ".there").touch()
            getattr(self, self.what)()
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action), self.steps == 10, False, {}

    def sleep(self):
        time.sleep(3600)

    def swallow(self):
        """And go on, half done."""
        try:
            time.sleep(3600)
        except BaseException:
            pass

    def swallow_all(self):
        while True:
            self.swallow()

    def hang(self):
        """In C: no handler can run."""
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    def lose_its_server(self):
        """A process of the environment's own, in the same terminal."""
        try:
            time.sleep(3600)
        except BaseException as error:
            raise RuntimeError("no answer") from error

    def lose_it_at_once(self):
        time.sleep(1.0)
        raise RuntimeError("no answer")

gym.register("Odd-v0", Odd)
'''


@pytest.fixture
def odd(install):
    return install("odd", ODD)


def started(*args, path=(), stdout=subprocess.PIPE, times=None):
    """The real command; a machine may be busy, so ``times`` are its patience and its limit in place of its own."""
    environ = ENVIRON | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    args = command(*args)
    if times:
        code = "import sys; from alrao_rl.cli import interruption; from alrao_rl.train import command, run;"
        code += f"interruption._LAST_WORDS = 60; run.PATIENCE, run.LIMIT = {times}; sys.exit(command.main())"
        args = [sys.executable, "-c", code, *args[3:]]
    return subprocess.Popen(args, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True)


def wait_for(process, condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


SOON = 60.0
"""Seconds within which a process ends that was asked to, on a machine that may be busy."""
NEVER = 10 * SOON


def ended(process):
    """Exit status, what it printed to stderr, and how long that took."""
    before = time.monotonic()
    try:
        _, err = process.communicate(timeout=SOON)
    finally:
        process.kill()
    return process.returncode, err, time.monotonic() - before


def status(out):
    return json.loads((out / "status.json").read_text())


def checkpoints(out):
    return sorted(int(path.name.removeprefix("step-")) for path in out.glob("checkpoint/step-*"))


# --- a run ----------------------------------------------------------------------------------------------------------

RUNS = {"dqn": 800, "a2c": 1600, "ppo": 1536, "sac": 1000}


def small(algo):
    return arguments(algo, "Pendulum-v1" if algo == "sac" else "CartPole-v1", RUNS[algo])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The same run in one go, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("straight")

    def run(algo):
        if not (folder / algo).exists():
            assert main([*small(algo), "--out", str(folder / algo)]) == 0
        return folder / algo

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)], ids=lambda number: number.name
)
@pytest.mark.parametrize(
    "algo", ["dqn", *(pytest.param(algo, marks=pytest.mark.long) for algo in ("a2c", "ppo", "sac"))]
)
def test_interrupted_and_continued(straight, tmp_path, capfd, algo, number):
    """It writes a checkpoint, says so, and ends bit for bit as in one go; the only checkpoint is that of the signal."""
    out, args = tmp_path / "run", small(algo)
    process = started(*args, "--checkpoint-interval", "1000", "--out", out, times=(NEVER, NEVER))
    log = out / "evaluations.csv"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") > 3)
    process.send_signal(number)
    exit_status, err, _ = ended(process)
    assert exit_status == 128 + number
    step = status(out)["timestep"]
    assert status(out) == {"state": "interrupted", "timestep": step}
    assert err == f"interrupted at step {step}; the same command continues\n"
    assert checkpoints(out) == [step]
    assert not (out / "traceback.txt").exists()
    assert main([*args, "--out", str(out)]) == 0
    assert capfd.readouterr().err == ""
    same_files(straight(algo), out)
    assert {path.name for path in out.iterdir()} == {path.name for path in straight(algo).iterdir()}


ODD_RUN = ["--eval-episodes", "1", "--quiet", "--set", "net_arch=[8]", "--set", "alrao.n_heads=2"]
ODD_RUN += ["--algo", "a2c", "--env", "odd:Odd-v0", "--timesteps", "4000"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "times", "low"),
    [
        ("lose_it_at_once", (NEVER, NEVER), 0), ("hang", (1, 2), 2),
        *(pytest.param(*case, marks=pytest.mark.long)
          for case in (("swallow", (2, NEVER), 2), ("sleep", (2, NEVER), 2), ("lose_its_server", (2, NEVER), 2),
                       ("swallow_all", (1, 2), 2))),
    ],
)  # fmt: skip
def test_no_place_for_a_checkpoint(odd, tmp_path, what, times, low):
    """It stops without one, in time, and the one before serves; what came of a caught interrupt is not kept."""
    out, go = tmp_path / "run", tmp_path / "go"
    args = [*ODD_RUN, "--env-kwargs", f'what="{what}", go="{go}"', "--checkpoint-interval", "1e-6", "--out", out]
    process = started(*args, path=[odd], times=times)
    wait_for(process, (tmp_path / "go.there").exists)
    before = checkpoints(out)
    assert before
    process.send_signal(signal.SIGTERM)
    code, err, seconds = ended(process)
    assert seconds > low
    assert code == 143
    step = status(out)["timestep"]
    assert status(out)["state"] == "interrupted"
    assert err == f"interrupted at step {step}; the same command continues from step {before[-1]}\n"
    assert checkpoints(out) == before
    assert not (out / "traceback.txt").exists()
    go.touch()
    for folder in (out, tmp_path / "straight"):
        assert main([*map(str, args), "--out", str(folder)]) == 0
    same_files(tmp_path / "straight", out)


def test_it_ends_within_ten_seconds():
    """After which many a scheduler kills."""
    assert alrao_rl.train.run.PATIENCE < alrao_rl.train.run.LIMIT
    assert alrao_rl.train.run.LIMIT + interruption._LAST_WORDS < 10


@pytest.mark.slow
def test_second_signal(odd, tmp_path, monkeypatch):
    """Whatever is going on; a terminal gets its cursor back."""
    out = tmp_path / "run"
    args = [arg for arg in ODD_RUN if arg != "--quiet"]
    monkeypatch.setitem(ENVIRON, "TERM", "xterm")
    ours, terminal = pty.openpty()
    args += ["--env-kwargs", f'what="hang", go="{tmp_path / "go"}"', "--out", out]
    process = started(*args, path=[odd], stdout=terminal, times=(NEVER, NEVER))
    os.close(terminal)
    said = []
    reader = threading.Thread(target=lambda: said.extend(read_to_the_end(ours)))
    reader.start()
    wait_for(process, (tmp_path / "go.there").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    # One that comes at once is the same signal sent twice.
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    code, err, _ = ended(process)
    assert code == 130  # of the first
    reader.join()
    os.close(ours)
    assert b"".join(said).rfind(b"\x1b[?25h") > b"".join(said).rfind(b"\x1b[?25l") > -1
    assert err == f"interrupted at step {status(out)['timestep']}; the same command starts over\n"
    assert status(out)["state"] == "interrupted"


def read_to_the_end(terminal):
    """What is written to its other side, until nobody has that open."""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 4096):
            yield data


@pytest.mark.slow
def test_one_signal_that_is_sent_twice(tmp_path):
    """As ``timeout`` does; and no checkpoint where none is wanted."""
    out = tmp_path / "run"
    process = started(*arguments("dqn", "CartPole-v1", 100_000), "--checkpoint-interval", 0, "--out", out)
    wait_for(process, lambda: (out / "evaluations.csv").exists() and (out / "episodes.csv").stat().st_size > 50)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, err, _ = ended(process)
    step = status(out)["timestep"]
    assert (code, err) == (143, f"interrupted at step {step}; the same command starts over\n")
    assert status(out) == {"state": "interrupted", "timestep": step}
    assert not (out / "checkpoint").exists()


WAIT = """
import pathlib, sys, time
def wait(name):
    pathlib.Path({there!r}).touch()
    time.sleep(600)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            wait(name)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("module", ["pydantic", "torch", "safetensors"])
def test_during_the_imports(tmp_path, module, number):
    """Quiet, and nothing is left."""
    (tmp_path / "sitecustomize.py").write_text(WAIT.format(there=str(tmp_path / "there"), module=module))
    out = tmp_path / "run"
    process = started("--algo", "dqn", "--env", "CartPole-v1", "--out", out, path=[tmp_path])
    wait_for(process, (tmp_path / "there").exists)
    process.send_signal(number)
    code, err, _ = ended(process)
    assert (code, err) == (128 + number, "")
    assert not out.exists()


# --- a run in this process ------------------------------------------------------------------------------------------


def until_noted():
    while not interruption._current.asked:
        time.sleep(0.001)


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Send a signal at a step, and wait until it is noted."""
    on_step = TrainingCallback._on_step

    def interrupting(self):
        if self.num_timesteps == step:
            signal.raise_signal(number)
            until_noted()
        return on_step(self)

    monkeypatch.setattr(TrainingCallback, "_on_step", interrupting)


SHORT = arguments("a2c-rmsprop", "CartPole-v1", 400)


def test_at_the_first_place_after_it(tmp_path, capfd, monkeypatch):
    """20 steps a rollout. Signals are given back."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 204)
        assert main([*SHORT, "--out", str(tmp_path / "run")]) == 143
    assert capfd.readouterr().err == "interrupted at step 220; the same command continues\n"
    assert checkpoints(tmp_path / "run") == [220]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert signal.set_wakeup_fd(-1) == -1
    # At once, before anything is continued: it goes on from there again.
    with monkeypatch.context() as patch:
        patch.setattr(alrao_rl.train.run, "_begin", asked_first(alrao_rl.train.run._begin))
        assert main([*SHORT, "--out", str(tmp_path / "run")]) == 130
    assert capfd.readouterr().err == "interrupted at step 220; the same command continues\n"
    assert main([*SHORT, "--out", str(tmp_path / "run")]) == 0
    assert main([*SHORT, "--out", str(tmp_path / "straight")]) == 0
    same_files(tmp_path / "straight", tmp_path / "run")


def asked_first(function):
    def asked(*args):
        signal.raise_signal(signal.SIGINT)
        until_noted()
        return function(*args)

    return asked


def test_before_there_is_anything_to_save(tmp_path, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(alrao_rl.train.run, "_begin", asked_first(alrao_rl.train.run._begin))
        assert main([*SHORT, "--out", str(tmp_path)]) == 130
    assert capfd.readouterr().err == "interrupted at step 0; the same command starts over\n"
    assert status(tmp_path) == {"state": "interrupted", "timestep": 0}
    assert main([*SHORT, "--out", str(tmp_path)]) == 0


def test_too_late(tmp_path, capfd, monkeypatch):
    """On the last steps: the run is finished before there is another place."""
    interrupt_at(monkeypatch, 400)
    assert main([*SHORT, "--out", str(tmp_path)]) == 0
    assert capfd.readouterr().err == ""
    assert status(tmp_path)["state"] == "finished"


def test_while_it_finishes(tmp_path, capfd, monkeypatch):
    """A run that has trained to its end is put in order, whatever comes meanwhile."""
    finish = RunFolder.finish

    def interrupted(self, **result):
        signal.raise_signal(signal.SIGTERM)
        until_noted()
        finish(self, **result)

    monkeypatch.setattr(RunFolder, "finish", interrupted)
    assert main([*SHORT, "--out", str(tmp_path)]) == 0
    assert capfd.readouterr().err == ""
    assert status(tmp_path)["state"] == "finished"
    assert not (tmp_path / "checkpoint").exists()


def test_disk_is_full(tmp_path, capfd, monkeypatch):
    """An earlier checkpoint serves, and this is no failure of the run."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 104)
        assert main([*SHORT, "--out", str(out)]) == 143
    capfd.readouterr()

    def full(*_):
        raise CheckpointError("no space")

    with monkeypatch.context() as patch:
        interrupt_at(patch, 204)
        patch.setattr(TrainingCallback, "_save", full)
        assert main([*SHORT, "--out", str(out)]) == 143
    assert capfd.readouterr().err.splitlines() == [
        "warning: no space; the one before it can be used",
        "interrupted at step 220; the same command continues from step 120",
    ]
    assert checkpoints(out) == [120]


def test_keyboard_interrupt_of_another_source(tmp_path, capfd, monkeypatch):
    """As where this is not the main thread."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingCallback, "_log", interrupt)
    assert main([*SHORT, "--out", str(tmp_path)]) == 130
    assert capfd.readouterr().err == "interrupted at step 8; the same command starts over\n"
    assert status(tmp_path) == {"state": "interrupted", "timestep": 8}
    assert not (tmp_path / "traceback.txt").exists()


# --- the clockwork --------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
from alrao_rl.cli.interruption import Interruption
from alrao_rl.runs.folder import RunFolder
def ready():
    print("ready", flush=True)
with Interruption({patience}, {limit}, lambda: print("last words", flush=True)) as interruption:
    {body}
print("after", flush=True)
"""
SWALLOW = """
    ready()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            print('caught', flush=True)
"""


def clockwork(body, patience=0.5, limit=1.0):
    code = SCRIPT.format(body=body.strip(), patience=patience, limit=limit)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("body", "said", "code"),
    [
        ("ready()\n    while not interruption.asked: time.sleep(0.01)", "after\n", 0),
        ("try:\n        ready(); time.sleep(60)\n    except KeyboardInterrupt: print('raised')", "raised\nafter\n", 0),
        (SWALLOW, "caught\nlast words\n", 143),
        ("interruption.stop_in_order(); ready(); time.sleep(60)", "last words\n", 143),
        ("interruption.__exit__(); ready(); time.sleep(60)", "", -signal.SIGTERM),
    ],
)
def test_after_a_signal(body, said, code):
    process = clockwork(body, limit=60.0 if "raised" in body else 1.5)
    process.send_signal(signal.SIGTERM)
    assert (*process.communicate(timeout=30), process.returncode) == (said, "", code)


@pytest.mark.slow
def test_last_words_that_hang():
    process = clockwork(
        "interruption._last_words = lambda: time.sleep(60)\n" + SWALLOW.rstrip(), patience=0.3, limit=0.5
    )
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_signal_of_a_forked_child():
    """It has its own signals, and ours do not learn of them."""
    body = (
        "ready(); reader, writer = os.pipe(); child = os.fork()\n"
        "    if not child:\n        os.write(writer, b'.'); time.sleep(60)\n"
        "    os.read(reader, 1); os.kill(child, signal.SIGTERM)\n    print(os.waitpid(child, 0)[1], flush=True)\n"
        "    time.sleep(0.3); print(interruption.asked, flush=True)"
    )
    process = clockwork(body, patience=0.1)
    assert process.communicate(timeout=30) == ("15\nFalse\nafter\n", "")
    assert process.returncode == 0


def test_another_thread():
    """It does nothing there: signals are the main thread's."""
    found = []

    def use():
        with Interruption(0.1, 0.2) as interruption:
            found.append((interruption.asked, interruption.stop_in_order(), interruption.exit_status))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(False, True, 130)]
    assert signal.getsignal(signal.SIGTERM) is before
