"""``--track``: what arrives, that a run does not depend on it, and that a continued run is one run at the tracker."""

import csv
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import alrao_rl.train.callback
from alrao_rl.runs.checkpoint import Timer
from alrao_rl.runs.folder import RunFolder
from alrao_rl.sweep.command import main as sweep
from alrao_rl.train.command import main

ROOT = Path(__file__).parent.parent
SAME = [f"{name}.{suffix}" for name in ("agent", "last") for suffix in ("json", "safetensors")]
SAME += ["episodes.csv", "evaluations.csv", "heads.csv", "entropy.csv"]
ARGS = ["--algo", "ppo", "--env", "CartPole-v1", "--timesteps", "640", "--eval-episodes", "1", "--quiet"]
for one in ("n_steps=16", "n_envs=4", "batch_size=32", "n_epochs=1", "net_arch=[8]", "alrao.n_heads=3"):
    ARGS += ["--set", one]
TRACKERS = ["tensorboard", "wandb", "mlflow"]
# SB3's, the callback's, the evaluations'.
KEYS = {"rollout/ep_rew_mean", "time/fps", "train/value_loss", "alrao/value_net/weight_3", "eval/mean_reward"}
# A tracker as bad as can be: it moves every generator, and ``when`` it is asked to, it fails.
BAD = """
import os, random
import numpy as np
Settings = dict

def _do(what):
    random.seed(1)
    np.random.seed(1)
    random.random()
    if os.environ.get("FAILS") == what:
        raise ConnectionError("no network\\nat all")

class Run:
    def log(self, values, step):
        _do("log")
    def finish(self, exit_code):
        _do("finish")

def init(**options):
    _do("init")
    return Run()
"""


@pytest.fixture(autouse=True)
def _local(tmp_path, monkeypatch):
    """Nothing leaves the machine or the folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr(alrao_rl.train.callback, "N_EVALUATIONS", 5)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """The bad tracker in the place of wandb."""
    package = tmp_path / "site" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BAD)
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "wandb"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(package.parent))
    yield
    sys.modules.pop("wandb", None)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    out = tmp_path_factory.mktemp("untracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alrao_rl.train.callback, "N_EVALUATIONS", 5)
        assert main([*ARGS, "--out", str(out)]) == 0
    return out


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def points(out, tracker):
    """What arrived: a list of ``(step, value)`` for every key."""
    return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[tracker](out)


def _tensorboard(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), {"scalars": 0}).Reload()
    return {key: [(one.step, one.value) for one in events.Scalars(key)] for key in events.Tags()["scalars"]}


def _wandb(out):
    """The records of all files, which are in LevelDB's log format: blocks of parts with a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(out.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 2**15 - at % 2**15 < 7:
                at += 2**15 - at % 2**15
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind not in (1, 4):
                continue
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for key in values.keys() - {"_step", "_runtime", "_timestamp"}:
                    found.setdefault(key, []).append((values["_step"], values[key]))
    return found


def _mlflow_run(out):
    import mlflow

    client = mlflow.MlflowClient()
    return client, client.get_run(json.loads((out / "tracking.json").read_text())["mlflow"]["id"])


def _mlflow(out):
    client, run = _mlflow_run(out)
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {
        key: [(one.step, one.value) for one in sorted(values, key=lambda m: m.step)] for key, values in history.items()
    }


def same_files(one, two):
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def evaluations(out):
    return [(int(row["timestep"]), pytest.approx(float(row["mean_return"]))) for row in rows(out / "evaluations.csv")]


# --- real trackers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_all_arrives_and_the_run_is_the_same(untracked, tmp_path, capfd, tracker):
    pytest.importorskip(tracker)
    out = tmp_path / "run"
    random.seed(0)
    assert main([*ARGS, "--out", str(out), "--track", tracker]) == 0
    assert "warning" not in capfd.readouterr().err
    same_files(untracked, out)
    found = points(out, tracker)
    assert found.keys() >= KEYS
    assert found["eval/mean_reward"] == evaluations(out)
    # A rollout is 64 steps; what an update gives is there with what comes next.
    assert [step for step, _ in found["rollout/ep_rew_mean"]] == list(range(64, 641, 64))
    # It is no part of what the run is.
    assert main([*ARGS, "--out", str(out)]) == 0
    configs = [RunFolder(path).config() for path in (untracked, out)]
    for config in configs:
        del config["provenance"]
    assert configs[0] == configs[1]


class Every(Timer):
    """A checkpoint at every other rollout."""

    def is_due(self):
        self.count = getattr(self, "count", 0) + 1
        return self.count % 2 == 0


class StopError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_continued_run_is_one_run_there(untracked, tmp_path, monkeypatch, capfd, tracker):
    """Killed after more than its checkpoint knows: no point is lost, none is there twice."""
    pytest.importorskip(tracker)
    callback, out, stop = alrao_rl.train.callback.TrainingCallback, tmp_path / "run", [420]
    on_step = callback._on_step

    def step(self):
        if self.num_timesteps >= stop[0]:
            raise StopError
        return on_step(self)

    monkeypatch.setattr(callback, "_on_step", step)
    monkeypatch.setattr(alrao_rl.train.callback, "Timer", Every)
    args = [*ARGS, "--out", str(out), "--track", tracker]
    assert main(args) == 1
    before = json.loads((out / "tracking.json").read_text())[tracker]
    assert before["step"] == 384
    stop[0] = 10_000
    assert main(args) == 0
    assert "warning" not in capfd.readouterr().err
    after = json.loads((out / "tracking.json").read_text())[tracker]
    assert after == {"id": before["id"], "step": 640}
    found = points(out, tracker)
    assert found["eval/mean_reward"] == evaluations(out)
    assert [step for step, _ in found["rollout/ep_rew_mean"]] == list(range(64, 641, 64))
    same_files(untracked, out)
    if tracker == "mlflow":
        client, run = _mlflow_run(out)
        assert run.info.status == "FINISHED"
        assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.slow
