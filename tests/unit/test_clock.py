# SPDX-License-Identifier: GPL-2.0-only
"""The time of day of events: in the order in which they were, however the reader is interrupted; and never far off."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.clock import TOLERANCE_NS, RealtimeOffset

START_NS = 1_795_000_000 * 10**9


class Clocks:
    """Every reading of one of them takes as long as the next of `pauses_ns`."""

    def __init__(self, pauses_ns: list[int]) -> None:
        self.now_ns, self.offset_ns = 10**12, START_NS
        self._pauses_ns = pauses_ns

    def monotonic_ns(self) -> int:
        self.now_ns += self._pauses_ns.pop(0) if self._pauses_ns else 100
        return self.now_ns

    def realtime_ns(self) -> int:
        return self.monotonic_ns() + self.offset_ns


def offset_of(clocks: Clocks) -> RealtimeOffset:
    return RealtimeOffset(clocks.realtime_ns, clocks.monotonic_ns)


@given(st.lists(st.integers(0, 50_000_000), max_size=200))
def test_interruptions_change_nothing(pauses_ns: list[int]) -> None:
    clocks = Clocks([100] * 15 + pauses_ns)
    offset = offset_of(clocks)
    first = offset()
    assert abs(first - START_NS) <= 100
    assert {offset() for _ in range(100)} == {first}


@given(st.lists(st.integers(0, 50_000_000), min_size=12, max_size=12))
def test_the_start_is_the_least_interrupted_of_several(pauses_ns: list[int]) -> None:
    clocks = Clocks([*pauses_ns, 100, 100, 100])
    assert abs(offset_of(clocks)() - START_NS) <= 100


@given(st.integers(-(10**12), 10**12), st.lists(st.integers(0, 10**7), max_size=3))
def test_a_clock_that_was_set_is_followed(jump_ns: int, pauses_ns: list[int]) -> None:
    clocks = Clocks([])
    offset = offset_of(clocks)
    clocks.offset_ns += jump_ns
    clocks._pauses_ns += pauses_ns
    offset()
    assert abs(offset() - clocks.offset_ns) <= TOLERANCE_NS + 200


def test_a_small_correction_puts_nothing_out_of_order() -> None:
    clocks = Clocks([])
    offset = offset_of(clocks)
    first = offset()
    clocks.offset_ns -= TOLERANCE_NS // 2
    assert offset() == first


def test_the_real_clocks() -> None:
    assert abs(RealtimeOffset()() - (time.time_ns() - time.monotonic_ns())) < 50_000_000
