"""Scores, aggregates and intervals: by hand, against rliable, against slow references, and at their edges."""

import json
import math
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import bootstrap, mannwhitneyu, ttest_1samp

from alrao_rl import stats

RLIABLE = json.loads((Path(__file__).parent / "fixtures" / "rliable.json").read_text())
AGGREGATES = ["iqm", "mean", "median", "optimality_gap"]
CASES = pytest.mark.parametrize("case", RLIABLE["cases"], ids=lambda case: case["name"])

scores_of_a_matrix = arrays(
    np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-10, 10).map(lambda v: round(v, 3))
)
ragged = st.lists(
    st.integers(1, 6).flatmap(lambda n: arrays(np.float64, n, elements=st.integers(-9, 9).map(float))),
    min_size=1,
    max_size=5,
)


# --- the score of a run ---------------------------------------------------------------------------------------------


def slow_curve(timesteps, returns, total, floor, n_bins=100, start=None):
    """Bin by bin."""
    bins = [[] for _ in range(n_bins)]
    for step, value in zip(timesteps, returns, strict=True):
        bins[min(step * n_bins // total, n_bins - 1)].append(value)
    first = next((float(np.mean(values)) for values in bins if values), floor)
    curve, last = [], first if start is None or not timesteps else start
    for values in bins:
        last = float(np.mean(values)) if values else last
        curve.append(last)
    return curve


def test_curve_by_hand():
    # Stretches of 10 steps: two episodes in [20, 30), one on the border of [50, 60), one past the end.
    curve = stats.curve([21, 29, 50, 103], [1.0, 3.0, 10.0, 20.0], 100, -5.0, n_bins=10)
    assert curve.tolist() == [2, 2, 2, 2, 2, 10, 10, 10, 10, 20]
    curve = stats.curve([21, 29, 50, 103], [1.0, 3.0, 10.0, 20.0], 100, -5.0, 10, start=-1.5)
    assert curve.tolist() == [-1.5, -1.5, 2, 2, 2, 10, 10, 10, 10, 20]


def test_auc_and_final_return_by_hand():
    # Timesteps 0 to 499 as a random policy, or as the first episode, then 5 a step up to 900 of 1000, then 15.
    episodes = ([500, 900], [5.0, 15.0], 1000, 0.0)
    assert stats.auc(*episodes, start=2.0) == pytest.approx((50 * 2 + 40 * 5 + 10 * 15) / 100)
    for unknown in (None, math.nan):
        assert stats.auc(*episodes, unknown) == pytest.approx((50 * 5 + 40 * 5 + 10 * 15) / 100)
    assert stats.final_return(*episodes) == pytest.approx((10 * 5 + 10 * 15) / 20)
    # The first episode ends within the last fifth.
    assert stats.final_return([900], [15.0], 1000, 0.0, start=2.0) == pytest.approx((10 * 2 + 10 * 15) / 20)


def test_auc_weighs_timesteps_and_not_episodes():
    """Ninety short bad episodes and ten long good ones take the same time."""
    steps = [*range(1, 91), *range(180, 999, 91)]
    returns = [0.0] * 90 + [1.0] * 9
    assert np.mean(returns) < 0.1
    assert stats.auc(steps, returns, 1000, 0.0) > 0.8


@given(
    st.lists(st.tuples(st.integers(0, 700), st.floats(-1e6, 1e6)), max_size=60),
    st.integers(1, 600),
    st.sampled_from([100, 7, 1]),
    st.sampled_from([None, 0.0, -8.0]),
)
def test_curve_matches_the_slow_reference(episodes, total, n_bins, start):
    steps, returns = [e[0] for e in episodes], [e[1] for e in episodes]
    expected = slow_curve(steps, returns, total, -3.0, n_bins, start)
    curve = stats.curve(steps, returns, total, -3.0, n_bins, start)
    np.testing.assert_allclose(curve, expected, rtol=1e-12, atol=1e-9)


def test_a_run_without_an_episode_scores_the_floor():
    assert stats.auc([], [], 100, -200.0) == stats.final_return([], [], 100, -200.0, start=-150.0) == -200.0


def test_an_unknown_floor_is_unknown_only_where_it_counts():
    assert math.isnan(stats.auc([], [], 100, math.nan))
    assert stats.auc([50], [1.0], 100, math.nan) == 1.0


@pytest.mark.parametrize(
    ("steps", "returns", "total", "message"),
    [
        ([1, 2], [1.0], 10, r"shapes \(2,\) and \(1,\)"),
        ([1, 2], [1.0, math.nan], 10, "returns hold nan"),
        ([1, math.inf], [1.0, 1.0], 10, "timesteps hold inf"),
        ([-1], [1.0], 10, "timesteps hold -1"),
        ([1], [1.0], 0, "total is 0"),
    ],
)
def test_curve_refuses(steps, returns, total, message):
    with pytest.raises(ValueError, match=message):
        stats.curve(steps, returns, total, 0.0)


def test_normalise():
    assert stats.normalise(261.1, 22.2, 500.0) == pytest.approx(0.5)
    assert stats.normalise([-500.0, -100.0, 100.0], -500.0, -100.0).tolist() == [0.0, 1.0, 1.5]
    assert np.isnan(stats.normalise(1.0, [math.nan, 0.0, 2.0], [1.0, math.nan, 2.0])).all()


# --- against rliable ------------------------------------------------------------------------------------------------


def within(interval, fixture, i=(), step=0.0):
    """Estimates to 1e-9, ends to 2 % of the interval's width; shares, which move in steps, may end one step away."""
    estimate, low, high = fixture
    assert interval.estimate[i] == pytest.approx(estimate, abs=1e-9)
    tolerance = max(0.02 * (high - low), step + 1e-9)
    assert [interval.low[i], interval.high[i]] == pytest.approx([low, high], abs=tolerance)


@CASES
@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_are_rliables(case, name):
    within(stats.bootstrap(getattr(stats, name), case["x"], n_resamples=50_000), case[name])


@CASES
def test_performance_profile_is_rliables(case):
    profile = partial(stats.performance_profile, thresholds=RLIABLE["thresholds"])
    interval = stats.bootstrap(profile, case["x"], n_resamples=20_000)
    for i, fixture in enumerate(case["performance_profile"]):
        within(interval, fixture, i, step=1 / np.size(case["x"]))


@CASES
def test_probability_of_improvement_is_rliables(case):
    interval = stats.bootstrap(stats.probability_of_improvement, case["x"], case["y"], n_resamples=50_000)
    pairs = np.size(case["x"]) * np.shape(case["y"])[1]
    within(interval, case["probability_of_improvement"], step=1 / pairs)


def test_fixtures_have_what_they_are_for():
    cases = {case["name"]: case for case in RLIABLE["cases"]}
    assert [np.shape(cases[name]["x"]) for name in ("1x10", "6x10", "6x5", "3x30")] == [
        (1, 10),
        (6, 10),
        (6, 5),
        (3, 30),
    ]
    ties = np.array(cases["ties"]["x"])
    assert len(np.unique(ties)) < ties.size / 2
    tails = np.array(cases["heavy tails"]["x"])
    assert np.ptp(tails) > 5 * np.subtract(*np.quantile(tails, [0.75, 0.25]))
    assert np.shape(cases["6x10 and 6x5"]["y"]) == (6, 5)


# --- aggregates -----------------------------------------------------------------------------------------------------


def test_aggregates_by_hand():
    scores = {"a": [0.0, 1.0, 2.0, 9.0], "b": [0.5, 0.5, 1.5, 1.5]}
    # Sorted: 0, .5, .5, 1, 1.5, 1.5, 2, 9; the middle four are .5, 1, 1.5, 1.5.
    assert stats.iqm(scores) == pytest.approx(4.5 / 4)
    assert stats.mean(scores) == pytest.approx((3 + 1) / 2)
    assert stats.median({**scores, "c": [7.0]}) == pytest.approx(3)
    assert stats.optimality_gap(scores) == pytest.approx(1 - (3 / 4 + 3 / 4) / 2)
    assert stats.optimality_gap(scores, gamma=2.0) == pytest.approx(2 - (5 / 4 + 4 / 4) / 2)
    assert stats.performance_profile(scores, [0.0, 0.5, 1.5, 9.0]).tolist() == [7 / 8, 5 / 8, 2 / 8, 0]


def test_iqm_leaves_out_a_quarter_at_each_end():
    squares = [float(i * i) for i in range(12)]
    assert stats.iqm([squares]) == pytest.approx((9 + 16 + 25 + 36 + 49 + 64) / 6)
    assert stats.iqm([squares[:7]]) == pytest.approx((1 + 4 + 9 + 16 + 25) / 5)
    assert stats.iqm([[0.0, 1.0, 100.0]]) == pytest.approx(101 / 3)


def test_iqm_of_environments_with_different_seeds():
    """Two runs of b count as often as four of a: 0, 1, 2, 3, 10, 10, 20, 20 without two at each end."""
    assert stats.iqm([[0.0, 1.0, 2.0, 3.0], [10.0, 20.0]]) == pytest.approx((2 + 3 + 10 + 10) / 4)


@given(ragged)
def test_environments_weigh_the_same(scores):
    """Repeating an environment's runs changes no aggregate: as many of each as the least common multiple."""
    common = math.lcm(*map(len, scores))
    repeated = [np.repeat(one, common // len(one)) for one in scores]
    for name in AGGREGATES:
        aggregate = getattr(stats, name)
        assert aggregate(scores) == pytest.approx(aggregate(repeated), abs=1e-12)
    levels = [-3, 0, 3]
    np.testing.assert_allclose(stats.performance_profile(scores, levels), stats.performance_profile(repeated, levels))


@given(scores_of_a_matrix, st.randoms(use_true_random=False), st.floats(0.1, 5), st.floats(-5, 5))
def test_invariance(matrix, random, scale, shift):
    """The order of environments and seeds does not matter; location and scale pass through."""
    shuffled = [random.sample(list(row), len(row)) for row in random.sample(list(matrix), len(matrix))]
    for name in ("iqm", "mean", "median"):
        aggregate = getattr(stats, name)
        value = aggregate(matrix)
        assert aggregate(shuffled) == pytest.approx(value, abs=1e-9)
        assert aggregate(scale * matrix + shift) == pytest.approx(scale * value + shift, abs=1e-9)
        assert matrix.min() - 1e-9 <= value <= matrix.max() + 1e-9
    assert stats.optimality_gap(matrix, gamma=20) == pytest.approx(20 - stats.mean(matrix), abs=1e-9)


@given(scores_of_a_matrix)
def test_profile_falls_and_its_area_is_the_mean(matrix):
    levels = np.linspace(-11, 11, 2201)
    profile = stats.performance_profile(matrix, levels)
    assert (np.diff(profile) <= 1e-12).all()
    assert profile[[0, -1]].tolist() == [pytest.approx(1), 0]
    # E[X] = low + ∫ P(X > t) dt, in steps of 0.01.
    assert -11 + profile.sum() * 0.01 == pytest.approx(stats.mean(matrix), abs=0.011)


@pytest.mark.parametrize("name", [*AGGREGATES, "performance_profile", "probability_of_improvement", "paired"])
def test_axes_before_the_seeds_are_carried_through(name):
    """What the bootstrap stands on: a stack of scores gives the stack of what each set of them gives."""
    rng = np.random.default_rng(0)
    x, y = ([rng.integers(0, 9, (3, 4, n)).astype(float) for n in sizes] for sizes in ((5, 2, 4), (5, 2, 4)))
    functions = {
        "performance_profile": lambda x, y: stats.performance_profile(x, [2, 5]),
        "probability_of_improvement": stats.probability_of_improvement,
        "paired": stats.paired_probability_of_improvement,
    }
    f = functions.get(name, lambda x, y: getattr(stats, name)(x))
    stacked = f(x, y)
    assert stacked.shape == ((2, 3, 4) if name == "performance_profile" else (3, 4))
    for i, j in np.ndindex(3, 4):
        np.testing.assert_allclose(stacked[..., i, j], f([e[i, j] for e in x], [e[i, j] for e in y]), atol=1e-12)


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_probability_of_improvement_by_hand():
    x, y = {"a": [1.0, 3.0], "b": [5.0]}, {"b": [5.0, 9.0, 1.0], "a": [2.0, 3.0]}
    # a: 1 loses twice, 3 wins once and draws once; b: a draw, a loss, a win.
    assert stats.probability_of_improvement(x, y) == pytest.approx((1.5 / 4 + 1.5 / 3) / 2)


@given(ragged, st.randoms(use_true_random=False))
def test_probability_of_improvement_is_mann_and_whitneys(x, random):
    y = [np.array([float(random.randint(-9, 9)) for _ in range(random.randint(1, 6))]) for _ in x]
    u = [mannwhitneyu(a, b, method="asymptotic").statistic / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    assert stats.probability_of_improvement(x, y) == pytest.approx(np.mean(u))
    assert stats.probability_of_improvement(y, x) == pytest.approx(1 - np.mean(u))


def test_paired_probability_of_improvement_by_hand():
    x = {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 0.0]}
    y = {"b": [0.0, 1.0], "a": [0.5, 1.5, 2.5, 9.0]}
    assert stats.paired_probability_of_improvement(x, y) == pytest.approx((3 / 4 + 1 / 4) / 2)
    # Unpaired, y's seeds blur it: 0 + 1 + 2 + 3 of 16 pairs lost, and so on.
    assert stats.probability_of_improvement({"a": x["a"]}, {"a": y["a"]}) == pytest.approx((1 + 2 + 3 + 3) / 16)


@pytest.mark.parametrize(
    ("compare", "x", "y", "message"),
    [
        ("probability_of_improvement", {"a": [1.0]}, {"b": [1.0]}, r"different environments \(a, b\)"),
        ("probability_of_improvement", [[1.0]], [[1.0], [2.0]], "different environments"),
        ("paired_probability_of_improvement", [[1.0, 2.0]], [[1.0]], "2 seeds of one method and 1 of the other"),
    ],
)
def test_comparisons_refuse(compare, x, y, message):
    with pytest.raises(ValueError, match=message):
        getattr(stats, compare)(x, y)


def test_scores_refuse():
    with pytest.raises(ValueError, match="environment 'a' hold nan, expected finite numbers: a failed run scores"):
        stats.mean({"a": [1.0, math.nan]})
    with pytest.raises(ValueError, match=r"environment 0 are 1.0, expected an array"):
        stats.iqm([1.0, 2.0])


# --- intervals ------------------------------------------------------------------------------------------------------


def test_bootstrap_by_hand():
    """Two runs of 0 and 1: a resample's mean is 0, ½ or 1 with probabilities ¼, ½, ¼."""
    assert stats.bootstrap(stats.mean, [[0.0, 1.0]]) == (0.5, 0.0, 1.0)
    low, high = stats.bootstrap(stats.mean, [[0.0, 1.0]], confidence=0.4)[1:]
    assert low == high == 0.5


def test_bootstrap_keeps_environments_apart():
    """Environments far from each other but without spread inside give no spread at all."""
    assert stats.bootstrap(stats.mean, {"a": [0.0] * 5, "b": [100.0] * 5}) == (50, 50, 50)


def test_bootstrap_is_reproducible_and_seeded():
    x = np.random.default_rng(0).normal(size=(3, 7))
    assert stats.bootstrap(stats.iqm, x) == stats.bootstrap(stats.iqm, x)
    assert stats.bootstrap(stats.iqm, x) != stats.bootstrap(stats.iqm, x, seed=1)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    stats.bootstrap(stats.iqm, x)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_bootstrap_hands_dicts_to_a_statistic_that_was_given_dicts():
    scores = {"a": [1.0, 2.0, 4.0], "b": [0.0, 3.0]}
    by_name = stats.bootstrap(
        lambda s: s["a"].mean(axis=-1) if isinstance(s["a"], np.ndarray) else np.mean(s["a"]), scores
    )
    assert by_name.estimate == pytest.approx(7 / 3)
    assert 1 <= by_name.low < by_name.high <= 4


def test_paired_bootstrap_draws_the_same_seeds():
    """Y is X and a little more, by seed: paired there is no doubt about the difference, unpaired a lot."""
    x = {"a": [1.0, 5.0, 9.0, 2.0], "b": [3.0, 8.0]}
    y = {"b": [2.5, 7.5], "a": [0.5, 4.5, 8.5, 1.5]}

    def gain(x, y):
        return stats.mean(x) - stats.mean(y)

    paired = stats.bootstrap(gain, x, y, paired=True)
    assert [paired.low, paired.high] == pytest.approx([0.5, 0.5])
    assert np.ptp(stats.bootstrap(gain, x, y)[1:]) > 2
    won = stats.bootstrap(stats.paired_probability_of_improvement, x, y, paired=True)
    assert won == (1, 1, 1)
    with pytest.raises(ValueError, match="seeds of one method"):
        stats.bootstrap(gain, [[1.0, 2.0]], [[1.0, 2.0, 3.0]], paired=True)


@pytest.mark.parametrize("method", ["percentile", "basic", "BCa"])
def test_degenerate_scores_have_a_defined_interval_and_no_warning(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval_of = partial(stats.bootstrap, stats.iqm, method=method, n_resamples=200)
        assert interval_of([[0.3] * 4, [0.3] * 9]) == pytest.approx((0.3, 0.3, 0.3))
        one = interval_of([[0.3]])
        assert one.estimate == 0.3
        assert np.isnan(one[1:]).all()
        # One environment of a single seed: its spread is unknown, so is that of the whole.
        assert np.isnan(interval_of([[0.3], [1.0, 2.0]])[1:]).all()
        for none in ({}, [], {"a": []}, {"a": [], "b": [1.0, 2.0]}):
            assert np.isnan(interval_of(none)).all()
        # Where every run is above a threshold or below it there is nothing to bootstrap.
        profile = partial(stats.performance_profile, thresholds=[-9, 0.5, 9])
        interval = stats.bootstrap(profile, [[0.0, 1.0, 0.2, 0.9]], method=method)
        assert interval.low[[0, 2]].tolist() == interval.high[[0, 2]].tolist() == [1, 0]
        assert 0 <= interval.low[1] < 0.5 < interval.high[1] <= 1


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [], "b": [1.0]}])
def test_no_runs_give_nan(scores):
    for name in AGGREGATES:
        assert math.isnan(getattr(stats, name)(scores))
    assert np.isnan(stats.performance_profile(scores, [0, 1])).tolist() == [True, True]
    assert math.isnan(stats.probability_of_improvement(scores, scores))
    assert math.isnan(stats.paired_probability_of_improvement(scores, scores))


def test_intervals_are_scipys():
    """A plain call of SciPy's with the same draws gives the same ends; on this skewed sample the methods differ."""
    x = np.random.default_rng(1).exponential(size=12)
    found = {}
    for method in ("percentile", "basic", "BCa"):
        found[method] = stats.bootstrap(stats.mean, [x], method=method, n_resamples=2_000, seed=7)
        plain = bootstrap((x,), np.mean, method=method, n_resamples=2_000, rng=np.random.default_rng(7))
        assert found[method][1:] == pytest.approx(tuple(plain.confidence_interval), rel=1e-12)
    assert found["basic"].high < found["percentile"].high - 0.1 < found["BCa"].high - 0.2


def test_percentiles_count_where_bca_is_not_defined():
    """No single run moves this median: BCa has 0/0. Three of five draws are 5 with probability 5.8 %."""
    interval = stats.bootstrap(lambda s: np.median(s[0], axis=-1), [[1, 1, 1, 1, 5]], confidence=0.9, method="BCa")
    assert interval == (1, 1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.0}, r"confidence is 1.0, expected a number in \(0, 1\)"),
        ({"method": "bca"}, "method is 'bca', expected one of .* did you mean 'BCa'"),
        ({"n_resamples": 0}, "n_resamples is 0"),
    ],
)
def test_bootstrap_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        stats.bootstrap(stats.mean, [[1.0, 2.0]], **options)


