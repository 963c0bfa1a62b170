"""One test a trial. All of them under ``-m faults``, at most ``TRIALS`` a fault; the first few otherwise."""

import os

import pytest

from faults.faults import FAULTS
from faults.harness import CSV, OURS, Record


def is_full(config):
    return config.option.markexpr.strip().split(" ")[0] == "faults"


def pytest_generate_tests(metafunc):
    if "trial" in metafunc.fixturenames:
        most = int(os.environ.get("TRIALS") or 10**9)
        trials = [(fault, *one) for fault in FAULTS for one in fault.trials() if one[1] < most]
        ids = [f"{fault.name}-{'' if subject == OURS else 'stock-'}{number}" for fault, subject, number in trials]
        metafunc.parametrize("trial", trials, ids=ids)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark what the fast suite leaves out."""
    for item in items:
        if "trial" in getattr(item, "fixturenames", ()):
            fault, subject, number = item.callspec.params["trial"]
            item.add_marker(pytest.mark.timeout(3600))  # two hundred runs, on a machine that may be busy
            if is_full(config) or subject != OURS or number >= fault.short:
                item.add_marker("faults")
            else:
                item.add_marker("slow")


@pytest.fixture
def full(request):
    return is_full(request.config)


@pytest.fixture
def record(full, tmp_path):
    """The tracked one for the whole suite; a look leaves no trace."""
    return Record(CSV if full else tmp_path / "reliability.csv")
