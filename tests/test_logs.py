"""The logs of a study in one file: exact, appended while others read, and no crash costs more than its own line."""

import io
import json
import lzma
import os
import threading
from pathlib import Path

import pandas as pd
import pytest
from common import logged, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_load import CARTPOLE, config, write

from alrao_rl import load_results
from alrao_rl.errors import UserError
from alrao_rl.report.study import Study
from alrao_rl.runs import logs, zips
from alrao_rl.runs.files import KEPT
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.names import RunName

FILES = {"config.json": b'{"seed": 0}\n', "status.json": b'{"state": "failed"}\n'}


def names(study):
    return [(entry.name.seed, entry.error) for entry in logs.entries(study / logs.FILE)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(KEPT),
        st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    ),
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), max_size=20),
)
def test_the_exact_bytes_come_back(tmp_path, files, setting):
    (tmp_path / logs.FILE).unlink(missing_ok=True)
    name = RunName("ALE/Pong-v5", "dqn", setting, 7)
    logs.append(tmp_path, [(name, {}), (name, files)])
    assert [dict(entry.files) for entry in logs.entries(tmp_path / logs.FILE)] == [{}, files]
    found = logs.find(tmp_path / name.folder)
    assert (found.name, dict(found.files), found.error) == (name, files, "")
    assert lzma.decompress((tmp_path / logs.FILE).read_bytes()).count(b"\n") == 2


def test_pandas_reads_it(tmp_path):
    text = 'timestep,return,length\n1,2.5,3\n"é\u2028,\\",\r\n'
    runs = [
        (RunName("CartPole-v1", "dqn", "learning_rate=0.1", seed), {"episodes.csv": text.encode()}) for seed in (3, 4)
    ]
    logs.append(tmp_path, runs)
    table = pd.read_json(tmp_path / logs.FILE, lines=True)
    assert table.columns.tolist() == ["env", "agent", "setting", "seed", "episodes.csv"]
    assert table.seed.tolist() == [3, 4]
    assert set(table.setting) == {"learning_rate=0.1"}
    assert set(table["episodes.csv"]) == {text}
    # What pandas writes is read too, with null for a file that a run lacks.
    table["traceback.txt"] = ["broken\n", None]
    table.to_json(tmp_path / logs.FILE, orient="records", lines=True)
    first, second = logs.entries(tmp_path / logs.FILE)
    assert first.files == {"episodes.csv": text.encode(), "traceback.txt": b"broken\n"}
    assert second.files == {"episodes.csv": text.encode()}
    assert logs.find(tmp_path / runs[1][0].folder) == second


def test_the_same_run_is_the_same_line(tmp_path):
    path = write(tmp_path / "one")
    (path / "agent.safetensors").write_bytes(b"large")
    other = write(tmp_path / "two")
    os.utime(other / "episodes.csv", (0, 0))
    (other / "status.json").write_bytes((path / "status.json").read_bytes())
    for run in (path, other):
        logged(run)
    one, two = ((tmp_path / study / logs.FILE).read_bytes() for study in ("one", "two"))
    assert one == two
    assert set(json.loads(lzma.decompress(one))) == {"env", "agent", "setting", "seed", *FILES} | {
        "episodes.csv", "evaluations.csv", "heads.csv", "entropy.csv", "timing.csv",
    }  # fmt: skip


@pytest.mark.parametrize("zeros", [0, 50])
def test_cut_short_anywhere_in_its_last_line(tmp_path, zeros):
    """As a kill or a full disk leaves it, or power that failed: the runs before are read, and the next one is added."""
    for seed in range(2):
        logged(write(tmp_path, config(seed=seed)))
    file, (first, second) = tmp_path / logs.FILE, logs.entries(tmp_path / logs.FILE)
    whole = file.read_bytes()
    assert first.end == second.begin
    for length in range(second.begin, second.end):
        file.write_bytes(whole[:length] + bytes(zeros))
        assert load_results(tmp_path).seed.tolist() == [0]
        assert logs.find(tmp_path / second.name.folder) is None
        if length % 2:
            logs.tidy(tmp_path)
            assert file.read_bytes() == whole[: second.begin]
        logs.append(tmp_path, [(second.name, second.files)])
        assert file.read_bytes() == whole


