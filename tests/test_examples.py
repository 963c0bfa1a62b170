"""The examples run as they are printed, only shorter."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_runs(path, capsys):
    runpy.run_path(str(path))["main"](2_048)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_page_on_your_own_environment(tmp_path):
    """Its commands, with its files beside the example, only shorter."""
    text = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    files = dict(zip(("corridor.toml", "mine.toml"), re.findall(r"```toml\n(.*?)```", text, re.DOTALL), strict=True))
    files["own_environment.py"] = (EXAMPLES / "own_environment.py").read_text(encoding="utf-8")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    commands = re.findall(r"^python -m alrao_rl.*$", text, re.MULTILINE)
    commands += [commands[-1].replace("--algo ppo", "--agent mine.toml").replace("from-file", "mine") + " --dry-run"]
    commands[1] += " --dry-run"
    for command in commands:
        words = [*shlex.split(command)[1:], "--timesteps", "300", "--eval-episodes", "1"]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert re.search(r"env.kwargs.length += 10", done.stdout)


@pytest.mark.slow
def test_a_single_file_learns():
    assert runpy.run_path(str(EXAMPLES / "single_file.py"))["main"](60_000) > 200
