# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as one HTML file that needs no network; the one module that knows jinja2."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from kmemwatch import __version__
from kmemwatch.compare.comparison import Comparison, memory_text
from kmemwatch.compare.figures import Metric, Values, pinned
from kmemwatch.compare.output import fact_text, identity, pairs, thinned
from kmemwatch.compare.side import ReleaseDelays, Side
from kmemwatch.compare.stats import survival
from kmemwatch.compare.verdict import FAILS, HOLDS, delay_text, number
from kmemwatch.units import rfc3339

_CLASSES = {HOLDS: "holds", FAILS: "fails"}
_SHORTEST_S = 1e-3
"""A delay of 0 has no place on a logarithmic axis."""

Points = list[tuple[float, float]]


def to_html(found: Comparison, now_ns: int) -> str:
    """The file."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    charts_ = charts(found)
    table = found.table
    text: str = environment.from_string(_file("report.html.j2")).render(
        version=__version__,
        created_at=rfc3339(now_ns, 0),
        style=_file("uPlot.min.css") + _file("report.css"),
        library=_file("uPlot.iife.min.js"),
        licence=_file("uPlot.LICENSE").strip(),
        program=_file("report.js"),
        data=_embedded(charts_),
        charts=charts_,
        found=found,
        sides=[_described(side, notes) for side, notes in zip(found.sides, found.side_notes, strict=True)],
        claims=[
            {
                "claim": claim,
                "rows": [(title, [_kept(fact_text(f)) for f in facts]) for title, facts in pairs(claim)],
            }
            for claim in found.claims
        ],
        classes=_CLASSES,
        rows=[
            (delay_text(row.elapsed_s), [number(value) for value in row.dying], memory_text(row.difference_bytes))
            for row in table.rows
        ],
    )
    return text


def _described(side: Side, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "side": side,
        "identity": [_kept(line) for line in identity(side)],
        "notes": notes,
        "probes": [_probe(probe) for probe in side.probes],
    }


def _kept(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=%|m?s\b)", "\N{NO-BREAK SPACE}", text)


def _file(name: str) -> str:
    return (resources.files("kmemwatch.compare") / "data" / name).read_text("utf-8")


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element that it is in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _probe(probe: Any) -> str:
    how = f" by {probe['attachment']}" if probe["attachment"] else ""
    why = f" ({probe['why']})" if probe["why"] else ""
    return f"{probe['signal']}: {probe['status']}{how}{why}"


def charts(found: Comparison) -> list[dict[str, Any]]:
    """The charts that any side has figures for."""
    sides = found.sides
    wanted: list[dict[str, Any] | None] = [
        _over_time("dying", "Dying memory cgroups", "count", sides, Metric.DYING.of),
        _over_time("pinned", "Memory that they keep", "bytes", sides, pinned),
        _over_time(
            "slab", "Slab memory of the host, change since the beginning", "bytes", sides,
            Metric.SLAB_BYTES.of, change=True,
        ),
        _curve(sides),
        _over_time(
            "caches", "Most child caches of one root cache", "count", sides, Metric.CACHES_MAX.of,
            dashed=("memcgs online", Metric.ONLINE.of),
        ),
        _over_time("ids", "kmemcg_ids in use", "count", sides, Metric.IDS.of),
    ]  # fmt: skip
    return [chart for chart in wanted if chart is not None]


def _over_time(
    key: str,
    title: str,
    unit: str,
    sides: Sequence[Side],
    get: Callable[[Values], float | None],
    *,
    change: bool = False,
    dashed: tuple[str, Callable[[Values], float | None]] | None = None,
) -> dict[str, Any] | None:
    """One line for each side, and a dashed one if there is something to compare it with."""
    lines: list[tuple[dict[str, Any], Side, Points]] = []
    for side in sides:
        points = thinned(side.total(get))
        if change and points:
            points = [(t, value - points[0][1]) for t, value in points]
        lines.append(({"label": side.label, "side": side.label}, side, points))
    if not any(len(points) > 1 for _, _, points in lines):
        return None
    for side in sides if dashed is not None else ():
        assert dashed is not None
        lines.append(
            (
                {"label": f"{side.label}: {dashed[0]}", "side": side.label, "dashed": True},
                side,
                thinned(side.total(dashed[1])),
            )
        )
    lines = [line for line in lines if line[2]]
    times = sorted({round(t, 2) for _, _, points in lines for t, _ in points})
    return {
        "key": key,
        "title": title,
        "unit": unit,
        "x": times,
        "lines": [{**look, "y": _resampled(points, times, side.gaps)} for look, side, points in lines],
    }


def _resampled(points: Points, times: Sequence[float], gaps: Sequence[tuple[float, float]]) -> list[float | None]:
    """The latest value at each time, none in a gap: so the pointer shows the values of all lines at once."""
    found: list[float | None] = []
    place = 0
    for t in times:
        while place + 1 < len(points) and round(points[place + 1][0], 2) <= t:
            place += 1
        outside = t < round(points[0][0], 2) or t > round(points[-1][0], 2)
        in_gap = any(begin < t < begin + length for begin, length in gaps)
        found.append(None if outside or in_gap else _short(points[place][1]))
    return found


def _short(value: float) -> float:
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _curve(sides: Sequence[Side]) -> dict[str, Any] | None:
    """Share of the removed memcgs that are not released, by the time since removal."""
    known = [(side, _steps(side.delays)) for side in sides]
    known = [(side, steps) for side, steps in known if steps]
    if not known:
        return None
    times = sorted({t for _, steps in known for t, *_ in steps})
    lines: list[dict[str, Any]] = []
    for side, steps in known:
        for column, name in ((2, "low"), (3, "high"), (1, "")):  # the line last, so that its band is below it
            values = _stepped(steps, times, column)
            if name and all(value is None for value in values):
                continue
            lines.append({"label": f"{side.label} {name}".strip(), "side": side.label, "band": name, "y": values})
    title = "Share of the dead not yet released, by time since removal"
    return {"key": "delays", "title": title, "unit": "share", "x": times, "log": True, "lines": lines}


Step = tuple[float, float, float | None, float | None]
"""(after, share not released, low, high)."""


def _steps(delays: ReleaseDelays) -> list[Step]:
    found = survival(delays.released_s, delays.still_dying_s)
    if found is not None:
        rows: list[Step] = [
            (max(_SHORTEST_S, float(f"{t:.4g}")), round(s, 4), round(low, 4), round(high, 4))
            for t, s, low, high in zip(found.times_s, found.still, found.low, found.high, strict=True)
        ]
        step = max(1, len(rows) // 200)
        return [(_SHORTEST_S, 1.0, 1.0, 1.0), *rows[:-1:step], rows[-1]]
    buckets = sorted(delays.buckets.items())
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return []
    bounds = [(bound, count) for bound, count in buckets if not math.isinf(bound)]
    return [(_SHORTEST_S, 1.0, None, None), *((b, round(1 - n / total, 4), None, None) for b, n in bounds)]


def _stepped(steps: Sequence[Step], times: Sequence[float], column: int) -> list[float | None]:
    found: list[float | None] = []
    place = 0
    for t in times:
        while place + 1 < len(steps) and steps[place + 1][0] <= t:
            place += 1
        row = steps[place]
        found.append(None if t > steps[-1][0] else (row[1], row[2], row[3])[column - 1])
    return found