def test_a_file_cut_short_in_its_first_line_is_begun_anew(tmp_path):
    logged(write(tmp_path))
    whole = (tmp_path / logs.FILE).read_bytes()
    (entry,) = logs.entries(tmp_path / logs.FILE)
    for length in range(len(whole)):
        (tmp_path / logs.FILE).write_bytes(whole[:length])
        logs.append(tmp_path, [(entry.name, entry.files)])
        assert (tmp_path / logs.FILE).read_bytes() == whole


def test_what_is_no_such_file_is_left_alone(tmp_path):
    file = tmp_path / logs.FILE
    for content in (b"version https://git-lfs.github.com/spec/v1\n", lzma.compress(b"PK"), b"PK\3\4" + bytes(9)):
        file.write_bytes(content)
        for change in (lambda: logs.append(tmp_path, [(RunName("E", "a", "", 0), FILES)]), lambda: logs.tidy(tmp_path)):
            with pytest.raises(UserError, match=r"logs\.jsonl\.xz is not as a sweep writes it: restore an earlier"):
                change()
        assert file.read_bytes() == content
        assert load_results(tmp_path).state.tolist() == ["broken"]
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        logs.tidy(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_results(tmp_path)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    logs.append(tmp_path, [(RunName("E", "a", "", 0), FILES)])
    before = (tmp_path / logs.FILE).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*logs\.jsonl\.xz"):
            logs.append(tmp_path, [(RunName("E", "a", "", 1), FILES)])
    assert (tmp_path / logs.FILE).read_bytes() == before
    logs.append(tmp_path, [(RunName("E", "a", "", 2), FILES)])
    assert names(tmp_path) == [(0, ""), (2, "")]


def test_readers_look_while_a_sweep_appends(tmp_path):
    """Each sees whole runs, and never fewer than before."""
    runs = [
        RunFolder(write(tmp_path / "other", config(seed=seed), [(i, 1.0, 1) for i in range(1, 300)]))
        for seed in range(30)
    ]
    logs.append(tmp_path, [(RunName.parse(runs[0].path), runs[0].kept())])
    for run in runs:  # without a folder that has the say
        assert not (tmp_path / RunName.parse(run.path).folder).exists()

    def sweep():
        file = tmp_path / logs.FILE
        for run in runs[1:]:
            data = logs.encoded(RunName.parse(run.path), run.kept())
            # As slowly as it gets.
            with file.open("ab", buffering=0) as out:
                for start in range(0, len(data), 97):
                    out.write(data[start : start + 97])

    writer = threading.Thread(target=sweep)
    writer.start()
    seen = []
    while writer.is_alive() or len(seen) < 3:
        frame = load_results(tmp_path / "CartPole-v1")
        assert set(frame.state) == {"finished"}
        assert set(frame.episodes) == {299}
        assert frame.seed.tolist() == list(range(len(frame)))
        assert logs.find(Path(frame.path.iloc[-1])).error == ""
        seen.append(len(frame))
    writer.join()
    assert seen == sorted(seen)
    assert len(load_results(tmp_path / "CartPole-v1")) == 30


def test_the_last_line_of_a_run_counts(tmp_path):
    """And once the others are more than half of the file, they go when a sweep starts."""
    name = RunName("E", "a", "", 0)
    versions = [FILES | {"traceback.txt": b"%d\n" % number} for number in range(3)]
    logs.append(tmp_path, [(name, versions[0]), (RunName("E", "a", "", 1), FILES)])
    logs.append(tmp_path, [(name, versions[1])])
    logs.tidy(tmp_path)
    assert names(tmp_path) == [(0, ""), (1, ""), (0, "")]
    assert logs.find(tmp_path / name.folder).files == versions[1]
    logs.append(tmp_path, [(name, version) for version in versions])
    assert logs.find(tmp_path / name.folder).files == versions[2]
    logs.tidy(tmp_path)
    assert names(tmp_path) == [(0, ""), (1, "")]
    assert logs.find(tmp_path / name.folder).files == versions[2]


def test_a_damaged_line_is_replaced_by_a_new_one(tmp_path):
    for seed in range(3):
        logged(write(tmp_path, config(seed=seed)))
    file, (first, second, _) = tmp_path / logs.FILE, logs.entries(tmp_path / logs.FILE)
    data = bytearray(file.read_bytes())
    data[(second.begin + second.end) // 2] ^= 1
    file.write_bytes(data)
    assert load_results(tmp_path).state.tolist() == ["finished", "broken", "finished"]
    assert logs.find(tmp_path / second.name.folder).error.startswith("it is damaged: ")
    assert logs.find(tmp_path / first.name.folder) == first
    logs.append(tmp_path, [(second.name, second.files)])
    assert load_results(tmp_path).state.tolist() == ["finished"] * 3


def test_zips_are_taken_in(tmp_path, monkeypatch):
    """Once and for all, whenever it is broken off; what would be lost stays."""
    study = tmp_path / "study"
    breakout = {**CARTPOLE, "id": "MinAtar/Breakout-v1"}
    folders = [write(study, config(agent, env, seed)) for agent, env, seed in
               [("dqn", CARTPOLE, 0), ("dqn@x=1", CARTPOLE, 0), ("a2c", breakout, 3)]]  # fmt: skip
    (folders[1] / "config.json").write_text(json.dumps(config("dqn", CARTPOLE, 0)))
    frame, files = load_results(study), [RunFolder(path).kept() for path in folders]
    packed = [zipped(path) for path in folders]
    (packed[0].parent / "notes.txt").touch()
    contents = {path: path.read_bytes() for path in packed}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            zips.take_in(study)
    assert all(path.exists() for path in packed)
    for _ in range(2):
        zips.take_in(study)
        assert sorted(str(path.relative_to(study)) for path in study.rglob("*") if path.is_file()) == [
            "CartPole-v1/dqn/notes.txt", logs.FILE,
        ]  # fmt: skip
        # In the order of their folders, each by its own name.
        assert [entry.name for entry in logs.entries(study / logs.FILE)] == [
            RunName("CartPole-v1", "dqn", "", 0), RunName("CartPole-v1", "dqn", "x=1", 0),
            RunName("MinAtar/Breakout-v1", "a2c", "", 3),
        ]  # fmt: skip
        assert [logs.find(path).files for path in folders] == files
    pd.testing.assert_frame_equal(load_results(study), frame)
    # The same one once more goes; one that is damaged, or another run, stays.
    packed[0].write_bytes(contents[packed[0]])
    packed[1].parent.mkdir()
    packed[1].write_bytes(contents[packed[2]])
    damaged = packed[0].with_name("seed-5.zip")
    damaged.write_bytes(contents[packed[0]][:-30])
    zips.take_in(study)
    assert [path.exists() for path in packed] == [False, True, False]
    assert damaged.exists()
    assert len(list(logs.entries(study / logs.FILE))) == 3
    assert load_results(study).state.tolist() == ["finished", "finished", "broken", "finished"]


def test_a_study_without_zips_gets_no_file(tmp_path):
    write(tmp_path)
    logs.tidy(tmp_path)
    zips.take_in(tmp_path)
    assert not (tmp_path / logs.FILE).exists()
    assert logs.find(Path("/")) is None
    assert logs.find(tmp_path / "CartPole-v1" / "dqn" / "seed-0") is None


def test_readable_by_the_standard_library_alone(tmp_path):
    logs.append(tmp_path, [(RunName("E", "a", "", seed), FILES) for seed in range(3)])
    with lzma.open(tmp_path / logs.FILE, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    assert pd.read_json(io.StringIO(lines[0]["status.json"]), typ="series")["state"] == "failed"


def test_damage_beyond_a_name_is_no_environment(tmp_path):
    """It is a broken row without a name; a report leaves it out and says so, and makes none of nothing else."""
    logged(write(tmp_path))
    path = tmp_path / logs.FILE
    whole = path.read_bytes()
    path.write_bytes(whole + logs._START + b"\0" * 20 + whole)
    frame = load_results(tmp_path)
    lost = frame[frame.state == "broken"]
    assert lost[["env", "agent"]].to_numpy().tolist() == [["", ""]]
    assert logs.damaged(tmp_path) == 1
    study = Study(tmp_path)
    assert len(study.frame) == len(frame) - 1
    assert study.warnings[0].startswith(str(lost.path.iloc[0]))
    path.write_bytes(logs._START + b"\0" * 20 + logs._START + whole[12:40] + whole[:12])
    with pytest.raises(UserError, match="holds no run"):
        Study(tmp_path)
