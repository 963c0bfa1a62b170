"""Make a report of all runs under a folder: ``python -m alrao_rl.report results/NAME``."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from alrao_rl.cli.console import CommandLine, print_error, print_warning, say
from alrao_rl.errors import UserError
from alrao_rl.notation import plural
from alrao_rl.runs import logs
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.runs.reading import read_json, read_run_file

if TYPE_CHECKING:
    import argparse

    import pandas as pd

REFRESH = 30
"""Seconds between two looks of ``--watch``."""
_NAMED = 5
"""Broken runs that are named on the terminal."""
MANIFEST = "files.json"
"""What a report consists of."""
_PART = r"(figures|tables)/[\w.+-]+\.(svg|png|csv)"


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.report",
        description="Make a report of all runs under a folder: report.html, one file that needs no network, and beside "
        "it report.md, tables/*.csv, figures/*.svg and *.png, and the raw episodes data.csv.gz.",
        epilog="Example: python -m alrao_rl.report results/first-sweep --baseline dqn-adam",
    )
    p.add_argument("path", type=Path, metavar="PATH", help="a folder with runs, such as results/NAME")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: PATH/report)")
    p.add_argument(
        "--baseline", metavar="AGENT", help="compare with this agent (default: each Alrao agent's stock ones)"
    )
    p.add_argument("--watch", action="store_true", help=f"look again every {REFRESH} s until no run is left to finish")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for a mistake in the arguments."""
    try:
        args = parser().parse_args(argv)
        if args.watch:
            watch(args)
        else:
            make(args)
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print_error("interrupted; what was written is whole")
        return 130
    return 0


def make(args: argparse.Namespace, refresh: int = 0) -> bool:
    """Make the report once, all of it in memory before the first file is written.

    Returns:
        Whether every requested run is over.

    Raises:
        UserError: no run, an unknown baseline, or a folder that cannot be written.
    """
    from alrao_rl.report import sections
    from alrao_rl.report.sections.words import runs_finished
    from alrao_rl.report.study import Study

    study = Study(args.path)
    broken = study.frame[study.frame.state == "broken"]
    if not study.asked_seeds and len(broken) == len(study.frame):
        raise UserError(f"{args.path} holds no run that can be read: {broken.path.iloc[0]}: {broken.error.iloc[0]}")
    baseline = None if args.baseline is None else study.baseline(args.baseline)
    command = ["python", "-m", "alrao_rl.report", args.path.as_posix()]
    command += [] if args.baseline is None else ["--baseline", args.baseline]
    command += [] if args.out is None else ["--out", args.out.as_posix()]
    files = {"data.csv.gz": episodes(study.frame)}
    files |= sections.report(study, baseline, shlex.join(command)).files(refresh)
    out = args.path / "report" if args.out is None else args.out
    write(out, files)
    size = len(files["report.html"]) / 1e6
    finished = runs_finished(*study.in_all, requested=bool(study.asked_seeds))
    say(f"{out / 'report.html'}: {finished}, {size:.1f} MB")
    for warning in study.warnings:
        print_warning(warning)
    for path, error in list(zip(broken.path, broken.error, strict=True))[:_NAMED]:
        print_warning(f"{path}: {error}")
    if len(broken) > _NAMED:
        print_warning(f"{plural(len(broken) - _NAMED, 'more run is', 'more runs are')} broken: the report names them")
    return all(state == "broken" for *_, absent in study.missing() for _, state in absent)


def watch(args: argparse.Namespace) -> None:
    """Make the report anew whenever a run has written something, until all are over; the page reloads itself."""
    from alrao_rl.runs.results import walk

    seen: object = None
    while True:
        state = _state(args.path)
        if state != seen:
            first, seen = seen is None, state
            try:
                if make(args, REFRESH):
                    break
            except UserError as error:
                # Later, it may be what a run is just writing.
                there = [{"config.json", logs.FILE}.intersection(files) for *_, files in walk(args.path)]
                if first and (not args.path.is_dir() or any(there)):
                    raise
                say(f"waiting: {error}")
        time.sleep(REFRESH)
    make(args)


def _state(root: Path) -> object:
    """What changes when a run writes."""
    from alrao_rl.runs.results import walk

    names = {"status.json", "episodes.csv", "sweep.toml", logs.FILE}
    stats = []
    for path in (Path(place, name) for place, _, files in walk(root) for name in names.intersection(files)):
        try:
            stat = path.stat()
        except OSError:  # it was there a moment ago
            continue
        stats.append((str(path), stat.st_mtime_ns, stat.st_size))
    return sorted(stats)


def write(out: Path, files: dict[str, bytes]) -> None:
    """Write the files, each at once, in their order, and remove those that only an earlier report wrote.

    ``files.json`` lists what a report has written: nobody else's file is removed.

    Raises:
        UserError: one cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        old = _listed(out / MANIFEST)
        # Both until the old ones are gone, should this be broken off.
        _list(out / MANIFEST, old | files.keys())
        for name, data in files.items():
            path = out / name
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, data)
        for name in old - files.keys():
            (out / name).unlink(missing_ok=True)
        _list(out / MANIFEST, files.keys())
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from None


def _listed(manifest: Path) -> set[str]:
    """Figures and tables that an earlier report wrote; what names another place is passed over."""
    try:
        names = read_json(manifest).get("files")
    except UserError:
        return set()
    return {name for name in names if re.fullmatch(_PART, str(name))} if isinstance(names, list) else set()


def _list(manifest: Path, names: Iterable[str]) -> None:
    write_atomically(manifest, json.dumps({"files": sorted(names)}, indent=1) + "\n")


def episodes(runs: pd.DataFrame) -> bytes:
    """Every line of every ``episodes.csv``, whole ones only, behind its run's name, as gzipped CSV."""
    from alrao_rl.runs.results import each_row

    data = io.BytesIO()
    # No time and no file name in the header: the same data are the same bytes.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=data, mtime=0) as file:
        file.write(b"env,agent,setting,seed,state,timestep,return,length\n")
        for run in each_row(runs):
            try:
                lines = read_run_file(Path(run.path), "episodes.csv")
            except OSError:
                continue
            file.write(_prefixed(lines, [run.env, run.agent, run.setting, run.seed, run.state]))
    return data.getvalue()


def _prefixed(lines: bytes, cells: list[object]) -> bytes:
    """The whole lines below the header, each behind the cells."""
    prefix = io.StringIO()
    csv.writer(prefix, lineterminator=",").writerow(cells)
    text = prefix.getvalue().encode()
    body = lines[lines.find(b"\n") + 1 : lines.rfind(b"\n") + 1]
    # A function, lest a backslash in a name be read as part of the pattern.
    return re.sub(rb"^(?=.)", lambda _: text, body, flags=re.MULTILINE)
