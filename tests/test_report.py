"""The report: what it says of runs that are made up here, in the form in which ``train`` leaves them."""

import csv
import gzip
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from common import logged, zipped
from matplotlib.figure import Figure

from alrao_rl import load_results, stats
from alrao_rl.report import command as report
from alrao_rl.report import compare, figures
from alrao_rl.report.document import markdown
from alrao_rl.report.sections.words import number, returned, returned_interval, with_interval
from alrao_rl.report.study import Study
from alrao_rl.runs.folder import RunFolder
from alrao_rl.train.command import main as train

ENV = {"id": "CartPole-v1", "random_score": 20.0, "reference_score": 500.0, "floor": -7.0}
OTHER = {"id": "Acrobot-v1", "random_score": -500.0, "reference_score": -70.0, "floor": -500.0}
UNKNOWN = {"id": "My/Env-v0"}
PROVENANCE = {
    "command": "python -m alrao_rl.train --agent x",
    "versions": {"alrao-rl": "0.1.0", "torch": "2.13.0"},
    "python": "3.11.7",
    "platform": "Linux-x",
    "device": "cpu",
    "git_commit": "61b6bf4",
}
ORDER = ["Verdict", "Learning curves", "Aggregates", "Learning rate", "Environments", "Inside Alrao", "Provenance"]


