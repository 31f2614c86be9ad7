# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as text for the terminal; pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from kmemwatch.compare.report import Comparison, Table, memory_text
from kmemwatch.compare.side import Side
from kmemwatch.compare.verdict import Claim, Fact, delay_text, number
from kmemwatch.compare.workload import describe
from kmemwatch.model import ABSENT, MISSING
from kmemwatch.units import UNKNOWN, one_line, rfc3339
from kmemwatch.views.texttable import fit, width

WIDTH = 100
_MIN_WIDTH = 40


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
        lines += [*_claim(place, claim, found.sides, cells), ""]
    lines += table_lines(found.table, found.sides)
    return "".join(f"{one_line(line.rstrip())}\n" for line in lines)


def identity(side: Side) -> list[str]:
    """What a side is: kind, hosts, kernels, time, probes, workload."""
    hosts = [track.host for track in side.tracks]
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
    """Signals that are measured, and those that are not."""
    there = [probe["signal"] for probe in side.probes if probe["status"] not in (MISSING, ABSENT)]
    gone = [probe["signal"] for probe in side.probes if probe["status"] == MISSING]
    if not side.probes:
        return "not known"
    return ", ".join(dict.fromkeys(there)) + (f"; missing: {', '.join(dict.fromkeys(gone))}" if gone else "")


def pairs(claim: Claim) -> list[tuple[str, list[Fact | None]]]:
    """(title, fact of each side), in the order of the sides that have it; what no side knows is left out."""
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


def _claim(place: int, claim: Claim, sides: Sequence[Side], cells: int) -> list[str]:
    lines = _wrapped(f"{place}. {claim.title}", cells, "", "   ")
    for side, verdict in zip(sides, claim.verdicts, strict=True):
        lines += _wrapped(f"{side.label}  {verdict.verdict.upper()}: {verdict.reason}", cells, "   ", "      ")
    if claim.difference is not None:
        lines += _wrapped(f"A and B: {claim.difference}", cells, "   ", "      ")
    rows = [[title, *(fact_text(fact) for fact in facts)] for title, facts in pairs(claim)]
    if rows:
        lines += [f"      {line}" for line in _columns([["", *(side.label for side in sides)], *rows])]
    return lines


def table_lines(table: Table, sides: Sequence[Side]) -> list[str]:
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
