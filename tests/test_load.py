"""load_results: one row a run, whatever its folder looks like."""

import json
import lzma
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from common import logged, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alrao_rl import load_agent, load_results, stats
from alrao_rl.errors import UserError
from alrao_rl.recipes.resolve import resolve
from alrao_rl.runs import logs, zips
from alrao_rl.runs.files import LOCK
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.names import RunName
from alrao_rl.runs.reading import RunFiles
from alrao_rl.runs.results import load_curves, load_heads

CARTPOLE = {"id": "CartPole-v1", "random_score": 22.2, "reference_score": 500.0, "floor": 0.0}
EPISODES = [(500, 20.0, 20), (900, 100.0, 100)]


def config(agent="dqn-adam", env=CARTPOLE, seed=0, timesteps=1000, **changes):
    return {
        "agent": agent,
        "algo": "dqn",
        "policy": "stock",
        "n_envs": 1,
        "hyperparameters": {"learning_rate": 0.001, "gamma": 0.99},
        "alrao": {},
        "env": env,
        "timesteps": timesteps,
        "seed": seed,
        "eval_episodes": 10,
        **changes,
    }


def write(root, data=None, episodes=EPISODES, state="finished", **status):
    """A run folder as ``train`` leaves it."""
    data = data or config()
    path = Path(root, data["env"]["id"].replace("/", "-"), data["agent"], f"seed-{data['seed']}")
    folder = RunFolder(path)
    folder.open()
    folder.start({**data, "provenance": {"command": "x"}})
    folder.append("episodes.csv", episodes)
    folder.close()
    if state == "running":  # nothing says that its process is gone
        (path / LOCK).unlink()
    else:
        folder.set_status(state, **status)
    return path


def test_what_a_recipe_leaves_to_the_kind_of_actions_is_no_setting(tmp_path):
    """Observations are normalised on one environment and not on the other, by one recipe; then by a setting too."""
    other = {"id": "Pendulum-v1", "random_score": -1200.0, "reference_score": -160.0, "floor": -3000.0}
    write(tmp_path, config(normalize_observations=False))
    write(tmp_path, config(env=other, normalize_observations=True, normalize_rewards=True))
    assert set(load_results(tmp_path).setting) == {""}
    write(tmp_path, config(env=other, seed=1, normalize_observations=False))
    frame = load_results(tmp_path)
    assert sorted(frame.setting) == [
        "normalize_observations=false, normalize_rewards=none",
        "normalize_observations=false, normalize_rewards=none",
        "normalize_observations=true, normalize_rewards=true",
    ]