def test_a_statistic_that_forgets_the_last_axis_is_refused():
    with pytest.raises(ValueError, match="work along the last axis"):
        stats.bootstrap(lambda s: np.mean(s[0]), [[1.0, 2.0, 3.0]])


def test_mean_interval_by_hand():
    """Mean 1, standard deviation 1, and 4.3027 is Student's quantile with two degrees of freedom."""
    assert stats.mean_interval([0.0, 1.0, 2.0]) == pytest.approx(
        (1, 1 - 4.30265 / 3**0.5, 1 + 4.30265 / 3**0.5), abs=1e-5
    )
    assert stats.mean_interval([3.0, 3.0]) == (3, 3, 3)
    assert np.isnan(stats.mean_interval([3.0])).tolist() == [False, True, True]
    assert np.isnan(stats.mean_interval([])).all()


def test_mean_interval_as_text():
    assert stats.mean_interval([0.0, 1.0, 2.0]).plus_minus(2) == "1.00 ± 2.48"
    assert stats.mean_interval([3.0]).plus_minus(0) == "3"


def test_mean_interval_is_scipys():
    x = np.random.default_rng(0).normal(size=(3, 7))
    ours = stats.mean_interval(x, confidence=0.8)
    np.testing.assert_allclose(ours[1:], ttest_1samp(x, 0, axis=-1).confidence_interval(0.8))
    assert ours.low.tolist() == [stats.mean_interval(row, confidence=0.8).low for row in x]


