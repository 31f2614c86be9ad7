# SPDX-License-Identifier: GPL-2.0-only
"""Events as text, one line each."""

from __future__ import annotations

from kmemwatch.fields.measures import cgroup_name
from kmemwatch.model import Event
from kmemwatch.units import bytes_human, printable, rfc3339

_KIND_CELLS = 15


def event_line(event: Event) -> str:
    """Time, kind, cgroup, then what else is known as ``name=value``; one line whatever the names hold."""
    parts = [rfc3339(event.at_ns) or "?", event.kind.ljust(_KIND_CELLS)]
    if event.cgroup_id is not None:
        parts.append(cgroup_name(event.cgroup_id, event.path))
        if event.path is not None:
            parts.append(f"id={event.cgroup_id}")
    known = (
        ("pid", event.pid),
        ("comm", None if event.comm is None else printable(event.comm)),
        ("cache", None if event.cache is None else printable(event.cache)),
        ("kmemcg_id", event.kmemcg_id),
        ("from_id", event.other_cgroup_id),
        ("bytes", None if event.bytes is None else bytes_human(event.bytes)),
    )
    parts.extend(f"{name}={value}" for name, value in known if value is not None)
    return " ".join(parts).rstrip()
