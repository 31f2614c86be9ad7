# SPDX-License-Identifier: GPL-2.0-only
"""Two sides -> notes, verdicts on the claims, and the table; pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kmemwatch.compare.claims import caches_bounded, compare_cost, cost, ids_reused, let_go, recharged, removed
from kmemwatch.compare.figures import Metric, Values, pinned
from kmemwatch.compare.side import RECORDING, Side, value_at
from kmemwatch.compare.stats import GROWING, Trend
from kmemwatch.compare.verdict import SHARE, UNDECIDED, Claim, Verdict, delay_text, number, written
from kmemwatch.compare.workload import differ, doubts
from kmemwatch.units import bytes_human

CLAIMS: tuple[tuple[str, str, Callable[[Side], Verdict]], ...] = (
    (
        "caches-bounded",
        "Child caches of one kind never exceed the largest number of kmem-active memcgs online at once.",
        caches_bounded,
    ),
    ("ids-reused", "Ids, and with them caches, are reused by later memcgs.", ids_reused),
    ("let-go", "Dead memcgs are let go sooner or later.", let_go),
    ("recharged", "Slabs of the dead are recharged to the memcgs that use them.", recharged),
    ("cost", "The check costs next to nothing where objects are allocated.", cost),
)
ROWS = 10
"""Of the table; Gushchin's had seven days."""
_DIGITS = 15
MEMORY: tuple[tuple[str, str, Callable[[Values], float | None]], ...] = (
    ("slab", "slab memory of the host", Metric.SLAB_BYTES.of),
    ("kernel", "kernel memory of all memcgs", Metric.KERNEL_BYTES.of),
    ("pinned", "memory that dying memcgs keep", pinned),
)
"""What "difference in memory" can be, best first."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the table."""

    elapsed_s: float
    dying: tuple[float | None, float | None]
    memory_bytes: tuple[float | None, float | None]
    """Change since the beginning of the side."""

    @property
    def difference_bytes(self) -> float | None:
        """How much more the first side took."""
        a, b = self.memory_bytes
        return None if a is None or b is None else a - b