@pytest.mark.parametrize("values", [[1.0, math.nan], 1.0])
def test_mean_interval_refuses(values):
    with pytest.raises(ValueError, match=r"^the scores (hold nan, expected finite|are 1\.0, expected an array)"):
        stats.mean_interval(values)


def test_learning_curve():
    rng = np.random.default_rng(0)
    curves = {"a": rng.normal(size=(6, 5)), "b": rng.normal(size=(4, 5))}
    band = stats.learning_curve(curves)
    assert band.estimate.shape == band.low.shape == band.high.shape == (5,)
    for i in range(5):
        point = stats.bootstrap(stats.iqm, {env: one[:, i] for env, one in curves.items()}, n_resamples=2_000)
        assert band.estimate[i] == pytest.approx(point.estimate)
        assert [band.low[i], band.high[i]] == pytest.approx(point[1:])


def test_coverage_is_that_of_a_simulation():
    """Mean of normal scores: how often the percentile interval holds the truth in 2,000 experiments."""
    rng = np.random.default_rng(0)
    for n_seeds, n_envs in [(3, 1), (5, 1), (10, 1), (3, 6)]:
        scores = rng.normal(size=(2_000, n_envs, n_seeds))
        drawn = rng.integers(0, n_seeds, (500, *scores.shape))
        means = np.take_along_axis(scores[None], drawn, axis=-1).mean(axis=(-2, -1))
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        simulated = np.mean((low <= 0) & (high >= 0))
        assert stats.coverage(n_seeds, n_envs) == pytest.approx(simulated, abs=0.03)


