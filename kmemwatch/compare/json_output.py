# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as JSON, as kmemwatch/data/compare.schema.json has it; pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from kmemwatch import __version__
from kmemwatch.compare import figures
from kmemwatch.compare.figures import Values
from kmemwatch.compare.report import Comparison
from kmemwatch.compare.side import Delays, Side
from kmemwatch.compare.stats import Survival, survival
from kmemwatch.compare.verdict import Claim, Fact, Verdict
from kmemwatch.compare.workload import describe
from kmemwatch.units import rfc3339

SCHEMA = 1
MAX_POINTS = 300
"""Of each series: more cannot be seen in a chart."""
SERIES: tuple[tuple[str, Callable[[Values], float | None]], ...] = (
    ("dying", lambda values: values.get(figures.DYING)),
    ("pinned_bytes", figures.pinned),
    ("slab_bytes", lambda values: values.get(figures.SLAB_BYTES)),
    ("most_child_caches", lambda values: values.get(figures.CACHES_MAX)),
    ("ids_in_use", lambda values: values.get(figures.IDS)),
    ("online", lambda values: values.get(figures.ONLINE)),
)


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
                "hostname": track.host,
                "kernel": track.kernel,
                "era": track.era,
                "patchset": track.patchset,
                "cgroup_version": track.cgroup_version,
                "boot_ids": list(track.boot_ids),
                "samples": len(track.samples),
                "duration_s": round(track.duration_s, 3),
            }
            for track in side.tracks
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


def _delays(delays: Delays) -> dict[str, Any]:
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
