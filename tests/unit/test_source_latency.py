# SPDX-License-Identifier: GPL-2.0-only
"""Times of allocations: from the bytes of the maps to what compare says of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from kmemwatch.compare.claims import CHECK, WITH, WITHOUT, CallTimes, call_times, compare_cost, cost
from kmemwatch.compare.figures import Figure, Metric, figure, read
from kmemwatch.compare.side import Side
from kmemwatch.compare.verdict import HOLDS, UNDECIDED
from kmemwatch.maps import decode
from kmemwatch.maps.decode import LATENCY_ONE_IN
from kmemwatch.model import LATENCY_KINDS, Latency, LatencyHistogram
from kmemwatch.source.latency import latency, timed_calls
from tests.unit import fakes
from tests.unit.compare_sides import Curves, lives, objcg, patched, side


def raw_of(*cpus: Mapping[int, tuple[int, int, int]]) -> bytes:
    """CPU by CPU: function -> calls, dropped, place."""
    rows = [cpu.get(place, (0, 0, 0)) for cpu in cpus for place in range(decode.TIMED)]
    return b"".join(decode.TIMED_CALL.pack(*row) for row in rows)


def sums_of(kinds: int = 3) -> list[list[int]]:
    return [[kind + 3, 1000 * kind, *(n + kind for n in range(decode.LATENCY_BUCKETS))] for kind in range(kinds)]


def test_the_kinds_are_the_same_everywhere() -> None:
    assert decode.LATENCY_KINDS == LATENCY_KINDS
    assert decode.TIMED_CHECK == decode.TIMED - 1
    assert LATENCY_ONE_IN & (LATENCY_ONE_IN - 1) == 0


def test_counters_of_all_cpus_and_functions_are_added_up() -> None:
    raw = raw_of({0: (100, 1, 0), 1: (20, 2, 0xFF), 3: (7, 5, 0)}, {0: (1000, 0, 0), 2: (3, 4, 0), 3: (70, 50, 1)})
    found = latency(raw, sums_of(), has_check=True)
    assert found.one_in == LATENCY_ONE_IN
    assert found.calls_total == {"allocation": 1123, "recharge_check": 77}
    assert found.dropped_total == {"allocation": 7, "recharge_check": 55}
    assert [one.kind for one in found.histograms] == list(LATENCY_KINDS)
    assert [one.samples_total for one in found.histograms] == [3, 4, 5]
    assert [one.sum_ns_total for one in found.histograms] == [0, 1000, 2000]
    assert found.histograms[1].buckets == tuple(range(1, 41))
    in_flight = [[one.in_flight for one in cpu] for cpu in timed_calls(raw)]
    assert in_flight == [
        [False, True, False, False],
        [False] * 3 + [True],
    ]


def test_without_a_check_there_is_one_kind() -> None:
    found = latency(raw_of({0: (64, 0, 0)}), sums_of(), has_check=False)
    assert found.calls_total == {"allocation": 64}
    assert found.dropped_total == {"allocation": 0}
    assert [one.kind for one in found.histograms] == [WITHOUT]


# Figures and claims


def test_a_snapshot_gives_figures_only_when_it_was_timed() -> None:
    histogram = LatencyHistogram(CHECK, 7, 700, (0, 3, 4))
    timed = replace(fakes.patched(), latency=Latency(64, {"recharge_check": 640}, {"recharge_check": 3}, (histogram,)))
    before = read(fakes.patched())
    assert {one: value for one, value in read(timed).items() if one not in before} == {
        Figure(Metric.LATENCY_DROPPED, CHECK): 3,
        Figure(Metric.LATENCY_SAMPLES, CHECK): 7,
        Figure(Metric.LATENCY_NS, CHECK): 700,
        Figure(Metric.LATENCY_BUCKET, CHECK, 1): 3,
        Figure(Metric.LATENCY_BUCKET, CHECK, 2): 4,
    }


def timed_figures(kind: str, per_s: int, mean_ns: int, buckets: Mapping[int, int]) -> Curves:
    """As they grow with the seconds, from counts that are not 0 on."""
    found: Curves = {
        figure(Metric.LATENCY_SAMPLES, kind): lambda t: 5000 + per_s * t,
        figure(Metric.LATENCY_NS, kind): lambda t: 10**9 + per_s * mean_ns * t,
    }
    for number, count in buckets.items():
        found[figure(Metric.LATENCY_BUCKET, kind, number)] = lambda t, count=count: 5000 + count * t  # type: ignore[misc]
    return found


def host(check_ns: int = 20, per_s: int = 10, check_bucket: int = 4, **more: object) -> Side:
    return side(
        lives(2, 0)
        | timed_figures(WITHOUT, 3 * per_s, 300, {8: 2 * per_s, 9: per_s})
        | timed_figures(WITH, per_s, 400, {8: per_s})
        | timed_figures(CHECK, per_s, check_ns, {check_bucket: per_s}),
        **more,  # type: ignore[arg-type]
    )


def test_figures_are_of_the_time_that_was_watched() -> None:
    found = call_times(host(), WITHOUT)
    assert found is not None
    assert found.samples == pytest.approx(30 * 199)
    assert found.mean_ns == pytest.approx(300)
    assert list(found.buckets) == [(8, 20 * 199), (9, 10 * 199)]
    assert (found.quantile_ns(0.5), found.quantile_ns(0.99)) == ((256, 512), (512, 1024))


def test_quantiles_are_bounds_of_buckets() -> None:
    assert CallTimes(100, 1.0, ((0, 99), (39, 1))).quantile_ns(0.99) == (0, 2)
    assert CallTimes(100, 1.0, ((0, 98), (39, 2))).quantile_ns(0.99) == (1 << 39, 1 << 40)


@pytest.mark.parametrize(
    ("one", "verdict", "reason"),
    [
        (host(), HOLDS, "a check takes 20 ns in the mean, of 400 ns"),
        (host(check_ns=41), UNDECIDED, "may be less"),
        (host(check_bucket=7), UNDECIDED, "may be less"),
        (host(per_s=5), UNDECIDED, "only 995 samples"),
        (patched(), UNDECIDED, "was not measured; there were 0.5 checks"),
        (objcg(), UNDECIDED, "nothing to cost"),
    ],
)
def test_verdicts(one: Side, verdict: str, reason: str) -> None:
    found = cost(one)
    assert found.verdict == verdict
    assert reason in found.reason


def test_a_thousand_samples_are_enough_and_fewer_are_not() -> None:
    assert cost(host(per_s=5, seconds=201)).verdict == HOLDS
    assert cost(host(per_s=5, seconds=200)).verdict == UNDECIDED


def test_a_kernel_without_a_check_tells_how_long_an_allocation_takes() -> None:
    series = lives(2, 0) | timed_figures(WITHOUT, 30, 300, {8: 30})
    found = cost(side(series, era="objcg", patchset=False))
    assert found.verdict == UNDECIDED
    assert "an allocation takes 300 ns in the mean" in found.reason
    assert "check_share" in {one.key for one in found.facts}
    assert next(one.value for one in found.facts if one.key == "check_share") is None


def test_both_sides_are_compared_where_both_have_enough() -> None:
    assert compare_cost((host(), host())) == (
        "allocations without a check take 300 ns and 300 ns in the mean; "
        "allocations with a check take 400 ns and 400 ns in the mean; "
        "checks alone take 20 ns and 20 ns in the mean"
    )
    assert compare_cost((host(), patched())) is None
    assert compare_cost((host(per_s=1), host())) is None