def test_coverage_values():
    assert [round(stats.coverage(n), 2) for n in (3, 5, 10, 20)] == [0.75, 0.85, 0.9, 0.93]
    assert [round(stats.coverage(n, 6), 2) for n in (3, 5, 10, 20)] == [0.86, 0.91, 0.93, 0.94]
    assert math.isnan(stats.coverage(1))
    assert stats.coverage(100_000) == pytest.approx(0.95, abs=1e-4)
    with pytest.raises(ValueError, match="n_seeds is 0"):
        stats.coverage(0)


# --- sensitivity ----------------------------------------------------------------------------------------------------

SETTINGS = {
    1e-4: {"a": [0.1, 0.3], "b": [0.9]},
    1e-3: {"a": [0.6, 0.6], "b": [0.7]},
    1e-2: {"a": [0.8, 0.8], "b": [0.0]},
}


def test_sensitivity_by_hand():
    """Best on a: 0.8 at 1e-2; on b: 0.9 at 1e-4; on both: 0.65 at 1e-3."""
    assert stats.sensitivity(SETTINGS) == pytest.approx((0.2, 0.85, 0.65))
    assert stats.tuned_choice(SETTINGS) == {"a": 1e-2, "b": 1e-4}
    assert stats.shared_choice(SETTINGS) == 1e-3
    assert stats.sensitivity({"only": SETTINGS[1e-4]}) == pytest.approx((0, 0.55, 0.55))


