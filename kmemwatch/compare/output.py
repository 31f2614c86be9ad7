# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as text for the terminal, and as JSON as kmemwatch/data/compare.schema.json has it; pure."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from kmemwatch import __version__
from kmemwatch.compare.comparison import ChangeTable, Comparison, memory_text
from kmemwatch.compare.figures import Metric, Values, pinned
from kmemwatch.compare.side import ReleaseDelays, Side
from kmemwatch.compare.stats import Survival, survival
from kmemwatch.compare.verdict import Claim, Fact, Verdict, delay_text, number
from kmemwatch.compare.workload import describe
from kmemwatch.model import ABSENT, MISSING
from kmemwatch.units import UNKNOWN, one_line, rfc3339
from kmemwatch.views.texttable import fit, width

WIDTH = 100
_MIN_WIDTH = 40
SCHEMA = 1
MAX_POINTS = 300
"""Of each series: more cannot be seen in a chart."""
SERIES: tuple[tuple[str, Callable[[Values], float | None]], ...] = (
    ("dying", Metric.DYING.of),
    ("pinned_bytes", pinned),
    ("slab_bytes", Metric.SLAB_BYTES.of),
    ("most_child_caches", Metric.CACHES_MAX.of),
    ("ids_in_use", Metric.IDS.of),
    ("online", Metric.ONLINE.of),
)


def to_text(found: Comparison, cells: int = WIDTH) -> str:
    """All of it; prose is wrapped to `cells`, tables are not."""
    cells = max(_MIN_WIDTH, cells)
    lines: list[str] = []
    for side, notes in zip(found.sides, found.side_notes, strict=True):
        lines += [f"{side.label}  {side.source}"]
        lines += [line for one in identity(side) for line in _wrapped(one, cells, "   ")]
        lines += [line for note in notes for line in _wrapped(f"note: {note}", cells, "   ")]
        lines.append("")
    for note in found.notes:
        lines += _wrapped(f"note: {note}", cells, "")
    if found.notes:
        lines.append("")
    for place, claim in enumerate(found.claims, 1):
        lines += [*_claim_lines(place, claim, found.sides, cells), ""]
    lines += table_lines(found.table, found.sides)
    return "".join(f"{one_line(line.rstrip())}\n" for line in lines)


def identity(side: Side) -> list[str]:
    """The kind of a side, its hosts, kernels, time, probes, and workload."""
    hosts = [host.name for host in side.hosts]
    shown = ", ".join(hosts[:5]) + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else "")
    begin_s, _ = side.span_s
    events = "no events" if side.events is None else f"{number(side.events)} events"
    seen = f"for {delay_text(side.duration_s)}, {number(side.samples)} samples, {events}"
    return [
        f"{side.kind} of {'host' if len(hosts) == 1 else f'{len(hosts)} hosts:'} {shown}",
        f"kernel {', '.join(side.each('kernel')) or UNKNOWN}, {kernel_kind(side)}",
        f"from {rfc3339(int(begin_s * 1e9), 0)} {seen}",
        f"probes: {probes(side)}",
        f"workload: {'not known' if side.workload is None else describe(side.workload)}",
    ]


def kernel_kind(side: Side) -> str:
    """Era, patch set and cgroup version in words."""
    patchset = {True: "with the patch set", False: "without the patch set"}.get(side.patchset)  # type: ignore[arg-type]
    if patchset is None:
        patchset = "with and without the patch set" if side.each("patchset") else "patch set not known"
    versions = side.each("cgroup_version")
    cgroup = f"cgroup v{'/v'.join(map(str, versions))}" if versions else "cgroup version not known"
    return f"era {'/'.join(side.each('era')) or UNKNOWN}, {patchset}, {cgroup}"


def probes(side: Side) -> str:
    """Signals that kmemwatch measured there, and those that it could not."""
    there = [probe["signal"] for probe in side.probes if probe["status"] not in (MISSING, ABSENT)]
    gone = [probe["signal"] for probe in side.probes if probe["status"] == MISSING]
    if not side.probes:
        return "not known"
    return ", ".join(dict.fromkeys(there)) + (f"; missing: {', '.join(dict.fromkeys(gone))}" if gone else "")


def pairs(claim: Claim) -> list[tuple[str, list[Fact | None]]]:
    """(title, fact of each side), in the order of the sides; without facts that no side knows."""
    titles: dict[str, str] = {}
    order: list[str] = []
    for verdict in claim.verdicts:
        place = 0
        for fact in verdict.facts:
            if fact.key not in titles:
                order.insert(place, fact.key)
                titles[fact.key] = fact.title
            place = order.index(fact.key) + 1
    rows = []
    for key in order:
        facts = [next((f for f in v.facts if f.key == key), None) for v in claim.verdicts]
        if any(fact is not None and fact.text != UNKNOWN for fact in facts):
            rows.append((titles[key], facts))
    return rows


def fact_text(fact: Fact | None) -> str:
    """One cell."""
    return "-" if fact is None else fact.text


def _claim_lines(place: int, claim: Claim, sides: Sequence[Side], cells: int) -> list[str]:
    lines = _wrapped(f"{place}. {claim.title}", cells, "", "   ")
    for side, verdict in zip(sides, claim.verdicts, strict=True):
        lines += _wrapped(f"{side.label}  {verdict.verdict.upper()}: {verdict.reason}", cells, "   ", "      ")
    if claim.difference is not None:
        lines += _wrapped(f"A and B: {claim.difference}", cells, "   ", "      ")
    rows = [[title, *(fact_text(fact) for fact in facts)] for title, facts in pairs(claim)]
    if rows:
        lines += [f"      {line}" for line in _columns([["", *(side.label for side in sides)], *rows])]
    return lines


