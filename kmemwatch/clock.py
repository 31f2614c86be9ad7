# SPDX-License-Identifier: GPL-2.0-only
"""Converts the kernel's time of an event to the time of day."""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERANCE_NS = 1_000_000
"""Drift of the two clocks that is ignored, because following it would only put events out of order."""
_FIRST_TRIES = 5


class RealtimeOffset:
    """Nanoseconds to add to CLOCK_MONOTONIC to get CLOCK_REALTIME. It stays the same until the time of day is set, or
    corrected by `TOLERANCE_NS`. An interrupt between reading the two clocks makes one reading unreliable."""

    def __init__(
        self, realtime_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._realtime_ns = realtime_ns
        self._monotonic_ns = monotonic_ns
        least, most = min((self._bounds() for _ in range(_FIRST_TRIES)), key=lambda bounds: bounds[1] - bounds[0])
        self._offset_ns = (least + most) // 2

    def __call__(self) -> int:
        least, most = self._bounds()
        if not least - TOLERANCE_NS <= self._offset_ns <= most + TOLERANCE_NS:
            self._offset_ns = (least + most) // 2
        return self._offset_ns

    def _bounds(self) -> tuple[int, int]:
        """(lower, upper) bound of the present offset."""
        before = self._monotonic_ns()
        now = self._realtime_ns()
        after = self._monotonic_ns()
        return now - after, now - before
