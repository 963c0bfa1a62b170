"""The suite with the oldest releases that pyproject.toml allows, in a virtual environment of its own."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent
OLDEST = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
PROJECT = f"{ROOT}[contrib,export,supervised,video]"
# The extras envs, mujoco and test by their packages: what gymnasium[box2d] asked for at 1.1.0 has to be compiled.
MORE = ["ale-py", "Box2D", "imageio", "minatar", "mujoco", "opencv-python-headless"]
MORE += ["hypothesis", "onnxruntime", "psutil", "pytest", "pytest-timeout", "pytest-xdist", "tensorboard"]


def test_the_pins_are_the_lower_bounds():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(dependencies), re.MULTILINE))
    assert {"gymnasium", "numpy", "pandas"} == OLDEST.keys()
    for name, version in OLDEST.items():
        assert Version(version) == Version(bounds[name]), name


def run(*args, **options):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(list(map(str, args)), env=environ, text=True, **options)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_quick_suite(tmp_path):
    """Some 3 GB while it runs."""
    others = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.partition("==")[0] not in OLDEST
    ]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join([*others, *(f"{name}=={version}" for name, version in OLDEST.items()), ""]))
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv", check=True)
    install = (
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "2",
        "--constraint",
        constraints,
    )
    # torch first and alone, as in the Makefile.
    for packages in ([next(line for line in others if line.startswith("torch=="))], [PROJECT, *MORE]):
        done = run(*install, *packages, stderr=subprocess.PIPE)
        if done.returncode and re.search("connection broken|NewConnectionError|ConnectTimeout", done.stderr):
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr
    versions = "import sys, importlib.metadata as m; print([m.version(name) for name in sys.argv[1:]])"
    assert run(python, "-c", versions, *OLDEST, stdout=subprocess.PIPE).stdout == f"{list(OLDEST.values())}\n"
    quick = "not slow and not long and not faults"
    done = run(python, "-m", "pytest", "-q", "-n", 2, "-m", quick, "-p", "no:cacheprovider", cwd=ROOT)
    assert done.returncode == 0