def test_a_finished_run(tmp_path):
    path = write(tmp_path, timesteps=1024, wall_seconds=12.5, best_return=400.0, last_return=90.0)
    frame = load_results(tmp_path)
    row = frame.iloc[0]
    assert len(frame) == 1
    # 50 stretches as a random policy, 40 at 20, 10 at 100; the last twenty are ten at 20 and ten at 100.
    expected = {
        "env": "CartPole-v1", "agent": "dqn-adam", "seed": 0, "algo": "dqn", "policy": "stock", "state": "finished",
        "timesteps": 1024, "requested_timesteps": 1000, "episodes": 2, "auc": 29.1, "final_return": 60.0,
        "learning_rate": 0.001, "floor": 0.0, "random_score": 22.2, "reference_score": 500.0, "last_evaluation": 90.0,
        "lowest_return": 20.0, "wall_seconds": 12.5, "variant": "", "setting": "", "path": str(path), "error": "",
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert row.auc_normalised == pytest.approx((29.1 - 22.2) / 477.8)
    assert row.final_normalised == pytest.approx((60 - 22.2) / 477.8)
    assert math.isnan(row.lr_min)
    # Nothing of the best agent, which no comparison is made by.
    assert "best_return" not in frame
    pd.testing.assert_frame_equal(load_results(path), frame)
    pd.testing.assert_frame_equal(load_results(str(tmp_path / "CartPole-v1")), frame)


def test_a_rate_that_falls_counts_as_its_first_value(tmp_path):
    for seed, changes in enumerate([{}, {"hyperparameters": {"learning_rate": "lin_1e-2"}}, {"policy": "alrao"}]):
        write(tmp_path, config(seed=seed, **changes))
    rates = load_results(tmp_path).learning_rate
    assert rates[:2].tolist() == [1e-3, 1e-2]
    assert math.isnan(rates[2])


def test_a_broken_run_in_the_current_folder_is_named_by_its_path(tmp_path, monkeypatch):
    path = write(tmp_path)
    (path / "config.json").unlink()
    monkeypatch.chdir(path)
    row = load_results(".").iloc[0]
    assert (row.env, row.agent, row.seed, row.state) == ("CartPole-v1", "dqn-adam", 0, "broken")


def test_a_real_recipe(tmp_path):
    """What ``train`` writes of an Alrao agent: an interval and no learning rate."""
    recipe = resolve("dqn", "CartPole-v1", ["alrao.n_heads=5"])
    path = tmp_path / "somewhere"
    folder = RunFolder(path)
    folder.open()
    folder.start({**recipe.as_dict(), "seed": 3, "eval_episodes": 20})
    folder.append("episodes.csv", [(1, 10.0, 10)])
    folder.close()
    folder.set_status("finished", timesteps=50_000)
    row = load_results(tmp_path).iloc[0]
    assert (row.agent, row.seed, row.state, row.auc) == ("dqn", 3, "finished", 10.0)
    assert [row.lr_min, row.lr_max] == recipe.agent.alrao.lr_range
    assert math.isnan(row.learning_rate)
    assert row.reference_score == recipe.environment.reference_score


def test_failed_and_diverged_runs_score_the_floor(tmp_path):
    env = {**CARTPOLE, "floor": -7.0}
    write(tmp_path, config(seed=0, env=env), state="failed", reason="ValueError: nan in the logits", timestep=910)
    write(tmp_path, config(seed=1, env=env), [*EPISODES, (950, math.nan, 4)])
    write(tmp_path, config(seed=2, env=env), [(10, -math.inf, 4), *EPISODES])
    torn = write(tmp_path, config(seed=3, env=env), state="failed", reason="OSError: disk full")
    (torn / "episodes.csv").write_text("timest")
    frame = load_results(tmp_path)
    assert frame.state.tolist() == ["failed", "diverged", "diverged", "failed"]
    assert (frame[["auc", "final_return"]] == -7).all(axis=None)
    assert frame.auc_normalised.to_numpy() == pytest.approx((-7 - 22.2) / 477.8)
    assert frame.timesteps.tolist()[:2] == [910, 950]
    assert frame.error.tolist() == [
        "ValueError: nan in the logits",
        "the return is nan at timestep 950",
        "the return is -inf at timestep 10",
        "OSError: disk full",
    ]


def test_a_finished_run_that_has_changed_since(tmp_path):
    path = write(tmp_path, state="running")
    folder = RunFolder(path)
    folder.finish(timesteps=1000)
    assert load_results(tmp_path).state.tolist() == ["finished"]
    (path / "episodes.csv").write_text((path / "episodes.csv").read_text().replace("20.0", "90.0"))
    row = load_results(tmp_path).iloc[0]
    assert row.state == "broken"
    assert math.isnan(row.auc)
    assert row.error == "episodes.csv is damaged: it has another hash than sha256.json says"


def test_a_run_whose_process_was_killed_is_interrupted(tmp_path):
    """It says that it is running; nobody has its lock."""
    path = write(tmp_path, state="running")
    folder = RunFolder(path)
    folder.open()
    assert load_results(tmp_path).state.tolist() == ["running"]
    folder.close()
    assert load_results(tmp_path).state.tolist() == ["interrupted"]
    with pytest.raises(UserError, match="the run's state is 'interrupted'"):
        load_agent(path)
    folder.open()  # what looks at a lock does not keep it
    folder.close()


def test_runs_that_are_not_over_have_no_score(tmp_path):
    path = write(tmp_path, state="running")
    with (path / "episodes.csv").open("a") as file:
        file.write("950,4")  # as much of the line as the buffer held
    queued = write(tmp_path, config(seed=1), state="queued")
    for name in ("episodes.csv", "evaluations.csv", "heads.csv", "entropy.csv", "timing.csv"):
        (queued / name).unlink()
    frame = load_results(tmp_path)
    assert frame.state.tolist() == ["running", "queued"]
    RunFolder(path).set_status("interrupted", timestep=930)
    frame = load_results(tmp_path)
    assert frame.state.tolist() == ["interrupted", "queued"]
    assert frame.error.tolist() == ["", ""]
    assert frame[["auc", "final_return", "auc_normalised", "final_normalised"]].isna().all(axis=None)
    assert frame.timesteps.tolist() == [930, pd.NA]
    assert frame.episodes.tolist() == [2, 0]


def test_an_environment_without_reference_scores(tmp_path):
    """No normalised score, and no floor to score for a run that failed; no other run's return takes its place."""
    env = {"id": "My/Env-v0"}
    write(tmp_path, config(env=env, seed=0), [(100, 5.0, 1), (600, 9.0, 1)])
    write(tmp_path, config(env=env, seed=1), [(5, -2.0, 1)], state="failed", reason="x")
    write(tmp_path, config(env=env, agent="other", seed=0), [(5, 40.0, 1)])
    write(tmp_path, config(env={"id": "Empty-v0"}), [])
    frame = load_results(tmp_path).set_index(["env", "agent", "seed"])
    mine = frame.loc["My/Env-v0"]
    assert mine.floor.isna().all()
    np.testing.assert_array_equal(mine.auc, [(60 * 5 + 40 * 9) / 100, math.nan, 40])
    assert mine.lowest_return.tolist() == [5, -2, 40]
    assert frame.auc_normalised.isna().all()
    assert frame.random_score.isna().all()
    assert frame.loc[("Empty-v0", "dqn-adam", 0), ["auc", "floor"]].isna().all()


def test_a_random_score_stands_in_for_a_floor(tmp_path):
    """A run that failed, and one in which no episode ended, score it."""
    env = {"id": "My/Env-v0", "random_score": -3.0}
    write(tmp_path, config(env=env, seed=0), [(5, -9.0, 1)], state="failed", reason="x")
    write(tmp_path, config(env=env, seed=1), [])
    write(tmp_path, config(env={**env, "floor": -8.0}, seed=2), [])
    frame = load_results(tmp_path)
    assert frame.auc.tolist() == frame.final_return.tolist() == frame.floor.tolist() == [-3, -3, -8]
    assert load_curves(frame, 2).tolist() == [[-3, -3], [-3, -3], [-8, -8]]


def test_no_score_depends_on_another_run(tmp_path):
    """Two gains of one environment, the low returns of one beside a late first episode of the other."""
    one = {"id": "Own-v0", "kwargs": {"gain": 1.0}, "wrappers": []}
    two = {"id": "Own-v0", "kwargs": {"gain": 5.0}}
    write(tmp_path / "a", config(env=one), [(600, 50.0, 600)])
    alone = load_results(tmp_path)
    assert (alone.auc[0], alone.variant[0]) == (50.0, "")
    write(tmp_path / "b", config(env=two), [(100, -2.0, 100)])
    frame = load_results(tmp_path)
    assert frame.auc.tolist() == [50.0, -2.0]
    assert frame.env.tolist() == ["Own-v0"] * 2
    assert frame.variant.tolist() == ["kwargs.gain=1.0", "kwargs.gain=5.0"]
    assert frame.setting.tolist() == ["", ""]


def test_what_distinguishes_environments(tmp_path):
    """Wrappers, timesteps within an algorithm and versions of the environment's packages; no scores of its file."""

    def provenance(path, *stretches):
        first, *later = [{"versions": {"torch": str(i), **versions}} for i, versions in enumerate(stretches)]
        later = [{"timestep": 10, **one} for one in later]
        text = json.loads((path / "config.json").read_text()) | {"provenance": {**first, "continued": later}}
        (path / "config.json").write_text(json.dumps(text))

    wrapped = {**CARTPOLE, "wrappers": [{"name": "TimeAwareObservation"}], "floor": -1.0, "random_score": 3.0}
    write(tmp_path / "plain", config(seed=0))
    write(tmp_path / "wrapped", config(env=wrapped, seed=0))
    walker = {"id": "Walker-v5"}
    for seed, versions in enumerate([[{"mujoco": "3.3"}], [{"mujoco": "3.3"}, {"mujoco": "4.0"}], [{}]]):
        provenance(write(tmp_path, config(env=walker, seed=seed)), *versions)
    long = {"id": "Long-v0"}
    for agent, algo, timesteps in (("dqn", "dqn", 100), ("dqn-adam", "dqn", 200), ("ppo", "ppo", 400)):
        path = write(tmp_path, config(agent, env=long, algo=algo, timesteps=timesteps))
        provenance(path, {"sb3-contrib": algo})
    frame = load_results(tmp_path)
    assert list(zip(frame.env, frame.agent, frame.variant, strict=True)) == [
        ("CartPole-v1", "dqn-adam", 'wrappers=[{"name": "TimeAwareObservation"}]'),
        ("CartPole-v1", "dqn-adam", "wrappers=none"),
        ("Long-v0", "ppo", ""),
        ("Long-v0", "dqn", "timesteps=100"),
        ("Long-v0", "dqn-adam", "timesteps=200"),
        ("Walker-v5", "dqn-adam", "mujoco=3.3"),
        ("Walker-v5", "dqn-adam", "mujoco=3.3 -> 4.0"),
        ("Walker-v5", "dqn-adam", "mujoco=unknown"),
    ]


def test_what_distinguishes_settings(tmp_path):
    for seed, rate in enumerate((0.001, 0.01)):
        changes = {"learning_rate": rate} | ({"batch_size": 64} if seed else {})
        write(tmp_path, config(seed=seed, hyperparameters=changes))
    write(tmp_path, config(agent="dqn", policy="alrao", seed=0, alrao={"lr_range": [1e-6, 0.1]}, hyperparameters={}))
    frame = load_results(tmp_path)
    assert dict(zip(zip(frame.agent, frame.seed, strict=True), frame.setting, strict=True)) == {
        ("dqn", 0): "",
        ("dqn-adam", 0): "hyperparameters.learning_rate=0.001, hyperparameters.batch_size=none",
        ("dqn-adam", 1): "hyperparameters.learning_rate=0.01, hyperparameters.batch_size=64",
    }


LINES = "timestep,return,length\n500,20.0,20\n"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", None, "config.json does not exist"),
        ("config.json", '{"agent": "dq', "config.json is not a JSON file"),
        ("config.json", "{}", "config.json is not as a run writes it: agent is None"),
        ("config.json", json.dumps(config(env="CartPole")), "env is 'CartPole'"),
        ("config.json", json.dumps(config(env={})), "env.id is None"),
        ("config.json", json.dumps(config(timesteps=0)), "timesteps is 0"),
        ("config.json", json.dumps(config(seed="one")), "seed is 'one'"),
        ("config.json", json.dumps(config(alrao={"lr_range": 3})), "alrao is {'lr_range': 3}"),
        ("status.json", None, "status.json does not exist"),
        ("status.json", "[]", "status.json holds a list"),
        ("status.json", '{"state": "done"}', "state is 'done'"),
        ("status.json", '{"state": ["failed"]}', r"state is ['failed']"),
        ("episodes.csv", None, "cannot read episodes.csv: No such file"),
        ("episodes.csv", "", "episodes.csv begins with ''"),
        ("episodes.csv", "timestep,reward\n1,2\n", "expected timestep,return,length"),
        ("episodes.csv", LINES + "900,10", "half-written"),
        ("episodes.csv", LINES + "900\n", "episodes.csv is not as a run writes it"),
        ("episodes.csv", LINES + "900,1\n", "episodes.csv is not as a run writes it"),
        ("episodes.csv", "timestep,return,length\n1,2,3,4\n", "a line does not have 3 numbers"),
        ("episodes.csv", LINES + "1,2,3,4\n", "Expected 3 fields"),
        ("episodes.csv", LINES + "900,,4\n", "episodes.csv is not as a run writes it"),
        ("episodes.csv", LINES + "900,1,nan\n", "a line does not have 3 numbers"),
        ("episodes.csv", LINES + "900,ten,4\n", "episodes.csv is not as a run writes it"),
        ("episodes.csv", LINES + "-3,1.0,4\n", "timestep must be an integer ≥ 0"),
        ("episodes.csv", LINES + "nan,1.0,4\n", "timestep must be an integer ≥ 0"),
    ],
)
def test_a_broken_run_is_a_row_that_says_so(tmp_path, name, content, error):
    write(tmp_path, config(seed=0))
    path = write(tmp_path, config(seed=1))
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content)
    whole, broken = load_results(tmp_path).to_dict("records")
    assert (whole["state"], whole["auc"], whole["error"]) == ("finished", 29.1, "")
    assert (broken["env"], broken["agent"], broken["seed"]) == ("CartPole-v1", "dqn-adam", 1)
    assert broken["state"] == "broken"
    assert error in broken["error"]
    assert str(tmp_path) not in broken["error"]
    assert math.isnan(broken["auc"])
    assert math.isnan(broken["auc_normalised"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    st.sampled_from(["config.json", "status.json", "episodes.csv"]),
    st.one_of(st.tuples(st.integers(0, 600), st.binary(max_size=20)), st.tuples(st.integers(-30, -1), st.binary())),
)
def test_no_file_makes_it_crash(tmp_path, name, change):
    """Cut a file anywhere and put anything after it."""
    path = write(tmp_path)
    cut, more = change
    (path / name).write_bytes((path / name).read_bytes()[:cut] + more)
    (row,) = load_results(tmp_path).to_dict("records")
    if row["state"] == "broken":
        assert row["error"]
        assert math.isnan(row["auc"])
    else:
        assert row["state"] in ("finished", "failed", "queued", "running", "diverged")


def test_curves(tmp_path):
    """50 stretches as a random policy, then 20 and 100; the floor for a failure, nothing for a run that goes on."""
    write(tmp_path, config(seed=0))
    write(tmp_path, config(seed=1), state="failed", reason="x")
    write(tmp_path, config(seed=2), state="running")
    runs = load_results(tmp_path)
    curves = load_curves(runs)
    np.testing.assert_array_equal(curves[0], [22.2] * 50 + [20] * 40 + [100] * 10)
    assert (curves[1] == 0).all()
    assert np.isnan(curves[2]).all()
    assert load_curves(runs, 10)[0].tolist() == [22.2] * 5 + [20] * 4 + [100]
    assert load_curves(runs.iloc[:0]).shape == (0, 100)


def test_heads(tmp_path):
    path = write(tmp_path)
    assert len(load_heads(path)) == 0
    with (path / "heads.csv").open("a") as file:
        file.write("40,q_net,1,1e-06,0.25,7\n40,q_net,2,0.1,0.75,0\n80,q_net,1,1e-")
    assert load_heads(path).to_dict("list") == {
        "timestep": [40, 40], "layer": ["q_net"] * 2, "head": [1, 2], "learning_rate": [1e-6, 0.1],
        "weight": [0.25, 0.75], "reclones": [7, 0],
    }  # fmt: skip
    for content in ("", "x,y\n1,2\n", "timestep,layer,head,learning_rate,weight,reclones\n1,a,b,c,d,e\n", "\x00\xff"):
        (path / "heads.csv").write_text(content)
        assert len(load_heads(path)) == 0
    (path / "heads.csv").unlink()
    assert len(load_heads(path)) == 0


def test_folders_that_are_no_runs_are_passed_by(tmp_path):
    write(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # somebody else's
    hidden = tmp_path / ".cache" / "CartPole-v1"
    write(hidden)
    inside = tmp_path / "CartPole-v1" / "dqn-adam" / "seed-0" / "checkpoint"
    inside.mkdir()
    for name in ("config.json", "status.json"):
        (inside / name).write_text("{}")
    (tmp_path / "seed-bank").mkdir()
    assert load_results(tmp_path).state.tolist() == ["finished"]


def test_links_are_followed_each_real_folder_once(tmp_path):
    for seed in (0, 1):
        write(tmp_path / "scratch", config(seed=seed))
    agent = Path("CartPole-v1") / "dqn-adam"
    roots = {name: tmp_path / name for name in ("whole", "environment", "agent", "runs", "mixed", "circle", "twice")}
    scratch = tmp_path / "scratch"
    roots["whole"].symlink_to(scratch)
    for name, linked in [("environment", agent.parent), ("agent", agent), ("runs", agent / "seed-0")]:
        (roots[name] / linked).parent.mkdir(parents=True)
        (roots[name] / linked).symlink_to(scratch / linked)
    (roots["runs"] / agent / "seed-1").symlink_to(scratch / agent / "seed-1")
    write(roots["mixed"], config(seed=2))
    (roots["mixed"] / agent / "seed-0").symlink_to(scratch / agent / "seed-0")
    write(roots["circle"], config(seed=3))
    (roots["circle"] / "CartPole-v1" / "a").symlink_to(roots["circle"])
    (roots["circle"] / "CartPole-v1" / "all").symlink_to("..")
    write(roots["twice"], config(seed=4))
    (roots["twice"] / "CartPole-v1" / "again").symlink_to(roots["twice"] / agent)  # its name sorts before
    seeds = {name: load_results(root).seed.tolist() for name, root in roots.items()}
    both = ("whole", "environment", "agent", "runs")
    assert seeds == {name: [0, 1] for name in both} | {"mixed": [0, 2], "circle": [3], "twice": [4]}
    assert load_results(roots["twice"]).path.tolist() == [str(roots["twice"] / agent / "seed-4")]
    assert load_results(roots["runs"]).path.tolist() == [str(roots["runs"] / agent / f"seed-{n}") for n in (0, 1)]


def test_links_that_are_wrong_are_broken_runs(tmp_path):
    folder = write(tmp_path)
    (folder.parent / "seed-5").symlink_to(tmp_path / "gone")
    write(tmp_path / "elsewhere" / "deep", config(seed=1))
    (folder.parent / "seed-7").symlink_to(tmp_path / "elsewhere" / "deep" / "CartPole-v1" / "dqn-adam" / "seed-1")
    runs = load_results(tmp_path / "CartPole-v1")
    runs.index = [Path(path).name for path in runs.path]
    assert runs.state.to_dict() == {"seed-0": "finished", "seed-5": "broken", "seed-7": "broken"}
    assert runs.error["seed-5"] == "config.json does not exist"
    assert runs.error["seed-7"] == "config.json is of seed 1, not 7 as its folder"


@pytest.mark.parametrize(
    ("where", "error"),
    [("nowhere", "does not exist"), ("file", "is no folder"), ("empty", "holds no run: expected folders such as")],
)
def test_a_path_without_results_is_one_clear_line(tmp_path, where, error):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match=error) as raised:
        load_results(tmp_path / where)
    assert str(raised.value).startswith(str(tmp_path / where))
    assert "\n" not in str(raised.value)


def test_from_a_folder_to_a_comparison(tmp_path):
    """The way of a notebook: load, choose the stock rate on two seeds, compare on the others by seed."""
    rng = np.random.default_rng(0)
    for env in (CARTPOLE, {**CARTPOLE, "id": "Other-v1"}):
        for seed in range(5):
            for rate, level in ((0.001, 100.0), (0.01, 200.0)):
                data = config(agent=f"adam-{rate}", seed=seed, env=env, hyperparameters={"learning_rate": rate})
                write(tmp_path, data, [(1, level + rng.normal(), 1)])
            write(tmp_path, config(agent="dqn", policy="alrao", seed=seed, env=env), [(1, 250.0 + rng.normal(), 1)])
    runs = load_results(tmp_path)
    stock = stats.tuned_baseline(runs[runs.policy == "stock"], tuning_seeds=[0, 1])
    assert set(stock.learning_rate) == {0.01}
    alrao, tuned = stats.paired_by_seed(runs[runs.policy == "alrao"], stock)
    assert {env: len(scores) for env, scores in alrao.items()} == {"CartPole-v1": 3, "Other-v1": 3}
    assert stats.paired_probability_of_improvement(alrao, tuned) == 1
    assert stats.bootstrap(stats.iqm, alrao).low > (245 - 22.2) / 477.8


def test_it_is_fast(tmp_path):
    """100 runs of 2,000 episodes each; 500 are to take less than 10 seconds."""
    episodes = [(20 * i, float(i % 500), 20) for i in range(1, 2001)]
    for agent in range(10):
        for seed in range(10):
            write(tmp_path, config(agent=f"agent-{agent}", seed=seed, timesteps=40_000), episodes)
    started = time.process_time()
    frame = load_results(tmp_path)
    seconds = time.process_time() - started
    assert frame.state.tolist() == ["finished"] * 100
    assert seconds < 2, seconds


@pytest.mark.parametrize("keep", [logged, zipped])
def test_what_is_kept_of_runs_is_read_as_their_folders(tmp_path, keep):
    folders = [
        write(tmp_path, config(seed=0), timesteps=1000, wall_seconds=2.0),
        write(tmp_path, config(seed=1), state="failed", reason="ValueError: x"),
        write(tmp_path, config(seed=2), [*EPISODES, (950, math.nan, 4)]),
        write(tmp_path, config("dqn", seed=0, policy="alrao", hyperparameters={}, alrao={"lr_range": [1e-6, 0.1]})),
    ]
    with (folders[3] / "heads.csv").open("a") as file:
        file.write("40,q_net,1,1e-06,0.25,7\n")
    before, curves, heads = load_results(tmp_path), load_curves(load_results(tmp_path)), load_heads(folders[3])
    kept = [keep(run) for run in folders]
    after = load_results(tmp_path)
    assert after.path.tolist() == [f"{path}{kept[0].suffix}" for path in before.path]
    pd.testing.assert_frame_equal(after.drop(columns="path"), before.drop(columns="path"))
    np.testing.assert_array_equal(load_curves(after), curves)
    pd.testing.assert_frame_equal(load_heads(kept[3]), heads)
    pd.testing.assert_frame_equal(load_heads(folders[3]), heads)
    # A folder that is there again has the say.
    write(tmp_path, config(seed=1), timesteps=1000)
    assert load_results(tmp_path).state.tolist() == ["finished", "finished", "finished", "diverged"]


def test_a_part_of_a_study_is_loaded_from_its_logs(tmp_path, monkeypatch):
    """Any folder above or below it, or one run, though none of the folders is there."""
    study = tmp_path / "results" / "mine"
    other = {**CARTPOLE, "id": "MinAtar/Breakout-v1"}
    runs = [logged(write(study, config(agent, env, seed))) for agent, env, seed in
            [("dqn", CARTPOLE, 0), ("dqn", CARTPOLE, 1), ("dqn-adam", CARTPOLE, 0), ("dqn", other, 0)]]  # fmt: skip
    assert [path.name for path in study.iterdir() if path.is_file()] == [logs.FILE]
    shutil.rmtree(study / "CartPole-v1")
    monkeypatch.chdir(tmp_path)
    for place, expected in {
        ".": [0, 1, 2, 3], "results": [0, 1, 2, 3], study: [0, 1, 2, 3], study / "CartPole-v1": [0, 1, 2],
        study / "CartPole-v1" / "dqn": [0, 1], runs[1]: [1], study / "MinAtar-Breakout-v1": [3],
    }.items():  # fmt: skip
        frame = load_results(place)
        assert {Path(path).absolute() for path in frame.path} == {runs[number] for number in expected}
        assert set(frame.state) == {"finished"}
    for absent in (study / "Acrobot-v1", study / "CartPole-v1" / "dqn" / "seed-2"):
        with pytest.raises(UserError, match="does not exist, expected one with runs"):
            load_results(absent)
    monkeypatch.chdir(study)
    assert load_results(".").path.tolist()[-1] == "MinAtar-Breakout-v1/dqn/seed-0"


def test_a_zip_beside_the_logs_counts_where_they_lack_its_run(tmp_path):
    first = write(tmp_path, config(seed=0))
    zipped(first)
    write(tmp_path, config(seed=0), [(500, 0.0, 20)])
    logged(first)
    zipped(write(tmp_path, config(seed=1)))
    assert load_results(tmp_path).episodes.tolist() == [1, 2]


def test_damaged_zips_are_broken_runs(tmp_path):
    path = zipped(write(tmp_path))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.5 else whole)
        for place in rng.integers(max(len(data), 1), size=3 * bool(data)):
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        row = load_results(tmp_path).iloc[0]
        assert row.state in ("broken", "finished"), row
        if row.state == "finished":  # the bits of a log that is not looked at
            assert row.auc == 29.1
        load_heads(path)