def test_choices_are_made_on_tuning_seeds():
    """The tuning seeds take 1e-4 for both and everywhere: what is reported is its score, not the best one's."""
    tuning = {h: {"b": [1.0 if h == 1e-4 else 0.0], "a": [0.9 if h == 1e-4 else 0.5]} for h in reversed(SETTINGS)}
    assert stats.sensitivity(SETTINGS, tuning) == pytest.approx((0, 0.55, 0.55))
    with pytest.raises(ValueError, match=r"settings and tuning have different settings \(0.01\)"):
        stats.sensitivity(SETTINGS, {h: tuning[h] for h in (1e-4, 1e-3)})


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_sensitivity_is_never_negative_on_its_own_seeds(n_settings, n_envs, n_seeds, seed):
    values = np.random.default_rng(seed).integers(0, 5, (n_settings, n_envs, n_seeds)).astype(float)
    phi, tuned, shared = stats.sensitivity(dict(enumerate(values)))
    gamma = values.mean(axis=-1)
    assert tuned == pytest.approx(gamma.max(axis=0).mean())
    assert shared == pytest.approx(gamma.mean(axis=1).max())
    assert phi == pytest.approx(tuned - shared)
    assert phi >= -1e-12


def test_sensitivity_can_be_bootstrapped():
    settings = {h: np.random.default_rng(h).normal(h, 0.1, (2, 8)) for h in (1, 2)}

    def phi(*scores):
        return stats.sensitivity(dict(zip(settings, scores, strict=True))).phi

    interval = stats.bootstrap(phi, *settings.values())
    assert interval == pytest.approx((0, 0, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "there is no setting"),
        ({1: {}}, "the settings have no environment"),
        ({1: {"a": [1.0]}, 2: {"b": [1.0]}}, r"setting 2 and the first have different environments \(b, a\)"),
        ({1: {"a": [1.0]}, 2: {"a": []}}, "setting 2 has no run on a"),
    ],
)
def test_sensitivity_refuses(settings, message):
    for function in (stats.sensitivity, stats.tuned_choice, stats.shared_choice):
        with pytest.raises(ValueError, match=message):
            function(settings)