def test_what_a_run_is_called(tmp_path):
    pytest.importorskip("mlflow")
    assert main([*ARGS, "--seed", "3", "--out", str(tmp_path / "run"), "--track", "mlflow"]) == 0
    _, run = _mlflow_run(tmp_path / "run")
    agent = f"ppo@{','.join(ARGS[i + 1] for i, word in enumerate(ARGS) if word == '--set')}"
    assert run.info.run_name == f"CartPole-v1/{agent}/seed-3"
    assert {key: run.data.tags[key] for key in ("env", "agent", "seed")} == {
        "env": "CartPole-v1", "agent": agent, "seed": "3"
    }  # fmt: skip
    assert run.data.params["hyperparameters.n_steps"] == "16"


def test_a_run_that_is_begun_anew_is_another_one(tmp_path, monkeypatch):
    """Without a checkpoint nothing of the first try is left, also not at the tracker."""
    pytest.importorskip("tensorboard")
    args = [*ARGS, "--out", str(tmp_path / "run"), "--checkpoint-interval", "0", "--track", "tensorboard"]

    def stop(self):
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(alrao_rl.train.callback.TrainingCallback, "_on_training_end", stop)
        assert main(args) == 1
    assert main(args) == 0
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert points(tmp_path / "run", "tensorboard")["eval/mean_reward"] == evaluations(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_server_that_is_down(untracked, tmp_path, monkeypatch, tracker):
    """In a process of its own: W&B goes by the first settings it was given."""
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    script = (
        "import sys, alrao_rl.train.callback, alrao_rl.train.tracking; from alrao_rl.train.command import main;"
        "alrao_rl.train.callback.N_EVALUATIONS, alrao_rl.train.tracking.PATIENCE = 5, 5; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *ARGS, "--out", str(tmp_path / "run"), "--track", tracker]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert done.stderr.count(f"warning: --track {tracker} has failed and the run continues without it: ") == 1
    same_files(untracked, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_sweep_hands_it_on(tmp_path, monkeypatch, capfd, tracker):
    """Two runs at once, which find no database; without it, it is the same sweep."""
    pytest.importorskip(tracker)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    args = ["--agents", "a2c", "--envs", "CartPole-v1", "--seeds", "0-1", "--timesteps", "200", "--eval-budget", "9"]
    assert sweep([*args, "-j", "2", "--track", tracker]) == 0
    assert "warning" not in "".join(capfd.readouterr())
    for seed in range(2):
        run = tmp_path / "results" / "sweep" / "CartPole-v1" / "a2c" / f"seed-{seed}"
        assert points(run, tracker)["eval/mean_reward"] == evaluations(run)
    assert sweep([*args, "--dry-run"]) == 0
    assert "2 runs, 2 finished" in capfd.readouterr().out


# --- bad ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["never", "init", "log", "finish"])
def test_no_run_depends_on_a_tracker(untracked, bad, tmp_path, monkeypatch, capfd, when):
    monkeypatch.setenv("FAILS", when)
    assert main([*ARGS, "--out", str(tmp_path / "run"), "--track", "wandb"]) == 0
    warning = "warning: --track wandb has failed and the run continues without it: ConnectionError: no network\n"
    assert capfd.readouterr().err == ("" if when == "never" else warning)
    same_files(untracked, tmp_path / "run")


def test_a_full_disk(untracked, bad, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alrao_rl.train.tracking.write_json", full)
    assert main([*ARGS, "--out", str(tmp_path / "run"), "--track", "wandb"]) == 0
    assert capfd.readouterr().err.count("No space left on device") == 1
    same_files(untracked, tmp_path / "run")


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": 3}'])
def test_notes_that_were_edited(bad, tmp_path, monkeypatch, text):
    """They are of no use then; the run does without."""
    begun = RunFolder.start

    def start(self, config):
        begun(self, config)
        (self.path / "tracking.json").write_text(text)

    monkeypatch.setattr(RunFolder, "start", start)
    assert main([*ARGS, "--out", str(tmp_path / "run"), "--track", "wandb"]) == 0


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize(
    ("tracker", "error"),
    [
        ("wandb", "--track wandb needs wandb: pip install 'alrao-rl[tracking]'"),
        (
            "tensorbord",
            "--track is 'tensorbord', expected one of tensorboard, wandb, mlflow; did you mean 'tensorboard'?",
        ),
    ],
)
def test_what_cannot_be_tracked(tmp_path, command, tracker, error):
    """Without the package; a folder that W&B left where the command is run is none."""
    (tmp_path / "wandb").mkdir()
    hide = (
        "import importlib.machinery as m, runpy, sys; find = m.PathFinder.find_spec\n"
        "def hidden(name, path=None, target=None):\n"
        "    spec = find(name, path, target)\n"
        "    if name == 'wandb' and spec and spec.origin: return find(name, [''], target)\n"
        "    return spec\n"
        "m.PathFinder.find_spec = hidden\n"
        f"runpy.run_module('alrao_rl.{command}', run_name='__main__', alter_sys=True)"
    )
    args = {"train": ARGS, "sweep": ["--agents", "dqn", "--envs", "CartPole-v1", "--seeds", "0"]}[command]
    done = subprocess.run(
        [sys.executable, "-c", hide, *args, "--track", tracker],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {error}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]