def test_damaged_logs_are_broken_runs(tmp_path):
    """The run that is hit, and no other; what was cut short at the end was never there."""
    for seed in range(3):
        logged(write(tmp_path, config(seed=seed)))
    path = tmp_path / logs.FILE
    whole, ends = path.read_bytes(), [entry.end for entry in logs.entries(path)]
    rng, named = np.random.default_rng(0), 0
    for _ in range(300):
        place = int(rng.integers(len(whole)))
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        hit = sum(place >= end for end in ends)
        frame = load_results(tmp_path)
        others = frame[frame.state == "finished"]
        assert others.seed.tolist() == [seed for seed in range(3) if seed != hit]
        assert set(others.auc) == {29.1}
        broken = frame[frame.state == "broken"]
        # Of the last one a part may look as if the rest was still to be written.
        assert len(broken) == 1 or (hit == 2 and len(broken) == 0)
        named += int(broken.seed.notna().sum())
        for row in broken.itertuples():
            assert pd.isna(row.seed) or row.seed == hit
            assert "damaged" in row.error or "never completed" in row.error
            assert len(load_heads(row.path)) == 0
    assert named > 200


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "damaged"),
        ("no JSON\n", "line is not as a sweep writes it: Expecting value"),
        ("[1]\n", "line is not as a sweep writes it: it holds a list, expected a JSON object"),
        ("{}\n", "line is not as a sweep writes it: env, agent, setting and seed do not name a run"),
        ('{"env": "..", "agent": "..", "setting": "", "seed": 0}\n', "is not the folder of a run"),
        ('{"env": "E", "agent": "a/b", "setting": "", "seed": 0}\n', "'E/a/b/seed-0' is not the folder of a run"),
        ('{"env": "E", "agent": "a", "setting": "", "seed": true}\n', "do not name a run"),
        ('{"env": "E", "agent": "a", "setting": "", "seed": 0, "config.json": 1}\n', "not as a sweep writes it"),
    ],
)
def test_a_line_that_is_no_run(tmp_path, line, expected):
    logged(write(tmp_path))
    with (tmp_path / logs.FILE).open("ab") as file:
        file.write(lzma.compress(line.encode()) if line else b"\n".join([b"version https://git-lfs.github.com"] * 9))
    frame = load_results(tmp_path)
    assert sorted(frame.state) == ["broken", "finished"]
    row = frame[frame.state == "broken"].iloc[0]
    assert expected in row.error
    assert logs.FILE in row.path or row.path.endswith("E/a/seed-0")