# --- scores from a table of runs ------------------------------------------------------------------------------------


def table(rows):
    return pd.DataFrame(rows, columns=["env", "seed", "learning_rate", "auc_normalised"])


def test_a_column_that_is_not_there():
    with pytest.raises(ValueError, match="score is 'acu', expected one of env, seed, auc; did you mean 'auc'"):
        stats.by_environment(pd.DataFrame({"env": ["a"], "seed": [0], "auc": [1.0]}), "acu")


def test_by_environment_and_by_setting():
    runs = table([("b", 1, 0.1, 0.4), ("a", 2, 0.1, 0.3), ("a", 0, 0.1, 0.1), ("a", 0, 0.2, 0.7)])
    first = stats.by_environment(runs[runs.learning_rate == 0.1])
    assert {env: scores.tolist() for env, scores in first.items()} == {"a": [0.1, 0.3], "b": [0.4]}
    both = stats.by_setting(runs)
    assert list(both) == [0.1, 0.2]
    assert both[0.2]["a"].tolist() == [0.7]


def test_paired_by_seed():
    x = table([("a", 2, 0, 0.2), ("a", 1, 0, 0.1), ("a", 3, 0, 0.3), ("b", 1, 0, 0.5)])
    y = table([("a", 1, 0, 1.1), ("a", 2, 0, 1.2), ("c", 1, 0, 9.0)])
    one, other = stats.paired_by_seed(x, y)
    assert {env: scores.tolist() for env, scores in one.items()} == {"a": [0.1, 0.2]}
    assert {env: scores.tolist() for env, scores in other.items()} == {"a": [1.1, 1.2]}
    assert stats.paired_by_seed(x[:0], y) == ({}, {})
    with pytest.raises(ValueError, match="seed 1 of a appears twice"):
        stats.paired_by_seed(pd.concat([x, x[1:2]]), y)