def write(root, agent="dqn", env=ENV, seed=0, level=300.0, rate=None, state="finished", n_episodes=40, **changes):
    """A run whose return rises to ``level``, and one of Alrao with its heads; ``rate`` makes it a stock one."""
    timesteps = 10_000
    data = {
        "agent": agent,
        "algo": "dqn",
        "policy": "alrao" if rate is None else "stock",
        "n_envs": 1,
        "hyperparameters": {"gamma": 0.99} | ({} if rate is None else {"learning_rate": rate}),
        "alrao": {"lr_range": [1e-6, 0.1]} if rate is None else {},
        "env": env,
        "timesteps": timesteps,
        "seed": seed,
        "eval_episodes": 10,
        **changes,
        "provenance": PROVENANCE,
    }
    name = env["id"].replace("/", "-")
    folder = RunFolder(Path(root, name, agent.replace("/", "-") + (f"-{rate:g}" if rate else ""), f"seed-{seed}"))
    folder.open()
    folder.start(data)
    rng = np.random.default_rng([seed, 7])
    steps = np.linspace(100, timesteps, n_episodes).astype(int)
    low = env.get("floor", 0.0)
    returns = low + (level - low) * steps / timesteps + rng.normal(scale=10.0, size=n_episodes)
    folder.append("episodes.csv", [(int(t), float(r), 20) for t, r in zip(steps, returns, strict=True)])
    if rate is None:
        for layer in ("q_net", "value_net"):
            for step in range(1000, timesteps + 1, 1000):
                rows = [(step, layer, j + 1, 10.0 ** (j - 5), 0.1 + 0.1 * j, (3 - j) * step // 100) for j in range(4)]
                folder.append("heads.csv", rows)
    folder.close()
    if state == "failed":
        folder.set_status(state, reason="ValueError: nan in the logits", timestep=900)
    elif state == "finished":
        folder.set_status(state, timesteps=timesteps, wall_seconds=3.0, last_return=level)
    return folder.path


def sweep(root, seeds, rates=(1e-3,), envs=(ENV, OTHER), agents=("dqn", "dqn-adam")):
    """Alrao ahead of its stock agent, by more than seeds differ."""
    for env in envs:
        span = env.get("reference_score", 100.0) - env.get("floor", 0.0)
        for seed in seeds:
            for agent in agents:
                wobble = 0.02 * span * ((seed * 7 + len(agent)) % 5)
                for rate in (None,) if agent == "dqn" else rates:
                    loss = 0.2 + 0.1 * abs(np.log10(rate) + 3) if rate else 0.1
                    write(root, agent, env, seed, env.get("floor", 0.0) + span * (1 - loss) - wobble, rate)


def make(root, *options, expect=0):
    """Run the command; return the page and the Markdown."""
    assert report.main([str(root), *options]) == expect
    out = Path(options[options.index("--out") + 1]) if "--out" in options else root / "report"
    return (out / "report.html").read_text(), (out / "report.md").read_text()


def text(page):
    """What a reader reads of a page."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def lead(page):
    return html.unescape(re.search(r'<p class="lead">(.*?)</p>', page)[1])


def alerts(page):
    return [(level, html.unescape(re.sub("<.*?>", "", said)))
            for level, said in re.findall(r'<p class="alert (\w+)">(.*?)</p>', page)]  # fmt: skip


@pytest.fixture
def rendered():
    """For tests that look at the figures."""


@pytest.fixture(autouse=True)
def _plotted(request, monkeypatch):
    """Elsewhere figures are plotted but not rendered, which takes most of the time."""
    if {"rendered", "ten"} & set(request.fixturenames):
        return

    def draw(name, plot, size=(6.4, 3.4)):
        plot(Figure())
        return figures.Picture("<svg></svg>", b"")

    monkeypatch.setattr(figures, "draw", draw)


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten seeds, three rates of which one is best, two environments."""
    root = tmp_path_factory.mktemp("results") / "ten"
    sweep(root, range(10), (1e-4, 1e-3, 1e-2))
    return root, *make(root)


def test_sections_in_order(ten):
    root, page, text_ = ten
    assert re.findall(r"<h2>(.*?)</h2>", page) == ORDER
    assert re.findall(r"^## (.*)$", text_, re.MULTILINE) == ORDER
    for name in ("aggregates", "comparisons", "rates", "sensitivity", "cost", "environments", "runs", "curves"):
        assert len(pd.read_csv(root / "report" / "tables" / f"{name}.csv")), name
    for svg in (root / "report" / "figures").glob("*.svg"):
        assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_verdict_is_that_of_the_statistics(ten):
    root, page, _ = ten
    runs = load_results(root)
    stock = runs[(runs.policy == "stock") & (runs.learning_rate == 1e-3)]
    x, y = stats.paired_by_seed(runs[runs.policy == "alrao"], stock)

    def difference(a, b):
        return stats.iqm(a) - stats.iqm(b)

    value = stats.bootstrap(difference, x, y, paired=True)
    assert lead(page) == (
        f"Ahead: dqn is {number(value.estimate, 3)} above dqn-adam (tuned) in the IQM of normalised return averaged "
        "over training (95 % stratified bootstrap interval of the difference "
        f"{number(value.low, 3)} to {number(value.high, 3)}); "
        "10 seeds × 2 environments (Acrobot-v1, CartPole-v1), 40 runs finished."
    )
    row = pd.read_csv(root / "report" / "tables" / "comparisons.csv").iloc[0]
    assert row.difference == pytest.approx(value.estimate, rel=1e-5)
    assert row.improvement == pytest.approx(stats.paired_probability_of_improvement(x, y), rel=1e-5)
    aggregates = pd.read_csv(root / "report" / "tables" / "aggregates.csv").set_index(["score", "method", "statistic"])
    iqm = stats.bootstrap(stats.iqm, stats.by_environment(runs[runs.policy == "alrao"], "final_normalised"))
    assert aggregates.loc[("final", "dqn", "IQM"), ["estimate", "low", "high"]].tolist() == pytest.approx(iqm, rel=1e-5)


def test_cost_and_sensitivity(ten):
    root, page, _ = ten
    cost = pd.read_csv(root / "report" / "tables" / "cost.csv").set_index("method")
    assert cost.loc["dqn"].tolist() == [200_000, 0, 200_000, 20, 20]
    assert cost.loc["dqn-adam (tuned)"].tolist() == [200_000, 400_000, 600_000, 20, 20]
    points = pd.read_csv(root / "report" / "tables" / "sensitivity.csv").set_index("method")
    runs = load_results(root)
    value = stats.sensitivity(stats.by_setting(runs[runs.policy == "stock"]))
    assert points.loc["dqn-adam (tuned)", ["phi", "tuned"]].tolist() == pytest.approx(value[:2], rel=1e-5, abs=1e-9)
    assert points.loc["dqn", "phi"] == 0
    assert "the rate was chosen on the reported seeds, which flatters the baseline" in str(alerts(page))


def test_rates_are_chosen_on_tuning_seeds(tmp_path):
    """On the tuning seeds 1e-2 is best, on the others 1e-3: the report takes 1e-2 and leaves the tuning seeds out."""
    for seed in range(13):
        write(tmp_path, seed=seed, level=300)
        for rate, level in ((1e-3, 290 if seed > 2 else 50), (1e-2, 250)):
            write(tmp_path, "dqn-adam", seed=seed, rate=rate, level=level)
    (tmp_path / "sweep.toml").write_text('seeds = "0-12"\ntuning_seeds = [0, 1, 2]\nagents = ["dqn", "dqn-adam"]\n')
    page, _ = make(tmp_path)
    assert "10 seeds × 1 environment (CartPole-v1), 20 of 20 runs finished" in lead(page)
    assert "chosen on the tuning seeds (0, 1, 2)" in text(page)
    assert "flatters" not in text(page)
    environments = pd.read_csv(tmp_path / "report" / "tables" / "environments.csv").set_index("method")
    assert environments.loc["dqn-adam (tuned)", "learning_rate"] == 1e-2
    cost = pd.read_csv(tmp_path / "report" / "tables" / "cost.csv").set_index("method")
    assert cost.loc["dqn-adam (tuned)"].tolist() == [100_000, 60_000, 160_000, 10, 10]


def unfinished(root, tuning, grid=(1e-4, 1e-3, 1e-2)):
    """Alrao and a stock agent whose best rate is 1e-3, in the folders of a sweep; some of its runs on tuning seeds."""
    levels = {1e-4: 250, 1e-3: 350, 1e-2: 200}
    for seed in range(3):
        sweep_run(root, "dqn", seed)
        for rate in levels:
            sweep_run(root, "dqn-adam", seed, rate=rate, level=levels[rate])
    for rate, seed in tuning:
        sweep_run(root, "dqn-adam", seed, rate=rate, level=levels[rate])
    lines = ["agents = ['dqn', 'dqn-adam']", "envs = ['CartPole-v1']", "seeds = [0, 1, 2]", "tuning_seeds = [100, 101]"]
    (root / "sweep.toml").write_text("\n".join([*lines, "[grid]", f"learning_rate = {list(grid)}"]))


def sweep_run(root, agent, seed, rate=None, **options):
    path = write(root, agent, seed=seed, rate=rate, **options)
    if rate is not None:
        target = root / "CartPole-v1" / f"{agent}@learning_rate={rate}" / f"seed-{seed}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


@pytest.fixture
def quick(monkeypatch):
    """For tests that look at no interval: fewer resamples."""
    bootstrap = stats.bootstrap
    monkeypatch.setattr(stats, "bootstrap", lambda *args, **kwargs: bootstrap(*args, **(kwargs | {"n_resamples": 9})))


STATES = ["queued", "running", "interrupted", "failed", "diverged", "finished", "broken", "absent"]


def put(root, state, agent, env, seed, rate):
    """A run in any state; one that is queued or failed has no episode, where its seed is odd."""
    if state == "absent":
        return
    kind = state if state in ("running", "interrupted", "failed") else "finished"
    path = write(root, agent, env, seed, 300, rate, kind, n_episodes=0 if seed % 2 and kind == "failed" else 5)
    if state == "queued":
        (path / "status.json").write_text('{"state": "queued"}')
    elif state == "diverged":
        lines = (path / "episodes.csv").read_text().splitlines()
        (path / "episodes.csv").write_text("\n".join([*lines[:-1], "10000,nan,20"]) + "\n")
    elif state == "broken":
        (path / "config.json").write_text("{")


@pytest.mark.slow
@pytest.mark.parametrize("toml", [False, True])
@pytest.mark.parametrize("order", range(6))
def test_a_report_after_every_run_of_a_sweep(tmp_path, quick, order, toml):
    """Whatever is there yet and in whatever state, there is a report; without a run there is an error."""
    rng = np.random.default_rng(order)
    runs = [
        (agent, env, seed, rate)
        for env in ((ENV, UNKNOWN) if order < 2 else (ENV, OTHER, UNKNOWN))
        for agent, rates, seeds in (("dqn", [None], [0, 1]), ("dqn-adam", [1e-3, 1e-2], [0, 1, 100][order < 2 :]))
        for seed in seeds
        for rate in rates
    ]
    if toml:
        lines = ["agents = ['dqn', 'dqn-adam']", "envs = ['CartPole-v1', 'Acrobot-v1', 'My/Env-v0']", "seeds = [0, 1]"]
        (tmp_path / "sweep.toml").write_text("\n".join([*lines, "tuning_seeds = [100]"]))
    # Every other order has more of the runs that are over.
    odds = np.where(np.isin(STATES, ["finished", "failed"]), 1 + 5 * (order % 2), 1.0)
    there = readable = 0
    for i in rng.permutation(len(runs)):
        state = str(rng.choice(STATES, p=odds / odds.sum()))
        put(tmp_path, state, *runs[i])
        there += state != "absent"
        readable += state not in ("absent", "broken")
        if not readable and not toml:
            assert report.main([str(tmp_path)]) == 2
            continue
        page, _ = make(tmp_path, expect=0) if there else ("", "")
        assert not there or ("Verdict" in page and "nan" not in text(page).split("Provenance")[0])


def test_tuning_seeds_that_are_not_over_choose_nothing(tmp_path):
    """The first run on a tuning seed, at a bad rate, would otherwise be the choice, as there is no other."""
    unfinished(tmp_path, [(1e-4, 100)])
    page, _ = make(tmp_path)
    method = next(one for one in Study(tmp_path).methods if one.agent == "dqn-adam")
    assert (method.rates, method.tuned_on) == ({"CartPole-v1": 1e-3}, ())
    assert "chosen on the reported seeds, which flatters the baseline, as some rates have no run" in text(page)
    assert "13 of all 18 runs finished" in str(alerts(page))
    assert "CartPole-v1, dqn-adam, learning_rate=0.0001: 4 of 5 seeds; missing 101 (not started)" in text(page)
    assert "CartPole-v1, dqn-adam, learning_rate=0.001: 3 of 5 seeds; missing 100–101 (not started)" in text(page)


def test_fewer_tuning_seeds_than_asked_for(tmp_path):
    unfinished(tmp_path, [(1e-4, 100), (1e-3, 100), (1e-2, 100), (1e-4, 101)])
    page, _ = make(tmp_path)
    method = next(one for one in Study(tmp_path).methods if one.agent == "dqn-adam")
    assert (method.rates, method.tuned_on) == ({"CartPole-v1": 1e-3}, (100, 101))
    assert "flatters" not in text(page)
    assert "16 of all 18 runs finished" in str(alerts(page))


def test_a_choice_from_one_tuning_seed_says_so(tmp_path):
    unfinished(tmp_path, [(1e-4, 100), (1e-3, 100), (1e-2, 100)])
    page, _ = make(tmp_path)
    assert "dqn-adam (tuned): the rate was chosen on fewer than the 2 tuning seeds" in str(alerts(page))
    assert "the tuning seeds (100, of which the least has 1 of 2), which are not among those" in text(page)


def test_a_rate_that_was_not_started_is_missing(tmp_path):
    unfinished(tmp_path, [], grid=(1e-4, 1e-3, 1e-2, 0.1))
    page, _ = make(tmp_path)
    assert "12 of all 23 runs finished" in str(alerts(page))
    assert "dqn-adam, learning_rate=0.1: 0 of 5 seeds; missing 0–2, 100–101 (not started)" in text(page)


def test_a_run_of_a_sweep_that_cannot_be_read_is_missing_by_its_setting(tmp_path):
    unfinished(tmp_path, [])
    (tmp_path / "CartPole-v1" / "dqn-adam@learning_rate=0.01" / "seed-1" / "config.json").write_text("{")
    page, _ = make(tmp_path)
    assert "learning_rate=0.01: 2 of 5 seeds; missing 1 (broken), 100–101 (not started)" in text(page)
    assert "11 of all 18 runs finished" in str(alerts(page))


@pytest.mark.parametrize("grid", ["grid = 3", "[grid]\nlearning_rate = 3"])
def test_a_grid_that_is_none(tmp_path, capsys, grid):
    write(tmp_path)
    (tmp_path / "sweep.toml").write_text(grid)
    assert report.main([str(tmp_path)]) == 2
    assert re.search(
        r"sweep.toml: grid(.learning_rate)? is 3, expected lists of values by key\n$", capsys.readouterr().err
    )


def test_the_verdict_is_against_tuned_rates(tmp_path):
    """The rate that is best on all environments by the tuning seeds is the luckier one on the others, here."""
    for seed in range(12):
        tuning = seed > 9
        for env, best in ((ENV, 1e-3), (OTHER, 1e-2)):
            span = env["reference_score"] - env["floor"]
            write(tmp_path, env=env, seed=seed, level=env["floor"] + 0.5 * span)
            for rate in (1e-3, 1e-2):
                share = (
                    (0.8 if rate == best else 0.3 if rate == 1e-3 else 0.1) if tuning else 0.5 if rate == 1e-3 else 0.2
                )
                write(tmp_path, "dqn-adam", env, seed, env["floor"] + share * span, rate)
    (tmp_path / "sweep.toml").write_text("seeds = '0-9'\ntuning_seeds = [10, 11]\n")
    page, _ = make(tmp_path)
    assert "dqn-adam (shared rate)" in text(page)
    assert " above dqn-adam (tuned) in the IQM" in lead(page)


def test_the_strongest_baseline_is_chosen_where_its_rates_were(tmp_path):
    for seed in range(6):
        write(tmp_path, seed=seed)
        for agent in ("a-adam", "b-adam"):
            for rate in (1e-3, 1e-2):
                high = (agent == "b-adam") == (seed > 3)  # b by the tuning seeds, a by the others
                write(tmp_path, agent, seed=seed, rate=rate, level=(250 if high else 200) - (rate > 1e-3) * 50)
    (tmp_path / "sweep.toml").write_text("seeds = '0-3'\ntuning_seeds = [4, 5]\n")
    assert " above b-adam (tuned) in the IQM" in lead(make(tmp_path)[0])


def test_lengths_that_differ_warn_where_they_are_compared(tmp_path):
    for seed in range(2):
        for algo, timesteps in (("dqn", 10_000), ("ppo", 20_000)):
            write(tmp_path, algo, seed=seed, algo=algo)
            write(tmp_path, f"{algo}-adam", seed=seed, rate=1e-3, algo=algo)
            for path in tmp_path.glob(f"*/{algo}*/seed-{seed}/config.json"):
                path.write_text(path.read_text().replace('"timesteps": 10000', f'"timesteps": {timesteps}'))
    assert "differ in length" not in str(alerts(make(tmp_path)[0]))
    said = "Warning: Runs on CartPole-v1 that are compared differ in length: 10,000 and 20,000 steps."
    page, _ = make(tmp_path, "--baseline", "dqn")
    assert [one for one in alerts(page) if "length" in one[1]] == [("red", said)]


def test_runs_of_an_algorithm_that_differ_in_length_are_not_compared(tmp_path):
    for agent, rate, timesteps in (("dqn", None, 10_000), ("dqn-adam", 1e-3, 20_000)):
        path = write(tmp_path, agent, rate=rate) / "config.json"
        path.write_text(path.read_text().replace('"timesteps": 10000', f'"timesteps": {timesteps}'))
    study = Study(tmp_path)
    assert study.envs == ["CartPole-v1 (timesteps=10000)", "CartPole-v1 (timesteps=20000)"]
    assert [len(method.on(env)) for method in study.methods for env in study.envs] == [1, 0, 0, 1]
    assert lead(make(tmp_path)[0]).startswith("No verdict")


def variants(root):
    """One agent with two gains of an environment, at the same seeds."""
    for gain, level in ((1.0, 100.0), (5.0, 400.0)):
        for seed in range(2):
            write(root / f"gain-{gain:g}", env={**ENV, "kwargs": {"gain": gain}}, seed=seed, level=level)


def test_variants_of_one_id_are_environments_of_their_own(tmp_path):
    variants(tmp_path)
    page, _ = make(tmp_path)
    table = pd.read_csv(tmp_path / "report" / "tables" / "environments.csv").set_index("environment")
    assert list(table.index) == ["CartPole-v1 (kwargs.gain=1.0)", "CartPole-v1 (kwargs.gain=5.0)"]
    assert (table.method == "dqn").all()
    assert (table.seeds == 2).all()
    for gain in ("1", "5"):
        mean = load_results(tmp_path / f"gain-{gain}").auc.mean()
        assert table.auc[f"CartPole-v1 (kwargs.gain={gain}.0)"] == pytest.approx(mean, rel=1e-5)
    assert "2 seeds × 2 environments" in lead(page)


def test_a_sweep_asks_for_the_variant_that_an_agent_has_run(tmp_path):
    variants(tmp_path)
    toml = "agents = ['dqn', 'ppo']\nenvs = ['CartPole-v1']\nseeds = [0, 1]\n"
    (tmp_path / "sweep.toml").write_text(toml)
    study = Study(tmp_path)
    assert study.in_all == (4, 6)
    assert [(env, agent) for env, agent, *_ in study.missing()] == [("CartPole-v1", "ppo")]


def test_curves_end_where_their_runs_do():
    band = stats.Interval(*(np.arange(4.0) for _ in range(3)))
    figure = Figure()
    figures.learning_curves(
        figure, {"a": (np.ones((2, 4)), band, 100), "b": (np.ones((2, 4)), band, 400)}, {"a": 0, "b": 1}
    )
    assert [max(line.get_xdata()) for line in figure.axes[0].lines] == [87.5] * 3 + [350] * 3
    assert figure.axes[0].get_xlim() == (0, 400)


@pytest.mark.parametrize(
    ("rates", "labels"),
    [
        ([3e-4, 1e-3, 3e-3], ["0.0003", "0.001", "0.003"]),
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1], ["0.0001", "0.001", "0.01", "0.1"]),
        ([2e-3], ["0.002"]),
        ([1e-3, 1.01e-3, 3e-3, 1e-2], ["0.001", "0.003", "0.01"]),
        ([0.0, 1e-3, 2e-3], ["0.001", "0.002"]),
    ],
)
def test_the_axis_of_rates_has_labels_and_room(rates, labels):
    figure = Figure()
    points = pd.DataFrame([{"learning_rate": rate, "n": 1, "estimate": 1.0, "low": 0.5, "high": 2.0} for rate in rates])
    figures.rates(figure, {"a": points}, {"a": rates[0]}, {}, {"a": 0})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    low, high = axes.get_xlim()
    assert low < 0.95 * min(rate for rate in rates if rate)
    assert high > 1.05 * max(rates)


