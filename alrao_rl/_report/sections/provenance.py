"""7. Where the numbers come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alrao_rl._report.document import Block, Section, Table, Text, Verbatim, csv
from alrao_rl._report.sections.words import (
    plural,
)
from alrao_rl._report.study import Study, clean
from alrao_rl.runs import read_json


def section(study: Study, command: str) -> Section:
    """Commands, recipes, versions, hardware, commit; scores and curves as CSV."""
    configs = [_config(path) for path in study.frame.path]
    facts = [config.get("provenance", {}) for config in configs]
    facts = [fact if isinstance(fact, dict) else {} for fact in facts]
    rows = []
    for title, keys in (("git commit", ["git_commit"]), ("Python", ["python"]), ("platform", ["platform"]),
                        ("device", ["device"])):  # fmt: skip
        values = sorted({clean(fact[key]) for fact in facts for key in keys if fact.get(key) is not None})
        rows.append([title, "; ".join(values) or "not recorded"])
    versions = sorted({(clean(k), clean(v)) for fact in facts for k, v in _items(fact.get("versions"))})
    rows += [[name, "; ".join(v for n, v in versions if n == name)] for name in dict.fromkeys(n for n, _ in versions)]
    states = study.frame.state.value_counts().sort_index()
    runs = ", ".join(f"{count} {state}" for state, count in states.items())
    commands = sorted({clean(fact["command"]) for fact in facts if fact.get("command")})
    scores = study.frame.drop(columns=["variant"]).assign(path=[_relative(p, study.root) for p in study.frame.path])
    curves = _curves_table(study)
    blocks: list[Block] = [
        Text("This report is made by:"),
        Verbatim(command),
        Text(f"Folder {clean(study.root.absolute().name)}: {plural(len(study.frame), 'run')}, {runs}. "
             "A run's own command, given again, continues or repeats it."),
        Table("What the runs were made with.", ["", "value"], rows),
        Verbatim("\n".join(commands) or "not recorded", title=f"Commands of the runs ({len(commands)})"),
        *_recipes(study, configs),
        Verbatim(csv(scores), "Scores of all runs, CSV", "tables/runs.csv"),
        Verbatim(csv(curves), f"Learning curves, CSV: {study.n_bins} bins, each {100 / study.n_bins:g} % of the steps",
                 "tables/curves.csv"),
        Text("data.csv.gz beside this file holds every episode of every run: timestep, return, length."),
    ]  # fmt: skip
    return Section("Provenance", blocks, {"runs": scores, "curves": curves})


def _config(path: str) -> dict[str, Any]:
    try:
        return read_json(Path(path) / "config.json")
    except Exception:  # whatever is wrong with it, the run's row says so
        return {}


def _items(value: object) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _relative(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root))


def _curves_table(study: Study) -> pd.DataFrame:
    runs = study.compared
    bins = pd.DataFrame(np.array(list(study.curves)).reshape(-1, study.n_bins), index=runs.index)
    width = 100 / study.n_bins
    bins.columns = [f"{width * (i + 1):g}%" for i in range(study.n_bins)]
    # Four digits: the raw rows have all.
    texts = bins.map(lambda value: f"{value:.4g}")
    return pd.concat([runs[["env", "agent", "variant", "learning_rate", "seed"]], texts], axis=1)


def _recipes(study: Study, configs: Sequence[dict[str, Any]]) -> Iterable[Block]:
    """The configuration of each agent, as its first run has it."""
    seen = set()
    for agent, variant, config in zip(study.frame.agent, study.frame.variant, configs, strict=True):
        if (agent, variant) in seen or not config:
            continue
        seen.add((agent, variant))
        text = {key: value for key, value in config.items() if key not in ("agent", "env", "seed", "provenance")}
        name = f"{agent} ({variant})" if variant else agent
        yield Verbatim(json.dumps(text, indent=2), title=f"Recipe of {name}, as of its first run")