def test_lines_without_files_are_broken_runs(tmp_path):
    logs.append(tmp_path, [(RunName("E", "a", "x=1", 3), {})])
    (row,) = load_results(tmp_path).itertuples()
    assert (row.env, row.agent, row.seed, row.state) == ("E", "a@x=1", 3, "broken")
    assert row.error == "config.json does not exist"


@pytest.mark.parametrize("keep", [logged, zipped])
def test_what_claims_to_be_huge_is_not_unpacked(tmp_path, monkeypatch, keep):
    """Of 4 KB compressed, 20 MB; another run of the study is read."""
    folder = write(tmp_path)
    (folder / "timing.csv").write_bytes(b"0" * 20_000_000)
    path = keep(folder)
    logged(write(tmp_path, config(seed=1)))
    assert (path if keep is zipped else tmp_path / logs.FILE).stat().st_size < 50_000
    for module in (logs, zips):
        monkeypatch.setattr(module, "_MOST_BYTES", 1_000_000)
    if keep is zipped:
        with pytest.raises(OSError, match="File too large"):
            RunFiles(path).read("timing.csv")
        return
    frame = load_results(tmp_path)
    assert frame.state.tolist() == ["broken", "finished"]
    assert frame.error[0].endswith("it claims to be larger than any log")
    assert len(load_heads(path)) == 0


def test_a_copy_under_another_seed_is_no_second_run(tmp_path):
    path = zipped(write(tmp_path, timesteps=1000))
    shutil.copyfile(path, path.with_name("seed-7.zip"))
    files = {name: RunFiles(path).read(name) for name in ("config.json", "status.json", "episodes.csv")}
    logs.append(tmp_path, [(RunName("CartPole-v1", "dqn-adam", "", 8), files)])
    frame = load_results(tmp_path)
    assert frame.state.tolist() == ["finished", "broken", "broken"]
    assert "is of seed 0, not 7 as its folder" in frame.error[1]
    assert "is of seed 0, not 8 as its folder" in frame.error[2]
