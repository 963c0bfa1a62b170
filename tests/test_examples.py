"""The examples run as they are printed, only shorter."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_runs(path, capsys):
    runpy.run_path(str(path))["main"](2_048)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_single_file_learns():
    assert runpy.run_path(str(EXAMPLES / "single_file.py"))["main"](60_000) > 200
