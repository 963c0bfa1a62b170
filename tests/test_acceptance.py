"""What the README promises of CartPole-v1, for ten seeds: a quarter to half an hour, run by ``make test-long``."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algo", ["dqn", "a2c", "ppo"])
def test_ten_seeds_of_cartpole(algo):
    spec = importlib.util.spec_from_file_location(
        "acceptance", Path(__file__).parent.parent / "results" / "acceptance.py"
    )
    acceptance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(acceptance)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(acceptance.train_and_play, [algo] * 10, acceptance.SEEDS))
    print(f"{algo}: return over 100 episodes and seconds, seeds 0 to 9: {results}")
    assert sum(score >= 475 for score, _ in results) >= 8, results
    assert sorted(seconds for _, seconds in results)[5] < 180, results
