# SPDX-License-Identifier: GPL-2.0-only
"""Which memcg has which kmemcg_id, and which had it before; on kernels where child caches belong to ids.

The kernel gives the lowest free id. So if it has given an id, it has given all lower ones before.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.decode import MemcgRecord
from kmemwatch.model import KmemcgId

MAX_PREVIOUS = 16


@dataclass(slots=True)
class _Id:
    owner: int | None = None
    since_monotonic_ns: int | None = None
    """When the owner got it, or the last owner gave it back; None: before the start."""
    previous: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_PREVIOUS))
    event_monotonic_ns: int = 0
    """Time of its latest event; a walk that began earlier is older news."""


class IdMap:
    """The ids of one kernel since the start."""

    def __init__(self) -> None:
        self._ids: dict[int, _Id] = {}
        self._highest = -1
        self.given_total = 0
        self.freed_total = 0
        self.reuses_total = 0

    def give(self, kmemcg_id: int, cgroup_id: int | None, at_monotonic_ns: int) -> tuple[bool, int | None]:
        """Fold in an event; return (another memcg had it before, the cgroup id of that memcg if known)."""
        reused = kmemcg_id <= self._highest
        entry = self._ids.setdefault(kmemcg_id, _Id())
        if entry.owner is not None and entry.owner != cgroup_id:
            entry.previous.append(entry.owner)  # its id_freed event was lost
        previous = entry.previous[-1] if entry.previous else None
        entry.owner, entry.since_monotonic_ns = cgroup_id, at_monotonic_ns
        entry.event_monotonic_ns = at_monotonic_ns
        self._highest = max(self._highest, kmemcg_id)
        self.given_total += 1
        self.reuses_total += reused
        return reused, previous

    def free(self, kmemcg_id: int, at_monotonic_ns: int) -> int | None:
        """Fold in an event; return the cgroup id of the last owner, None if unknown."""
        entry = self._ids.setdefault(kmemcg_id, _Id())
        owner = entry.owner
        self._end(entry, at_monotonic_ns)
        entry.event_monotonic_ns = at_monotonic_ns
        self._highest = max(self._highest, kmemcg_id)
        self.freed_total += 1
        return owner

    @staticmethod
    def _end(entry: _Id, at_monotonic_ns: int) -> None:
        if entry.owner is not None:
            entry.previous.append(entry.owner)
        entry.owner, entry.since_monotonic_ns = None, at_monotonic_ns

    def update(self, records: Iterable[MemcgRecord], caches: Iterable[CacheRecord], began_monotonic_ns: int) -> None:
        """Fold in a walk: owners from before the start, and changes without an event."""
        held = {record.kmem_cache_id: record for record in records if record.kmem_cache_id_held}
        for kmemcg_id, record in held.items():
            entry = self._ids.setdefault(kmemcg_id, _Id())
            if entry.owner != record.cgroup_id and entry.event_monotonic_ns < began_monotonic_ns:
                if entry.owner is not None:
                    entry.previous.append(entry.owner)
                entry.owner, entry.since_monotonic_ns = record.cgroup_id, None
        for kmemcg_id, entry in self._ids.items():
            if kmemcg_id not in held and entry.owner is not None and entry.event_monotonic_ns < began_monotonic_ns:
                self._end(entry, began_monotonic_ns)
        of_caches = {cache.kmemcg_id for cache in caches if cache.kmemcg_id is not None}
        for kmemcg_id in of_caches - self._ids.keys():
            self._ids[kmemcg_id] = _Id()
        self._highest = max(self._highest, *self._ids, -1)

    @property
    def in_use(self) -> int:
        """Ids that a memcg has now."""
        return sum(entry.owner is not None for entry in self._ids.values())

    def owner(self, kmemcg_id: int) -> int | None:
        """cgroup id of the present owner."""
        entry = self._ids.get(kmemcg_id)
        return entry.owner if entry is not None else None

    def rows(self, caches: Iterable[CacheRecord], monotonic_to_realtime_ns: int) -> tuple[KmemcgId, ...]:
        """For `Ids.map`."""
        number: dict[int, int] = defaultdict(int)
        slab_bytes: dict[int, int] = defaultdict(int)
        unknown = set()
        for cache in caches:
            if cache.kmemcg_id is not None:
                number[cache.kmemcg_id] += 1
                slab_bytes[cache.kmemcg_id] += cache.slab_bytes or 0
                if cache.slab_bytes is None:
                    unknown.add(cache.kmemcg_id)
        return tuple(
            KmemcgId(
                kmemcg_id=kmemcg_id,
                cgroup_id=entry.owner,
                since_ns=None
                if entry.since_monotonic_ns is None
                else entry.since_monotonic_ns + monotonic_to_realtime_ns,
                previous_owners=tuple(entry.previous),
                caches=number[kmemcg_id],
                slab_bytes=None if kmemcg_id in unknown else slab_bytes[kmemcg_id],
            )
            for kmemcg_id, entry in sorted(self._ids.items())
            if entry.owner is not None or number[kmemcg_id] or entry.previous
        )


def meaning(facts: Facts, child_caches: bool, patchset: bool | None, records: Sequence[MemcgRecord] | None) -> str:
    """What a kmemcg_id is on this kernel; one line."""
    if child_caches and patchset:
        return "index of a memcg's child caches; given back when the memcg goes offline, and its caches with it"
    if child_caches:
        return "index of a memcg's child caches; a dying memcg keeps it, and them, until it is released"
    if _has(facts, "memcg_get_cache_ids"):
        return "index in the tables of list_lru only; given back when the memcg goes offline; no cache belongs to it"
    online = [record for record in records or () if record.online and record.parent_css]
    if online and all(record.kmemcg_id == record.memcg_id for record in online):
        return "the number of the memcg itself (mem_cgroup.id); no cache belongs to it"
    return "no cache belongs to it"


def _has(facts: Facts, function: str) -> bool:
    known: Mapping[str, object] = facts.function_args if facts.symbols is None else facts.symbols
    return function in known
