# SPDX-License-Identifier: GPL-2.0-only
"""From the events and rows of one host: how long removed memcgs took to be released, which caches were inherited."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

from kmemwatch.compare.side import ReleaseDelays
from kmemwatch.model import DYING, RELEASED, Event, Snapshot
from kmemwatch.units import NS_PER_S

_SAME_NS = NS_PER_S
"""An event and a row that differ by less are about the same removal."""


@dataclass
class Removals:
    """Delays from removal to release, by the wall clock of the host; it must not jump in between."""

    _dying: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    """cgroup id -> (removed at, jumps until then; None: it may have been before or after a jump)."""
    _released: dict[int, int] = field(default_factory=dict)
    """cgroup id -> when it was removed, of those that are released."""
    _delays: list[tuple[int, float]] = field(default_factory=list)
    """(removed at, delay)."""
    _jumps: int = 0
    _unusable: int = 0

    def take_event(self, event: Event, jumped: bool) -> None:
        """Follow a lifecycle event; `jumped`: the clock jumped near it."""
        if event.cgroup_id is None:
            return
        if event.kind == "offline":
            self._released.pop(event.cgroup_id, None)  # the kernel gives the id again once its memcg is released
            self._dying[event.cgroup_id] = event.at_ns, None if jumped else self._jumps
        elif event.kind == "released":
            self._end(event.cgroup_id, event.at_ns, jumped)

    def take_rows(self, snapshot: Snapshot) -> None:
        """Follow the rows of a snapshot: where there are no events, they say the same."""
        for row in snapshot.cgroups:
            if row.offline_at_ns is None or abs(self._released.get(row.id, 0) - row.offline_at_ns) < _SAME_NS:
                continue
            if row.state in (DYING, RELEASED):
                known = self._dying.get(row.id)
                if known is None or abs(known[0] - row.offline_at_ns) >= _SAME_NS:
                    self._dying[row.id] = row.offline_at_ns, self._jumps
            if row.state == RELEASED and row.released_at_ns is not None:
                self._end(row.id, row.released_at_ns, False)

    def jump(self) -> None:
        """The wall clock jumped."""
        self._jumps += 1

    def reboot(self) -> None:
        """The host was booted: memcgs from before are neither dying nor released."""
        self._dying.clear()
        self._released.clear()

    def _end(self, cgroup_id: int, at_ns: int, jumped: bool) -> None:
        removed = self._dying.pop(cgroup_id, None)
        if removed is None:
            return
        removed_ns, jumps = removed
        self._released[cgroup_id] = removed_ns
        if jumped or jumps != self._jumps or at_ns < removed_ns:
            self._unusable += 1
        else:
            self._delays.append((removed_ns, (at_ns - removed_ns) / NS_PER_S))

    def delays(self, begin_ns: int, last: Snapshot) -> ReleaseDelays:
        """Of those that were removed after `begin_ns`: others would be counted only if they took long."""
        still = {row.id for row in last.cgroups if row.state == DYING}
        ages, unusable = [], self._unusable
        for cgroup_id, (removed_ns, jumps) in self._dying.items():
            if cgroup_id not in still or removed_ns < begin_ns:
                continue
            if jumps == self._jumps and removed_ns <= last.taken_at_ns:
                ages.append((last.taken_at_ns - removed_ns) / NS_PER_S)
            else:
                unusable += 1
        released = tuple(delay for removed_ns, delay in self._delays if removed_ns >= begin_ns)
        return ReleaseDelays(released, tuple(ages), unusable=unusable)


@dataclass
class CacheInheritance:
    """Child caches by kmemcg_id, and how often the next memcg with that id inherits some.

    The event of a destroyed cache may come late, after the id has a new owner. So a cache that the kernel creates for
    the new owner counts as not inherited.
    """

    _caches: dict[int, Counter[str]] = field(default_factory=dict)
    """Number of child caches by the name of their root."""
    _inherited: dict[int, set[str]] = field(default_factory=dict)
    """kmemcg_id -> roots of the caches that its latest owner inherited, as far as is known."""
    _events: int = 0
    _with_caches: int = 0

    def begin(self, snapshot: Snapshot) -> None:
        """Start with the child caches of the first snapshot."""
        for cache in snapshot.caches:
            if cache.root is not None and cache.kmemcg_id is not None:
                self._of(cache.kmemcg_id)[_root(cache.name)] += 1

    def _of(self, kmemcg_id: int) -> Counter[str]:
        return self._caches.setdefault(kmemcg_id, Counter())

    def take(self, event: Event) -> None:
        """Follow an event."""
        self._events += 1
        if event.kmemcg_id is None:
            return
        if event.kind == "id_reused":
            self._with_caches += bool(self._inherited.get(event.kmemcg_id))
            self._inherited[event.kmemcg_id] = set(self._of(event.kmemcg_id))
        elif event.cache is not None and event.kind in ("cache_created", "cache_destroyed"):
            self._change(event.kmemcg_id, _root(event.cache), 1 if event.kind == "cache_created" else -1)

    def _change(self, kmemcg_id: int, root: str, number: int) -> None:
        caches = self._of(kmemcg_id)
        caches[root] += number
        if caches[root] <= 0:
            del caches[root]
        self._inherited.get(kmemcg_id, set()).discard(root)

    def ids_with_caches(self) -> int | None:
        """kmemcg_ids that came with caches; None without events."""
        return self._with_caches + sum(map(bool, self._inherited.values())) if self._events else None


def _root(name: str) -> str:
    """``dentry`` of the child caches ``dentry(3)`` and ``dentry(3:name)``."""
    return sys.intern(name[: name.index("(")] if "(" in name else name)
