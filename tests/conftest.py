import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import pytest
import torch
from hypothesis import settings

from alrao_rl.fast import kernels

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["compiled", "torch"])
def backend(request):
    """Small networks computed by compiled code, and, as on a GPU, by operations on tensors."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(kernels, "library", None)
        elif kernels.library is None:
            pytest.skip("no compiled library here")
        yield request.param


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make an importable package that registers the environment ``Name-v0``; gives the folder to put on the path."""
    installed = []

    def make(name, source):
        package = tmp_path / "site" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(package.parent))
        installed.append(name)
        return package.parent

    yield make
    for name in installed:
        sys.modules.pop(name, None)
        gym.registry.pop(f"{name.capitalize()}-v0", None)


WAYS = ("plain", "fast", "fast without C")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The plain method, and its faster subclasses with and without the library, by the test module's names."""
    from alrao_rl import fast
    from alrao_rl.fast import averaging as fast_averaging

    plain = request.param == "plain"
    if not plain:
        for fast_module, names in {
            fast: fast.__all__,
            fast_averaging: ("RULES", "Switch", "ExponentiatedGradient", "Whiteness", "make_rule"),
        }.items():
            for name in names:
                if hasattr(request.module, name):
                    monkeypatch.setattr(request.module, name, getattr(fast_module, name))
    if request.param == "fast without C":
        monkeypatch.setattr(kernels, "library", None)
    elif not plain and kernels.library is None:
        pytest.skip("no compiled library here")
    return request.param