def test_few_shared_seeds_do_not_throw_the_others_away(tmp_path):
    for seed in range(6):
        write(tmp_path, seed=seed)
        write(tmp_path, "dqn-adam", seed=seed + 5, rate=1e-3, level=200)
    make(tmp_path)
    row = pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv").iloc[0]
    assert (row.paired_by_seed, row.seeds, row.left_out) == (False, 6, 0)


def test_runs_without_a_partner_are_counted(tmp_path):
    for seed in range(6):
        write(tmp_path, seed=seed)
    for seed in range(1, 6):
        write(tmp_path, "dqn-adam", seed=seed, rate=1e-3, level=200)
    make(tmp_path)
    row = pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv").iloc[0]
    assert (row.paired_by_seed, row.seeds, row.left_out) == (True, 5, 1)


def test_a_probability_of_runs_that_go_one_way_has_no_interval(ten):
    root, _, marked = ten
    row = pd.read_csv(root / "report" / "tables" / "comparisons.csv").iloc[0]
    assert row.improvement == 1
    assert np.isnan([row.improvement_low, row.improvement_high]).all()
    assert "A probability has no interval where on every environment all runs go one way." in marked


def test_not_all_is_over_while_a_tuning_run_is_missing(tmp_path):
    unfinished(tmp_path, [(rate, 100) for rate in (1e-4, 1e-3, 1e-2)] + [(rate, 101) for rate in (1e-4, 1e-3)])
    args = report.parser().parse_args([str(tmp_path)])
    assert not report.make(args)
    sweep_run(tmp_path, "dqn-adam", 101, rate=1e-2)
    assert report.make(args)


