# SPDX-License-Identifier: GPL-2.0-only
"""The statistics behind verdicts; the one module that knows scipy, which is loaded when it is used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from kmemwatch.errors import UnsupportedError

CONFIDENCE = 0.95
MIN_POINTS = 8
"""Fewer points say nothing about a trend."""
MAX_BLOCKS = 24
"""A series is averaged in at most so many blocks: neighbouring samples are no independent witnesses."""
GROWING, FLAT, SHRINKING = "growing", "flat", "shrinking"
AT_RISK = 20
"""So many that are not released yet, and that old, say something of those that died with them."""
_LEAST_CHANGE = 5.0
_LEAST_SHARE = 0.05
"""A change over the whole time of less than the larger of 5, and 5 % of the level, is flat, however certain."""


def _scipy() -> ModuleType:
    try:
        import scipy.stats  # type: ignore[import-untyped]

        stats: ModuleType = scipy.stats
        if not hasattr(stats, "ecdf"):
            raise UnsupportedError(f"compare needs scipy 1.11, here is {scipy.__version__}", _INSTALL)
    except ImportError as exc:
        raise UnsupportedError("compare needs scipy, which is not installed", _INSTALL) from exc
    return stats


_INSTALL = "pip install 'scipy>=1.11', in the environment of kmemwatch"


def check() -> None:
    """Raise UnsupportedError unless scipy is there; better before a long measurement than after it."""
    _scipy()


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
    interval = _scipy().binomtest(found, total).proportion_ci(CONFIDENCE, "wilson")
    return Share(found / total, float(interval.low), float(interval.high))


@dataclass(frozen=True, slots=True)
class Trend:
    """How a series changes, per second, with the interval that it lies in with 95 % confidence."""

    direction: str
    """GROWING, FLAT or SHRINKING."""
    per_s: float
    low_per_s: float
    high_per_s: float
    blocks: int
    span_s: float

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
    found = _scipy().theilslopes(values, times, alpha=CONFIDENCE)
    slope = float(found.slope)
    residuals = [v - slope * t for t, v in blocks]
    wider = _widening(residuals)
    low = slope - (slope - float(found.low_slope)) * wider
    high = slope + (float(found.high_slope) - slope) * wider
    span_s = series[-1][0] - series[0][0]
    least = max(_LEAST_CHANGE, _LEAST_SHARE * sum(map(abs, values)) / len(values))
    certain = low > 0 or high < 0
    moves = certain and abs(slope) * span_s >= least
    direction = (GROWING if slope > 0 else SHRINKING) if moves else FLAT
    return Trend(direction, slope, low, high, len(blocks), span_s)


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
    stats = _scipy()
    data = stats.CensoredData(uncensored=list(released_s), right=list(still_dying_s))
    found = stats.ecdf(data).sf
    times = tuple(map(float, found.quantiles))
    still = tuple(map(float, found.probabilities))
    low, high = _interval(found, still)
    return Survival(times, still, low, high, len(released_s), len(still_dying_s))


def _nobody_released(still_dying_s: Sequence[float]) -> Survival | None:
    """All of them stay, up to the age that enough of them have: the curve of Kaplan and Meier needs a release."""
    if len(still_dying_s) < AT_RISK:
        return None
    age_s, low = sorted(still_dying_s)[-AT_RISK], share(AT_RISK, AT_RISK)
    assert low is not None
    return Survival((age_s,), (1.0,), (low.low,), (1.0,), 0, len(still_dying_s))


def _interval(found: object, still: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    import warnings

    with warnings.catch_warnings():
        # scipy warns where the interval is not defined; see below.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = found.confidence_interval(CONFIDENCE, method="log-log")  # type: ignore[attr-defined]
    low = [float(v) for v in interval.low.probabilities]
    high = [float(v) for v in interval.high.probabilities]
    # While nobody is released, and when all are, the interval is not defined; the curve stands for it.
    return (
        tuple(s if math.isnan(v) else v for v, s in zip(low, still, strict=True)),
        tuple(s if math.isnan(v) else v for v, s in zip(high, still, strict=True)),
    )


def bucket_quantile(buckets: Sequence[tuple[float, float]], part: float) -> Quantile:
    """Between which bounds of a histogram the part lies; `buckets` are (upper bound, cumulative count)."""
    total = buckets[-1][1] if buckets else 0.0
    lower = 0.0
    for bound, count in buckets:
        if total > 0 and count >= part * total:
            return Quantile(None, lower, None if math.isinf(bound) else bound)
        lower = bound
    return Quantile(None)
