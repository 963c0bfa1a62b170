"""A large replay buffer on disk: only what changed is written, the buffer comes back, two checkpoints share nothing."""

import contextlib
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from common import dying
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from alrao_rl.runs import buffer_chunks, checkpoint
from alrao_rl.runs.buffer_chunks import Ring, StoredRing
from alrao_rl.runs.checkpoint import CheckpointError, Checkpoints, load
from alrao_rl.train import state as snapshot

BOX = spaces.Box(0, 255, (2,), np.uint8)
DICT = spaces.Dict({"a/b": BOX, "c": spaces.Box(-1.0, 1.0, (3,))})
KINDS = {
    "plain": (ReplayBuffer, BOX, {}),
    "optimized": (ReplayBuffer, BOX, {"optimize_memory_usage": True, "handle_timeout_termination": False}),
    "dict": (DictReplayBuffer, DICT, {}),
}


def in_chunks(patch, chunk_bytes):
    """Everything in chunks, and small ones."""
    patch.setattr(snapshot, "LARGE", 0)
    patch.setattr(buffer_chunks, "CHUNK_BYTES", chunk_bytes)


@pytest.mark.parametrize(
    ("since", "written", "expected"),
    [
        (4, 6, {1, 2}),  # rows 3 to 6
        (5, 5, {1}),  # 4 and 5
        (0, 2, {0, 3}),  # 9, 0, 1, 2
        (8, 11, {0, 2, 3}),  # 7, 8, 9, 0, 1
        (20, 24, {0, 1, 3}),  # 9, 0 to 4
        (3, 12, {0, 1, 2, 3}),
        (3, 300, {0, 1, 2, 3}),
    ],
)
def test_changed_by_hand(monkeypatch, since, written, expected):
    """Ten rows of two bytes in chunks of three."""
    monkeypatch.setattr(buffer_chunks, "CHUNK_BYTES", 7)
    rows = Ring(np.zeros((10, 2), np.uint8), 10, written)
    assert [len(chunk) for chunk in rows.chunks()] == [3, 3, 3, 1]
    assert rows.changed(since) == expected


def plain(rows):
    """All bits of a buffer as it was taken or loaded."""
    if isinstance(rows, StoredRing):
        array = np.empty(rows.shape, rows.dtype)
        rows.read_into(array)
        return array.tobytes()
    return (rows.rows if isinstance(rows, Ring) else rows).tobytes()


