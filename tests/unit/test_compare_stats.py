# SPDX-License-Identifier: GPL-2.0-only
"""Statistics: what they say of series whose truth is known, and that noise gets no verdict."""

from __future__ import annotations

import math
import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from kmemwatch.compare.stats import (
    FLAT,
    GROWING,
    MIN_POINTS,
    SHRINKING,
    UNCLEAR,
    Trend,
    bucket_quantile,
    direction,
    kaplan_meier,
    share,
    survival,
    theil_sen,
    trend,
    wilson,
)

SEEDS = 200


def noise(seed: int, count: int, kept: float, spread: float) -> list[float]:
    """Around 0; `kept` is how much of a value is in the next one."""
    source, value, found = random.Random(seed), 0.0, []
    for _ in range(count):
        value = kept * value + source.gauss(0, spread)
        found.append(value)
    return found


@pytest.mark.parametrize(("kept", "at_most"), [(0.0, 0.08), (0.9, 0.08), (0.98, 0.2)])
def test_noise_seldom_has_a_trend(kept: float, at_most: float) -> None:
    found = [trend([(float(t), 100 + v) for t, v in enumerate(noise(seed, 300, kept, 10))]) for seed in range(SEEDS)]
    wrong = sum(one is not None and one.is_much for one in found)
    assert wrong <= at_most * SEEDS


@pytest.mark.parametrize(("slope", "direction"), [(0.5, GROWING), (-0.5, SHRINKING)])
def test_a_trend_under_noise_is_found_with_an_interval_that_holds_it(slope: float, direction: str) -> None:
    found = [
        trend([(float(t), 300 + slope * t + v) for t, v in enumerate(noise(seed, 200, 0.5, 5))])
        for seed in range(SEEDS)
    ]
    assert all(one is not None and one.direction == direction for one in found)
    inside = sum(one is not None and one.low_per_s <= slope <= one.high_per_s for one in found)
    assert inside >= 0.85 * SEEDS


def test_the_interval_of_noise_that_lasts_is_wider() -> None:
    def width(kept: float) -> float:
        found = [trend([(float(t), v) for t, v in enumerate(noise(seed, 200, kept, 5))]) for seed in range(30)]
        return sum(one.high_per_s - one.low_per_s for one in found if one is not None)

    assert width(0.95) > 3 * width(0.0)


@given(st.lists(st.floats(-1e6, 1e6), max_size=MIN_POINTS - 1))
def test_too_few_points_have_no_trend(values: list[float]) -> None:
    assert trend([(float(t), v) for t, v in enumerate(values)]) is None


@given(st.lists(st.floats(0, 1e9), min_size=MIN_POINTS, max_size=60), st.floats(0.001, 1000))
def test_a_trend_lies_in_its_interval_and_turns_with_its_series(values: list[float], step: float) -> None:
    points = [(t * step, v) for t, v in enumerate(values)]
    found = trend(points)
    assert found is not None
    assert found.low_per_s <= found.per_s <= found.high_per_s
    turned = trend([(t, -v) for t, v in points])
    assert turned is not None
    assert turned.per_s == pytest.approx(-found.per_s)
    assert {found.direction, turned.direction} in ({FLAT}, {UNCLEAR}, {GROWING, SHRINKING})


@given(st.lists(st.floats(0, 1e9), min_size=MIN_POINTS, max_size=60), st.floats(0.001, 1000))
def test_a_direction_is_what_the_interval_says(values: list[float], step: float) -> None:
    found = trend([(t * step, v) for t, v in enumerate(values)])
    assert found is not None
    assert_agrees(found)


@given(*[st.floats(-1e3, 1e3)] * 2, st.floats(0, 1e3))
def test_every_interval_has_one_direction(one: float, other: float, small: float) -> None:
    low, high = sorted((one, other))
    assert_agrees(Trend((low + high) / 2, low, high, small, MIN_POINTS, 1.0))


def assert_agrees(found: Trend) -> None:
    low, high, small = found.low_per_s, found.high_per_s, found.small_per_s
    inside = max(abs(low), abs(high)) <= small
    expected = {GROWING: low > 0, SHRINKING: high < 0, FLAT: low <= 0 <= high and inside}
    assert found.direction == next((word for word, is_so in expected.items() if is_so), UNCLEAR)
    assert (found.direction == UNCLEAR) == (low <= 0 <= high and not inside)
    assert found.is_small == inside


def test_a_certain_change_that_is_small_grows_and_is_small() -> None:
    found = trend([(float(t), 1000 + 0.1 * t) for t in range(100)])
    assert found is not None
    assert (found.direction, found.is_small, found.is_much, found.low_per_s > 0) == (GROWING, True, False, True)
    assert found.small_per_s == pytest.approx(0.05 * 1005 / 99, rel=1e-3)


def test_noise_that_may_hide_a_change_is_not_flat() -> None:
    few = [(float(t), value) for t, value in enumerate((0.0, 900.0, 20.0, 700.0, 90.0, 800.0, 10.0, 600.0, 500.0))]
    found = trend(few)
    assert found is not None
    assert found.direction == UNCLEAR
    assert direction(0.0, 0.0, 0.0) == FLAT


