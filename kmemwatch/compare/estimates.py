# SPDX-License-Identifier: GPL-2.0-only
"""Three textbook estimates with their intervals at 95 %; pure. The tests compare each with scipy's.

scipy itself would be 350 MB of Debian packages, whose Kaplan-Meier curve is missing in Debian 12.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence

_Z = statistics.NormalDist().inv_cdf(0.975)


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