def test_provenance_says_how_to_make_it_again(tmp_path):
    unfinished(tmp_path, [])
    page, _ = make(tmp_path, "--out", str(tmp_path / "elsewhere"))
    assert f"python -m alrao_rl.report {tmp_path} --out {tmp_path / 'elsewhere'}" in text(page)
    assert f"python -m alrao_rl.sweep {tmp_path / 'sweep.toml'} --out {tmp_path}" in text(page)
    assert "61b6bf4 (9)" in text(page)
    commands = pd.read_csv(tmp_path / "elsewhere" / "tables" / "commands.csv")
    assert set(commands.git_commit) == {"61b6bf4"}


@pytest.mark.parametrize(("n_seeds", "level"), [(3, "red"), (7, "amber"), (10, None)])
def test_few_seeds_warn(tmp_path, n_seeds, level):
    sweep(tmp_path, range(n_seeds), envs=[ENV])
    page, _ = make(tmp_path)
    found = [(kind, said) for kind, said in alerts(page) if "fewer than" in said]
    assert [kind for kind, _ in found] == ([level] if level else [])
    if level:
        assert f"{n_seeds} seeds, fewer than {5 if level == 'red' else 10}" in found[0][1]
        assert f"about {100 * stats.coverage(n_seeds):.0f} % here" in found[0][1]


def test_missing_and_failed_runs_are_named(tmp_path):
    sweep(tmp_path, range(10))
    shutil.rmtree(tmp_path / "CartPole-v1" / "dqn-adam-0.001" / "seed-4")
    write(tmp_path, "dqn", ENV, 3, state="failed")
    (tmp_path / "Acrobot-v1" / "dqn" / "seed-5" / "config.json").write_text("{")
    (tmp_path / "sweep.toml").write_text("seeds = '0-9'")
    page, marked = make(tmp_path)
    for said in (text(page), marked.replace("\\", "")):
        assert "9 of 10 seeds × 2 environments (Acrobot-v1, CartPole-v1), 37 of 40 runs finished" in said
        assert "37 of 40 runs of this comparison finished" in said
        assert "CartPole-v1, dqn-adam: 9 of 10 seeds; missing 4 (not started)" in said
        assert "Acrobot-v1, dqn: 9 of 10 seeds; missing 5 (broken)" in said
        assert "CartPole-v1, dqn, seed 3: failed, scores the floor −7: ValueError: nan in the logits" in said
        assert "Seeds: dqn 10, dqn-adam 9 of 10." in said.replace(";", ",")
    table = pd.read_csv(tmp_path / "report" / "tables" / "environments.csv").set_index(["environment", "method"])
    assert table.loc[("CartPole-v1", "dqn"), ["failed", "auc_min"]].tolist() == [1, -7]
    assert table.loc[("CartPole-v1", "dqn-adam"), ["seeds", "requested_seeds"]].tolist() == [9, 10]


def test_a_sweep_says_what_was_asked_for(tmp_path):
    sweep(tmp_path, range(9), envs=[ENV])
    lines = ['agents = ["dqn", "agents/dqn-adam.toml"]', 'envs = ["CartPole-v1", "Acrobot-v1"]', 'seeds = "0-9"']
    (tmp_path / "sweep.toml").write_text("\n".join(lines))
    page, _ = make(tmp_path)
    assert "9 of 10 seeds × 1 environment (CartPole-v1), 18 of 20 runs finished" in lead(page)
    assert "Acrobot-v1 is left out of the aggregates: no run." in str(alerts(page))
    assert "Acrobot-v1, dqn: 0 of 10 seeds" in text(page)


def test_a_collapsed_run_is_named(tmp_path):
    sweep(tmp_path, range(2), envs=[ENV])
    path = write(tmp_path, seed=2)
    rows = [(t, 400.0 if t < 7000 else 25.0, 20) for t in range(100, 10_001, 100)]
    with (path / "episodes.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([("timestep", "return", "length"), *rows])
    write(tmp_path, "dqn-adam", seed=2, rate=1e-3)
    assert "CartPole-v1, dqn: collapsed on seed 2" in text(make(tmp_path)[0])


@pytest.mark.slow
def test_the_same_runs_are_the_same_bytes(ten, tmp_path):
    root, _, _ = ten
    first, second = tmp_path / "first", root / "report"
    shutil.copytree(second, first)
    shutil.rmtree(second)
    make(root)
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert {"report.html", "report.md", "data.csv.gz"} < set(names)
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []


@pytest.mark.parametrize("keep", [logged, zipped])
def test_what_is_kept_of_runs_gives_the_same_report(tmp_path, monkeypatch, keep):
    monkeypatch.chdir(tmp_path)
    root = Path("study")
    sweep(root, range(2), envs=[ENV])
    make(root)
    shutil.move(root / "report", "from-folders")
    for status in list(root.rglob("status.json")):
        keep(status.parent)
    make(root)
    shutil.move(root / "report", "kept")
    files = {path.relative_to("from-folders") for path in Path("from-folders").rglob("*") if path.is_file()}
    assert all(Path("from-folders", name).read_bytes() == Path("kept", name).read_bytes() for name in files)


def test_a_report_takes_the_place_of_an_earlier_one(tmp_path):
    """What that one had and the new one has not is gone; what others put there stays, whatever a list may say."""
    sweep(tmp_path / "runs", range(2))
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    own = [out / "figures" / "curve-99-mine.png", out / "tables" / "mine.csv", out / "notes.csv", tmp_path / "x.csv"]
    make(tmp_path / "runs", "--out", str(out))
    for path in own:
        path.write_text("mine")
    acrobot = [path for path in out.rglob("*Acrobot*") if path.is_file()]
    assert len(acrobot) > 2
    assert {*acrobot} < {out / name for name in json.loads((out / "files.json").read_text())["files"]}
    shutil.rmtree(tmp_path / "runs" / "Acrobot-v1")
    manifest = json.loads((out / "files.json").read_text())
    more = ["../x.csv", "figures/../../x.csv", str(tmp_path / "x.csv"), "notes.csv", 3]
    (out / "files.json").write_text(json.dumps({"files": manifest["files"] + more}))
    make(tmp_path / "runs", "--out", str(out))
    assert not any(path.exists() for path in acrobot)
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {"files.json"}
    assert all(path.read_text() == "mine" for path in own)
    assert written - {str(path.relative_to(out)) for path in own[:3]} == {
        *json.loads((out / "files.json").read_text())["files"]
    }
    make(tmp_path / "runs", "--out", str(tmp_path / "fresh"))
    assert (out / "files.json").read_bytes() == (tmp_path / "fresh" / "files.json").read_bytes()


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}'])
def test_a_list_of_files_that_is_none(tmp_path, text):
    write(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "files.json").write_text(text)
    make(tmp_path)
    assert "report.html" in (tmp_path / "report" / "files.json").read_text()


