# SPDX-License-Identifier: GPL-2.0-only
"""Claim 3: whether the dead are let go, how long that takes, and what keeps those that stay; pure."""

from __future__ import annotations

from dataclasses import dataclass

from kmemwatch.compare import figures
from kmemwatch.compare.side import Side, known_total
from kmemwatch.compare.stats import (
    FLAT,
    GROWING,
    SHRINKING,
    UNCLEAR,
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
    late, moves = seen.late, f"in the second half, {_moves(seen.late)}"
    dwindling = late.direction == SHRINKING and not late.is_small
    if seen.left.low > _MOST and not dwindling:
        return FAILS, f"{stay}; {moves}"
    if late.direction == GROWING and late.is_much and seen.left.low > _FEW:
        return FAILS, f"{stay}; {moves}"
    stuck = not seen.late_released and (seen.late_offlined or 0.0) < MIN_DEAD
    if stuck and seen.left.low > _FEW:
        return FAILS, f"{stay}; none was released in the second half"
    if late.direction == GROWING and not late.is_small:
        return UNTOLD, f"{stay}; {moves}, and it takes longer to judge that"
    if seen.left.high < _SOME:
        return HOLDS, f"{stay}; {moves}"
    return UNTOLD, f"{stay}; {moves}; it takes longer to tell whether these are let go"


def _moves(found: Trend) -> str:
    """A trend of their number as a clause, with its interval, or with what it is less than."""
    if found.direction == FLAT:
        return "their number is flat"
    rates = (found.per_s, found.low_per_s, found.high_per_s)
    value, low, high = (HOUR_S * rate for rate in rates)
    if found.direction == UNCLEAR:
        interval = Fact("", "", None, PER_HOUR, low, high).text
        return f"it is not certain whether their number grows ({interval})"
    if found.direction == SHRINKING:
        value, low, high = -value, -high, -low
    verb = "grows" if found.direction == GROWING else "shrinks"
    if found.is_small:
        return f"their number {verb} by less than {written(HOUR_S * found.small_per_s, PER_HOUR)}"
    return f"their number {verb} by {Fact('', '', value, PER_HOUR, low, high).text}"


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
    rates = (found.per_s, found.low_per_s, found.high_per_s)
    value, low, high = (HOUR_S * rate for rate in rates)
    return Fact(key, title, value, unit, low, high, found.direction, HOUR_S * found.small_per_s)


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
