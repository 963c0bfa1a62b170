"""What the README promises of CartPole-v1, for ten seeds: a quarter to half an hour, run by ``make test-long``."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from common import ROOT, script


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algo", ["dqn", "a2c", "ppo"])
def test_ten_seeds_of_cartpole(algo):
    acceptance = script(ROOT / "results" / "acceptance.py")
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(acceptance.train_and_play, [algo] * 10, acceptance.SEEDS))
    print(f"{algo}: return over 100 episodes and seconds, seeds 0 to 9: {results}")
    assert sum(score >= 475 for score, _ in results) >= 8, results
    assert sorted(seconds for _, seconds in results)[5] < 180, results
