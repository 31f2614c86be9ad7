# SPDX-License-Identifier: GPL-2.0-only
"""Claim 3: whether the dead are let go, how long that takes, and what keeps those that stay; pure."""

from __future__ import annotations

from dataclasses import dataclass

from kmemwatch.compare import figures
from kmemwatch.compare.side import Side, known_total
from kmemwatch.compare.stats import (
    GROWING,
    SHRINKING,
    Share,
    Survival,
    Trend,
    bucket_quantile,
    share,
    survival,
    trend,
)
from kmemwatch.compare.verdict import (
    BYTES,
    BYTES_PER_HOUR,
    FAILS,
    HOLDS,
    MIN_DEAD,
    PER_HOUR,
    SECONDS,
    UNTOLD,
    Fact,
    Verdict,
    number,
    of_share,
    written,
)

HOUR_S = 3600
_MOST, _FEW = 0.5, 0.05
"""Shares of the dead: if more than half of them stay nothing lets go of them; a twentieth may just have died."""
_SOME = 0.2


@dataclass(frozen=True)
class Deaths:
    """What is known of the dead of a side."""

    offlined: float | None
    released: float | None
    dying: float | None
    left: Share | None
    """Of those that were removed, how many more are dying at the end than at the start."""
    late_offlined: float | None
    late_released: float | None
    whole: Trend | None
    late: Trend | None
    """Of the second half: what a host does once it is warm."""
    survival: Survival | None


def deaths(side: Side) -> Deaths:
    """Count and look at the trend."""
    offlined, released = side.increase(figures.OFFLINED), side.increase(figures.RELEASED)
    series = side.dying()
    left = None
    if offlined is not None and released is not None:
        left = share(offlined - released, offlined)
    elif offlined is not None and series:
        left = share(series[-1][1] - series[0][1], offlined)
    half_s = (series[0][0] + series[-1][0]) / 2 if series else 0.0
    return Deaths(
        offlined,
        released,
        side.at_end(lambda values: values.get(figures.DYING)),
        left,
        _after(side, figures.OFFLINED, half_s),
        _after(side, figures.RELEASED, half_s),
        trend(series),
        trend([point for point in series if point[0] >= half_s]),
        survival(side.delays.released_s, side.delays.still_dying_s),
    )


def _after(side: Side, metric: str, begin_s: float) -> float | None:
    found = None
    for track in side.tracks:
        for run in track.runs:
            late = type(run)(
                tuple(s for s in run.samples if s.elapsed_s >= begin_s),
                run.from_zero and run.samples[0].elapsed_s >= begin_s,
                run.exact,
            )
            grown = late.increase(metric)[0]
            found = found if grown is None else (found or 0.0) + grown
    return found


def let_go(side: Side) -> Verdict:
    """Dead memcgs are let go sooner or later."""
    seen = deaths(side)
    verdict, reason = _judge(seen)
    return Verdict(verdict, reason, tuple(_facts(side, seen)))


def _judge(seen: Deaths) -> tuple[str, str]:
    if seen.offlined is None or seen.dying is None:
        return UNTOLD, "the memcgs that are removed and released are not counted here"
    if seen.offlined < MIN_DEAD or seen.left is None:
        return UNTOLD, f"only {number(seen.offlined)} memcgs were removed meanwhile, fewer than {MIN_DEAD}"
    if seen.whole is None or seen.late is None:
        return UNTOLD, "too few samples, or too short a time, to tell whether the number of dying memcgs grows"
    stay = (
        f"{number(seen.offlined)} were removed and {number(seen.released)} released,"
        f" {number(seen.dying)} are dying at the end"
    )
    late = seen.late
    if seen.left.low > _MOST and late.direction != SHRINKING:
        return FAILS, f"{stay}, and the number is {late.direction}"
    if late.direction == GROWING and seen.left.low > _FEW:
        return FAILS, f"{stay}, and their number grows by {_per_hour(late)} in the second half"
    stuck = not seen.late_released and (seen.late_offlined or 0.0) < MIN_DEAD
    if stuck and seen.left.low > _FEW:
        return FAILS, f"{stay}, and none was released in the second half"
    if late.direction == GROWING:
        return UNTOLD, f"{stay}; their number grows slowly, which takes longer to judge"
    if seen.left.high < _SOME:
        return HOLDS, f"{stay}, and the number is {late.direction}"
    return UNTOLD, f"{stay}, and the number is {late.direction}; it takes longer to tell whether these are let go"


