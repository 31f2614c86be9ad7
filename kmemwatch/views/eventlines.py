# SPDX-License-Identifier: GPL-2.0-only
"""Events as text, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kmemwatch.model import Cgroup, Event
from kmemwatch.units import UNKNOWN, bytes_human, rfc3339
from kmemwatch.views.fields import cgroup_name

_KIND_CELLS = 15
_MAX_PATHS = 65_536

_OTHER = {"id_reused": "previous", "recharge": "from", "recharge_failed": "from"}
"""Kind -> name of `Event.other_cgroup_id` in its line; other kinds have none."""
_OF_NOBODY = ("recharge", "recharge_failed")
"""Kinds where None as other cgroup means that there was none; elsewhere it is unknown."""
_OF_CACHES = ("cache_created", "cache_destroyed")
"""Kinds that may not be about a cgroup."""


class EventLines:
    """Writes events as text. An event has at most one path; paths of other cgroups are those of earlier events."""

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def learn(self, cgroups: Iterable[Cgroup]) -> None:
        """Remember their paths."""
        for cgroup in cgroups:
            self._remember(cgroup.id, cgroup.path)

    def _remember(self, cgroup_id: int | None, path: str | None) -> None:
        if cgroup_id is None or path is None:
            return
        self._paths.pop(cgroup_id, None)
        self._paths[cgroup_id] = path
        if len(self._paths) > _MAX_PATHS:
            del self._paths[next(iter(self._paths))]

    def line(self, event: Event) -> str:
        """Time, kind, cgroup, then all else that is known as ``name=value``; one line, whatever is in the names."""
        self._remember(event.cgroup_id, event.path)
        parts = [rfc3339(event.at_ns) or UNKNOWN, event.kind.ljust(_KIND_CELLS), *self._subject(event)]
        known = (
            ("pid", event.pid),
            ("comm", event.comm),
            ("cache", event.cache),
            ("kmemcg_id", event.kmemcg_id),
        )
        parts.extend(f"{name}={value}" for name, value in known if value is not None)
        parts.extend(self._other(event))
        if event.bytes is not None:
            parts.append(f"bytes={bytes_human(event.bytes)}")
        return " ".join(parts).rstrip()

    def _subject(self, event: Event) -> Iterator[str]:
        if event.cgroup_id is None:
            if event.kind not in _OF_CACHES:
                yield UNKNOWN
            return
        path = event.path if event.path is not None else self._paths.get(event.cgroup_id)
        yield cgroup_name(event.cgroup_id, path)
        if path is not None:
            yield f"id={event.cgroup_id}"

    def _other(self, event: Event) -> Iterator[str]:
        word = _OTHER.get(event.kind)
        if word is None:
            return
        if event.other_cgroup_id is None:
            yield f"{word}={'nobody' if event.kind in _OF_NOBODY else UNKNOWN}"
            return
        path = self._paths.get(event.other_cgroup_id)
        if path is not None:
            yield f"{word}={path}"
        yield f"{word}_id={event.other_cgroup_id}"
