"""Content of the report, one section per file, in reading order."""

from __future__ import annotations

from alrao_rl.report.document import Report
from alrao_rl.report.sections import aggregates, curves, environments, heads, provenance, rates, verdict
from alrao_rl.report.study import Method, Study, clean


def report(study: Study, baseline: Method | None, command: str) -> Report:
    """The whole report.

    Args:
        study: what was run.
        baseline: the method that all others are compared with; None to choose by algorithm.
        command: that makes this report.
    """
    sections = [
        verdict.section(study, baseline),
        curves.section(study),
        aggregates.section(study, baseline),
        rates.section(study),
        environments.section(study),
        heads.section(study),
        provenance.section(study, command),
    ]
    return Report(f"Report on {clean(study.root.absolute().name)}", sections)