def _per_hour(found: Trend) -> str:
    return Fact(
        "", "", found.per_s * HOUR_S, PER_HOUR, found.low_per_s * HOUR_S, found.high_per_s * HOUR_S
    ).text  # fmt: skip


def _facts(side: Side, seen: Deaths) -> list[Fact]:
    pinned = side.total(figures.pinned)
    kinds = sorted(side.labels(figures.DYING_BYTES))
    caches = sorted(side.labels(figures.CHILD_SLABS))
    return [
        Fact("removed", "memcgs removed", seen.offlined),
        Fact("released", "memcgs released", seen.released),
        of_share("left_share", "more dying at the end than at the start, of those removed", seen.left),
        *_delay_facts(side, seen.survival),
        Fact("dying_at_end", "dying at the end", seen.dying),
        Fact("oldest_dying", "oldest of them, at least", _oldest(side), SECONDS),
        Fact("pinned_at_end", "memory that they keep at the end", side.at_end(figures.pinned), BYTES),
        *(_kind(side, one) for one in kinds if _at_end(side, one)),
        *_slabs(side, [one for one in caches if _at_end(side, one)]),
        _trend_fact("dying_trend", "trend of their number", seen.whole, PER_HOUR),
        _trend_fact("dying_trend_late", "the same in the second half", seen.late, PER_HOUR),
        _trend_fact("pinned_trend", "trend of the memory that they keep", trend(pinned), BYTES_PER_HOUR),
    ]


def _at_end(side: Side, figure: str) -> float | None:
    return side.at_end(lambda values: values.get(figure))


def _kind(side: Side, figure: str) -> Fact:
    kind = figures.label_value(figure)
    return Fact(f"pinned_{kind}", f"  of it {kind}", _at_end(side, figure), BYTES)


def _slabs(side: Side, names: list[str]) -> list[Fact]:
    """Found by looking at a part of memory at a time, so those of the latest dead may be missing."""
    if not names:
        return []
    found = {figures.label_value(one): _at_end(side, one) for one in names}
    return [
        Fact("child_slabs", "  in child caches, as far as looked at", known_total(found.values()), BYTES),
        *(Fact(f"child_slabs_{cache}", f"    {cache}", value, BYTES) for cache, value in found.items()),
    ]


def _oldest(side: Side) -> float | None:
    return max((v for t in side.tracks if (v := t.last().get(figures.OLDEST_DYING)) is not None), default=None)


def _trend_fact(key: str, title: str, found: Trend | None, unit: str) -> Fact:
    if found is None:
        return Fact(key, title, None, unit)
    low, high = sorted((found.low_per_s * HOUR_S, found.high_per_s * HOUR_S))
    return Fact(key, f"{title}: {found.direction}", found.per_s * HOUR_S, unit, low, high)


def _delay_facts(side: Side, found: Survival | None) -> list[Fact]:
    facts = []
    buckets = sorted(side.delays.buckets.items())
    for part, key, name in ((0.5, "delay_median", "half of the dead"), (0.9, "delay_p90", "nine of ten")):
        title = f"time after which {name} are released"
        if found is not None:
            at = found.quantile(part)
            unknown_from = found.times_s[-1] if at.value is None else at.low
            facts.append(Fact(key, title, at.value, SECONDS, unknown_from, at.high))
        elif buckets:
            at = bucket_quantile(buckets, part)
            title = f"time after which {name} of those released were released"
            facts.append(Fact(key, title, None, SECONDS, at.low, at.high))
        else:
            facts.append(Fact(key, title, None, SECONDS))
    return facts


def summary(found: Trend | None, unit: str = PER_HOUR) -> str:
    """A trend in a few words, for tables."""
    if found is None:
        return "cannot be told"
    return f"{found.direction}, {written(found.per_s * HOUR_S, unit)}"