def table_lines(table: ChangeTable, sides: Sequence[Side]) -> list[str]:
    """The table as kernel developers publish it."""
    if not table.rows:
        return ["There is no table: the sides have no time in common."]
    rows = [["time", *(f"dying {side.label}" for side in sides), "difference in memory"]]
    for row in table.rows:
        rows.append([delay_text(row.elapsed_s), *map(number, row.dying), memory_text(row.difference_bytes)])
    note = (
        "memory is not known of both sides"
        if table.memory_title is None
        else f"difference in memory: {table.memory_title}, change since the beginning, A less B"
    )
    return [*_columns(rows), note]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(width(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(fit(cell, cells, right=n > 0) for n, (cell, cells) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _wrapped(text: str, cells: int, first: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, cells, initial_indent=first, subsequent_indent=first + "  " if rest is None else rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def to_json(found: Comparison, now_ns: int, indent: int | None = 2) -> str:
    """Text that ends with a newline."""
    return json.dumps(to_dict(found, now_ns), indent=indent, allow_nan=False) + "\n"


def to_dict(found: Comparison, now_ns: int) -> dict[str, Any]:
    """The document."""
    return {
        "schema": SCHEMA,
        "kmemwatch": __version__,
        "created_at": rfc3339(now_ns, 0),
        "sides": [_side(side, notes) for side, notes in zip(found.sides, found.side_notes, strict=True)],
        "notes": list(found.notes),
        "claims": [_claim(number, claim) for number, claim in enumerate(found.claims, 1)],
        "table": {
            "memory": found.table.memory,
            "rows": [
                {
                    "elapsed_s": round(row.elapsed_s, 3),
                    "dying": list(row.dying),
                    "memory_change_bytes": list(row.memory_bytes),
                    "memory_difference_bytes": row.difference_bytes,
                }
                for row in found.table.rows
            ],
        },
    }


def _side(side: Side, notes: tuple[str, ...]) -> dict[str, Any]:
    begin_s, end_s = side.span_s
    return {
        "label": side.label,
        "kind": side.kind,
        "source": side.source,
        "kmemwatch": side.kmemwatch,
        "hosts": [
            {
                "hostname": host.name,
                "kernel": host.kernel,
                "era": host.era,
                "patchset": host.patchset,
                "cgroup_version": host.cgroup_version,
                "boot_ids": list(host.boot_ids),
                "samples": len(host.samples),
                "duration_s": round(host.duration_s, 3),
            }
            for host in side.hosts
        ],
        "began_at": rfc3339(round(begin_s * 1e9), 3),
        "ended_at": rfc3339(round(end_s * 1e9), 3),
        "duration_s": round(side.duration_s, 3),
        "samples": side.samples,
        "events": side.events,
        "probes": [dict(probe) for probe in side.probes],
        "workload": None if side.workload is None else {"text": describe(side.workload), "report": dict(side.workload)},
        "restarts": side.restarts,
        "reboots": side.reboots,
        "gaps": [{"elapsed_s": round(begin, 3), "length_s": round(length, 3)} for begin, length in side.gaps],
        "clock_jumps_s": list(side.clock_jumps_s),
        "cut": side.cut,
        "contradictions": list(side.contradictions),
        "notes": list(notes),
        "delays": _delays(side.delays),
        "series": {name: [[round(t, 3), v] for t, v in thinned(side.total(get))] for name, get in SERIES},
    }


def thinned(points: list[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Every n-th point and the last; in each part the one that stands out most, so that no peak is lost."""
    if len(points) <= most:
        return points
    size = len(points) / (most - 2)
    found, before = [points[0]], points[0][1]
    for part in range(most - 2):
        chunk = points[max(1, int(part * size)) : max(2, int((part + 1) * size))]
        if chunk:
            found.append(max(chunk, key=lambda point: abs(point[1] - before)))
            before = found[-1][1]
    return [*found, points[-1]] if found[-1] != points[-1] else found


def _delays(delays: ReleaseDelays) -> dict[str, Any]:
    curve = survival(delays.released_s, delays.still_dying_s)
    buckets = [
        {"at_most_s": None if math.isinf(bound) else bound, "released": count}
        for bound, count in sorted(delays.buckets.items())
    ]
    return {
        "exact": delays.exact,
        "released": len(delays.released_s) if delays.exact else buckets[-1]["released"] if buckets else None,
        "still_dying": len(delays.still_dying_s) if delays.exact else None,
        "left_out": delays.unusable,
        "curve": None if curve is None else curve_points(curve),
        "buckets": buckets,
    }


def curve_points(curve: Survival) -> list[dict[str, float]]:
    """(time, share still dying, its interval), thinned."""
    step = max(1, len(curve.times_s) // MAX_POINTS)
    places = sorted({*range(0, len(curve.times_s), step), len(curve.times_s) - 1})
    return [
        {
            "after_s": round(curve.times_s[n], 6), "still_dying": round(curve.still[n], 6),
            "low": round(curve.low[n], 6), "high": round(curve.high[n], 6),
        }
        for n in places
    ]  # fmt: skip


def _claim(number: int, claim: Claim) -> dict[str, Any]:
    return {
        "number": number,
        "key": claim.key,
        "claim": claim.title,
        "sides": [_verdict(verdict) for verdict in claim.verdicts],
        "difference": claim.difference,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "figures": {fact.key: _fact(fact) for fact in verdict.facts},
    }


def _fact(fact: Fact) -> dict[str, Any]:
    found = {"title": fact.title.strip(), "unit": fact.unit, "value": fact.value, "low": fact.low, "high": fact.high}
    return found if fact.trend is None else {**found, "trend": fact.trend, "small": fact.small}