def all_bits(taken):
    return taken["pos"], taken["full"], {name: plain(rows) for name, rows in taken["rows"].items()}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is cleaned up after it."""


class Keeping(RuleBasedStateMachine):
    """A process that fills a buffer and saves it, is killed anywhere, and goes on from what the disk has."""

    @initialize(
        kind=st.sampled_from(list(KINDS)), size=st.integers(1, 12), n_envs=st.integers(1, 2), chunk=st.integers(1, 9)
    )
    def begin(self, kind, size, n_envs, chunk):
        self.patch = pytest.MonkeyPatch()
        in_chunks(self.patch, chunk)
        self.patch.setattr(checkpoint.os, "fsync", lambda _: None)
        self.kind, self.size, self.n_envs = kind, size, n_envs
        self.path = Path(tempfile.mkdtemp()) / "checkpoint"
        self.random, self.step = np.random.default_rng(0), 0
        self.expected = {}  # all bits of every checkpoint by its step
        self.start()

    def start(self):
        buffer_class, space, kwargs = KINDS[self.kind]
        self.buffer = buffer_class(
            self.size * self.n_envs, space, spaces.Discrete(2), device="cpu", n_envs=self.n_envs, **kwargs
        )
        self.added, self.kept = 0, Checkpoints(self.path)
        self.bases = []  # arrays of this process's checkpoints, the one it went on from among them

    def teardown(self):
        if hasattr(self, "patch"):
            self.patch.undo()
            shutil.rmtree(self.path.parent)

    def taken(self):
        return {"step": self.step, "added": self.added, "buffer": snapshot._take_buffer(self.buffer, self.timesteps())}

    def timesteps(self):
        return self.added * self.n_envs

    def observations(self):
        space = self.buffer.observation_space
        space.seed(int(self.random.integers(2**31)))
        drawn = [space.sample() for _ in range(self.n_envs)]
        return {k: np.stack([one[k] for one in drawn]) for k in drawn[0]} if self.kind == "dict" else np.stack(drawn)

    @rule(counts=st.lists(st.integers(0, 8), min_size=1, max_size=6))
    def work(self, counts):
        for n in counts:
            self.add(n)
            self.save()

    @rule(n=st.integers(1, 14))
    def add(self, n):
        for _ in range(n):
            ends = self.random.integers(2, size=(3, self.n_envs))
            infos = [{"TimeLimit.truncated": bool(one)} for one in ends[0]]
            self.buffer.add(self.observations(), self.observations(), ends[1], ends[2] * 0.1, ends[2], infos)
            self.added += 1

    def save(self):
        self.step += 1
        state, before = self.taken(), {path.stat().st_ino for path in self.path.glob("step-*/ring-*")}
        self.expected[self.step] = all_bits(state["buffer"])
        arrays = {name: (rows.rows.copy(), rows) for name, rows in state["buffer"]["rows"].items()}
        folder = self.kept.save(self.step, state)
        stored = load(folder).state["buffer"]["rows"]
        for name, (array, rows) in arrays.items():
            written = {k for k, path in enumerate(stored[name].paths) if path.stat().st_ino not in before}
            if len(self.bases) < 2:
                assert written == set(range(len(stored[name].paths)))
                continue
            old, since = self.bases[-2][name]
            per = rows.chunk_rows
            different = {r // per for r in range(len(array)) if r >= len(old) or (old[r] != array[r]).any()}
            allowed = {r % rows.length // per for r in range(since - 1, self.added + 1)}
            assert different <= written <= allowed
        self.bases.append({name: (array, rows.written) for name, (array, rows) in arrays.items()})

    @precondition(lambda self: self.step)
    @rule(moment=st.integers(0, 60))
    def killed_while_it_saves(self, moment):
        self.step += 1
        state, left = self.taken(), [moment]
        self.expected[self.step] = all_bits(state["buffer"])

        places = [(Path, "open"), (Path, "replace"), (Path, "mkdir")]
        places += [(checkpoint.os, "fsync"), (checkpoint.os, "link"), (checkpoint.shutil, "rmtree")]
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in places:
                patch.setattr(owner, name, dying(getattr(owner, name), left, Killed))
            with contextlib.suppress(Killed):
                self.kept.save(self.step, state)
        self.goes_on()

    @rule(cut=st.booleans())
    def goes_on(self, cut=False):
        """Another process; ``cut``: with an environment that cannot be replayed."""
        newest = self.steps()[-1:]
        self.start()
        saved = self.kept.newest(pytest.fail, lambda state: None)
        assert [saved.state["step"]] * (saved is not None) == newest if saved else not newest
        self.put_back(saved, cut)

    def put_back(self, saved, cut):
        if saved is None:
            return
        snapshot._put_buffer(self.buffer, saved.state["buffer"])
        self.added = saved.state["added"]
        assert all_bits(self.taken()["buffer"]) == self.expected[saved.state["step"]]
        self.bases = [{name: (one.rows.copy(), one.written) for name, one in self.taken()["buffer"]["rows"].items()}]
        if cut and self.buffer.size():
            self.buffer.dones[self.buffer.pos - 1] = self.buffer.timeouts[self.buffer.pos - 1] = 1

    @precondition(lambda self: len(list(self.path.glob("step-*/ring-*000000.bin"))) >= 2)
    @rule(newest=st.booleans(), where=st.floats(0, 0.999))
    def damaged(self, newest, where):
        """One bit of one chunk: the other checkpoint serves."""
        if len(self.steps()) < 2:
            return
        folder = sorted(self.path.glob("step-*"))[-2:][newest]
        chunks = sorted(folder.glob("ring-*"))
        if not chunks:
            return
        path = chunks[int(where * len(chunks))]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)  # the file itself, under all its names
        expected = self.steps()[-1 - newest]
        self.start()
        said = []
        saved = self.kept.newest(lambda *reason: said.append(reason), lambda state: None)
        assert saved.state["step"] == expected
        assert bool(said) == newest
        self.put_back(saved, False)
        if not newest:  # not seen, because not needed; away with it, or the other checks would meet it
            shutil.rmtree(folder)

    def steps(self):
        return sorted(int(path.name[5:]) for path in self.path.glob("step-*"))

    @invariant()
    def two_that_are_whole_and_share_nothing(self):
        if not hasattr(self, "path"):
            return
        folders = sorted(self.path.glob("step-*"))[-2:]
        names = [{path.stat().st_ino for path in folder.iterdir()} for folder in folders]
        assert len(folders) < 2 or not names[0] & names[1]
        for folder in folders:
            saved = load(folder).state
            assert all_bits(saved["buffer"]) == self.expected[saved["step"]]


Keeping.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, derandomize=True)
TestKeeping = Keeping.TestCase


def buffer_of(n_rows, size=64):
    buffer = ReplayBuffer(n_rows, spaces.Box(0, 255, (size,), np.uint8), spaces.Discrete(2), device="cpu")
    for number in range(n_rows):
        row = np.full((1, size), number % 251, np.uint8)
        buffer.add(row, row + 1, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    return buffer


@pytest.mark.parametrize("large", [0, 2**30])
def test_newest_observation_of_a_memory_saving_buffer(tmp_path, monkeypatch, large):
    """It stands in the row after the last transition, which counts as empty."""
    monkeypatch.setattr(snapshot, "LARGE", large)
    buffer_class, space, kwargs = KINDS["optimized"]
    one, two = (buffer_class(10, space, spaces.Discrete(2), device="cpu", **kwargs) for _ in range(2))
    for number in range(3):
        row = np.full((1, 2), number + 1, np.uint8)
        one.add(row, row + 1, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    assert one.observations[:, 0, 0].tolist() == [1, 2, 3, 4, 0, 0, 0, 0, 0, 0]
    folder = Checkpoints(tmp_path / "c").save(3, {"buffer": snapshot._take_buffer(one, 3)})
    snapshot._put_buffer(two, load(folder).state["buffer"])
    np.testing.assert_array_equal(one.observations, two.observations)
    assert two.pos == two.size() == 3


def test_no_second_copy_in_memory(tmp_path, monkeypatch):
    """Of 8 MB of rows no more than two chunks of 64 kB are in memory once more, neither at writing nor at reading."""
    monkeypatch.setattr(snapshot, "LARGE", 2**20)
    monkeypatch.setattr(buffer_chunks, "CHUNK_BYTES", 2**16)
    monkeypatch.setattr(checkpoint, "_CHUNK", 2**16)
    one, two = buffer_of(2000, 2000), ReplayBuffer(2000, spaces.Box(0, 255, (2000,), np.uint8), spaces.Discrete(2))
    assert one.observations.nbytes == 4_000_000
    tracemalloc.start()
    try:
        for step in (1, 2, 3):
            folder = Checkpoints(tmp_path / "c").save(step, {"buffer": snapshot._take_buffer(one, 2000)})
        snapshot._put_buffer(two, load(folder).state["buffer"])
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**16
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(one.observations, two.observations)
    np.testing.assert_array_equal(one.next_observations, two.next_observations)


def test_bytes_written(tmp_path, monkeypatch):
    """1,000 rows of 64 bytes, 10 a chunk; after 25 more the third checkpoint writes the chunks of 50 rows, no more."""
    monkeypatch.setattr(snapshot, "LARGE", 2**15)  # not rewards and the like
    monkeypatch.setattr(buffer_chunks, "CHUNK_BYTES", 640)
    buffer, kept, sizes, rows = buffer_of(1000), Checkpoints(tmp_path / "c"), [], []
    copy = checkpoint._copy

    def counted(pieces, file):
        pieces = [bytes(piece) for piece in pieces]
        if Path(file.name).name.startswith("ring-"):
            sizes.append(sum(map(len, pieces)))
        return copy(iter(pieces), file)

    monkeypatch.setattr(checkpoint, "_copy", counted)
    for step in range(4):
        for number in range(25 * (step > 0)):
            row = np.full((1, 64), number, np.uint8)
            buffer.add(row, row, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
        sizes.clear()
        kept.save(step, {"buffer": snapshot._take_buffer(buffer, 1000 + 25 * step)})
        rows.append(sum(sizes) // 64)
    # Observations and next observations. Rows 999 to 1049, that is -1 to 50, then 24 to 75.
    assert rows == [2000, 2000, 2 * (10 + 60), 2 * 60]


def test_file_system_without_links(tmp_path, monkeypatch):
    in_chunks(monkeypatch, 640)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint.os, "link", refuse)
    buffer, kept = buffer_of(50), Checkpoints(tmp_path / "c")
    for step in range(4):
        folder = kept.save(step, {"buffer": snapshot._take_buffer(buffer, 50)})
    taken = snapshot._take_buffer(buffer, 50)
    assert all_bits(load(folder).state["buffer"]) == all_bits(taken)


def test_after_a_failed_save_nothing_is_taken_over(tmp_path, monkeypatch):
    """Which ones there are is not known then."""
    in_chunks(monkeypatch, 640)
    buffer, kept = buffer_of(50), Checkpoints(tmp_path / "c")

    def save(step):
        return kept.save(step, {"buffer": snapshot._take_buffer(buffer, 50)})

    save(1), save(2)
    with monkeypatch.context() as patch:
        sync = checkpoint.sync_folder
        patch.setattr(checkpoint, "sync_folder", lambda path: None if path != kept.path else sync(path / "gone"))
        with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
            save(3)
    files = [{path.stat().st_ino for path in folder.iterdir()} for folder in (save(4), save(5), save(6))[1:]]
    assert len(files[0] & files[1]) == 0
    assert sorted(path.name[-1] for path in kept.path.iterdir()) == ["5", "6"]


def test_ring_that_does_not_fit(tmp_path, monkeypatch):
    in_chunks(monkeypatch, 640)
    folder = Checkpoints(tmp_path / "c").save(1, {"rows": Ring(np.zeros((20, 3), np.uint8), 20, 20)})
    stored = load(folder).state["rows"]
    with pytest.raises(ValueError, match=r"uint8 of shape \(20, 3\) does not fit uint8 of shape \(19, 3\)"):
        stored.read_into(np.zeros((19, 3), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 of shape \(20, 3\) does not fit int8 of shape"):
        stored.read_into(np.zeros((20, 3), np.int8))
    stored.paths[0].write_bytes(b"")
    with pytest.raises(ValueError, match="its chunks hold 0 bytes, expected 60"):
        stored.read_into(np.zeros((20, 3), np.uint8))
