# SPDX-License-Identifier: GPL-2.0-only
"""The statistics behind verdicts: shares, trends and delays, each with its interval at 95 %; pure.

The three textbook estimates are at the end; the tests compare each with scipy's. scipy itself would be 350 MB of Debian
packages, and the one of Debian 12 has no Kaplan-Meier curve.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MIN_POINTS = 8
"""Fewer points say nothing about a trend."""
MAX_BLOCKS = 24
"""A series is averaged in at most so many blocks, because neighbouring samples are not independent."""
GROWING, SHRINKING, FLAT, UNCLEAR = "growing", "shrinking", "flat", "not certain"
AT_RISK = 20
"""Memcgs of some age that are still dying: so many are enough to bound the delay when none was released."""
_LEAST_CHANGE = 5.0
_LEAST_SHARE = 0.05
"""A change over the whole time of less than the larger of 5, and 5 % of the level, is small."""
_Z = statistics.NormalDist().inv_cdf(0.975)


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
    """The direction of a trend, from its interval; derived only here.

    GROWING and SHRINKING exclude 0. FLAT contains it, and no change that is not `small`; UNCLEAR contains both.
    """
    if low > 0:
        return GROWING
    if high < 0:
        return SHRINKING
    return FLAT if is_small(low, high, small) else UNCLEAR


def is_small(low: float, high: float, small: float) -> bool:
    """Whether no change in the interval matters."""
    return -small <= low and high <= small


@dataclass(frozen=True, slots=True)
class Trend:
    """How a series changes, per second, with the interval that it lies in with 95 % confidence."""

    per_s: float
    low_per_s: float
    high_per_s: float
    small_per_s: float
    """A smaller change does not matter."""
    blocks: int
    span_s: float

    @property
    def direction(self) -> str:
        """GROWING, SHRINKING, FLAT or UNCLEAR."""
        return direction(self.low_per_s, self.high_per_s, self.small_per_s)

    @property
    def is_small(self) -> bool:
        """Whether no change in the interval matters."""
        return is_small(self.low_per_s, self.high_per_s, self.small_per_s)

    @property
    def is_much(self) -> bool:
        """Whether it is statistically significant, and large enough to matter."""
        return self.direction in (GROWING, SHRINKING) and abs(self.per_s) >= self.small_per_s

    @property
    def change(self) -> float:
        """Over the whole time."""
        return self.per_s * self.span_s


def trend(series: Sequence[tuple[float, float]]) -> Trend | None:
    """Of (seconds, value) points, by Theil and Sen; None when there are too few.

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
    """Factor for the interval, as neighbouring blocks are alike (lag-1 autocorrelation of the residuals)."""
    mean = sum(residuals) / len(residuals)
    spread = sum((r - mean) ** 2 for r in residuals)
    if spread <= 0:
        return 1.0
    common = sum((a - mean) * (b - mean) for a, b in itertools.pairwise(residuals)) / spread
    common = min(max(common, 0.0), 0.9)
    return math.sqrt((1 + common) / (1 - common))


@dataclass(frozen=True, slots=True)
class Quantile:
    """Of delays; None: beyond the longest one measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Survival:
    """Share of the removed memcgs that are not released, by time since removal (Kaplan and Meier)."""

    times_s: tuple[float, ...]
    still: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    released: int
    still_dying: int

    def quantile(self, part: float) -> Quantile:
        """When this part of them is released, with its interval."""
        return Quantile(self._first(self.still, part), self._first(self.low, part), self._first(self.high, part))

    def _first(self, curve: Sequence[float], part: float) -> float | None:
        return next((t for t, s in zip(self.times_s, curve, strict=True) if s <= 1 - part + 1e-12), None)


def survival(released_s: Sequence[float], still_dying_s: Sequence[float]) -> Survival | None:
    """Of exact delays and of the ages of those that are not released yet; None when there are too few of them."""
    if not released_s:
        return _none_released(still_dying_s)
    times, still, low, high = zip(*kaplan_meier(released_s, still_dying_s), strict=True)
    return Survival(times, still, low, high, len(released_s), len(still_dying_s))


def _none_released(still_dying_s: Sequence[float]) -> Survival | None:
    """All stay, up to the age that enough of them have; Kaplan and Meier's curve needs a release."""
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


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Interval of the share `part` of `whole` (Wilson 1927); it is right near 0 and 1, and for small numbers."""
    value, z2 = part / whole, _Z * _Z
    centre = (value + z2 / (2 * whole)) / (1 + z2 / whole)
    half = _Z / (1 + z2 / whole) * math.sqrt(value * (1 - value) / whole + z2 / (4 * whole * whole))
    return (0.0 if part == 0 else max(0.0, centre - half)), (1.0 if part == whole else min(1.0, centre + half))


def theil_sen(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Slope of a line through the points, and its interval: median and quantiles of all pairs' slopes (Sen 1968).

    `times` rise, and no two of them are equal.
    """
    pairs = itertools.combinations(zip(times, values, strict=True), 2)
    slopes = sorted((v2 - v1) / (t2 - t1) for (t1, v1), (t2, v2) in pairs)
    count, ties = len(values), Counter(values).values()
    variance = (_tied(count) - sum(map(_tied, ties))) / 18  # equation 2.6
    half = _Z * math.sqrt(max(0.0, variance))
    low = max(round((len(slopes) - half) / 2) - 1, 0)
    high = min(round((len(slopes) + half) / 2), len(slopes) - 1)
    return statistics.median(slopes), slopes[low], slopes[high]


def _tied(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)


Curve = list[tuple[float, float, float, float]]
"""(time, share that is left, low, high)."""


def kaplan_meier(ended: Sequence[float], still: Sequence[float]) -> Curve:
    """What share lasts longer than each time, of delays that ended and of those that are still going on.

    Greenwood's variance of the log-log of the share. There is no interval of 0 and 1; the share itself stands for it.
    """
    deaths, left = Counter(ended), Counter(still)
    at_risk, share, variance = len(ended) + len(still), 1.0, 0.0
    curve = []
    for time in sorted(deaths.keys() | left.keys()):
        died = deaths[time]
        if died < at_risk:
            variance += died / (at_risk * (at_risk - died))
        share *= (at_risk - died) / at_risk
        curve.append((time, share, *_log_log(share, variance)))
        at_risk -= died + left[time]
    return curve


def _log_log(share: float, variance: float) -> tuple[float, float]:
    if not 0 < share < 1:
        return share, share
    centre = math.log(-math.log(share))
    half = _Z * math.sqrt(variance) / -math.log(share)
    return math.exp(-math.exp(centre + half)), math.exp(-math.exp(centre - half))