@dataclass(frozen=True, slots=True)
class ChangeTable:
    """Time, dying memcgs of both sides, difference in memory."""

    memory: str | None
    """Key of MEMORY; None when no figure of memory is known of both sides."""
    memory_title: str | None
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that `output` and `html` write."""

    sides: tuple[Side, Side]
    side_notes: tuple[tuple[str, ...], tuple[str, ...]]
    notes: tuple[str, ...]
    """About the two together."""
    claims: tuple[Claim, ...]
    table: ChangeTable


def compare(a: Side, b: Side) -> Comparison:
    """Judge both, and find what makes them hard to compare."""
    sides = (a, b)
    claims = tuple(
        Claim(key, title, (_verdict(a, judge), _verdict(b, judge)), _difference(key, sides))
        for key, title, judge in CLAIMS
    )
    return Comparison(sides, (side_notes(a), side_notes(b)), tuple(_both(a, b)), claims, _table(a, b))


def _verdict(side: Side, judge: Callable[[Side], Verdict]) -> Verdict:
    found = judge(side)
    if not side.contradictions:
        return found
    return Verdict(UNDECIDED, f"the {side.kind} contradicts itself: {side.contradictions[0]}", found.facts)


def side_notes(side: Side) -> tuple[str, ...]:
    """What a reader must know before believing the figures of a side."""
    found = [f"contradicts itself: {one}" for one in side.contradictions]
    if side.cut is not None:
        found.append(side.cut)
    if side.samples < 2:
        found.append("there is only one sample, so nothing can be said of a change")
    if side.reboots:
        found.append(f"the host was booted {_times(side.reboots)} meanwhile: all memcgs from before are gone")
    if side.restarts > side.reboots:
        again = side.restarts - side.reboots
        found.append(f"kmemwatch was restarted {_times(again)}: its counters began at 0 again, and are added up")
    falls = sum(host.falls() for host in side.hosts if not all(run.exact for run in host.runs))
    if falls:
        found.append(f"counters fell {_times(falls)} without a known restart; they are taken to have begun at 0 again")
    for jump in side.clock_jumps_s:
        to = "forward" if jump > 0 else "back"
        found.append(f"its clock jumped {to} by {delay_text(abs(jump))}; times are of the clock that does not")
    if side.delays.unusable:
        found.append(f"{side.delays.unusable} delays span a jump of the clock and are left out")
    for begin, length in side.gaps[:3]:
        found.append(f"no samples for {delay_text(length)}, {delay_text(begin)} after the beginning")
    if len(side.gaps) > 3:
        more = len(side.gaps) - 3
        found.append(f"{more} more {'time' if more == 1 else 'times'} without samples")
    lost = side.increase(Metric.LOST)
    if lost:
        found.append(f"kmemwatch lost {number(lost)} events or counts: what it counted is too little")
    if len(side.each("era")) > 1 or len(side.each("patchset")) > 1:
        found.append("its hosts run kernels of several kinds; a claim is judged over all of them")
    return (*found, *side.notes, *doubts(side))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _both(a: Side, b: Side) -> list[str]:
    """What a reader must know before comparing the two."""
    found = []
    boots = [{boot for host in side.hosts for boot in host.boot_ids} for side in (a, b)]
    (a_from, a_to), (b_from, b_to) = a.span_s, b.span_s
    at_once = a_from <= b_to and b_from <= a_to
    hosts = [{host.name for host in side.hosts} for side in (a, b)]
    if a.fingerprint and a.fingerprint == b.fingerprint:
        found.append("both sides are the same: same figures of the same time, so there is nothing to compare")
    elif at_once and boots[0] & boots[1]:
        found.append("both sides are one host at the same time: what differs is not the kernel")
    elif at_once and a.kind == b.kind and a.kind != RECORDING and hosts[0] & hosts[1]:
        found.append(f"both sides have hosts in common: {', '.join(sorted(hosts[0] & hosts[1]))}")
    elif a.each("kernel") and a.each("kernel") == b.each("kernel") and a.patchset == b.patchset:
        found.append(f"both sides run the same kernel, {', '.join(a.each('kernel'))}")
    if a.each("era") != b.each("era"):
        eras = " and ".join("/".join(side.each("era")) or "unknown" for side in (a, b))
        found.append(f"kernels of different eras ({eras}): figures that only one of them has are not compared")
    if len(a.hosts) != len(b.hosts):
        found.append(f"{len(a.hosts)} and {len(b.hosts)} hosts: sums are not comparable, trends and shares are")
    longer, shorter = max(a.duration_s, b.duration_s), min(a.duration_s, b.duration_s)
    if longer > 1.2 * shorter + 1:
        found.append(
            f"measured for {delay_text(a.duration_s)} and {delay_text(b.duration_s)}: totals are not comparable"
        )
    if (other := differ(a.workload, b.workload)) is not None:
        found.append(other)
    elif a.workload is None or b.workload is None:
        found.append("whether both sides had the same workload is not known")
    return found


def _difference(key: str, sides: tuple[Side, Side]) -> str | None:
    """Only of claims whose figures exist on every kernel."""
    if any(side.contradictions for side in sides):
        return None
    if key == "cost":
        return compare_cost(sides)
    if key != "let-go":
        return None
    a, b = (removed(side) for side in sides)
    parts = []
    if a.left is not None and b.left is not None:
        apart = a.left.low > b.left.high or b.left.low > a.left.high
        parts.append(
            f"of the removed, {' and '.join(_shares(a.left.value, b.left.value))} stay;"
            f" {'the intervals are apart' if apart else 'the intervals overlap, so that may be chance'}"
        )
    if a.whole is not None and b.whole is not None:
        parts.append(_apart(a.whole, b.whole))
    return "; ".join(parts) or None


def _shares(a: float, b: float) -> tuple[str, str]:
    """With as many digits as in the tables; with more where two different shares would look the same."""
    found = written(a, SHARE), written(b, SHARE)
    digits = 1
    while a != b and found[0] == found[1] and digits < _DIGITS:
        digits += 1
        found = f"{100 * a:.{digits}f} %", f"{100 * b:.{digits}f} %"
    return found


def _apart(a: Trend, b: Trend) -> str:
    if a.low_per_s <= b.high_per_s and b.low_per_s <= a.high_per_s:
        return "the intervals of the trends overlap, so a difference may be chance"
    sides = (("first", a), ("second", b))
    (less_side, _), (more_side, more) = sorted(sides, key=lambda one: one[1].per_s)
    if more.direction == GROWING:
        return f"the trends differ: the number of dying memcgs grows faster on the {more_side} side"
    return f"the trends differ: the number of dying memcgs shrinks faster on the {less_side} side"


def _table(a: Side, b: Side) -> ChangeTable:
    span_s = min(a.duration_s, b.duration_s)
    chosen = next(((k, t, get) for k, t, get in MEMORY if a.total(get) and b.total(get)), None)
    if span_s <= 0:
        return ChangeTable(None, None, ())
    dying = a.dying(), b.dying()
    memory = ([], []) if chosen is None else (a.total(chosen[2]), b.total(chosen[2]))
    rows = []
    for n in range(ROWS + 1):
        t = span_s * n / ROWS
        rows.append(
            TableRow(
                t,
                (_at(dying[0], t, span_s), _at(dying[1], t, span_s)),
                (_grown(memory[0], t, span_s), _grown(memory[1], t, span_s)),
            )
        )
    return ChangeTable(chosen and chosen[0], chosen and chosen[1], tuple(rows))


def _at(series: list[tuple[float, float]], t: float, span_s: float) -> float | None:
    """The value at a time, unless the last one known is of an earlier row."""
    return value_at(series, t, span_s / ROWS)


def _grown(series: list[tuple[float, float]], t: float, span_s: float) -> float | None:
    now = _at(series, t, span_s)
    return None if now is None else now - series[0][1]


def memory_text(value: float | None) -> str:
    """Of a difference, with its sign."""
    return "?" if value is None else f"{'+' if value > 0 else ''}{bytes_human(value)}"
