# SPDX-License-Identifier: GPL-2.0-only
"""A verdict on a claim for one side: with its reason, and the figures behind it; how figures are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kmemwatch.compare.stats import GROWING, SHRINKING, Share, is_small
from kmemwatch.units import UNKNOWN, bytes_human, count_human, seconds_human

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot be told"

BYTES, COUNT, SECONDS, SHARE, RATIO, PER_HOUR, BYTES_PER_HOUR, NANOSECONDS = (
    "bytes", "count", "seconds", "share", "ratio", "per hour", "bytes per hour", "ns",
)  # fmt: skip

MIN_DEAD = 20
"""With fewer removed memcgs, or fewer ids given, there is no verdict."""
MIN_CHECKS = 1000
"""The same of recharge checks."""
MIN_SAMPLES = 1000
"""The same of calls that were timed."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure, with the interval that it lies in where it has one."""

    key: str
    """Stable name for JSON."""
    title: str
    value: float | None
    """None: not known."""
    unit: str = COUNT
    low: float | None = None
    high: float | None = None
    trend: str | None = None
    """Of a trend: its direction, from its interval (`stats.direction`)."""
    small: float | None = None
    """Of a trend: a smaller change does not matter."""

    @property
    def text(self) -> str:
        """For people."""
        if self.value is None and (self.low is not None or self.high is not None):
            return between(self.low, self.high, self.unit)
        text = written(self.value, self.unit)
        if self.low is not None and self.high is not None and (self.low, self.high) != (self.value, self.value):
            text += f" ({written(self.low, self.unit)} to {written(self.high, self.unit)})"
        return text if self.trend is None else f"{text} {self.trend}{self._limit}"

    @property
    def _limit(self) -> str:
        """Words that mark a change which is certain, but small."""
        if self.trend not in (GROWING, SHRINKING) or self.low is None or self.high is None or self.small is None:
            return ""
        return f", by less than {written(self.small, self.unit)}" if is_small(self.low, self.high, self.small) else ""


def of_share(key: str, title: str, share: Share | None) -> Fact:
    """A share with its interval."""
    return (
        Fact(key, title, None, SHARE) if share is None else Fact(key, title, share.value, SHARE, share.low, share.high)
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one claim and one side."""

    verdict: str
    """HOLDS, FAILS or UNDECIDED."""
    reason: str
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What the cover letter promises, and the verdict on each side."""

    key: str
    title: str
    verdicts: tuple[Verdict, ...]
    """In the order of the sides."""
    difference: str | None = None
    """How the two sides differ."""


def written(value: float | None, unit: str) -> str:
    """A figure with its unit; ``?`` when it is not known. A figure that is not 0 is never written as 0."""
    if value is None:
        return UNKNOWN
    text = _WRITTEN[unit](value)
    if value == 0 or re.search("[1-9]", text):
        return text
    least = _WRITTEN[unit](1.0)
    return f"<{least}" if value > 0 else f">-{least}"


def rounded(value: float) -> str:
    """A count, or a rate of one that may be small."""
    return f"{value:.2g}" if 0 < abs(value) < 9.95 and value != int(value) else count_human(value)


def _percent(value: float) -> str:
    percent = 100 * value
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) or 9.95 <= percent <= 90 else f"{percent:.1f} %"


def delay_text(value: float) -> str:
    """Seconds, with a fraction where that says something."""
    if 0 < value < 0.9995:
        return f"{1000 * value:.3g} ms"
    return f"{value:.1f} s" if value < 60 else seconds_human(value)


_WRITTEN: dict[str, Callable[[float], str]] = {
    BYTES: bytes_human,
    BYTES_PER_HOUR: lambda value: f"{bytes_human(value)}/h",
    COUNT: rounded,
    NANOSECONDS: lambda value: f"{value:.0f} ns",
    PER_HOUR: lambda value: f"{rounded(value)}/h",
    RATIO: lambda value: f"{value:.3g}",
    SECONDS: delay_text,
    SHARE: _percent,
}
"""By unit."""


def between(low: float | None, high: float | None, unit: str) -> str:
    """A figure of which only bounds are known."""
    if high is None:
        return f"more than {written(low, unit)}"
    return f"{written(low or 0.0, unit)} to {written(high, unit)}"


def number(value: float | None) -> str:
    """A count in a sentence."""
    return UNKNOWN if value is None else count_human(value)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several hosts: FAILS if there is one, else HOLDS if there is one."""
    for wanted in (FAILS, HOLDS, UNDECIDED):
        for verdict in verdicts:
            if verdict.verdict == wanted:
                return verdict
    return Verdict(UNDECIDED, "there is no host")
