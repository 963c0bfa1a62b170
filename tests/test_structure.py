"""The structure: which way imports point, what lies where, and that the method is plain."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alrao_rl"
# A part is a folder of the package, or a file beside them; it imports parts of the lines above its own and no others.
FLOORS = [
    {"errors", "numbers"},
    {"checks", "notation"},
    {"cli", "core", "stats"},
    {"fast", "plain", "recipes", "runs"},
    {"sb3", "environments"},
    {"agents", "envs", "registry", "report"},
    {"train", "enjoy", "export"},
    {"sweep"},
]
# What else these may import, besides the standard library.
ONLY = {"core": {"torch", "typing_extensions"}, "fast": {"torch"}, "stats": {"numpy", "scipy", "pandas"}}


def imports(path):
    """Every module that a file imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path):
    """``alrao_rl.core.heads`` of its file, ``alrao_rl.core`` of the folder's ``__init__.py``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part(module):
    return module.split(".")[1]


def test_imports_point_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.name != "__init__.py"]
    assert {part(module_name(path)) for path in modules} == set(floor)
    for path in modules:
        here = part(module_name(path))
        for name in imports(path):
            top = name.partition(".")[0]
            # The package itself has the version, and all public names for whoever builds by name.
            if top == "alrao_rl" and name not in ("alrao_rl", "alrao_rl.__version__"):
                assert part(name) == here or floor[part(name)] < floor[here], f"{path} imports {name}"
            elif here in ONLY and top not in sys.stdlib_module_names:
                assert top in ONLY[here], f"{path} imports {name}"


def test_no_circle():
    """Not even inside of a room, nor by imports in functions."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    edges = {}
    for module, path in paths.items():
        found = {name if name in paths else name.rpartition(".")[0] for name in imports(path)}
        edges[module] = (found & paths.keys()) - {module, "alrao_rl"}
    TopologicalSorter(edges).prepare()


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
        "import sys; from alrao_rl.train.command import main;"
        f"main(['--algo', '{algo}', '--env', 'CartPole-v1', '--dry-run']);"
        "heavy = {'sympy', 'torch._dynamo', 'pandas', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_statistics_need_no_torch():
    """People's notebooks load results and compare them without waiting for torch."""
    script = (
        "import sys, alrao_rl, alrao_rl.stats, alrao_rl.report, alrao_rl.report.sections; alrao_rl.load_results;"
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
