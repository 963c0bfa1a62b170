"""The plan of the house: which way imports point, what lies where, and that the method is plain."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alrao_rl"
# What a folder may import besides the standard library; of alrao_rl, the listed parts only.
ALLOWED = {
    "errors.py": set(),
    "numbers.py": set(),
    "notation.py": {"alrao_rl.errors"},
    "interruption.py": set(),
    "provenance.py": {"alrao_rl.__version__"},
    "checks.py": {"alrao_rl.errors"},
    # Formats and records know nothing of what they hold.
    "ring.py": {"numpy"},
    "checkpoint.py": {"torch", "numpy", "safetensors", "alrao_rl.errors", "alrao_rl.ring"},
    "recorder.py": {"gymnasium", "numpy", "stable_baselines3", "alrao_rl.errors"},
    # Every worker of a sweep loads it.
    "worker.py": {"alrao_rl.errors", "alrao_rl.interruption", "alrao_rl.runs"},
    "tether.py": set(),
    "rows.py": {"alrao_rl.errors", "alrao_rl.runs"},
    "tracking.py": {"numpy", "stable_baselines3", "alrao_rl.errors", "alrao_rl.runs"},
    "snapshot.py": {"torch", "numpy", "stable_baselines3", "alrao_rl.recorder", "alrao_rl.ring"},
    "core": {"torch", "typing_extensions", "alrao_rl.checks", "alrao_rl.core"},
    "fast": {"torch", "alrao_rl.core", "alrao_rl.fast"},
    "plain.py": {"torch", "alrao_rl.core"},
    "stats.py": {"numpy", "scipy", "pandas", "alrao_rl.checks"},
    "load.py": {
        "numpy",
        "pandas",
        *(f"alrao_rl.{name}" for name in ("checks", "errors", "provenance", "runs", "stats")),
    },
    "report.py": {"pandas", *(f"alrao_rl.{name}" for name in ("errors", "load", "runs", "_report"))},
    "_report": {
        *("numpy", "pandas", "matplotlib", "jinja2"),
        *(
            f"alrao_rl.{name}"
            for name in ("checks", "errors", "load", "notation", "numbers", "provenance", "runs", "stats", "_report")
        ),
    },
    "sb3": {
        *("torch", "gymnasium", "numpy", "stable_baselines3", "sb3_contrib"),
        *(f"alrao_rl.{name}" for name in ("checks", "plain", "core", "fast", "sb3")),
    },
}
# Modules in the order of the imports: none imports one to its right.
ORDER = [
    "errors", "notation", "interruption", "provenance", "runs", "stats", "load", "report", "registry", "recipes",
    "recorder", "atari", "minatar", "supported", "envs", "agent", "ring", "checkpoint", "snapshot", "tracking",
    "evaluation", "training", "train", "plan", "rows", "survey", "progress", "worker", "sweep", "export",
]  # fmt: skip


def imports(path):
    """Every module that a file imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_one_way(folder):
    place = PACKAGE / folder
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert len(files) >= (1 if place.is_file() else 3)
    for path in files:
        for name in imports(path):
            standard = name.split(".")[0] in sys.stdlib_module_names
            assert standard or any(f"{name}.".startswith(f"{ok}.") for ok in ALLOWED[folder]), (
                f"{path.name} imports {name}"
            )


@pytest.mark.parametrize("module", ORDER)
def test_nothing_imports_a_later_module(module):
    later = {f"alrao_rl.{name}" for name in [*ORDER[ORDER.index(module) + 1 :], "enjoy"]}
    names = list(imports(PACKAGE / f"{module}.py"))
    assert names
    assert not any(f"{name}.".startswith(f"{one}.") for name in names for one in later)


@pytest.mark.parametrize("folder", ["agents", "envs"])
def test_recipes_are_toml_only(folder):
    """A top-level ``agents`` package would collide with another distribution's."""
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {path.suffix for path in files} == {".toml"}


def test_import_is_light():
    """The command line answers before torch is loaded; a public name loads it."""
    script = (
        "import sys, alrao_rl; heavy = {'torch', 'stable_baselines3', 'pandas', 'numpy', 'scipy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert 'AlraoPolicy' in dir(alrao_rl);"
        "alrao_rl.AlraoConfig; assert 'torch' in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dqn", "a2c", "ppo"])
def test_start_loads_no_compiler(algo):
    """Torch's compiler and its computer algebra take longer to load than all of SB3."""
    script = (
        f"import sys; from alrao_rl.train import main; main(['--algo', '{algo}', '--env', 'CartPole-v1', '--dry-run']);"
        "heavy = {'sympy', 'torch._dynamo', 'pandas', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_statistics_need_no_torch():
    """People's notebooks load results and compare them without waiting for torch."""
    script = (
        "import sys, alrao_rl, alrao_rl.stats, alrao_rl.report, alrao_rl._report.sections; alrao_rl.load_results;"
        "heavy = {'torch', 'stable_baselines3', 'gymnasium'} & set(sys.modules); assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_public_names_exist():
    import alrao_rl

    for name in alrao_rl.__all__:
        assert getattr(alrao_rl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'AlraoPolice'"):
        _ = alrao_rl.AlraoPolice


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.name)
def test_the_method_is_plain(path):
    """What makes it fast, by addresses, version counters and C, has a folder of its own."""
    source = path.read_text(encoding="utf-8")
    found = [word for word in ("data_ptr", "_version", "torch._C", "ctypes", "__dict__") if word in source]
    assert not found
