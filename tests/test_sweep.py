"""``python -m alrao_rl.sweep``: the plan, what is kept on disk, and that no process's end loses or repeats a run."""

import contextlib
import csv
import datetime
import errno
import fcntl
import hashlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import pandas as pd
import psutil
import pytest
from common import CONFIG, ROOT, SAME, SMALL, zipped

from alrao_rl import load_results
from alrao_rl.cli.arguments import parse_count
from alrao_rl.errors import UserError
from alrao_rl.notation import literal, parse_seeds, seeds_as_text
from alrao_rl.report import study
from alrao_rl.report.command import main as report
from alrao_rl.runs import logs, provenance
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.names import RunName, is_cut, setting_name, setting_names
from alrao_rl.runs.provenance import continued, versions
from alrao_rl.sweep import plan, runs_csv, worker
from alrao_rl.sweep import states as survey
from alrao_rl.sweep.cluster import give_out, local_cluster
from alrao_rl.sweep.command import _check_cells, main
from alrao_rl.sweep.progress import Progress, time_left
from alrao_rl.train.command import main as train

ODD = '''
import os, sys, time
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Odd(gym.Env):
    """Ten steps an episode, with pauses; at its 150th step, or another, something happens."""

    metadata = {"render_modes": []}
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, happens=None, pause=0.0, at=150):
        self.happens, self.pause, self.at, self.total = happens, pause, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        time.sleep(self.pause)
        reward = self.happens() if self.happens and self.total == self.at else float(action)
        return self.observe(), reward, self.steps == 10, False, {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

class Absent(Odd):
    """There where a sweep is planned, and not where its runs are done."""

    def __init__(self):
        if "--out" in sys.argv:
            raise ImportError("No module named 'engine'")
        super().__init__()

class NoReset(Odd):
    def reset(self, *, seed=None, options=None):
        raise ValueError("no track to drive on")

def fail():
    if not os.path.exists("mended"):
        raise ValueError("broken at last")
    return 0.0

def terminate():
    if not os.path.exists("terminated"):
        open("terminated", "w").close()
        os.kill(os.getpid(), 15)
    return 0.0

gym.register("Good-v0", Odd)
gym.register("Absent-v0", Absent)
gym.register("NoReset-v0", NoReset)
gym.register("Slow-v0", Odd, kwargs={"pause": 0.005})
gym.register("Raises-v0", Odd, kwargs={"happens": fail})
gym.register("Exits-v0", Odd, kwargs={"happens": lambda: os._exit(7)})
gym.register("Nan-v0", Odd, kwargs={"happens": lambda: float("nan")})
gym.register("Hangs-v0", Odd, kwargs={"happens": lambda: time.sleep(3600)})
gym.register("Killed-v0", Odd, kwargs={"happens": lambda: os.kill(os.getpid(), 9)})
# The run stops in order and goes on from there, where the steps of its environment are counted anew: soon enough to
# be terminated again.
gym.register("Terminated-v0", Odd, kwargs={"happens": lambda: os.kill(os.getpid(), 15) or 0.0, "at": 50})
gym.register("Once-v0", Odd, kwargs={"happens": terminate})
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with the agent ``small.toml`` and, on the path, the module ``odd`` with its environments."""
    _fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    yield tmp_path
    sys.modules.pop("odd", None)
    for name in (
        "Good",
        "Absent",
        "NoReset",
        "Slow",
        "Raises",
        "Exits",
        "Nan",
        "Hangs",
        "Killed",
        "Terminated",
        "Once",
    ):
        gym.registry.pop(f"{name}-v0", None)


def _fill(folder):
    (folder / "site").mkdir()
    (folder / "site" / "odd.py").write_text(ODD)
    (folder / "small.toml").write_text(SMALL)


def sweep(*args, jobs=2):
    return main([*map(str, args), "-j", str(jobs)])


def table(root):
    with (root / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def data(**more):
    return {"name": "x", "agents": ["dqn"], "envs": ["CartPole-v1"], "seeds": [0, 1], **more}


def cells(**more):
    return plan.cells(plan.checked(data(**more), "test"))


# --- seeds, grids, files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "seeds"),
    [(["0-3"], [0, 1, 2, 3]), (["0,3,5-7"], [0, 3, 5, 6, 7]), (["4", "1-2"], [4, 1, 2]), (["9-9"], [9])],
)
def test_seeds(texts, seeds):
    assert parse_seeds(texts, "--seeds") == seeds
    assert parse_seeds([seeds_as_text(seeds)], "") == sorted(seeds)


@pytest.mark.parametrize(
    ("text", "count"),
    [("100000", 100_000), ("20_000", 20_000), ("1e5", 100_000), ("1.5k", 1500), ("100K", 100_000), ("0.1m", 100_000),
     ("1m", 1_000_000), ("2.5e3", 2500), ("999999999999999999999999999999.999k", 999999999999999999999999999999999)],
)  # fmt: skip
def test_timesteps_in_short(text, count):
    """They are exact."""
    assert parse_count(text) == count
    assert type(parse_count(text)) is int


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("9-0", "the range 9-0 is empty; did you mean 0-9?"),
        ("a", "'a' is not a seed"),
        ("", "'' is not a seed"),
        ("1,,2", "'' is not a seed"),
        ("-3", "'-3' is not a seed"),
        ("0-1000000", "at most 10,000"),
    ],
)
def test_seeds_refused(text, says):
    with pytest.raises(UserError, match="--seeds: ") as error:
        parse_seeds([text], "--seeds")
    assert says in str(error.value)


def test_grid():
    texts = ["learning_rate=1e-5,1e-4", "net_arch=[32],[64, 64]", "activation_fn=tanh,relu", "alrao.n_heads=3"]
    assert plan.parse_grid(texts) == {
        "learning_rate": [1e-5, 1e-4],
        "net_arch": [[32], [64, 64]],
        "activation_fn": ["tanh", "relu"],
        "alrao.n_heads": [3],
    }
    for text in ("learning_rate", "=3", "a="):
        with pytest.raises(UserError, match="expected KEY=VALUE"):
            plan.parse_grid([text])
    with pytest.raises(UserError, match="given twice"):
        plan.parse_grid(["a=1", "a=2"])


def test_file_round_trip(tmp_path):
    grid = {"learning_rate": [1e-5, 0.1], "alrao.n_heads": [3], "alrao.value_averaging": [{"rule": "switch"}, 'a"b']}
    one = plan.checked(data(grid=grid, tuning_seeds=[100], budget=0.5), "test")
    plan.write(tmp_path / "sweep.toml", one)
    assert plan.checked(plan.read(tmp_path / "sweep.toml"), "file") == one
    raw = tomllib.loads((tmp_path / "sweep.toml").read_text())
    assert (raw["seeds"], raw["tuning_seeds"], raw["grid"]["learning_rate"]) == ([0, 1], [100], [1e-5, 0.1])
    # Dotted keys without quotation marks are what people write; comments of theirs stay.
    text = "# mine\n" + (tmp_path / "sweep.toml").read_text().replace('"alrao.n_heads"', "alrao.n_heads")
    (tmp_path / "sweep.toml").write_text(text)
    plan.write(tmp_path / "sweep.toml", one)
    assert (tmp_path / "sweep.toml").read_text() == text


def test_seeds_of_a_file_as_on_the_command_line(tmp_path):
    (tmp_path / "sweep.toml").write_text('seeds = "0-2,7"\ntuning_seeds = "100"\n')
    assert plan.read(tmp_path / "sweep.toml") == {"seeds": [0, 1, 2, 7], "tuning_seeds": [100]}
    (tmp_path / "sweep.toml").write_text('seeds = "9-0"\n')
    with pytest.raises(UserError, match=r"sweep.toml: seeds: the range 9-0 is empty; did you mean 0-9\?"):
        plan.read(tmp_path / "sweep.toml")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"agents": ["dqn", "dqn"]}, "agents holds 'dqn' twice"),
        ({"grid": {"learning_rate": [1e-3, 1e-3]}}, "grid.learning_rate holds 0.001 twice"),
        ({"grid": {"learning_rate": []}}, "grid"),
        ({"tuning_seeds": [1], "grid": {"gamma": [0.9]}}, "seed 1 is in seeds and in tuning_seeds"),
        ({"tuning_seeds": [9]}, "there is no grid"),
        ({"tune": True}, "tune chooses learning rates on tuning_seeds, and there are none"),
        ({"tune": True, "tuning_seeds": [9], "grid": {"gamma": [0.9]}}, "among the values of grid.learning_rate"),
        ({"timesteps": 10, "budget": 0.5}, "exclude each other"),
        ({"timesteps": 0}, "timesteps is 0"),
        ({"timesteps": {"CartPole-v0": 5}}, "timesteps has no CartPole-v1, which is one of envs; it has CartPole-v0"),
        ({"timesteps": {"CartPole-v1": 0}}, "timesteps is {'CartPole-v1': 0}: expected a whole number of at least 1"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"sedes": [1]}, "unknown key sedes, expected name"),
        ({"name": "a/b"}, "name is 'a/b'"),
        (
            {"seeds": list(range(10_000)), "grid": {"gamma": list(range(11))}},
            "sweep.toml: these are 110,000 runs, expected at most 100,000",
        ),
        ({"agents": [str(n) for n in range(2000)]}, "list should have at most 1000 items"),
    ],
)
def test_contradictions(more, says):
    with pytest.raises(UserError) as error:
        plan.checked(data(**more), "sweep.toml")
    assert str(error.value).startswith("sweep.toml: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_extended():
    kept = plan.checked(data(grid={"gamma": [0.9]}, timesteps=10), "kept")
    more = plan.checked(data(agents=["ppo"], seeds=[1, 5], grid={"gamma": [0.5]}, timesteps=10), "call")
    both = plan.extended(kept, more, "kept")
    assert (both.agents, both.seeds, both.grid) == (["dqn", "ppo"], [0, 1, 5], {"gamma": [0.9, 0.5]})
    for change, says in (
        ({"timesteps": 20}, "timesteps: 10 -> 20"),
        ({"grid": {"tau": [1.0]}}, 'keys of the grid: ["gamma"] -> ["tau"]'),
    ):
        with pytest.raises(UserError, match="is another sweep") as error:
            plan.extended(kept, more.model_copy(update=change), "kept")
        assert says in str(error.value)
    # Of further environments, further timesteps; no others of those that are there.
    table = kept.model_copy(update={"timesteps": {"CartPole-v1": 10}})
    wider = more.model_copy(update={"envs": ["Acrobot-v1"], "timesteps": {"Acrobot-v1": 30}})
    assert plan.extended(table, wider, "kept").timesteps == {"CartPole-v1": 10, "Acrobot-v1": 30}
    with pytest.raises(UserError, match=r"is another sweep \(timesteps.CartPole-v1: 10 -> 30\)"):
        plan.extended(table, more.model_copy(update={"timesteps": {"CartPole-v1": 30}}), "kept")
    # Evaluations decide on no score: from here on they are as the call says.
    assert plan.extended(kept, more.model_copy(update={"eval_episodes": 0}), "kept").eval_episodes == 0
    with pytest.raises(UserError, match="seed 7 is in seeds and in tuning_seeds"):
        plan.extended(kept.model_copy(update={"tuning_seeds": [7]}), more.model_copy(update={"seeds": [7]}), "kept")


# --- cells and runs -------------------------------------------------------------------------------------------------


def test_cells_of_a_grid():
    """A key that does nothing to an agent gives it one cell and no tuning runs."""
    one = plan.checked(
        data(agents=["dqn", "dqn-adam"], grid={"learning_rate": [1e-4, 1e-3]}, tuning_seeds=[100], budget=0.5), "test"
    )
    found = plan.cells(one)
    assert [cell.name().group for cell in found] == [
        "CartPole-v1/dqn",
        "CartPole-v1/dqn-adam@learning_rate=0.0001",
        "CartPole-v1/dqn-adam@learning_rate=0.001",
    ]
    assert [cell.inert for cell in found] == [("learning_rate",), (), ()]
    assert [cell.setting for cell in found] == [
        "",
        "hyperparameters.learning_rate=0.0001",
        "hyperparameters.learning_rate=0.001",
    ]
    assert {cell.recipe.timesteps for cell in found} == {25_000}
    runs = plan.runs(one, found)
    assert [(run.seed, run.cell.agent) for run in runs if run.seed != 1] == [
        (0, "dqn"), (0, "dqn-adam"), (0, "dqn-adam"), (100, "dqn-adam"), (100, "dqn-adam"),
    ]  # fmt: skip
    assert len({run.digests for run in runs}) == len(runs) == 8
    assert runs[1].config["agent"] == "dqn-adam"
    assert runs[1].config["hyperparameters"]["learning_rate"] == 1e-4


def test_a_folder_name_fits(tmp_path):
    """What is short is named in full; what no file system takes is cut, and each setting keeps a name of its own."""
    keys = [f"k{n:02d}" for n in range(16)]
    values = dict.fromkeys(keys, 0.125)
    assert setting_name({"k": "x" * 248}, "dqn") == "k=" + "x" * 248
    whole = ",".join(f"{key}=0.12345678901" for key in keys)  # 16 * 17 + 15 = 287 characters
    name = setting_name(dict.fromkeys(keys, 0.12345678901), "dqn")
    assert name == whole[:236] + "..." + hashlib.sha256(whole.encode()).hexdigest()[:12]
    (tmp_path / f"dqn@{name}").mkdir()
    assert len(f"dqn@{name}") == 255
    assert is_cut(name)
    assert not is_cut(setting_name(values, "dqn"))
    grid = {key: [0.12345678901] for key in keys[:-1]} | {keys[-1]: [0.1, 0.2]}
    both = setting_names(grid, "dqn", [setting_name({k: v[-1] for k, v in grid.items()}, "dqn")])
    assert len(set(both)) == 2
    # Some keys of the grid are none of the agent's, and no name says which.
    fewer = {key: values[-1] for key, values in list(grid.items())[1:]}
    assert setting_names(grid, "dqn", [setting_name(fewer, "dqn")]) == []
    assert setting_names({"a": [1, 2], "b": [3]}, "dqn", ["a=1"]) == ["a=1", "a=2"]
    assert setting_names({"a": [1, 2]}, "dqn", [""]) == []
    with pytest.raises(UserError, match="has too long a name for folders that name settings too: rename its file"):
        setting_name({"gamma": 0.9}, "x" * 250)


LONG = ["batch_size=32", "buffer_size=1000", "exploration_final_eps=0.05", "exploration_fraction=0.125",
        "exploration_initial_eps=1.0", "gamma=0.99", "gradient_steps=1", "learning_rate=1e-3,3e-3",
        "learning_starts=20", "max_grad_norm=10.0", "n_steps=1", "optimize_memory_usage=false", "stats_window_size=100",
        "target_update_interval=50", "tau=1.0", "train_freq=4"]  # fmt: skip


def test_dry_run_names_a_setting_whose_folder_is_cut(place, capfd):
    args = ["--agents", "dqn-adam", "--envs", "CartPole-v1", "--seeds", "0", "--timesteps", "1.5k"]
    assert main([*args, "--grid", *LONG, "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    names = {line.split(" on CartPole-v1")[0] for line in lines[:2]}
    assert len(names) == 2
    assert {len(name) for name in names} == {255}
    assert "1,500 steps each; its folder's name is cut, the setting is hyperparameters.batch_size=32, " in lines[0]
    assert "hyperparameters.learning_rate=0.001, " in lines[0]
    assert "hyperparameters.learning_rate=0.003, " in lines[1]


def test_timesteps_of_each_environment():
    found = cells(envs=["CartPole-v1", "Acrobot-v1"], timesteps={"CartPole-v1": 2_000, "Acrobot-v1": 3_000})
    assert [cell.recipe.timesteps for cell in found] == [2_000, 3_000]
    one = plan.checked(data(timesteps={"CartPole-v1": 2_000}), "test")
    assert plan.checked(tomllib.loads(one.as_toml()), "test") == one


def test_cells_of_two_keys():
    found = cells(agents=["dqn", "ppo-adam"], grid={"gamma": [0.9, 0.99], "clip_range": [0.1]}, timesteps=7)
    assert [cell.name().cell for cell in found] == [
        "dqn@gamma=0.9", "dqn@gamma=0.99", "ppo-adam@gamma=0.9,clip_range=0.1", "ppo-adam@gamma=0.99,clip_range=0.1",
    ]  # fmt: skip
    assert found[0].inert == ("clip_range",)
    assert found[2].options.arguments()[-4:-2] == ("--timesteps", "7")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"agents": ["dnq"]}, "unknown agent 'dnq'"),
        ({"envs": ["CartPole-v2"]}, "did you mean 'CartPole-v1'?"),
        ({"grid": {"lerning_rate": [1]}}, "--grid lerning_rate: no such key for dqn; did you mean 'learning_rate'?"),
        ({"agents": ["dqn-adam"], "grid": {"learning_rate": [-1.0]}}, "learning_rate is -1.0"),
        ({"grid": {"gamma": [0.9], "hyperparameters.gamma": [0.5]}}, "are the same"),
    ],
)
def test_cells_refused(more, says):
    with pytest.raises(UserError) as error:
        cells(**more)
    assert says in str(error.value)
    assert "--set" not in str(error.value)


def test_a_buffer_too_large_for_this_machine_may_fit_on_another(place):
    huge = cells(agents=["dqn"], grid={"buffer_size": [1_000_000_000_000]})
    with pytest.raises(
        UserError, match=r"dqn@buffer_size=1000000000000 on CartPole-v1: cannot build DQN: Unable to alloc"
    ):
        _check_cells(huge, here=True)
    _check_cells(huge, here=False)


def test_cells_are_checked_on_one_environment(place):
    """It is made once for all agents and settings, once more to look at its actions, and closed."""
    made = []

    class Counted(gym.Env):
        action_space, observation_space = gym.spaces.Discrete(2), gym.spaces.Box(-1.0, 1.0, (2,))

        def __init__(self):
            made.append(self)

        def close(self):
            made.append("closed")

    gym.register("Counted-v0", Counted, disable_env_checker=True)
    try:
        found = cells(agents=["ppo", "a2c-rmsprop"], envs=["Counted-v0"], grid={"gamma": [0.9, 0.99], "n_envs": [1, 3]})
        assert len(found) == 8
        _check_cells(found, here=True)
    finally:
        gym.registry.pop("Counted-v0")
    assert [one == "closed" for one in made] == [False, True, False, True]


# --- what is kept on disk -------------------------------------------------------------------------------------------


def test_rows(tmp_path):
    path = tmp_path / "runs.csv"
    row = {"env": "E", "agent": "a", "setting": "k=1, l=2", "seed": 3, "state": "failed", "auc": math.nan}
    kept = runs_csv.Rows(path)
    kept.put(row | {"reason": "two\nlines, and a comma"})
    kept.put(row | {"seed": 4})
    kept.put(row | {"state": "finished", "auc": 1.23456789})
    again = runs_csv.Rows(path)
    assert [row["seed"] for row in again.values()] == ["3", "4"]
    found = again.get(("E", "a", "k=1, l=2", "3"))
    assert (found["state"], found["auc"], found["reason"]) == ("finished", "1.23457", "")
    kept.put(row | {"agent": "my  agent"})
    assert runs_csv.Rows(path).get(("E", "my  agent", "k=1, l=2", "3"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs.csv"]
    text = path.read_text()
    for damaged, says in (
        (text + text.splitlines()[1] + "\n", "a second row"),
        (text[:-20], "does not have 16 values"),
        ("x\n", "expected the columns"),
        (text.replace(",finished,", ",banana,"), "line 2 has the state 'banana', not finished, failed"),
        (text.replace(",finished,,", ",finished,abc,"), "line 2 has timesteps 'abc', not a number"),
    ):
        path.write_text(damaged)
        with pytest.raises(UserError, match=says):
            runs_csv.Rows(path)


def test_words_of_values():
    assert setting_name({"a": -1.0, "b": [64, 64], "c": "x y", "d": -3}) == "a=-1.0,b=64-64,c=x-y,d=-3"
    assert setting_name({"a": -1.0}) != setting_name({"a": 1.0})
    for value in ("\U0001f680/dqn.toml", 'quotes "', "\x7f", "\n", -1.5, [True, "é"]):
        assert tomllib.loads(f"x = {literal(value)}")["x"] == value


def test_values_that_are_none():
    for value in ([datetime.date(1979, 5, 27)], [math.nan]):
        with pytest.raises(UserError, match=r"grid is \[.*: expected numbers, text, true or false"):
            plan.checked(data(grid={"learning_rate": value}), "test")


def test_what_becomes_of_a_run_whose_process_failed(tmp_path):
    never = RunFolder(tmp_path / "never")
    assert worker.outcome_of_failure(never.path, CONFIG, "gone").reason == "gone"  # before there was a folder
    assert never.config() == CONFIG
    assert never.status() == {"state": "failed", "reason": "gone", "timestep": 0}
    assert (never.path / "traceback.txt").read_text() == "gone\n"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    assert worker.outcome_of_failure(tmp_path / "notes", CONFIG, "refused").reason == "refused"
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with contextlib.closing(folder):
        folder.start(CONFIG)
        folder.set_status("failed", reason="its own")
    assert worker.outcome_of_failure(folder.path, {}, "from outside").reason == "its own"
    # The run was refused, and what is there is of the time before.
    assert worker.outcome_of_failure(folder.path, {}, "refused", said=False).reason == "refused"
    assert folder.status() == {"state": "failed", "reason": "refused"}
    folder.set_status("finished")
    outcome = worker.outcome_of_failure(folder.path, {}, "its process ended with exit status 1")
    assert (outcome.state, outcome.reason) == ("finished", "")
    assert outcome.warnings == ("it is finished, but its process ended with exit status 1",)
    assert folder.status() == {"state": "finished"}


@pytest.mark.slow
def test_what_a_run_leaves_running_is_killed():
    code = "import os, time; os.fork() or time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    assert worker._ends(process, time.monotonic() + 30)
    os.killpg(process.pid, 0)  # the child is there
    worker._kill(process)
    assert process.wait() == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it lives")


def test_a_run_in_time_and_one_that_is_not():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    assert not worker._ends(process, time.monotonic() + 0.3)
    worker._kill(process)
    assert process.wait() == -signal.SIGKILL
    assert worker._ends(process, None)  # somebody has asked already


def test_a_disk_that_is_full_stops_a_sweep_with_a_line(place, monkeypatch, capfd):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("alrao_rl.sweep.plan.write_atomically", full)
    assert sweep("--agents", "small.toml", "--envs", "CartPole-v1", "--seeds", "0", "--name", "x") == 1
    assert capfd.readouterr().err.strip() == (
        "error: the sweep stopped: results/x/sweep.toml: No space left on device; the same command continues it"
    )


def test_reached(tmp_path):
    (run,) = plan.runs(plan.checked(data(seeds=[0], timesteps=100), "test"), cells(timesteps=100))
    assert survey.reached(tmp_path, run)[0] == 0
    folder = tmp_path / run.folder
    folder.mkdir(parents=True)
    (folder / "episodes.csv").write_text("timestep,return,length\n10,1.0,10\n30,4.0,20\n50,9")
    assert survey.reached(tmp_path, run) == (30, 2.5)
    (folder / "episodes.csv").write_text("timestep,return,length\n" + "".join(f"{n},2.0,1\n" for n in range(5000)))
    assert survey.reached(tmp_path, run) == (4999, 2.0)


def test_time_left():
    one = plan.checked(data(seeds=[0, 1, 2], timesteps=1000), "test")
    runs = plan.runs(one, plan.cells(one))
    speeds = survey.Speeds()
    assert speeds.time_left([(runs[0], 0)], 2) is None
    row = {"env": "Acrobot-v1", "agent": "ppo", "state": "finished", "timesteps": "1000", "seconds": "1"}
    speeds = survey.Speeds([row, row | {"state": "failed", "seconds": "1000"}])
    assert speeds.of("CartPole-v1", "dqn") == 1000  # for want of a better one
    speeds.add("Acrobot-v1", "dqn", 100, 1)
    assert speeds.of("CartPole-v1", "dqn") == 100
    speeds.add("CartPole-v1", "dqn", 50, 1)
    assert speeds.of("CartPole-v1", "dqn") == 50
    assert speeds.time_left([(run, 500) for run in runs], 2) == 15
    assert speeds.time_left([(runs[0], 0)], 2) == 20  # one run is not shared
    assert [time_left(seconds) for seconds in (None, 12.3, 600, 36_000)] == [
        "time left not known yet", "about 12 s left", "about 10 min left", "about 10 h 00 min left",
    ]  # fmt: skip


def test_states(tmp_path):
    """The folder has the say, the row where there is none; another configuration is refused."""
    one = plan.checked(data(seeds=[0], timesteps=100), "test")
    (run,) = plan.runs(one, plan.cells(one))
    table, folder = runs_csv.Rows(tmp_path / "runs.csv"), RunFolder(tmp_path / run.folder)

    def state():
        return survey.state(tmp_path, run, table)

    assert state() == survey.State("queued")
    table.put(survey.row(tmp_path, run, survey.State("failed", "no licence"), 1.0))
    assert table.get(run.key)["auc"] == "0"  # the floor
    assert state() == survey.State("failed", "no licence", elsewhere=True)
    table.put(survey.row(tmp_path, run, survey.State("finished")))
    assert state() == survey.State("finished", elsewhere=True)
    table.put({**survey.row(tmp_path, run, survey.State("finished")), "timesteps": 100})
    assert state() == survey.State("finished", elsewhere=True, lost=True)
    folder.path.mkdir(parents=True)
    with contextlib.closing(folder):
        folder.start(run.config | {"provenance": {}})
    assert state() == survey.State("finished")
    (tmp_path / "runs.csv").unlink()
    table = runs_csv.Rows(tmp_path / "runs.csv")
    (folder.path / "checkpoint" / "step-000000000040").mkdir(parents=True)
    (folder.path / "checkpoint" / ".step-000000000080.x.tmp").mkdir(parents=True)
    assert state() == survey.State("queued", step=40)
    folder.set_status("interrupted", timestep=50)
    assert state() == survey.State("queued", step=40)
    folder.set_status("failed", reason="ValueError: no")
    assert state() == survey.State("failed", "ValueError: no")
    config = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps(config | {"timesteps": 50}))
    with pytest.raises(UserError, match="timesteps: 50 -> 100"):
        state()
    shutil.rmtree(folder.path)
    table.put(survey.row(tmp_path, run, survey.State("finished")) | {"configuration": "0123"})
    with pytest.raises(UserError, match="of another configuration"):
        state()


def test_lines_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alrao_rl.sweep.progress.LINE_INTERVAL", 0.0)
    one = plan.checked(data(timesteps=100), "test")
    runs = plan.runs(one, plan.cells(one))
    states = dict.fromkeys(runs, survey.State("queued"))
    with Progress(tmp_path, states, runs_csv.Rows(tmp_path / "runs.csv"), survey.Speeds()) as progress:
        progress.update([], 0)
        progress.update(runs[:1], 1)
        states[runs[0]] = survey.State("failed", "too bad")
        progress.ended(runs[0], states[runs[0]], 3.0, 0)
        progress.ended(runs[1], survey.State("finished"), 3.0, 100)
    assert capsys.readouterr().out.splitlines() == [
        "waiting for workers, 0 of 2 runs finished, 0 running, 0 failed; 0 steps/s in all, time left not known yet",
        "0 of 2 runs finished, 1 running, 0 failed; 0 steps/s in all, time left not known yet",
        "failed: dqn on CartPole-v1, seed 0: too bad (3 s)",
        "finished: dqn on CartPole-v1, seed 1: no episode ended (3 s)",
    ]


def test_names_are_no_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    agent = tmp_path / "[red]a :snake: [b].toml"
    agent.write_text((ROOT / "agents" / "dqn.toml").read_text())
    one = plan.checked(data(timesteps=100, agents=[str(agent)]), "test")
    runs = plan.runs(one, plan.cells(one))
    states = dict.fromkeys(runs, survey.State("queued"))
    with Progress(tmp_path, states, runs_csv.Rows(tmp_path / "runs.csv"), survey.Speeds()) as progress:
        progress.update([], 0, final=True)
        states[runs[0]] = survey.State("failed", "KeyError: '[bold]:fire:'")
        progress.ended(runs[0], states[runs[0]], 3.0, 0)
    out = capsys.readouterr().out
    assert "failed: [red]a :snake: [b] on CartPole-v1, seed 0: KeyError: '[bold]:fire:' (3 s)" in out
    assert out.count("[red]a :snake: [b]") >= 3  # in the table, before and after


@pytest.mark.slow
def test_agents_of_continuous_actions(place, capfd):
    """Alrao once, stock at each rate; then a report of them, with the heads of actor and both critics."""
    args = ["--agents", "sac", "sac-adam", "--envs", "Pendulum-v1", "--seeds", "0", "--timesteps", "250"]
    grid = ["--grid", "learning_rate=1e-4,1e-3", "batch_size=8", "net_arch=[8]", "buffer_size=300"]
    assert main([*args, *grid, "--eval-episodes", "1", "-j", "2"]) == 0
    out = capfd.readouterr().out
    assert "learning_rate does nothing to this agent, which runs once per seed" in out
    assert "3 runs, 0 finished, 0 failed, 3 to do on 2 workers" in out
    rows = table(place / "results" / "sweep")
    assert sorted((row["agent"], row["state"], row["timesteps"]) for row in rows) == [
        ("sac", "finished", "250"), ("sac-adam", "finished", "250"), ("sac-adam", "finished", "250"),
    ]  # fmt: skip
    assert report(["results/sweep"]) == 0
    page = (place / "results" / "sweep" / "report" / "report.md").read_text()
    assert all(f"sac on Pendulum-v1, {layer}. 1 seed; effective rate" in page for layer in ("actor", "qf0", "qf1"))
    assert "sac-adam (tuned)" in page


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "--agents is missing"),
        (["--agents", "dqn", "--envs", "CartPole-v1"], "--seeds is missing"),
        (["--name", "a/b"], "--name is 'a/b'"),
        (["--name", ".."], "--name is '..'"),
        (["--name", "x" * 201], "--name is 'xxx"),
        (["--name", "a b", "--seeds", "0"], "--agents is missing"),
        (["--name", "typo"], "--agents is missing, and there is no sweep called 'typo' to continue"),
        (["-j", "0"], "-j is 0"),
        (["-j", "1", "--scheduler", "tcp://x:1"], "not allowed with argument"),
        (["--timesteps", "1", "--budget", "1"], "not allowed with argument"),
        (["--timesteps", "1e-3"], "--timesteps: '1e-3': expected a whole number such as 100000, 1e5, 100k or 1m"),
        (["--run-timeout", "0"], "--run-timeout is 0.0"),
        (["--checkpoint-interval", "-1"], "--checkpoint-interval is -1.0"),
        (["--seed", "9-0"], "the range 9-0 is empty"),
        (["missing.toml"], "cannot read missing.toml"),
        (["smal.toml"], "cannot read smal.toml: No such file or directory; did you mean 'small.toml'?"),
        (["."], ". is a folder, expected a file such as sweep.toml"),
        (["--out", "small.toml"], "small.toml is not a folder"),
        (["--sceduler", "x"], "did you mean '--scheduler'?"),
        (["--agents", "dqn", "--envs", "odd:God-v0", "--seeds", "0"], "odd:God-v0 cannot be made"),
        (
            ["--agents", "ppo", "dqn", "--envs", "CartPole-v1", "Pendulum-v1", "--seeds", "0"],
            "error: dqn on Pendulum-v1: DQN cannot act in Box(-2.0, 2.0, (1,), float32): it takes Discrete actions",
        ),
        (
            ["--agents", "dqn", "--envs", "Pendulum-v1", "--seeds", "0", "--dry-run"],
            "error: dqn on Pendulum-v1: DQN cannot act in Box(-2.0, 2.0, (1,), float32)",
        ),
        (
            ["--agents", "ppo", "--envs", "CartPole-v1", "--seeds", "0", "--grid", "n_steps=64,1", "n_envs=1"],
            "error: ppo@n_steps=1,n_envs=1 on CartPole-v1: cannot build PPO: `n_steps * n_envs` must be greater than 1",
        ),
        (
            ["--agents", "maskable-ppo", "--envs", "CartPole-v1", "--seeds", "0"],
            "error: maskable-ppo on CartPole-v1: maskable-ppo takes environments with a method action_masks()",
        ),
        (["--agents", "small.toml", "sub/small.toml", "--envs", "CartPole-v1", "--seeds", "0"], "in the sweep twice"),
        (["--out", "small.toml/x", "--agents", "dqn-adam", "--envs", "CartPole-v1", "--seeds", "0"], "cannot write to"),
    ],
)
def test_mistakes(place, capfd, args, says):
    (place / "sub").mkdir()
    shutil.copy("small.toml", "sub")
    before = sorted(place.iterdir())
    assert main(args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert sorted(place.iterdir()) == before


@pytest.mark.slow
def test_unreachable_scheduler(place, capfd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    args = ["--agents", "small.toml", "--envs", "odd:Good-v0", "--seeds", "0", "--timesteps", "30"]
    assert main([*args, "--scheduler", address]) == 2
    assert time.monotonic() - started < 20
    assert f"no Dask scheduler answers at --scheduler {address}" in capfd.readouterr().err
    assert not (place / "results").exists()


def test_help_is_light():
    script = (
        "import sys, alrao_rl.sweep.command as s;"
        "heavy = {'torch', 'distributed', 'pandas', 'gymnasium'} & set(sys.modules); assert not heavy, heavy;"
        "s.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--retry-failed" in done.stdout


def test_second_sweep_is_refused(place, capfd):
    root = place / "results" / "sweep"
    root.mkdir(parents=True)
    args = ["--agents", "a2c", "--envs", "CartPole-v1", "--seeds", "0", "--timesteps", "10"]
    with (root / ".lock").open("w") as file:
        file.write("4711\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(args) == 2
        assert "another sweep (process 4711) is running in results/sweep" in capfd.readouterr().err
        assert main([*args, "--dry-run"]) == 0
    assert [path.name for path in root.iterdir()] == [".lock"]


def test_a_name_that_may_have_been_meant(place, capfd):
    root = place / "results" / "first"
    root.mkdir(parents=True)
    (root / "sweep.toml").write_text('name = "first"\nagents = ["a2c"]\nenvs = ["CartPole-v1"]\nseeds = [0]\n')
    assert main(["--name", "frist"]) == 2
    says = "error: --agents is missing, and there is no sweep called 'frist' to continue; did you mean 'first'?\n"
    assert capfd.readouterr().err == says


def test_dry_run_names_the_seeds_of_a_cell_in_part(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    args = ["--agents", "ppo", "a2c", "--envs", "CartPole-v1", "--seeds", "0-9", "--timesteps", "100", "--dry-run"]
    for cell in cells(agents=["ppo", "a2c"], seeds=list(range(10)), timesteps=100):
        states = dict.fromkeys([0, 1, 2, 5], "finished") | {3: "failed", 7: "running"} if cell.agent == "ppo" else {}
        for seed, state in states.items():
            folder = RunFolder(Path("results/sweep") / plan.Run(cell, seed).folder)
            folder.open()
            folder.start(plan.Run(cell, seed).config | {"provenance": provenance.current("x", "cpu", "torch")})
            folder.set_status(state, reason="x")
            folder.close()
        if cell.agent == "ppo":
            (Path("results/sweep") / plan.Run(cell, 7).folder / "checkpoint" / "step-000000000050").mkdir(parents=True)
    assert main([*args, "-j", "2"]) == 0
    out = capfd.readouterr().out
    rounded = "100 steps each (2,048 in whole rollouts)"
    assert f"ppo on CartPole-v1  seeds 0-9, {rounded}; 4 finished (0-2,5); 1 failed (3); 1 begun (7)\n" in out
    assert "a2c on CartPole-v1  seeds 0-9, 100 steps each (120 in whole rollouts)\n" in out
    assert "20 runs, 4 finished, 1 failed, 15 to do" in out


def test_a_byte_order_mark_is_no_part_of_a_sweep_or_its_table(place, capfd):
    root = place / "results" / "x"
    root.mkdir(parents=True)
    text = 'name = "x"\nagents = ["a2c"]\nenvs = ["CartPole-v1"]\nseeds = [0]\n'
    (root / "sweep.toml").write_text(text, encoding="utf-8-sig")
    (root / runs_csv.FILE).write_text(",".join(runs_csv.COLUMNS) + "\n", encoding="utf-8-sig")
    assert main([str(root / "sweep.toml"), "--dry-run"]) == 0
    assert "results/x: 1 run, 0 finished, 0 failed, 1 to do" in capfd.readouterr().out
    assert study._sweep(root / "sweep.toml")["agents"] == ["a2c"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_cell_that_would_make_no_update_is_refused(place, capfd, more):
    args = ["--agents", "dqn", "--envs", "CartPole-v1", "--seeds", "0", "--grid", "learning_starts=100,900", *more]
    assert main([*args, "--timesteps", "900"]) == 2
    assert capfd.readouterr().err == (
        "error: dqn@learning_starts=900 on CartPole-v1: DQN learns after 900 steps (learning_starts), but the run has "
        "900: give it more timesteps, or a smaller number such as --grid learning_starts=90\n"
    )
    assert not (place / "results").exists()


# --- real ones ------------------------------------------------------------------------------------------------------

ARGS = ["--agents", "small.toml", "--timesteps", "300", "--eval-episodes", "1"]


@pytest.mark.slow
def test_a_sweep(place, capfd):
    """Two runs at a time, one of them with an environment that raises; the same again repeats nothing."""
    root = place / "results" / "first"
    args = [*ARGS, "--envs", "odd:Good-v0", "odd:Raises-v0", "--seeds", "0", "--name", "first"]
    assert sweep(*args, "--dry-run") == 0
    assert not root.exists()
    assert "2 runs, 0 finished, 0 failed, 2 to do on 2 workers: time left not known yet" in capfd.readouterr().out
    assert sweep(*args) == 1
    out, err = capfd.readouterr()
    assert "1 of 2 runs finished, 0 running, 1 failed" in out
    failure = "small on odd:Raises-v0, seed 0: ValueError: broken at last"
    assert f"error: failed: {failure}; see results/first/odd-Raises-v0/small/seed-0" in err
    assert "broken at last" in (root / "odd-Raises-v0/small/seed-0/traceback.txt").read_text()
    by_env = {row["env"]: row for row in table(root)}
    frame = load_results(root).set_index("env")
    assert by_env.keys() == {"odd:Good-v0", "odd:Raises-v0"}
    for env, row in by_env.items():
        assert row["state"] == frame.state[env]
        assert float(row["auc"] or "nan") == pytest.approx(frame.auc[env], rel=1e-4, nan_ok=True)
        assert (row["agent"], row["seed"]) == ("small", "0")
        assert row["torch"]
        assert row["stable-baselines3"]
    assert float(by_env["odd:Good-v0"]["seconds"]) > 0
    assert by_env["odd:Raises-v0"]["reason"] == "ValueError: broken at last"

    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}
    assert sweep(*args) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert failure in capfd.readouterr().err

    # Logs that were damaged, cut short or removed are kept anew, from the folders; they take in earlier versions' zips.
    path = root / logs.FILE
    whole = path.read_bytes()
    (good,) = root.glob("odd-Good-v0/small/seed-0")
    for content in (whole[:-100], whole[:200] + b"?" + whole[201:], None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert sweep(*args) == 1
        assert {entry.name.env for entry in logs.entries(path) if not entry.error} == by_env.keys()
    assert logs.find(good).files == RunFolder(good).kept()
    path.unlink()
    for run in load_results(root).path:
        shutil.copytree(run, Path("copy", Path(run).relative_to(root)))
        zipped(Path("copy", Path(run).relative_to(root))).rename(f"{run}.zip")
    assert sweep(*args, "--dry-run") == 0
    assert not path.exists()
    assert sweep(*args) == 1
    assert logs.find(good).files == RunFolder(good).kept()
    assert list(root.rglob("*.zip")) == []
    # A sweep that was killed between a run's row and its line in the logs, of a run that had failed before.
    logs.append(root, [(RunName("odd:Good-v0", "small", "", 0), {"config.json": b"{}", "status.json": b"{}"})])
    assert sweep(*args) == 1
    assert logs.find(good).files == RunFolder(good).kept()
    capfd.readouterr()

    # The logs say what the folder did. A row is enough where the folder is gone; what failed is tried again when asked.
    for folder in root.glob("*/*/seed-0"):
        shutil.rmtree(folder)
    pd.testing.assert_frame_equal(load_results(root).set_index("env").drop(columns="path"), frame.drop(columns="path"))
    Path("mended").touch()
    assert main(["--name", "first", "--retry-failed", "-j", "1"]) == 2
    assert "the sweep names the environment 'odd:Good-v0'" in capfd.readouterr().err
    assert main(["--name", "first", "--retry-failed", "-j", "1", "--trust"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "1 finished; 1 of them finished on another machine (runs.csv)" in out
    assert "all 2 runs are finished" in out
    assert "with logs missing or damaged here" not in out
    assert [(row["env"], row["state"]) for row in table(root)].count(("odd:Raises-v0", "finished")) == 1
    assert len(table(root)) == 2
    assert not (root / "odd-Good-v0/small/seed-0").exists()
    whole = logs.find(good)
    missing = "1 with logs missing or damaged here, so reports omit them: restore logs.jsonl.xz, or delete their rows"
    damaged = dict(whole.files) | {"episodes.csv": b"timestep,return,length\n"}
    for files in (damaged, {}):
        logs.append(root, [(whole.name, files)])
        assert main(["--name", "first", "--dry-run", "--trust"]) == 0
        assert missing in capfd.readouterr().out
    path.rename("aside")
    assert main(["--name", "first", "--dry-run", "--trust"]) == 0
    assert missing in capfd.readouterr().out
    Path("aside").rename(path)
    # Logs of another study.
    other = json.loads(whole.files["config.json"]) | {"timesteps": 7}
    files = {name: data for name, data in whole.files.items() if name != "sha256.json"}
    logs.append(root, [(whole.name, files | {"config.json": json.dumps(other).encode()})])
    assert main(["--name", "first", "--dry-run", "--trust"]) == 2
    said = "first/logs.jsonl.xz has small on odd:Good-v0, seed 0 of another configuration (timesteps: 7 -> 300)"
    assert said in capfd.readouterr().err
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert main(["--name", "first", "--trust"]) == 2
    assert "first/logs.jsonl.xz is not as a sweep writes it: restore an earlier version" in capfd.readouterr().err
    path.unlink()
    logs.append(root, [(whole.name, whole.files)])

    # Another length is another sweep.
    assert sweep(*args, "--timesteps", "200") == 2
    assert "timesteps: 300 -> 200" in capfd.readouterr().err


@pytest.mark.slow
def test_two_stages(place, capfd):
    """Every rate on the tuning seed, then the best and the default on the others, all that a report asks for."""
    root = place / "results" / "rates"
    Path("alrao.toml").write_text(SMALL.replace('"stock"', '"alrao"').replace("learning_rate = 1e-3\n", ""))
    args = ["--agents", "small.toml", "alrao.toml", "--envs", "CartPole-v1", "Acrobot-v1", "--timesteps", "300",
            "--seeds", "0-1", "--tuning-seeds", "7", "--grid", "learning_rate=1e-4,1e-2,1e-1",
            "--tune", "--name", "rates", "--eval-episodes", "0"]  # fmt: skip
    assert sweep(*args, "--dry-run") == 0
    out = capfd.readouterr().out
    assert "results/rates: 10 runs, 0 finished, 0 failed, 10 to do on 2 workers" in out
    assert "then, at the rates that are chosen on them: seeds 0-1, not counted here yet" in out
    assert sweep(*args) == 0
    capfd.readouterr()
    rows = table(root)
    tuning = {(row["env"], row["setting"]): float(row["auc"]) for row in rows if row["seed"] == "7"}
    assert len(tuning) == 6
    expected = {(env, "", seed) for env in ("CartPole-v1", "Acrobot-v1") for seed in "01"}
    settings = [setting for env, setting in tuning if env == "CartPole-v1"]
    frame = load_results(root).query("seed == 7 and agent == 'small'")
    scores = {setting: frame[frame.setting == setting].auc_normalised.mean() for setting in settings}
    shared = max(scores, key=scores.get)
    for env in ("CartPole-v1", "Acrobot-v1"):
        best = max(settings, key=lambda setting, env=env: tuning[env, setting])
        for setting in {best, shared, "hyperparameters.learning_rate=0.0001"}:
            expected |= {(env, setting, seed) for seed in "01"}
    assert {(row["env"], row["setting"], row["seed"]) for row in rows if row["seed"] != "7"} == expected
    # The sweep file knows what it is; nothing is repeated, and nothing is missing.
    assert main(["--name", "rates", "-j", "1", "--dry-run"]) == 0
    assert f"{len(rows)} runs, {len(rows)} finished, 0 failed, 0 to do" in capfd.readouterr().out
    page = study.Study(root)
    assert page.in_all == (len(rows), len(rows))
    assert {method.choice for method in page.methods} >= {"", "tuned", "default rate"}
    default = next(method for method in page.methods if method.choice == "default rate")
    assert (set(default.rates.values()), default.tuning_steps, len(default.runs)) == ({1e-4}, 0, 4)


@pytest.mark.slow
def test_a_run_that_fails_before_it_begins(place, capfd):
    """It leaves a folder with the reason, scores the floor, and is in the report."""
    for name in ("Absent", "NoReset"):
        (place / f"{name}-v0.toml").write_text(f'id = "odd:{name}-v0"\nfloor = -3.5\n')
    assert sweep(*ARGS, "--envs", "Absent-v0.toml", "NoReset-v0.toml", "--trust", "--seeds", "0") == 1
    err = capfd.readouterr().err
    root = Path("results/sweep")
    reasons = {
        "Absent": "odd:Absent-v0 cannot be made: No module named 'engine'",
        "NoReset": "ValueError: no track to drive on",
    }
    for row, (name, reason) in zip(sorted(table(root), key=lambda row: row["env"]), reasons.items(), strict=True):
        assert (row["env"], row["state"], row["reason"]) == (f"odd:{name}-v0", "failed", reason)
        assert (row["auc"], row["final_return"], row["timesteps"]) == ("-3.5", "-3.5", "0")
        folder = root / f"odd-{name}-v0" / "small" / "seed-0"
        assert f"{reason}; see {folder}\n" in err
        assert json.loads((folder / "config.json").read_text())["env"]["id"] == f"odd:{name}-v0"
        assert json.loads((folder / "status.json").read_text()) == {"state": "failed", "reason": reason, "timestep": 0}
        assert reason in (folder / "traceback.txt").read_text()
    found = load_results(root)
    assert list(found.state) == ["failed", "failed"]
    assert list(found.auc) == [-3.5, -3.5]
    # Nothing is left to do, and what failed can be tried again.
    assert sweep(*ARGS, "--name", "sweep", "--trust", "--dry-run") == 0
    assert "2 runs, 0 finished, 2 failed, 0 to do" in capfd.readouterr().out
    assert sweep(*ARGS, "--name", "sweep", "--trust", "--retry-failed", "--dry-run") == 0
    assert "2 runs, 0 finished, 0 failed, 2 to do" in capfd.readouterr().out


@pytest.mark.slow
def test_none_waits_behind_a_long_one():
    """Tasks are begun in order, the third not by the worker that is at the first."""

    def begun(pause):
        now = time.time()
        time.sleep(pause)
        return now

    with local_cluster(2) as client:
        times = [future.result() for future in give_out(client, begun, [3.0] + [0.1] * 11, "test")]
    assert times[1:] == sorted(times[1:])
    assert times[-1] < times[0] + 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "state", "reason"),
    [
        ("Killed", "failed", "its process was killed by SIGKILL, 2 times"),
        pytest.param("Terminated", "failed", "its process was killed by SIGTERM, 2 times", marks=pytest.mark.long),
        ("Once", "finished", ""),
    ],
)
def test_task_that_is_killed(place, monkeypatch, env, state, reason):
    """It is tried again; after the last time it has failed. Its command names no place of this machine."""
    monkeypatch.setattr(worker, "ATTEMPTS", 2)
    folder = place / "run"
    arguments = ("--agent", "small.toml", "--env", f"odd:{env}-v0", "--timesteps", "300", "--eval-episodes", "1")
    outcome = worker.execute(worker.Task("x", arguments, {}, str(folder), str(place), 120.0))
    assert (outcome.state, outcome.reason) == (state, reason)
    assert json.loads((folder / "status.json").read_text())["state"] == state
    assert " --out run " in json.loads((folder / "config.json").read_text())["provenance"]["command"]


def test_mismatch(place, capfd):
    """A checkpoint of other versions is refused before anything is started, even if it is one of many."""
    args = ["--agents", "small.toml", "--timesteps", "100", "--envs", "odd:Good-v0", "--seeds", "0-1", "-j", "1"]
    folder = place / "results/sweep/odd-Good-v0/small/seed-1"
    one = plan.checked(
        {"name": "sweep", "agents": ["small.toml"], "envs": ["odd:Good-v0"], "seeds": [1], "timesteps": 100}, "test"
    )
    (run,) = plan.runs(one, plan.cells(one))
    made_with = {"versions": versions() | {"torch": "1.0"}, "device": "cpu", "git_commit": "abc"}
    with contextlib.closing(RunFolder(folder)) as begun:
        begun.open()
        begun.start(run.config | {"provenance": made_with})
    assert main([*args, "--dry-run"]) == 0  # no checkpoint, nothing to be mixed
    (folder / "checkpoint" / "step-000000000040").mkdir(parents=True)
    capfd.readouterr()
    assert main(args) == 2
    expected = f"small on odd:Good-v0, seed 1 was made with something else (torch: 1.0 -> {version('torch')}): --allow"
    assert expected in capfd.readouterr().err
    # Nor may one with a package of the environment's own; of one that is gone the run itself finds out.
    made_with["versions"] = versions() | {"Box2D": "2.3.8", "nowhere-installed": "1"}
    (folder / "config.json").write_text(json.dumps(run.config | {"provenance": made_with}))
    assert main(args) == 2
    assert f"was made with something else (Box2D: 2.3.8 -> {version('Box2D')}): --allow" in capfd.readouterr().err
    made_with["versions"] = versions() | {"torch": "1.0"}
    (folder / "config.json").write_text(json.dumps(run.config | {"provenance": made_with}))
    assert main([*args, "--dry-run", "--allow-mismatch"]) == 0
    config = json.loads((folder / "config.json").read_text())
    config["provenance"] = continued(config["provenance"], 40, {"versions": versions(), "git_commit": "def"})
    (folder / "config.json").write_text(json.dumps(config))
    row = survey.row(place / "results/sweep", run, survey.State("failed"))
    assert (row["torch"], row["commit"]) == (f"1.0 -> {version('torch')}", "abc -> def")
    assert row["alrao-rl"] == versions()["alrao-rl"]


def certificate(folder, name):
    """A self-signed certificate, which is its own authority, and Dask's settings for whoever has it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run(
        [*make, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
    )
    prefix = "DASK_DISTRIBUTED__COMM__"
    settings = {f"{prefix}TLS__CA_FILE": cert, f"{prefix}REQUIRE_ENCRYPTION": True}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings |= {f"{prefix}TLS__{role}__CERT": cert, f"{prefix}TLS__{role}__KEY": key}
    return {key: str(value) for key, value in settings.items()}


@contextlib.contextmanager
def dask_command(name, *args, settings):
    command = [sys.executable, "-m", f"distributed.cli.dask_{name}", "--host", "127.0.0.1", *args]
    with subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.long
def test_a_cluster_with_tls(place):
    """By Dask's own settings; who has no certificate, or another one, is not let in, and says so."""
    ours, other = certificate(place, "ours"), certificate(place, "other")
    other["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"] = ours["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"]
    file = place / "scheduler.json"
    args = ["--protocol", "tls", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    with dask_command("scheduler", *args, settings=ours):
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://")

        def run(settings, address=address):
            command = [sys.executable, "-m", "alrao_rl.sweep", *ARGS, "--envs", "odd:Good-v0", "--seeds", "0"]
            return subprocess.run(
                [*command, "--scheduler", address], env=os.environ | settings, capture_output=True, text=True
            )

        expected = f"error: no Dask scheduler answers at --scheduler {address}, expected one that knows the certificate"
        for settings in ({}, other):
            refused = run(settings)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert refused.stderr.startswith(expected)
            assert refused.stderr.count("\n") == 1
        # REQUIRE_ENCRYPTION: no word in plain text, even when asked for by mistake.
        plain = run(ours, address.replace("tls", "tcp"))
        assert plain.returncode == 2
        assert plain.stderr.count("\n") == 1
        assert "encryption required by Dask configuration" in plain.stderr
        assert not (place / "results").exists()
        with dask_command("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", settings=ours):
            done = run(ours)
        assert (done.returncode, done.stderr) == (0, "")
        assert "the run is finished" in done.stdout
    assert len(table(place / "results" / "sweep")) == 1


# --- minutes --------------------------------------------------------------------------------------------------------


def alive(processes):
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def gone(processes, seconds=15.0):
    deadline = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(processes)


@contextlib.contextmanager
def started(*args):
    """The command in a process, and a terminal, of its own."""
    command = [sys.executable, "-m", "alrao_rl.sweep", *map(str, args), "-j", "2"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def runs_of(process, root, n=1, seconds=60.0):
    """Wait until so many runs of the sweep have written a checkpoint; its processes."""
    deadline = time.monotonic() + seconds
    while len(list(root.glob("*/*/*/checkpoint/step-*"))) < n:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(process.pid).children(recursive=True)


SLOW = [*ARGS, "--envs", "odd:Slow-v0", "--seeds", "0-2", "--name", "slow", "--checkpoint-interval", "0.1"]


def serial(folder, seeds):
    for seed in seeds:
        args = ["--agent", "small.toml", "--env", "odd:Slow-v0", "--timesteps", "300", "--eval-episodes", "1"]
        assert train([*args, "--seed", str(seed), "--quiet", "--out", str(folder / f"seed-{seed}")]) == 0


@pytest.mark.long
@pytest.mark.parametrize("victim", ["driver", "worker", "run"])
def test_killed_at_a_random_moment(place, capfd, victim):
    root = place / "results" / "slow"
    with started(*SLOW) as process:
        children = runs_of(process, root)
        time.sleep(random.uniform(0, 1))
        if victim == "driver":
            process.kill()
            assert process.wait() == -signal.SIGKILL
            assert gone(children)
        else:
            what = "alrao_rl.train" if victim == "run" else "multiprocessing.spawn"
            chosen = next(one for one in alive(children) if what in " ".join(one.cmdline()))
            below = chosen.children(recursive=True)
            chosen.kill()
            assert gone(below)
            # A worker comes back, a run is continued; nobody has to do anything.
            assert process.communicate(timeout=120)[1] == ""
            assert process.returncode == 0
    assert sweep(*SLOW) == 0
    assert "all 3 runs are finished" in capfd.readouterr().out
    assert sorted(row["seed"] for row in table(root)) == ["0", "1", "2"]
    assert {row["state"] for row in table(root)} == {"finished"}
    serial(place / "serial", range(3))
    for seed in range(3):
        for name in SAME:
            one, two = root / "odd-Slow-v0/small" / f"seed-{seed}" / name, place / "serial" / f"seed-{seed}" / name
            assert one.read_bytes() == two.read_bytes(), name
    assert gone(children)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(place, capfd, number):
    """Ctrl-C in a terminal reaches every process; the sweep ends in order, its runs with a checkpoint each."""
    root = place / "results" / "slow"
    with started(*SLOW, "--checkpoint-interval", "0.5") as process:
        children = runs_of(process, root, 2)
        before = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.communicate(timeout=30)[1] == (
            "error: interrupted; the same command continues, each run from its last checkpoint\n"
        )
        assert time.monotonic() - before < 15
        assert process.returncode == 128 + number
    assert gone(children)
    begun = sorted(path.parent for path in root.glob("*/*/*/status.json"))
    assert len(begun) == 2
    for folder in begun:
        status = json.loads((folder / "status.json").read_text())
        newest = max(path.name for path in (folder / "checkpoint").iterdir())
        assert status == {"state": "interrupted", "timestep": int(newest.removeprefix("step-"))}
    assert not (root / "runs.csv").exists()
    assert sweep(*SLOW) == 0
    assert "2 begun" in capfd.readouterr().out
    serial(place / "serial", range(3))
    for seed in range(3):
        for name in SAME:
            one, two = root / "odd-Slow-v0/small" / f"seed-{seed}" / name, place / "serial" / f"seed-{seed}" / name
            assert one.read_bytes() == two.read_bytes(), name


@pytest.mark.long
def test_two_at_once(place):
    root = place / "results" / "slow"
    with started(*SLOW) as first:
        runs_of(first, root)
        with started(*SLOW) as second:
            assert f"another sweep (process {first.pid}) is running" in second.communicate(timeout=30)[1]
            assert second.returncode == 2
        assert first.communicate(timeout=120)[1] == ""
        assert first.returncode == 0
    assert len(table(root)) == 3


@pytest.mark.long
def test_every_failure_is_told(place, capfd):
    envs = [f"odd:{name}-v0" for name in ("Good", "Raises", "Exits", "Nan", "Hangs")]
    root = place / "results" / "sweep"
    assert sweep(*ARGS, "--envs", *envs, "--seeds", "0", "--run-timeout", "40") == 1
    reasons = {row["env"]: (row["state"], row["reason"]) for row in table(root)}
    assert reasons == {
        "odd:Good-v0": ("finished", ""),
        "odd:Raises-v0": ("failed", "ValueError: broken at last"),
        "odd:Exits-v0": ("failed", "its process ended with exit status 7"),
        "odd:Nan-v0": ("failed", "NonFiniteError: the reward is nan at step 150 of the environment"),
        "odd:Hangs-v0": ("failed", "it was not finished after 40 seconds (--run-timeout)"),
    }
    # Where it hung is in the traceback.
    assert "odd.py" in (root / "odd-Hangs-v0/small/seed-0/traceback.txt").read_text()
    assert capfd.readouterr().err.count("error: failed: ") == 4


@pytest.mark.long
def test_a_cluster_of_the_users(place, capfd):
    """Workers that are started elsewhere, over a shared folder."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        args = [*ARGS, "--envs", "odd:Good-v0", "--seeds", "0-1", "--scheduler", address]
        assert main(args) == 0
        assert "all 2 runs are finished" in capfd.readouterr().out
    assert len(table(place / "results" / "sweep")) == 2
