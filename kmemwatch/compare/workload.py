# SPDX-License-Identifier: GPL-2.0-only
"""The workload of a side, where it is known: the JSON report of `kmemwatch churn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmemwatch.codec import parse_json
from kmemwatch.compare.figures import Metric
from kmemwatch.compare.side import Side
from kmemwatch.errors import UsageError
from kmemwatch.feeds.user_files import read_bounded
from kmemwatch.units import parse_rfc3339

_HINT = "it is what kmemwatch churn prints"
_OPTIONS = (
    ("objects", "objects {}"),
    ("leave_percent", "leave {} %"),
    ("dead", "dead {}"),
    ("seed", "seed {}"),
)
"""Options of churn, and the words for them."""
_MAX_BYTES = 1 << 27
_CLOCK_S = 60.0
"""How far apart the clocks of the two programs may be."""


def read_workload(path: str) -> dict[str, Any]:
    """Raises UsageError when it is not a report of churn."""
    try:
        data = read_bounded(path, _MAX_BYTES)
    except OSError as exc:
        raise UsageError(f"{path}: cannot read: {exc.strerror}") from exc
    try:
        report = parse_json(data)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}", _HINT) from exc
    parts = ("host", "options", "cgroups", "objects", "started_at", "ended_at")
    if not isinstance(report, dict) or any(part not in report for part in parts):
        raise UsageError(f"{path}: not a report of churn", _HINT)
    if not all(isinstance(report[part], dict) for part in parts[:4]):
        raise UsageError(f"{path}: not a report of churn", _HINT)
    return report


def describe(report: Mapping[str, Any]) -> str:
    """One line."""
    options, cgroups = report["options"], report["cgroups"]
    mix = options.get("mix")
    kinds = ",".join(f"{kind}={weight}" for kind, weight in mix.items()) if isinstance(mix, dict) else "?"
    parts = [f"churn made {cgroups.get('made', '?')} cgroups", f"kinds {kinds}"]
    for name, words in _OPTIONS:
        if options.get(name) is not None:
            parts.append(words.format(options[name]))
    if report.get("ended_by") not in (None, "done", "duration"):
        parts.append(f"ended by {report['ended_by']}")
    return ", ".join(parts)


def doubts(side: Side) -> list[str]:
    """Why the report may not be of this side."""
    report = side.workload
    if report is None:
        return []
    found = []
    boot_id, boots = report["host"].get("boot_id"), {boot for host in side.hosts for boot in host.boot_ids}
    kernels = side.each("kernel")
    if boot_id is not None and boots and boot_id not in boots:
        found.append("the workload was run on another host, or before it was booted")
    elif kernels and report["host"].get("kernel") not in kernels:
        found.append(f"the workload was run on kernel {report['host'].get('kernel')}, not on this one")
    try:
        began, ended = parse_rfc3339(report["started_at"]), parse_rfc3339(report["ended_at"])
    except (ValueError, TypeError):
        return [*found, "the times of the workload cannot be read"]
    begin_s, end_s = side.span_s
    if began is not None and ended is not None:
        if ended / 1e9 < begin_s - _CLOCK_S or began / 1e9 > end_s + _CLOCK_S:
            found.append("the workload ran at another time than this was measured")
        elif began / 1e9 < begin_s - 1:
            found.append("the workload had begun before the measurement, so a part of it is missing")
    made, removed = report["cgroups"].get("removed"), side.increase(Metric.OFFLINED)
    if isinstance(made, int) and removed is not None and removed < made and not found:
        found.append(f"churn removed {made} cgroups, and only {removed:g} were seen to be removed")
    return found


def differ(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str | None:
    """How two workloads differ; None when they do not, or one is not known."""
    if a is None or b is None:
        return None
    plans = a["cgroups"].get("plan_sha256"), b["cgroups"].get("plan_sha256")
    if None not in plans and plans[0] == plans[1]:
        return None
    options = sorted(set(a["options"]) | set(b["options"]))
    other = [name for name in options if a["options"].get(name) != b["options"].get(name) and name != "directory"]
    return f"the workloads differ: {', '.join(other)}" if other else "the workloads differ in what they planned"