def test_samples_at_one_time_have_no_trend() -> None:
    assert trend([(5.0, float(v)) for v in range(50)]) is None


@given(st.integers(1, 10_000), st.integers(0, 10_000))
def test_a_share_lies_in_its_interval(whole: int, part: int) -> None:
    found = share(min(part, whole), whole)
    assert found is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_share_of_nothing_is_unknown_and_more_than_all_is_all() -> None:
    assert share(0, 0) is None
    over = share(12, 10)
    assert over is not None
    assert over.value == 1


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = share(10, 100)
    assert found is not None
    # Wilson's formula by hand, z = 1.959964: centre 0.114793, half width 0.059561.
    assert (found.low, found.high) == pytest.approx((0.055229, 0.174366), abs=1e-5)


def test_the_curve_of_delays_is_kaplan_and_meiers() -> None:
    # By hand: at 1 one of 4 goes, at 3 one of 2 (one left unseen at 2).
    found = survival([1.0, 3.0], [2.0, 4.0])
    assert found is not None
    at = dict(zip(found.times_s, found.still, strict=True))
    assert (at[1.0], at[3.0]) == pytest.approx((0.75, 0.375))
    assert found.quantile(0.5).value == 3.0
    assert found.quantile(0.9).value is None


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=50), st.lists(st.floats(0.001, 1e5), max_size=50))
def test_the_curve_only_falls_and_lies_in_its_band(released: list[float], still: list[float]) -> None:
    found = survival(released, still)
    assert found is not None
    assert list(found.still) == sorted(found.still, reverse=True)
    for low, value, high in zip(found.low, found.still, found.high, strict=True):
        assert 0 <= low <= value + 1e-9
        assert value - 1e-9 <= high <= 1


def test_before_the_first_release_the_band_is_the_curve() -> None:
    found = survival([5.0, 6.0, 7.0], [1.0])
    assert found is not None
    assert (found.times_s[0], found.still[0], found.low[0], found.high[0]) == (1.0, 1.0, 1.0, 1.0)
    assert found.low[1] < found.still[1] < found.high[1]


def test_without_releases_there_is_no_curve() -> None:
    assert survival([], [1.0, 2.0]) is None


def test_where_nobody_is_released_all_stay_up_to_the_age_that_enough_of_them_have() -> None:
    found = survival([], [float(age) for age in range(1, 61)])
    assert found is not None
    # Twenty are 41 s old or older; Wilson's lower bound of 20 of 20 is 20 / (20 + z**2).
    assert (found.times_s, found.still, found.high) == ((41.0,), (1.0,), (1.0,))
    assert found.low == pytest.approx((20 / (20 + 1.959964**2),), abs=1e-5)
    assert (found.released, found.still_dying) == (0, 60)
    assert found.quantile(0.5).value is None
    assert survival([], [1.0] * 19) is None


def test_a_quantile_of_buckets_is_between_two_bounds() -> None:
    buckets = [(0.1, 0.0), (1.0, 40.0), (10.0, 95.0), (float("inf"), 100.0)]
    half, most = bucket_quantile(buckets, 0.5), bucket_quantile(buckets, 0.99)
    assert (half.low, half.high) == (1.0, 10.0)
    assert (most.low, most.high) == (10.0, None)
    assert bucket_quantile([], 0.5).low is None
    assert bucket_quantile([(1.0, 0.0)], 0.5).low is None


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_shares_are_scipys(whole: int, part: int) -> None:
    part = min(part, whole)
    theirs = stats.binomtest(part, whole).proportion_ci(0.95, "wilson")
    assert wilson(part, whole) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-12)


@given(st.lists(st.integers(-50, 50) | st.floats(-1e6, 1e6), min_size=2, max_size=30), st.floats(0.01, 100))
def test_slopes_are_scipys(values: list[float], step: float) -> None:
    times = [step * n for n in range(len(values))]
    theirs = stats.theilslopes(values, times, alpha=0.95)
    expected = [float(one) for one in (theirs.slope, theirs.low_slope, theirs.high_slope)]
    assert theil_sen(times, values) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(
    st.lists(st.integers(0, 20) | st.floats(0.001, 1e5), min_size=1, max_size=50),
    st.lists(st.integers(0, 20) | st.floats(0.001, 1e5), max_size=50),
)
def test_curves_are_scipys(ended: list[float], still: list[float]) -> None:
    theirs = stats.ecdf(stats.CensoredData(uncensored=ended, right=still)).sf
    with warnings.catch_warnings():
        # Where scipy has no interval, and says so, ours is the curve itself.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = theirs.confidence_interval(0.95, method="log-log")
    ours = kaplan_meier(ended, still)
    assert [row[0] for row in ours] == pytest.approx(list(theirs.quantiles))
    assert [row[1] for row in ours] == pytest.approx(list(theirs.probabilities), abs=1e-12)
    for place, bound in ((2, interval.low.probabilities), (3, interval.high.probabilities)):
        for row, value in zip(ours, bound, strict=True):
            # Rounding leaves something of a share that is 1.
            assert row[place] == pytest.approx(row[1] if math.isnan(value) else value, rel=1e-6, abs=1e-9)
