"""Every trial of every fault; the faults are in the other files."""

import os
import random

import numpy as np
import pytest

from faults.harness import OURS, Missed, Result


def processor_seconds():
    """Of this process and those it has waited for: what a trial costs on a machine that others use too."""
    return sum(os.times()[:4])


def test_fault(trial, full, record, tmp_path):
    fault, subject, number = trial
    if record.has(fault.name, subject, number):
        pytest.skip("in the record")
    run = fault.stock if subject != OURS else fault.run if full or fault.short_run is None else fault.short_run
    random.seed(number)
    np.random.seed(number)
    place = tmp_path / "place"
    place.mkdir()
    before = processor_seconds()
    missed: Exception | None = None
    try:
        result = run(number, place) or Result()
    except Missed as reason:
        missed, result = reason, Result(detail=str(reason))
    except Exception as error:  # a trial that breaks has not reached the figure
        missed, result = error, Result(detail=f"{type(error).__name__}: {error}")
    record.add(fault.name, subject, number, missed is None, result, processor_seconds() - before)
    if missed and not isinstance(missed, Missed):
        raise missed
    if missed and subject == OURS:
        pytest.fail(str(missed), pytrace=False)