EVIL = '<script>alert("x")</script>&amp;$\\frac{1}{2}$|*a*_b_`c`[d](e)\x00\u202e_^{\n'


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """Runs whose environment, agent and error are markup."""
    root = tmp_path_factory.mktemp("evil")
    env, agent = {**ENV, "id": EVIL}, "_<img src=x onerror=alert(1)>$^$"
    for seed in range(2):
        for name, rate in (("dqn", None), (agent, 1e-3), (agent, 1e-2)):
            folder = write(root / str(seed) / name[:2] / str(rate), name[:3], {**ENV, "id": "E"}, seed, 100, rate)
            config = (folder / "config.json").read_text()
            data = json.loads(config)
            data |= {"env": env, "agent": name}
            (folder / "config.json").write_text(json.dumps(data))
            if seed and rate == 1e-2:
                reason = {"state": "failed", "reason": "<b>bold</b> | **x**"}
                (folder / "status.json").write_text(json.dumps(reason))
    return root, *make(root)


def test_what_comes_from_data_stays_text(evil):
    root, page, marked = evil
    assert not re.search(r"<script|<img|<b>", page)
    assert '<script>alert("x")</script>&amp;$\\frac{1}{2}$|*a*_b_`c`[d](e)' in text(page)
    assert "<b>bold</b> | **x**" in text(page)
    assert "\x00" not in page
    assert "\u202e" not in page
    for svg in (root / "report" / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text()
    assert any("$\\frac{1}{2}$" in html.unescape(s.read_text()) or "$^$" in html.unescape(s.read_text())
               for s in (root / "report" / "figures").glob("*.svg"))  # fmt: skip
    prose = "\n".join(line for line in marked.splitlines() if not line.startswith("    "))
    assert not re.search(r"<script|<img|<b>|(?<!\\)\$|\|\*|(?<!\\)`", prose)


def test_markdown_is_escaped_by_hand():
    assert markdown("a|b*c_d`[e](f)<g>&$h #1") == "a\\|b\\*c\\_d\\`\\[e\\](f)&lt;g&gt;&amp;\\$h \\#1"
    assert [markdown(text) for text in ("- a", "12. a", "-a", "1.5")] == ["\\- a", "12\\. a", "-a", "1.5"]


def test_one_file_that_needs_no_network(ten):
    root, page, _ = ten
    assert "http" not in page
    assert {target[0] for target in re.findall(r'(?:src=|url\(|@import)\s*["\']?([^"\')]+)', page)} == {"#"}
    assert all(link.startswith(("#", "data:image/png", "tables/")) for link in re.findall(r'href="([^"]*)"', page))
    assert "<script" not in page
    assert len(page.encode()) < 2_000_000
    assert page.count("<figure>") == page.count('role="img" aria-label="')
    identifiers = re.findall(r' id="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert str(root.parent) not in page.replace(str(root), "")


def test_curves_and_episodes_are_all_there(ten):
    root, page, _ = ten
    curves = pd.read_csv(root / "report" / "tables" / "curves.csv")
    assert "100 bins, each 1 % of the steps" in page
    runs = load_results(root)
    row = curves[(curves.agent == "dqn") & (curves.env == "CartPole-v1") & (curves.seed == 3)].filter(like="%")
    expected = runs[(runs.agent == "dqn") & (runs.env == "CartPole-v1") & (runs.seed == 3)].auc.item()
    assert row.mean(axis=1).item() == pytest.approx(expected, rel=1e-3)
    raw = pd.read_csv(io.BytesIO(gzip.decompress((root / "report" / "data.csv.gz").read_bytes())))
    assert len(raw) == runs.episodes.sum()
    assert raw["return"].notna().all()


def test_markdown(ten):
    root, _, marked = ten
    assert marked.startswith("# Report on ten\n\n## Verdict\n\n**Ahead: dqn is ")
    for path in re.findall(r"\]\(([^)]*)\)", marked):
        assert (root / "report" / path).exists(), path
    tables = re.findall(r"(?:^\|.*\n)+", marked, re.MULTILINE)
    assert len(tables) >= 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_baseline(ten, tmp_path, capsys):
    root, _, _ = ten
    assert report.main([str(root), "--baseline", "dqn-adma", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'dqn-adam'?" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def backup(root):
    """A sweep of two seeds with a copy of all of it in a folder of its own."""
    sweep(root, range(2), envs=[ENV])
    shutil.copytree(root / "CartPole-v1", root / "backup" / "CartPole-v1")


def test_copies_are_left_out(tmp_path, capfd):
    sweep(tmp_path / "alone", range(2), envs=[ENV])
    backup(tmp_path / "twice")
    make(tmp_path / "alone")
    capfd.readouterr()
    page, _ = make(tmp_path / "twice")
    run = "CartPole-v1/dqn/seed-0"
    said = [f"backup/{run} is a copy of {run}, and left out", "3 more runs are copies of others, and left out"]
    assert capfd.readouterr().err.splitlines() == [f"warning: {line}" for line in said]
    assert {("amber", f"Note: {line}.") for line in said} <= set(alerts(page))
    tables = [(tmp_path / name / "report" / "tables" / "environments.csv").read_text() for name in ("alone", "twice")]
    assert tables[0] == tables[1]


def test_runs_that_are_there_twice_and_differ_are_told_apart_by_their_folders(tmp_path, capfd):
    backup(tmp_path)
    write(tmp_path / "backup", seed=1, level=50)
    page, _ = make(tmp_path)
    run = "CartPole-v1/dqn/seed-1"
    said = f"{run} and backup/{run} are one run and differ: dqn is compared folder by folder"
    assert f"warning: {said}\n" in capfd.readouterr().err
    assert ("amber", f"Note: {said}.") in alerts(page)
    methods = {method.name: method.runs.seed.tolist() for method in Study(tmp_path).methods}
    # Seed 0 of the backup is a copy.
    assert methods == {"dqn": [0, 1], "dqn [backup]": [1], "dqn-adam": [0, 1]}
    shutil.rmtree(tmp_path / "backup")
    shutil.copytree(tmp_path / "CartPole-v1" / "dqn", tmp_path / "CartPole-v1" / "dqn-old")
    with (tmp_path / "CartPole-v1" / "dqn-old" / "seed-0" / "episodes.csv").open("a") as file:
        file.write("9999,7.0,3\n")
    shutil.copytree(tmp_path / "CartPole-v1" / "dqn-old" / "seed-0", tmp_path / "again")
    with (tmp_path / "again" / "episodes.csv").open("a") as file:
        file.write("9999,7.0,3\n")
    methods = {method.name: method.runs.seed.tolist() for method in Study(tmp_path).methods}
    assert methods == {"dqn": [0, 1], "dqn [again]": [0], "dqn [dqn-old]": [0], "dqn-adam": [0, 1]}


def test_an_alrao_agent_as_baseline(tmp_path):
    sweep(tmp_path, range(3))
    assert lead(make(tmp_path, "--baseline", "dqn")[0]).startswith("Behind: dqn-adam is ")


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: None, "holds no run"),
        (lambda root: (write(root), (root / "sweep.toml").write_text("seeds = 3")), "seeds is 3, expected a list"),
        (lambda root: (write(root), (root / "sweep.toml").write_text('seeds = "9-0"')), "did you mean 0-9?"),
        (lambda root: (write(root), (root / "sweep.toml").write_text("seeds = [")), "is not a TOML file"),
        (lambda root: (write(root) / "config.json").unlink(), "holds no run that can be read: "),
        (lambda root: (write(root), (root / "report").write_text("")), "cannot write to"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, prepare, error):
    root = tmp_path / "results"
    root.mkdir()
    prepare(root)
    assert report.main([str(root)]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1
    assert not (root / "report").is_dir()


def test_one_agent_only(tmp_path):
    sweep(tmp_path, range(3), agents=["dqn"])
    page, _ = make(tmp_path)
    scores = stats.by_environment(load_results(tmp_path))
    iqm = number(stats.iqm(scores))
    assert lead(page).startswith(f"dqn has an IQM of normalised return averaged over training of {iqm} (95 %")
    assert "There is nothing to compare it with." in lead(page)
    assert "No stock agent" in str(alerts(page))


def test_signs_of_what_rounds_to_zero():
    """An interval that ends at −0.0004 excludes zero; a zero with rounding in it has no sign."""
    assert [number(value, 3) for value in (-0.0004, 0.0004, -1e-17, -0.0, -1234.5678)] == [
        "−0.0004", "0.0004", "0.000", "0.000", "−1,234.568",
    ]  # fmt: skip
    assert with_interval(stats.Interval(0.02, -0.0004, 0.04), 3) == "0.020 [−0.000, 0.040]"


def test_no_verdict_where_no_run_finished(tmp_path):
    for agent, rate in (("dqn", None), ("dqn-adam", 1e-3)):
        for seed in range(3):
            write(tmp_path, agent, seed=seed, rate=rate, state="failed")
    page, _ = make(tmp_path)
    assert lead(page).startswith("No verdict: ")
    assert "0 of the 6 runs here finished" in lead(page)


@pytest.mark.slow
def test_a_single_seed(tmp_path, rendered):
    sweep(tmp_path, [0])
    page, _ = make(tmp_path)
    assert lead(page).startswith("No verdict: dqn is ")
    assert "(a single seed has no interval); 1 seed × 2 environments (Acrobot-v1, CartPole-v1)" in lead(page)
    said = "Warning: 1 seed, fewer than 5: how much runs differ is unknown and no interval can be given."
    assert ("red", said) in alerts(page)


def test_no_alrao_agent(tmp_path):
    sweep(tmp_path, range(3), agents=["dqn-adam", "dqn-paper-stock"])
    page, _ = make(tmp_path)
    assert "No Alrao agent: methods are compared with dqn-adam." in str(alerts(page))
    assert "No run of an Alrao agent has recorded averaging weights." in text(page)


def test_an_environment_without_reference_scores(tmp_path):
    sweep(tmp_path, range(3), envs=[ENV, UNKNOWN])
    page, _ = make(tmp_path)
    assert "My/Env-v0 is left out of the aggregates: no reference scores." in str(alerts(page))
    assert "3 seeds × 1 environment (CartPole-v1)" in lead(page)
    assert "no reference scores, in no aggregate" in text(page)


def test_failed_runs_where_no_floor_is_known_score_the_lowest_return_seen(tmp_path):
    write(tmp_path, env=UNKNOWN, seed=0, level=300)
    path = write(tmp_path, env=UNKNOWN, seed=1)
    (path / "episodes.csv").write_text("timestep,return,length\n40,-55.5,40\n")
    write(tmp_path, env=UNKNOWN, seed=2, state="failed")
    page, _ = make(tmp_path)
    runs = load_results(tmp_path)
    row = pd.read_csv(tmp_path / "report" / "tables" / "environments.csv").iloc[0]
    assert (row.seeds, row.failed, row.auc_min) == (3, 1, -55.5)
    assert row.auc == pytest.approx((runs.auc[0] - 2 * 55.5) / 3, rel=1e-5)
    assert math.isnan(runs.auc[2])
    assert (
        "No floor and no random score is known of My/Env-v0: 1 run without a score there counts with the lowest return "
        "of any run on it, -55.5." in text(page)
    )


def test_it_says_where_curves_begin(tmp_path):
    for env in (UNKNOWN, ENV, OTHER):
        write(tmp_path, env=env)
    assert (
        "Before its first episode ends a run is at the random policy's return on Acrobot-v1, CartPole-v1 and at the "
        "mean of the first stretch in which one ends, as no random score is known, on My/Env-v0."
        in text(make(tmp_path)[0])
    )


def test_only_environments_without_reference_scores(tmp_path, rendered):
    sweep(tmp_path, range(3), envs=[UNKNOWN])
    page, _ = make(tmp_path)
    assert "Nothing can be aggregated: no environment with runs has reference scores." in text(page)
    assert re.match(r"Ahead: dqn is [\d.]+ above dqn-adam in mean return averaged over training \(", lead(page))


def test_every_algorithm_has_its_verdict(tmp_path):
    for seed in range(2):
        for algo in ("a2c", "dqn"):
            write(tmp_path, algo, seed=seed, algo=algo)
            write(tmp_path, f"{algo}-adam", seed=seed, rate=1e-3, level=100, algo=algo)
    leads = re.findall(r'<p class="lead">(\w+: \w+ is [\d.]+ above [\w-]+) ', make(tmp_path)[0])
    assert [re.sub(r"[\d.]+ above", "above", lead) for lead in leads] == [
        "Ahead: a2c is above a2c-adam",
        "Ahead: dqn is above dqn-adam",
    ]


def test_broken_runs_are_named_at_once(tmp_path, capfd):
    for seed in range(7):
        (write(tmp_path, seed=seed) / "config.json").unlink()
    write(tmp_path, seed=7)
    make(tmp_path)
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == 6
    assert all(line.startswith("warning: ") and line.endswith("config.json does not exist") for line in warnings[:5])
    assert warnings[5] == "warning: 2 more runs are broken: the report names them"


def test_only_broken_runs(tmp_path, capsys):
    """Of a sweep, which says what is missing."""
    (write(tmp_path) / "config.json").unlink()
    (tmp_path / "sweep.toml").write_text("agents = ['dqn']\nenvs = ['CartPole-v1']\nseeds = [0, 1]\n")
    page, _ = make(tmp_path)
    assert lead(page).startswith("No verdict: no run has a score yet")
    assert "0 of 2 runs finished" in capsys.readouterr().out
    assert "CartPole-v1, dqn, seed 0: broken: config.json does not exist" in text(page)


def test_failed_runs_of_which_nothing_is_known(tmp_path):
    """No floor, no episode: no score, which is no reason to fail."""
    for seed in range(2):
        for rate in (None, 1e-3, 1e-2):
            write(tmp_path, "dqn-adam" if rate else "dqn", UNKNOWN, seed, rate=rate, n_episodes=0, state="failed")
    page, _ = make(tmp_path)
    assert lead(page).startswith("No verdict")


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_no_run_is_over(tmp_path, state):
    write(tmp_path, state=state)
    assert lead(make(tmp_path)[0]).startswith("No verdict: no run has a score yet; 0 of the 1 run here finished")


def test_unpaired_where_no_seed_is_shared(tmp_path):
    for seed in range(3):
        write(tmp_path, seed=seed)
        write(tmp_path, "dqn-adam", seed=10 + seed, rate=1e-3, level=200)
    make(tmp_path)
    row = pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv").iloc[0]
    assert not row.paired_by_seed
    assert row.improvement == 1


def test_settings_of_one_agent_are_methods_of_their_own(tmp_path):
    for seed in range(2):
        write(tmp_path / "a", seed=seed, n_envs=1)
        write(tmp_path / "b", seed=seed, n_envs=2)
    assert [method.name for method in Study(tmp_path).methods] == ["dqn (n_envs=1)", "dqn (n_envs=2)"]


def test_the_page_is_kept_small_by_fewer_bins(tmp_path, monkeypatch):
    sweep(tmp_path, range(3))
    monkeypatch.setattr("alrao_rl.report.study.MOST_POINTS", 400)
    assert "25 bins, each 4 % of the steps" in make(tmp_path)[0]


@pytest.mark.slow
def test_watch_ends_when_all_runs_are_over(tmp_path, monkeypatch, capsys):
    sweep(tmp_path, range(2), envs=[ENV])
    path = write(tmp_path, seed=1, state="interrupted")

    def wait(_):
        assert '<meta http-equiv="refresh"' in (tmp_path / "report" / "report.html").read_text()
        folder = RunFolder(path)
        folder.set_status("finished", timesteps=10_000)

    monkeypatch.setattr(report.time, "sleep", wait)
    assert report.main([str(tmp_path), "--watch"]) == 0
    assert "3 of the 4 runs here finished" in capsys.readouterr().out
    assert "http" not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_the_command_in_a_process(ten, tmp_path):
    root, _, _ = ten
    command = [sys.executable, "-X", "importtime", "-m", "alrao_rl.report", str(root), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "report.html: 80 runs finished" in result.stdout
    assert not re.search(r"\| +(torch|gymnasium|stable_baselines3)$", result.stderr, re.MULTILINE)


def test_comparisons_stay_within_an_algorithm(tmp_path):
    for seed in range(2):
        write(tmp_path, "dqn", seed=seed)
        write(tmp_path, "dqn-adam", seed=seed, rate=1e-3)
        write(tmp_path, "ppo-adam", seed=seed, rate=1e-3, algo="ppo")
    pairs = compare.comparisons(Study(tmp_path), None)
    assert [(a.name, b.name) for a, b in pairs] == [("dqn", "dqn-adam")]


def test_an_unrelated_run_changes_no_verdict(tmp_path):
    """Two agents on two environments; a run of another algorithm on one of them, with a seed of its own, is no part."""
    for env, span in ((ENV, 480), (OTHER, 430)):
        for seed in range(3):
            for agent, rate, share in (("ppo", None, 0.5 + 0.1 * seed), ("ppo-adam", 1e-3, 0.4)):
                write(tmp_path, agent, env, seed, env["random_score"] + share * span, rate, algo="ppo")
    before = make(tmp_path)[0]
    row = pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv").iloc[0]
    write(tmp_path, "dqn", ENV, 50)
    after = make(tmp_path)[0]
    table = pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv")
    runs = load_results(tmp_path)
    x, y = (stats.by_environment(runs[runs.agent == agent]) for agent in ("ppo", "ppo-adam"))
    assert lead(after) == lead(before)
    assert "3 seeds × 2 environments (Acrobot-v1, CartPole-v1), 12 runs finished." in lead(before)
    assert row.difference == pytest.approx(stats.iqm(x) - stats.iqm(y), rel=1e-5)
    assert row.equals(table.iloc[0])
    assert set(table.baseline) == {"ppo-adam"}
    # A sweep that nobody described lacks no run.
    assert not re.search(r"\d of \d+ (runs|seeds)", text(after).split("Provenance")[0])
    # The methods in common, on both; all three, where all are.
    aggregates = pd.read_csv(tmp_path / "report" / "tables" / "aggregates.csv")
    groups = aggregates.groupby("environments").method.unique().map(sorted).to_dict()
    assert groups == {2: ["ppo", "ppo-adam"], 1: ["dqn", "ppo", "ppo-adam"]}


def test_the_strongest_baseline_is_one_that_shares_the_environments(tmp_path):
    """A stock agent that was tried on one environment is better there: it is no rival on two."""
    for seed in range(2):
        for env in (ENV, OTHER):
            write(tmp_path, "dqn", env, seed)
            write(tmp_path, "dqn-adam", env, seed, -100, 1e-3)
        write(tmp_path, "dqn-other", ENV, seed, 500, 1e-3)
    page = make(tmp_path)[0]
    assert " above dqn-adam in the IQM" in lead(page)
    said = "Acrobot-v1 left out of dqn against dqn-other: dqn-other has no run with a score there."
    assert said in str(alerts(page))


def test_a_run_without_a_score_leaves_its_environment_out(tmp_path, monkeypatch):
    """It failed before an episode ended, where no floor is known: what the others have is not the agent's mean."""
    without = {"id": "CartPole-v1", "random_score": 20.0, "reference_score": 500.0}
    for seed in range(2):
        for env in (without, OTHER):
            write(tmp_path, "dqn", env, seed)
            write(tmp_path, "dqn-adam", env, seed, -100, 1e-3)
    write(tmp_path, "dqn", without, 2, n_episodes=0, state="failed")
    frame = load_results(tmp_path)
    scores = ["auc", "final_return", "auc_normalised", "final_normalised", "floor"]
    frame.loc[(frame.env == "CartPole-v1") & (frame.state == "failed"), scores] = np.nan
    frame.loc[frame.env == "CartPole-v1", "lowest_return"] = np.nan
    monkeypatch.setattr("alrao_rl.report.study.load_results", lambda _: frame)
    page = make(tmp_path)[0]
    assert "2 seeds × 1 environment (Acrobot-v1)" in lead(page)
    assert "CartPole-v1 left out of dqn against dqn-adam: a run of dqn has no score there." in str(alerts(page))


def level(root, agent, seed, value, rate=None, env=UNKNOWN):
    """A run all of whose episodes return the value."""
    path = write(root, agent, env, seed, rate=rate)
    rows = "".join(f"{step},{value!r},20\n" for step in (1, 4_000, 10_000))
    (path / "episodes.csv").write_text(f"timestep,return,length\n{rows}")


@pytest.mark.parametrize(
    ("scale", "above", "mean"), [(1e-3, "0.001333", "0.005"), (1e9, "1.333e+09", "5e+09"), (10, "13.33", "50")]
)
def test_returns_are_compared_where_nothing_normalises_them(tmp_path, scale, above, mean):
    """Differences of pairs are 2, 3 and −1, so 4/3 on average, and two of three are wins."""
    for seed, (one, other) in enumerate([(3, 1), (5, 2), (7, 8)]):
        level(tmp_path, "dqn", seed, one * scale)
        level(tmp_path, "dqn-adam", seed, other * scale, 1e-3)
    page, marked = make(tmp_path)
    assert lead(page).startswith(f"No clear difference: dqn is {above} above dqn-adam in mean return averaged over")
    assert "probability of improvement 0.67 [0.00, 1.00]; 3 seeds × 1 environment (My/Env-v0), 6 runs" in lead(page)
    row = pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv").iloc[0]
    assert (row.paired_by_seed, row.normalised, row.on) == (True, False, "My/Env-v0")
    # Of three numbers drawn from 2, 3 and −1 the least mean is −1 and the largest 3.
    expected = np.array([4 / 3, -1, 3]) * scale
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(
        expected.tolist(), rel=1e-5
    )
    for said in (text(page), marked.replace("\\", "")):
        assert re.search(rf"(?<![\d.]){re.escape(mean)} \[", said)
        assert "no environment with runs has reference scores" in said


def test_each_environment_has_the_verdict_that_it_can_have(tmp_path):
    """Normalised scores on two together; returns on the third, which has no reference scores; both in one report."""
    sweep(tmp_path, range(3), envs=[ENV, OTHER, UNKNOWN])
    leads = re.findall(r'<p class="lead">(.*?)</p>', make(tmp_path)[0])
    assert len(leads) == 2
    assert "in the IQM of normalised" in leads[0]
    assert "× 2 environments (Acrobot-v1, CartPole-v1)" in leads[0]
    assert "in mean return averaged over training" in leads[1]
    assert "× 1 environment (My/Env-v0)" in leads[1]


def test_one_agent_on_an_environment_without_reference_scores(tmp_path):
    for seed, value in enumerate([1.0, 2.0, 6.0]):
        level(tmp_path, "dqn", seed, value)
    said = lead(make(tmp_path)[0])
    assert said.startswith("dqn has a mean return averaged over training of 3 (95 % stratified bootstrap interval 1 to")
    assert "There is nothing to compare it with." in said


def test_returns_have_the_digits_that_mean_something():
    values = (310.24, 1234.4, 1e9, 9.3e-4, -1e-8, 0.0, 500.0, np.nan)
    assert [returned(value) for value in values] == [
        "310.2", "1,234", "1e+09", "0.00093", "−1e−08", "0", "500", "–",
    ]  # fmt: skip
    assert returned_interval(stats.Interval(9.3e-4, 8.12e-4, 1.05e-3)) == "0.000930 [0.000812, 0.001050]"
    assert returned_interval(stats.Interval(310.0, 274.0, 345.0)) == "310 [274, 345]"
    assert returned_interval(stats.Interval(-0.0003, -12.1, 11.9)) == "−0.0 [−12.1, 11.9]"
    assert with_interval(stats.Interval(0.75, 0.7, 0.8)) == "0.75 [0.70, 0.80]"
    assert with_interval(stats.Interval(0.001, 0.0, 0.004)) == "0.001 [0.000, 0.004]"


@pytest.mark.slow
def test_a_watch_from_before_the_first_run(tmp_path, monkeypatch, quick):
    """Runs that come one by one, of whatever state; the last of them is the last that was asked for."""
    lines = ["agents = ['dqn', 'dqn-adam']", "envs = ['CartPole-v1']", "seeds = [0, 1]"]
    (tmp_path / "sweep.toml").write_text("\n".join(lines))
    alrao, stock = ("dqn", None), ("dqn-adam", 1e-3)
    runs = [("running", alrao, 0), ("failed", stock, 0), ("queued", alrao, 1), ("finished", stock, 1)]
    todo = [(state, agent, ENV, seed, rate) for state, (agent, rate), seed in runs]
    todo += [("finished", "dqn", ENV, seed, None) for seed in (0, 1)]

    def wait(_):
        shutil.rmtree(tmp_path / "CartPole-v1" / todo[0][1] / f"seed-{todo[0][3]}", ignore_errors=True)
        put(tmp_path, *todo.pop(0))

    monkeypatch.setattr(report.time, "sleep", wait)
    assert report.main([str(tmp_path), "--watch"]) == 0
    assert todo == []


def test_a_watch_sees_runs_that_links_lead_to(tmp_path, monkeypatch, quick):
    sweep(tmp_path / "scratch", range(1), envs=[ENV])
    path = write(tmp_path / "scratch", seed=1, state="running")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "all").symlink_to(tmp_path / "scratch")
    monkeypatch.setattr(report.time, "sleep", lambda _: RunFolder(path).set_status("finished", timesteps=10_000))
    assert report.main([str(tmp_path / "here"), "--watch"]) == 0


@pytest.mark.long
def test_it_is_fast_and_small(tmp_path, rendered):
    """Three agents on six environments with thirty seeds: less than 20 seconds, less than 2 MB."""
    envs = [{**ENV, "id": f"Env{i}-v0"} for i in range(6)]
    sweep(tmp_path, range(30), envs=envs, agents=["dqn", "dqn-adam", "dqn-other"])
    started = time.process_time()
    page, _ = make(tmp_path)
    assert time.process_time() - started < 60  # seven on an idle machine; less than 20 is asked
    assert len(page.encode()) < 2_000_000


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


PROBE = """() => {
    const size = element => element.getBoundingClientRect();
    const seen = element => element.checkVisibility({visibilityProperty: true, opacityProperty: true});
    return {
        too_wide: document.documentElement.scrollWidth > innerWidth,
        sections: [...document.querySelectorAll("section")].filter(s => seen(s) && size(s).height > 100)
            .map(s => s.querySelector("h2")).filter(seen).map(h => h.textContent),
        cut: [...document.querySelectorAll(".scroll, .picture")].filter(s => s.scrollWidth > s.clientWidth).length,
        figures: document.querySelectorAll("figure").length,
        flat: [...document.querySelectorAll("figure svg")].map(size).filter(s => s.height < 40 || s.width < 200).length,
        markup: [...document.querySelectorAll("script, img, b, iframe, object, embed")].map(e => e.outerHTML),
        text: document.body.innerText,
    };
}"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(ten, evil, width):
    """As wide as a phone and as a desktop, with harmless names and with markup for names."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for root in (ten[0], evil[0]):
            page = browser.new_page(viewport={"width": width, "height": 844})
            said, asked = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            address = (root / "report" / "report.html").as_uri()
            page.goto(address)
            for folded in page.locator("summary").all():
                folded.click()
            found = page.evaluate(PROBE)
            assert found["sections"] == ORDER
            assert found["figures"] > 5
            assert (found["too_wide"], found["cut"], found["flat"], found["markup"]) == (False, 0, 0, [])
            assert [url for url in asked if not url.startswith("data:")] == [address]
            for link in page.locator("nav a").all():
                link.click()
                assert page.locator(link.get_attribute("href")).evaluate(
                    "s => s.getBoundingClientRect().top < innerHeight"
                )
            assert said == []
        # The page of the markup, which reads as it was written.
        for text_ in ('<script>alert("x")</script>&amp;', "_<img src=x onerror=alert(1)>$^$", "<b>bold</b> | **x**"):
            assert text_ in found["text"]
        browser.close()


def test_entropy_coefficients(tmp_path):
    """Geometric means over seeds, of Alrao and of stock; a damaged line is left out."""
    for agent, rate in (("sac", None), ("sac-adam", 1e-3)):
        for seed in range(2):
            path = write(tmp_path, agent, ENV, seed, 100.0, rate, algo="sac")
            rows = "".join(f"{step},{0.1 * 4**seed * 1000 / step}\n" for step in (1000, 2000, 4000))
            (path / "entropy.csv").write_text(f"timestep,ent_coef\n{rows}5000,0.")
    page, markdown = make(tmp_path)
    # √(0.1 · 0.4) · 1000 / 4000
    assert f"{ENV['id']}. At the end: sac 0.05; sac-adam" in markdown
    assert "no learning rate, stock agents by their own" in text(page)
    assert len(list((tmp_path / "report").rglob("entropy-00-*.svg"))) == 1


@pytest.mark.slow
def test_real_runs_of_continuous_actions(tmp_path, capfd):
    """Weights of the actor and of both critics over time, and the entropy coefficient."""
    sets = ["batch_size=8", "net_arch=[8]", "buffer_size=300", "learning_starts=20"]
    for agent in ("sac", "sac-adam"):
        args = ["--agent", agent, "--env", "Pendulum-v1", "--timesteps", "250", "--eval-episodes", "0", "--quiet"]
        assert train([*args, "--out", str(tmp_path / "Pendulum-v1" / agent / "seed-0"), "--set", *sets]) == 0
    _, markdown = make(tmp_path)
    assert all(f"sac on Pendulum-v1, {layer}. 1 seed; effective rate" in markdown for layer in ("actor", "qf0", "qf1"))
    ends = [(tmp_path / "Pendulum-v1" / agent / "seed-0" / "entropy.csv").read_text().split(",")[-1] for agent in
            ("sac", "sac-adam")]  # fmt: skip
    assert f"Pendulum-v1. At the end: sac {float(ends[0]):.2g}; sac-adam" in markdown
    assert f"{float(ends[1]):.2g}." in markdown
