"""Intervals against distributions whose answers are known."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lvspec_cli.figures import statistics
from lvspec_cli.figures.statistics import interval_of_sums, mean, median_spread, ratio_of_sums
from tests.bench.made import known

FEW = (499, 499)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = known(mean(values.tolist()))
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_of_a_median_is_as_wide_as_order_statistics_say():
    values = np.sort(np.random.default_rng(2).uniform(0.0, 1.0, 401))
    found = known(median_spread(values.tolist()))
    # The ranks that hold the median with 95 %: n / 2 -+ 1.96 sqrt(n) / 2 (normal limit of the binomial).
    low, high = values[round(200.5 - 19.6)], values[round(200.5 + 19.6)]
    assert found.median == values[200]
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_the_interval_of_a_ratio_is_that_of_the_delta_method():
    random = np.random.default_rng(3)
    below = random.uniform(5.0, 15.0, 500)
    above = 3.0 * below + random.normal(0.0, 4.0, 500)
    found = known(ratio_of_sums(above.tolist(), below.tolist()))
    ratio = above.sum() / below.sum()
    half = 1.96 * (above - ratio * below).std() / below.mean() / np.sqrt(500)
    assert found.value == pytest.approx(ratio)
    assert known(found.high) - known(found.low) == pytest.approx(2 * half, rel=0.1)
    # Drawn apart, the same numbers would give a far wider one: a clip is drawn whole.
    apart = 1.96 * np.sqrt(above.var() + ratio**2 * below.var()) / below.mean() / np.sqrt(500)
    assert known(found.high) - known(found.low) < apart


@pytest.mark.parametrize(
    ("truth", "figure"),
    [(1.0, lambda row: mean(row)), (np.log(2.0), lambda row: median_spread(row))],
    ids=["mean", "median"],
)
def test_about_95_of_100_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch, truth, figure):
    monkeypatch.setattr(statistics, "RESAMPLES", FEW)
    rows = np.random.default_rng(4).exponential(1.0, (200, 60))
    found = [figure(row.tolist()) for row in rows]
    assert 0.89 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.99


@given(st.lists(st.floats(0.5, 20.0), min_size=2, max_size=12), st.floats(0.1, 10.0))
@with_settings(max_examples=20)
def test_what_is_in_one_ratio_everywhere_has_that_ratio_for_certain(below, ratio):
    found = known(ratio_of_sums([ratio * value for value in below], below))
    for value in (found.value, found.low, found.high):
        assert value == pytest.approx(ratio)


def test_clips_that_are_all_alike_leave_no_doubt():
    for found in (mean([2.5] * 9), ratio_of_sums([5.0] * 9, [2.0] * 9)):
        assert (known(found).value, known(found).low, known(found).high) == (2.5, 2.5, 2.5)
    alike = known(median_spread([2.5] * 9))
    assert (alike.median, alike.low, alike.high) == (2.5, 2.5, 2.5)


def test_one_clip_has_a_figure_and_no_interval():
    one = known(mean([3.0]))
    assert (one.value, one.low, one.high) == (3.0, None, None)
    assert known(ratio_of_sums([3.0], [2.0])).value == 1.5
    assert known(median_spread([3.0])).low is None


def test_without_clips_there_is_no_figure():
    assert [mean([]), median_spread([]), ratio_of_sums([], [])] == [None] * 3
    assert ratio_of_sums([1.0], [0.0]) is None
    with pytest.raises(ValueError, match="1 numerators and 2"):
        known(ratio_of_sums([1.0], [1.0, 2.0]))


def test_a_seed_gives_the_same_interval_each_time():
    values = np.random.default_rng(5).normal(0.0, 1.0, 30).tolist()
    assert mean(values, seed=7) == known(mean(values, seed=7))
    assert mean(values, seed=7) != known(mean(values, seed=8))


def test_many_clips_are_drawn_less_often_and_still_have_an_interval():
    values = np.random.default_rng(6).normal(1.0, 1.0, 3000)
    found = known(mean(values.tolist()))
    half = 1.96 * values.std() / np.sqrt(3000)
    assert known(found.high) - known(found.low) == pytest.approx(2 * half, rel=0.12)


@pytest.mark.parametrize("count", [40, 41])
def test_intervals_are_those_of_scipy(count: int):
    random = np.random.default_rng(7)
    above, below = random.exponential(2.0, count), random.uniform(5.0, 15.0, count)

    def of_scipy(statistic, *samples, method: str):
        found = bootstrap(
            samples, statistic, paired=True, vectorized=True, n_resamples=9_999, method=method,
            rng=np.random.default_rng(0),
        )  # fmt: skip
        return pytest.approx(tuple(found.confidence_interval), rel=1e-6)

    def ratio(one, other, axis=-1):
        return one.sum(axis) / other.sum(axis)

    quotient, average = known(ratio_of_sums(above.tolist(), below.tolist())), known(mean(above.tolist()))
    middle = known(median_spread(above.tolist()))
    assert (quotient.low, quotient.high) == of_scipy(ratio, above, below, method="BCa")
    assert (average.low, average.high) == of_scipy(np.mean, above, method="BCa")
    assert (middle.low, middle.high) == of_scipy(np.median, above, method="percentile")


def test_a_draw_with_nothing_to_divide_by_leaves_the_others():
    found = known(ratio_of_sums([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    assert (found.low, found.high) == (1.0, 1.0)


@pytest.mark.thorough
def test_a_thousand_clips_take_seconds_and_no_more_memory_than_their_draws():
    columns = np.random.default_rng(8).integers(0, 12, (4, 1000)).tolist()
    tracemalloc.start()
    began = time.process_time()
    for seed in (1, 1, *[2] * 98):
        interval_of_sums(lambda sums: sums[0] / sums[1] / (sums[2] / sums[3]), columns, seed=seed)
    spent, (_, most) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 8  # about 2 on a slow core; ten modes with ten kinds of facts are 100 such figures
    assert most < 120 * 2**20
