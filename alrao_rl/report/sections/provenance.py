"""7. Where the numbers come from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl.errors import UserError
from alrao_rl.notation import plural
from alrao_rl.report.document import Block, Section, Table, Text, Verbatim, csv
from alrao_rl.report.study import Study, clean
from alrao_rl.runs.provenance import stretches
from alrao_rl.runs.reading import read_json

EMBEDDED = ["env", "agent", "setting", "seed", "state", "auc", "final_return", "timesteps", "wall_seconds", "error"]
"""Columns of the scores shown in the page; ``runs.csv`` has all."""


def section(study: Study, command: str) -> Section:
    """Commands, recipes, versions, hardware, commit; scores and curves as CSV."""
    configs = [_config(path) for path in study.frame.path]
    # A zip is named like its folder, so that the report is the same from either.
    paths = [str(Path(path).relative_to(study.root)).removesuffix(".zip") for path in study.frame.path]
    facts = [_table(config.get("provenance")) for config in configs]
    made_with = [one for fact in facts for one in stretches(fact)]
    commits = [" -> ".join(dict.fromkeys(clean(one.get("git_commit") or "not recorded") for one in stretches(fact)))
               for fact in facts]  # fmt: skip
    commands = pd.DataFrame({
        "path": paths, "agent": study.frame.agent, "variant": study.frame.configuration, "git_commit": commits,
        "command": [clean(fact.get("command") or "not recorded") for fact in facts],
    })  # fmt: skip
    first = commands.drop_duplicates(["agent", "variant"]).command
    states = study.frame.state.value_counts().sort_index()
    scores = study.frame.drop(columns=["configuration"]).assign(path=paths)
    curves = _curves_table(study)
    width = f"{study.n_bins} bins, each {100 / study.n_bins:g} % of the steps"
    compared = plural(len(curves), "compared run")
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    blocks: list[Block] = [
        Text("This report is made by:"),
        Verbatim(command),
        *_sweep(study),
        Text(f"It counts {plural(len(study.frame), 'run')}: {counts}."),
        *map(Text, _scoring(study)),
        Text("The first run of each agent was made by the following; commands.csv has every run's. Given again, a "
             "command continues a run that is unfinished from its last checkpoint and makes no finished one anew; "
             "where its folder is gone, it makes the same run again."),
        Verbatim("\n".join(first)),
        Table("What the runs were made with.", ["", "value"], _made_with(made_with), words=True),
        Table("Commits of alrao-rl and how many runs each agent has of them; + where its code was changed.",
              ["agent", "commits"], _commits_of(study.frame.agent, commits), words=True),
        *_recipes(study, configs),
        Verbatim(csv(scores[EMBEDDED]), "Scores of all runs, CSV", "tables/runs.csv"),
        Verbatim(csv(curves), f"Learning curves of {compared}, CSV: {width}", "tables/curves.csv"),
        Text("data.csv.gz beside this file holds every episode of every run: timestep, return, length."),
    ]  # fmt: skip
    return Section("Provenance", blocks, {"runs": scores, "curves": curves, "commands": commands})


def _scoring(study: Study) -> Iterable[str]:
    """The return of a run before its first episode ends, and the score of a failed run without a floor."""
    envs = [env for env in study.envs if (study.frame.env == env).any()]
    known = [env for env in envs if np.isfinite(study.constants(env).random_score)]
    others = [env for env in envs if env not in known]
    begins = [
        f"at the random policy's return on {', '.join(known)}" if known else "",
        f"at the mean of the first stretch in which one ends, as no random score is known, on {', '.join(others)}"
        if others else "",
    ]  # fmt: skip
    yield f"Before its first episode ends a run is {' and '.join(filter(None, begins))}."
    for env, count in study.substituted.items():
        lowest = study.constants(env).floor
        yield (f"No floor and no random score is known of {env}: {plural(count, 'run')} without a score there counts "
               f"with the lowest return of any run on it, {lowest:g}.")  # fmt: skip


def _sweep(study: Study) -> list[Block]:
    if not any(study.sweep.values()):
        return []
    command = ["python", "-m", "alrao_rl.sweep", (study.root / "sweep.toml").as_posix()]
    if study.root != Path("results", study.root.name):  # where a sweep of its name lies
        command += ["--out", study.root.as_posix()]
    return [Text("The runs are those of a sweep, which this command continues or makes anew:"),
            Verbatim(shlex.join(command))]  # fmt: skip


def _commits_of(agents: pd.Series[str], commits: Sequence[str]) -> list[list[str]]:
    """How many runs of each agent were made with each commit."""
    table = pd.DataFrame({"agent": agents, "commit": commits})
    return [
        [str(agent), "; ".join(f"{commit} ({n})" for commit, n in rows.commit.value_counts().sort_index().items())]
        for agent, rows in table.groupby("agent")
    ]


def _made_with(facts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Python, hardware, backend and versions, all that occur."""
    single = ("python", "platform", "hardware", "device", "loops")
    found: dict[str, set[str]] = {key: set() for key in single}
    for fact in facts:
        for key, value in [*((key, fact.get(key)) for key in single), *_table(fact.get("versions")).items()]:
            found.setdefault(clean(key), set()).update([] if value is None else [clean(value)])
    return [[key.replace("_", " "), "; ".join(sorted(values)) or "not recorded"] for key, values in found.items()]


def _config(path: str) -> dict[str, Any]:
    try:
        return read_json(Path(path) / "config.json")
    except UserError:  # the run's row says what is wrong with it
        return {}


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _curves_table(study: Study) -> pd.DataFrame:
    runs = study.compared
    bins = pd.DataFrame(np.array(list(study.curves)).reshape(-1, study.n_bins), index=runs.index)
    width = 100 / study.n_bins
    bins.columns = [f"{width * (i + 1):g}%" for i in range(study.n_bins)]
    # Four digits here; the raw rows have all.
    texts = bins.map(lambda value: f"{value:.4g}")
    return pd.concat([runs[["env", "agent", "configuration", "learning_rate", "seed"]], texts], axis=1).rename(
        columns={"configuration": "variant"}
    )


def _recipes(study: Study, configs: Sequence[dict[str, Any]]) -> Iterable[Block]:
    """The configuration of each agent, from its first run."""
    seen = set()
    for agent, variant, config in zip(study.frame.agent, study.frame.configuration, configs, strict=True):
        if (agent, variant) in seen or not config:
            continue
        seen.add((agent, variant))
        text = {key: value for key, value in config.items() if key not in ("agent", "env", "seed", "provenance")}
        name = f"{agent} ({variant})" if variant else agent
        yield Verbatim(json.dumps(text, indent=2), title=f"Recipe of {name}, as of its first run")
