# SPDX-License-Identifier: GPL-2.0-only
"""The statistics behind verdicts: shares, trends and delays, each with the interval that it lies in; pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kmemwatch.compare.estimates import kaplan_meier, theil_sen, wilson

MIN_POINTS = 8
"""Fewer points say nothing about a trend."""
MAX_BLOCKS = 24
"""A series is averaged in at most so many blocks: neighbouring samples are no independent witnesses."""
GROWING, SHRINKING, FLAT, UNCLEAR = "growing", "shrinking", "flat", "not certain"
AT_RISK = 20
"""So many that are not released yet, and that old, say something of those that died with them."""
_LEAST_CHANGE = 5.0
_LEAST_SHARE = 0.05
"""A change over the whole time of less than the larger of 5, and 5 % of the level, is small."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of some number, with Wilson's interval."""

    value: float
    low: float
    high: float


def share(part: float, whole: float) -> Share | None:
    """`part` of `whole`; None when there is nothing to have a share of."""
    total, found = round(whole), min(max(round(part), 0), round(whole))
    if total <= 0:
        return None
    return Share(found / total, *wilson(found, total))


def direction(low: float, high: float, small: float) -> str:
    """What an interval says of a trend; the only place that derives the one from the other.

    GROWING and SHRINKING exclude 0. FLAT contains it, and no change that is not `small`; UNCLEAR contains both.
    """
    if low > 0:
        return GROWING
    if high < 0:
        return SHRINKING
    return FLAT if is_small(low, high, small) else UNCLEAR


def is_small(low: float, high: float, small: float) -> bool:
    """Whether no change in the interval is of any consequence."""
    return -small <= low and high <= small


@dataclass(frozen=True, slots=True)
class Trend:
    """How a series changes, per second, with the interval that it lies in with 95 % confidence."""

    per_s: float
    low_per_s: float
    high_per_s: float
    small_per_s: float
    """A change that is smaller is of no consequence."""
    blocks: int
    span_s: float

    @property
    def direction(self) -> str:
        """GROWING, SHRINKING, FLAT or UNCLEAR."""
        return direction(self.low_per_s, self.high_per_s, self.small_per_s)

    @property
    def is_small(self) -> bool:
        """Whether all of the interval is of no consequence."""
        return is_small(self.low_per_s, self.high_per_s, self.small_per_s)

    @property
    def is_much(self) -> bool:
        """Whether it is certain, and large enough to matter."""
        return self.direction in (GROWING, SHRINKING) and abs(self.per_s) >= self.small_per_s

    @property
    def change(self) -> float:
        """Over the whole time."""
        return self.per_s * self.span_s


def trend(series: Sequence[tuple[float, float]]) -> Trend | None:
    """Of (seconds, value) points by Theil and Sen; None when there are too few to tell.

    Blocks of points are averaged, and the interval is widened for what neighbouring blocks still have in common.
    """
    blocks = _blocks(series)
    if len(blocks) < MIN_POINTS:
        return None
    times, values = [t for t, _ in blocks], [v for _, v in blocks]
    slope, low, high = theil_sen(times, values)
    wider = _widening([v - slope * t for t, v in blocks])
    span_s = series[-1][0] - series[0][0]
    small = max(_LEAST_CHANGE, _LEAST_SHARE * sum(map(abs, values)) / len(values))
    return Trend(
        slope, slope - (slope - low) * wider, slope + (high - slope) * wider, small / span_s, len(blocks), span_s
    )


def _blocks(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Averages over equal parts of the time; parts without samples are left out."""
    if len(series) < MIN_POINTS or series[-1][0] <= series[0][0]:
        return []
    begin, span = series[0][0], series[-1][0] - series[0][0]
    count = min(MAX_BLOCKS, len(series))
    parts: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for t, value in series:
        parts[min(count - 1, int((t - begin) / span * count))].append((t, value))
    return [(sum(t for t, _ in p) / len(p), sum(v for _, v in p) / len(p)) for p in parts if p]


def _widening(residuals: Sequence[float]) -> float:
    """Square root of how many blocks say what one independent one would (lag-1 autocorrelation)."""
    mean = sum(residuals) / len(residuals)
    spread = sum((r - mean) ** 2 for r in residuals)
    if spread <= 0:
        return 1.0
    common = sum((a - mean) * (b - mean) for a, b in itertools.pairwise(residuals)) / spread
    common = min(max(common, 0.0), 0.9)
    return math.sqrt((1 + common) / (1 - common))


@dataclass(frozen=True, slots=True)
class Quantile:
    """Of delays; each bound may be None: it lies beyond what was seen."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Survival:
    """Share of the dead that are still not released, by time since removal (Kaplan and Meier)."""

    times_s: tuple[float, ...]
    still: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    released: int
    still_dying: int

    def quantile(self, part: float) -> Quantile:
        """When this part of the dead is released, with its interval."""
        return Quantile(self._first(self.still, part), self._first(self.low, part), self._first(self.high, part))

    def _first(self, curve: Sequence[float], part: float) -> float | None:
        return next((t for t, s in zip(self.times_s, curve, strict=True) if s <= 1 - part + 1e-12), None)


def survival(released_s: Sequence[float], still_dying_s: Sequence[float]) -> Survival | None:
    """Of exact delays and of the ages of those that are not released yet; None when there are too few of them."""
    if not released_s:
        return _nobody_released(still_dying_s)
    times, still, low, high = zip(*kaplan_meier(released_s, still_dying_s), strict=True)
    return Survival(times, still, low, high, len(released_s), len(still_dying_s))


def _nobody_released(still_dying_s: Sequence[float]) -> Survival | None:
    """All of them stay, up to the age that enough of them have: the curve of Kaplan and Meier needs a release."""
    if len(still_dying_s) < AT_RISK:
        return None
    age_s, low = sorted(still_dying_s)[-AT_RISK], share(AT_RISK, AT_RISK)
    assert low is not None
    return Survival((age_s,), (1.0,), (low.low,), (1.0,), 0, len(still_dying_s))


def bucket_quantile(buckets: Sequence[tuple[float, float]], part: float) -> Quantile:
    """Between which bounds of a histogram the part lies; `buckets` are (upper bound, cumulative count)."""
    total = buckets[-1][1] if buckets else 0.0
    lower = 0.0
    for bound, count in buckets:
        if total > 0 and count >= part * total:
            return Quantile(None, lower, None if math.isinf(bound) else bound)
        lower = bound
    return Quantile(None)
