"""The scripts in results/: they learn, go on where they were cut off, and make the pages that are there."""

import csv
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
from common import ROOT, script

RESULTS = ROOT / "results"
pytest.importorskip("sklearn")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "loss"), [("digits, ConvNet", 0.5), ("help texts, LSTM", 2.4), ("diabetes, MLP", 0.9)]
)
def test_alrao_learns_as_it_was_published(task, loss):
    """Far from what a guess has: 2.3 nats of digits, 4.2 of characters, 1 variance."""
    row = script(RESULTS / "supervised" / "study.py").run(task, "Alrao", seed=0)
    assert row["state"] == "finished"
    assert float(row["loss"]) < loss


def test_the_supervised_study_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, capsys):
    study = script(RESULTS / "supervised" / "study.py")
    short = replace(study.TASKS["diabetes, MLP"], epochs=1, only=("Alrao", "Adam 1e-3", "SGD 1e+10"))
    for name, value in {"TASKS": {"short": short}, "SEEDS": range(2), "RUNS": tmp_path / "runs.csv"}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(sys, "argv", ["study.py", "-j", "1"])
    study.main()
    rows = list(csv.DictReader(study.RUNS.read_text().splitlines()))
    assert {(row["method"], row["seed"]) for row in rows} == {(m, str(s)) for m in short.only for s in range(2)}
    diverged = [row for row in rows if row["state"] == "diverged"]
    assert {row["method"] for row in diverged} == {"SGD 1e+10"}
    assert all(float(row["loss"]) == 1 for row in diverged)
    whole = study.RUNS.read_text().splitlines(keepends=True)
    study.RUNS.write_text("".join(whole[:-1]))
    capsys.readouterr()
    study.main()
    assert capsys.readouterr().out.startswith("1/1 short / ")
    again = list(csv.DictReader(study.RUNS.read_text().splitlines()))
    before, after = ({(row["method"], row["seed"]): row["loss"] for row in one} for one in (rows, again))
    assert before == after


def test_the_supervised_page_is_what_its_rows_make(tmp_path, monkeypatch):
    report = script(RESULTS / "supervised" / "report.py")
    shutil.copy(report.HERE / "runs.csv", tmp_path)
    published = (report.HERE / "README.md").read_text()
    monkeypatch.setattr(report, "HERE", tmp_path)
    report.main()
    assert (tmp_path / "README.md").read_text() == published


def test_the_table_of_units_is_what_its_rows_make():
    units = script(RESULTS / "minatar" / "units.py")
    assert units.table(pd.read_csv(units.RUNS)) in (units.HERE / "README.md").read_text()


@pytest.mark.parametrize(
    ("study", "scores"),
    [
        ("qrdqn", ("auc", "final_return")),
        ("recurrent", ("last_evaluation", "auc")),
        ("minatar", ("auc", "final_return")),
        ("pendulum", ("auc", "final_return")),
    ],
)
def test_the_tables_of_looks_are_what_their_runs_make(study, scores):
    tables = "\n".join(script(RESULTS / "look.py").tables(str(RESULTS / study), list(scores)))
    assert tables.strip() in (RESULTS / study / "README.md").read_text(encoding="utf-8")


def test_a_look_counts_failed_runs_and_says_which_have_not_ended(monkeypatch):
    """Two seeds finished with 2 and 4, one failed and has the floor, 0; the last one is under way."""
    look = script(RESULTS / "look.py")
    runs = pd.DataFrame({"state": ["finished", "finished", "failed", "running"], "auc": [2.0, 4.0, 0.0, float("nan")]})
    runs = runs.assign(env="E-v0", agent="dqn-adam", policy="stock", learning_rate=0.01, seed=range(4))
    runs["path"] = [f"E-v0/dqn-adam@learning_rate=0.01/seed-{seed}" for seed in range(4)]
    monkeypatch.setattr(look, "load_results", lambda folder: runs)
    assert "\n".join(look.tables("", ["auc"])) == (
        "| agent | seeds 0 to 3, over training | mean |\n|---|---|---|\n"
        "| dqn-adam at 0.01 | 2.0, 4.0, 0.0, running | 2.0 ± 5.0 |\n"
    )