def test_variants_of_an_environment_are_never_pooled():
    """Equal seeds of one id are no pair where the environments differ; the best rate is chosen for each of them."""
    runs = pd.DataFrame({"env": "a", "variant": ["gain=1", "gain=5", "gain=1", "gain=5", ""], "seed": [0, 0, 1, 1, 0]})
    runs["auc"] = [1.0, 5.0, 2.0, 6.0, 9.0]
    scores = stats.by_environment(runs, "auc")
    assert {env: values.tolist() for env, values in scores.items()} == {
        "a": [9.0], "a (gain=1)": [1.0, 2.0], "a (gain=5)": [5.0, 6.0],
    }  # fmt: skip
    one, other = stats.paired_by_seed(runs[:2], runs[1:4], "auc")
    assert (one, other) == ({"a (gain=5)": [5.0]}, {"a (gain=5)": [5.0]})
    rates = [(rate, variant, seed) for rate in (0.1, 0.2) for variant in ("x", "y") for seed in (0, 1)]
    runs = pd.DataFrame(rates, columns=["learning_rate", "variant", "seed"]).assign(env="a")
    runs["auc_normalised"] = [float((rate == 0.1) == (variant == "x")) for rate, variant, _ in rates]
    tuned = stats.tuned_baseline(runs, [0])
    assert dict(zip(tuned.variant, tuned.learning_rate, strict=True)) == {"x": 0.1, "y": 0.2}


