"""The run folder: nothing is ever half there, one writer at a time, nothing of an earlier run remains."""

import errno
import json
import math
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest
from common import CONFIG

from alrao_rl.errors import UserError
from alrao_rl.runs.atomic import write_atomically, write_json
from alrao_rl.runs.configuration import differences
from alrao_rl.runs.files import COLUMNS, RunConfig
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.reading import check_manifest, read_json


def test_write_atomically(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"", "is not a JSON file"),
        (b'{"a": ', "is not a JSON file"),
        (b"\xff", "is not a JSON file"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b"[" * 100_000, "is not a JSON file"),
    ],
)
def test_read_json_refuses(tmp_path, content, expected):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))


def test_json_round_trip(tmp_path):
    value = {"gamma": 0.1 + 0.2, "range": [1e-6, 0.1], "nested": {"none": None, "text": "é"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_differences():
    old = {"seed": 0, "env": {"id": "A", "floor": 1.0}, "gone": 1, "table": {"x": 1}}
    new = {"seed": 1, "env": {"id": "A", "floor": 2.0}, "new": True, "table": "word"}
    assert list(differences(old, new)) == [
        "env.floor: 1.0 -> 2.0",
        "gone: 1 -> null",
        "new: null -> true",
        "seed: 0 -> 1",
        'table: {"x": 1} -> "word"',
    ]
    assert list(differences(old, json.loads(json.dumps(old)))) == []


def test_one_writer_at_a_time(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open()
    with pytest.raises(UserError, match="another process is writing to"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_child_of_the_writer_does_not_hold_the_folder(tmp_path):
    """As one that an environment forks, and that outlives the run."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open()
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    child = fork.Process(target=lambda: begun.set() or time.sleep(60))
    child.start()
    assert begun.wait(30)
    with pytest.raises(UserError, match="another process is writing to"):
        second.open()
    first.close()
    try:
        second.open()
    finally:
        child.kill()
    second.close()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"cannot lock .*\.lock: No locks available; choose a place on"):
        RunFolder(tmp_path / "run").open()


@pytest.mark.parametrize("where", ["file", "file/run"])
def test_folder_that_cannot_be_made(tmp_path, where):
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / where)
    with pytest.raises(UserError, match=r"cannot write to .*: .*"):
        folder.open()
    with pytest.raises(UserError, match="cannot write to"):
        folder.config()


def test_config_of_no_run_and_of_another_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.config() is None
    assert not folder.path.exists()
    folder.open()
    assert folder.config() is None
    # What a process leaves that is killed while it writes its first file.
    (folder.path / ".config.json.abc.tmp").write_text("{")
    assert folder.config() is None
    folder.start(CONFIG | {"seed": 3})
    folder.close()
    assert folder.config() == CONFIG | {"seed": 3}
    assert folder.status()["state"] == "running"
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and no run folder"):
        RunFolder(tmp_path).config()


def test_start_drops_what_an_unfinished_run_left_and_nothing_of_the_users(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.start(CONFIG)
    folder.append("episodes.csv", [(1, 2.0, 3)])
    folder.close()
    stale = ["agent.safetensors", "agent.json", "last.safetensors", "last.json", "traceback.txt", ".agent.json.x.tmp"]
    (tmp_path / "checkpoint" / "step-000000000001").mkdir(parents=True)
    for name in [*stale, "notes.txt"]:
        (tmp_path / name).write_text("old")
    folder.open()
    folder.start(CONFIG)
    folder.append("episodes.csv", [(4, 5.0, 6)])
    folder.close()
    expected = {"config.json", "status.json", ".lock", "notes.txt", *COLUMNS}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert (tmp_path / "episodes.csv").read_text() == "timestep,return,length\n4,5.0,6\n"
    for name, columns in COLUMNS.items():
        assert (tmp_path / name).read_text().splitlines()[0] == ",".join(columns)


def test_resume_cuts_the_logs_and_puts_the_agent_back(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.start(CONFIG)
    folder.append("episodes.csv", [(1, 2.0, 3)])
    logs = folder.logs()
    assert {name: log["bytes"] for name, log in logs.items()} == {
        name: (tmp_path / name).stat().st_size for name in COLUMNS
    }
    folder.append("episodes.csv", [(4, 5.0, 6), (7, 8.0, 9)])
    folder.append("heads.csv", [(4, "q_net", 1, 0.1, 1.0, 0)])
    folder.set_status("failed")
    folder.close()
    for name in ("agent.json", "last.json", "traceback.txt", ".status.json.x.tmp", "notes.txt"):
        (tmp_path / name).write_text("new")
    folder.open()
    assert folder.changed(logs) is None
    folder.resume(CONFIG | {"seed": 1}, logs, {"agent.json": b"old"})
    folder.append("episodes.csv", [(10, 11.0, 12)])
    folder.close()
    assert (tmp_path / "episodes.csv").read_text() == "timestep,return,length\n1,2.0,3\n10,11.0,12\n"
    assert (tmp_path / "heads.csv").read_text().count("\n") == 1
    assert (tmp_path / "agent.json").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "status.json", ".lock", "agent.json", "notes.txt", *COLUMNS,
    }  # fmt: skip
    assert folder.status()["state"] == "running"
    assert folder.config() == CONFIG | {"seed": 1}
    text = (tmp_path / "episodes.csv").read_text()
    (tmp_path / "episodes.csv").write_text(text.replace("1,2.0,3", "1,2.5,3"))
    assert folder.changed(logs) == f"{tmp_path / 'episodes.csv'} is damaged: it has another hash than it had"
    (tmp_path / "episodes.csv").write_text(text)
    assert "heads.csv is shorter" in folder.changed(logs | {"heads.csv": {"bytes": 10_000}})
    (tmp_path / "episodes.csv").unlink()
    assert "episodes.csv is shorter" in folder.changed(logs)


def test_log_that_cannot_be_written_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    with Path("/dev/full").open("w") as full:
        folder._files["episodes.csv"] = full
        folder.append("episodes.csv", [(1, 2.0, 3)])
        with pytest.raises(OSError, match=r"No space left on device.*episodes\.csv"):
            folder.flush()
        folder._files.clear()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left is written where there is room


def test_manifest_of_a_finished_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.start(CONFIG)
    check_manifest(tmp_path)
    (tmp_path / "agent.safetensors").write_bytes(b"weights")
    folder.append("episodes.csv", [(1, 2.0, 3)])
    folder.finish(timesteps=1)
    folder.close()
    check_manifest(tmp_path)
    check_manifest(tmp_path, "agent.safetensors")
    for name in ("config.json", "status.json", "episodes.csv", "sha256.json", "agent.safetensors"):
        path = tmp_path / name
        data = path.read_bytes()
        for other in (data[:-3], data.replace(b"e", b"f", 1)):
            path.write_bytes(other)
            with pytest.raises(UserError, match=r"(is damaged|is not a JSON file|cannot read)"):
                check_manifest(tmp_path, *(["agent.safetensors"] if name.startswith("agent") else []))
        path.unlink()
        if name != "sha256.json":
            with pytest.raises(UserError, match=f"cannot read {path}"):
                check_manifest(tmp_path, name)
        path.write_bytes(data)


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"config.json is not as a run writes it: env.id is None"):
        folder.start(CONFIG | {"env": {"kwargs": {}}})
    with pytest.raises(ValueError, match="state"):
        folder.set_status("done")
    assert list(tmp_path.iterdir()) == []


def test_status_is_written_as_it_is_given(tmp_path):
    """In its order, nothing for what was not given, null for what is known to be none, and unknown keys."""
    folder = RunFolder(tmp_path)
    folder.set_status("finished", timesteps=64, best_return=None, last_return=-math.inf, wall_seconds=0.5, more=[1])
    assert (tmp_path / "status.json").read_text() == (
        '{\n  "state": "finished",\n  "timesteps": 64,\n  "best_return": null,\n  "last_return": -Infinity,\n'
        '  "wall_seconds": 0.5,\n  "more": [\n    1\n  ]\n}\n'
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"unknown": {"x": 1}, "provenance": None}, None),
        ({"env": {"id": "E", "floor": -3, "random_score": math.nan}}, None),
        ({"timesteps": True}, "timesteps is True"),
        ({"timesteps": 2**62}, "timesteps is 4611686018427387904"),
        ({"seed": -1}, "seed is -1"),
        ({"env": {"id": "E", "floor": "low"}}, "env.floor is 'low'"),
        ({"hyperparameters": [1]}, r"hyperparameters is \[1\]"),
        ({"alrao": {"lr_range": [1e-6]}}, r"alrao is {'lr_range': \[1e-06\]}"),
        ({"alrao": None}, "alrao is None"),
    ],
)
def test_what_a_configuration_holds(changes, said):
    if said is None:
        assert RunConfig.of(CONFIG | changes, "x").agent == "dqn"
        return
    with pytest.raises(UserError, match=f"^x is not as a run writes it: {said}$"):
        RunConfig.of(CONFIG | changes, "x")
