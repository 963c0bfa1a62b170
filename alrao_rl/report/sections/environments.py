"""5. Environment by environment, run by run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl import stats
from alrao_rl.notation import plural
from alrao_rl.report import compare
from alrao_rl.report.document import Block, Items, Section, Table, Text
from alrao_rl.report.sections.words import (
    RETURNS,
    of,
    rate,
    returned,
    returned_interval,
    runs_in_words,
    together,
)
from alrao_rl.report.study import Study
from alrao_rl.runs.results import each_row


def section(study: Study) -> Section:
    """A table for each environment, and every run that failed, diverged, is broken or missing, by name."""
    text = (
        "Mean over seeds with its 95 % bootstrap interval; spread is the standard deviation between seeds. A failed or "
        "diverged run scores the floor. A run has collapsed if it had learned, its best mean over a fifth of the steps "
        "being more than a quarter of the way from the random to the reference score, and ended nearer to the random "
        "score than to that best. Where one of the two scores is not known, it had learned if all of that best fifth "
        "is above all of its first twentieth and of its last fifth."
    )
    blocks: list[Block] = [Text(text)]
    tables = {}
    columns = ["method", "seeds", "rate", "over training", "spread", "lowest to highest", "final", "spread",
               "failed", "diverged", "collapsed"]  # fmt: skip
    for env in study.envs:
        frame = compare.environment_table(study, env)
        if frame.empty:
            blocks.append(Text(f"{env}: no run."))
            continue
        tables[env] = frame
        blocks.append(Table(_constants_words(study, env), columns, [_environment_row(r) for r in each_row(frame)]))
    named = _named_runs(study, tables)
    blocks += [Text("Runs that failed, diverged, collapsed, are broken or missing:"), Items(named)] if named else [
        Text("No run failed, diverged, collapsed or is missing.")
    ]  # fmt: skip
    return Section("Environments", blocks, {"environments": pd.concat(tables.values())} if tables else {})


def _constants_words(study: Study, env: str) -> str:
    names = ("random", "reference", "floor")
    known = [f"{name} {value:g}" for name, value in zip(names, study.constants(env), strict=True) if np.isfinite(value)]
    there = (study.frame.env == env).any()  # scores come from its runs
    missing = [] if env in study.scaled else ["no reference scores, in no aggregate" if there else "no run yet"]
    return f"{env}: {', '.join(known + missing) or 'no constants'}."


def _environment_row(row: Any) -> list[str]:
    auc, final = (
        returned_interval(stats.Interval(*(getattr(row, f"{score}{end}") for end in ("", "_low", "_high"))))
        for score in ("auc", "final")
    )
    extent = " to ".join(together((row.auc_min, row.auc_max), 0, RETURNS)) if row.seeds else "–"
    return [row.method, of(row.seeds, row.requested_seeds), rate(row.learning_rate), auc, returned(row.auc_sd), extent,
            final, returned(row.final_sd), str(row.failed), str(row.diverged), str(row.collapsed)]  # fmt: skip


def _named_runs(study: Study, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    lines = []
    bad = study.frame[study.frame.state.isin(["failed", "diverged", "broken"])]
    for run in each_row(bad):
        at = f" at rate {run.learning_rate:g}" if np.isfinite(run.learning_rate) else ""
        floor = "" if run.state == "broken" else f", scores the floor {returned(run.floor)}"
        seed = "?" if pd.isna(run.seed) else run.seed
        lines.append(f"{run.env}, {run.agent}{at}, seed {seed}: {run.state}{floor}: {run.error or 'no reason given'}")
    for env, agent, cell, asked, absent in study.missing():
        name = f"{agent}, {cell}" if cell else agent
        found = f"{asked - len(absent)} of {plural(asked, 'seed')}; missing" if study.asked_seeds else "no score yet of"
        lines.append(f"{env}, {name}: {found} {runs_in_words(absent)}")
    for env, table in tables.items():
        for row in each_row(table):
            if row.collapsed:
                seeds = "seed" if row.collapsed == 1 else "seeds"
                lines.append(f"{env}, {row.method}: collapsed on {seeds} {row.collapsed_seeds.replace(' ', ', ')}")
    return lines