def test_tuned_baseline_reports_other_seeds_than_it_is_tuned_on():
    """On the tuning seeds 0.1 is best on a and 0.2 on b and on average; on the reported ones the other way round."""
    level = {(0.1, "a"): 0.6, (0.2, "a"): 0.5, (0.1, "b"): 0.1, (0.2, "b"): 0.9}
    rows = [
        (env, seed, rate, value if seed < 2 else -value) for (rate, env), value in level.items() for seed in range(4)
    ]
    runs = table(rows)
    tuned = stats.tuned_baseline(runs, {0, 1})
    assert sorted(zip(tuned.env, tuned.seed, tuned.learning_rate, strict=True)) == [
        ("a", 2, 0.1), ("a", 3, 0.1), ("b", 2, 0.2), ("b", 3, 0.2),
    ]  # fmt: skip
    shared = stats.tuned_baseline(runs, [0, 1], shared=True)
    assert set(shared.learning_rate) == {0.2}
    assert set(shared.seed) == {2, 3}
    for seeds in (range(4), [7]):
        with pytest.raises(ValueError, match="expected some with and some without"):
            stats.tuned_baseline(runs, seeds)


def test_collapsed_by_hand():
    """Ten stretches, a fifth of them is two; the random policy has 0, the reference 100."""
    curves = [
        [0, 0, 80, 80, 80, 80, 80, 80, 39, 39],  # less than half is left
        [0, 0, 80, 80, 80, 80, 80, 80, 41, 41],
        [0, 0, 0, 9, 9, 9, 0, 0, 0, 0],  # never was anything
        [0, 0, 99, 0, 0, 0, 0, 50, 50, 50],  # a peak shorter than a fifth
        [0, 10, 24, 24, 9, 9, 9, 9, 9, 9],  # less than a quarter of the way
        [0, 10, 26, 26, 9, 9, 9, 9, 9, 9],
    ]
    assert stats.collapsed(curves, 0, 100).tolist() == [True, False, False, False, False, True]
    # Of no known scale: whether the best is above the beginning and the end throughout.
    assert stats.collapsed(curves, 0, math.nan).tolist() == [True, False, True, False, True, True]
    assert stats.collapsed(curves, math.nan, 100).tolist() == [True, False, True, False, True, True]
    assert stats.collapsed(np.empty((0, 10)), 0, 1).shape == (0,)
    assert stats.collapsed(np.zeros((2, 3, 10)), 0, 1).shape == (2, 3)


@pytest.mark.parametrize("low", [math.nan, -200.0])
def test_runs_that_never_learned_have_not_collapsed(low):
    """Returns that only vary, and those that fall from the beginning on; a run of which the beginning is unknown."""
    rng = np.random.default_rng(0)
    noise = rng.normal(-100, 30, size=(200, 100))
    assert not stats.collapsed(noise, low, math.nan).any()
    assert not stats.collapsed(np.linspace(-50, -199, 100) + noise / 10, low, math.nan).any()
    # Pendulum at 300 for noise: a random policy returns −1,200, the best −160.
    assert not stats.collapsed(rng.normal(-1200, 300, size=(200, 100)), -1200, -160).any()
    rise = np.repeat([np.nan, -150.0, 100.0, -140.0], 25)
    assert stats.collapsed(rise, low, math.nan).item()
