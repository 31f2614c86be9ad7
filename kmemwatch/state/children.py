# SPDX-License-Identifier: GPL-2.0-only
"""Child caches of memcgs, the kmemcg_ids that they belong to, the slabs that move: what shared caches do not have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.maps.decode import SlabEvent
from kmemwatch.model import ChildSlabs, Event, Ids, Recharges
from kmemwatch.source.reading import Known, Reading, RechargeKey
from kmemwatch.state.cachewatch import CacheWatch
from kmemwatch.state.ids import IdMap, meaning
from kmemwatch.state.recharges import RechargeLedger


class Children:
    """A part of `state.State`, mutable like it."""

    def __init__(self, known: Known, patchset: bool | None, cache_ids: CacheIds) -> None:
        self._cache_ids = cache_ids
        self._known = known
        self._patchset = patchset
        self._exist = "kmem_cache__memcg_params__root_cache" in known.facts.offsets
        self._page_bytes = known.facts.page_bytes
        self._ids = IdMap()
        self._recharges = RechargeLedger(self._page_bytes, cache_ids)
        self._watch = CacheWatch()
        self._caches: dict[int, CacheRecord] = {}
        """Of the latest reading, by address."""

    def apply(self, event: SlabEvent, newest: int | None) -> Event | None:
        """Fold in an event; what to tell of it, with CLOCK_MONOTONIC for its time and no path. None: it is known.

        `newest`: cgroup id of the memcg that went online last.
        """
        told = Event(
            at_ns=event.at_monotonic_ns,
            kind=event.kind,
            cgroup_id=event.cgroup_id,
            pid=event.pid,
            comm=event.comm,
            cache=event.cache_name,
            kmemcg_id=event.kmemcg_id if event.kmemcg_id >= 0 else None,
        )
        if event.kind == "id_given":
            # A kretprobe is not told whose it is; but the memcg has just said that it goes online, and only one at a
            # time does (cgroup_mutex).
            owner = event.cgroup_id or newest
            reused, previous = self._ids.give(event.kmemcg_id, owner, event.at_monotonic_ns)
            return replace(told, kind="id_reused" if reused else told.kind, cgroup_id=owner, other_cgroup_id=previous)
        if event.kind == "id_freed":
            return replace(told, cgroup_id=self._ids.free(event.kmemcg_id, event.at_monotonic_ns))
        if event.kind in ("cache_created", "cache_destroyed"):
            if not self._watch.tell(event):
                return None
            return replace(told, cgroup_id=event.cgroup_id or self._ids.owner(event.kmemcg_id))
        moved = event.pages * self._page_bytes if event.kind == "recharge" else None
        return replace(told, other_cgroup_id=event.from_id, bytes=moved)

    def begin(self, reading: Reading) -> None:
        """Take in the caches and the ids of a reading."""
        self._caches = {cache.address: cache for cache in reading.caches or ()}
        if self._exist and reading.memcgs is not None:
            self._ids.update(reading.memcgs, self._caches.values(), reading.at_monotonic_ns)

    def finish(self, reading: Reading, ended: Collection[int], forgotten: Collection[int]) -> list[RechargeKey]:
        """Take in its recharges, see `RechargeLedger.update`; what can be forgotten."""
        return self._recharges.update(reading.recharges, self._caches, ended, forgotten)

    def untold(self, reading: Reading) -> Iterator[Event]:
        """Caches that came or went and no event told, with CLOCK_MONOTONIC for their time."""
        if reading.caches is not None:
            for change in self._watch.compare(reading.caches, reading.at_monotonic_ns):
                yield Event(reading.at_monotonic_ns, change.kind, cache=change.name, kmemcg_id=change.kmemcg_id)

    def slabs(self, reading: Reading) -> dict[int, tuple[ChildSlabs, ...]] | None:
        """cgroup id of a dying memcg -> what child caches hold of it, largest first; absent, and None, when that is not
        known."""
        if reading.child_slabs is None:
            return None
        return {cgroup_id: tuple(self._child_slabs(pages)) for cgroup_id, pages in reading.child_slabs.items()}

    def _child_slabs(self, pages: Mapping[int, int]) -> list[ChildSlabs]:
        found = []
        for address, number in pages.items():
            cache = self._caches.get(address)
            if cache is not None and cache.kmemcg_id is not None:
                found.append(
                    ChildSlabs(cache.name, self._cache_ids[address], cache.kmemcg_id, number * self._page_bytes)
                )
        return sorted(found, key=lambda one: (-one.slab_bytes, one.cache, one.cache_id))

    def recharges(self) -> Recharges:
        """For `Snapshot.recharges`."""
        return self._recharges.rows()

    def ids(self, reading: Reading, peak_online_memcgs: int | None, monotonic_to_realtime_ns: int) -> Ids:
        """For `Snapshot.ids`."""
        told = meaning(self._known.facts, self._exist, self._patchset, reading.memcgs)
        if not self._exist or reading.memcgs is None:
            return Ids(peak_online_memcgs=peak_online_memcgs, meaning=told)
        events = self._known.gives("ids")
        return Ids(
            in_use=self._ids.in_use,
            peak_online_memcgs=peak_online_memcgs,
            reuses_total=self._ids.reuses_total if events else None,
            map=self._ids.rows(self._caches.values(), monotonic_to_realtime_ns),
            given_total=self._ids.given_total if events else None,
            freed_total=self._ids.freed_total if events else None,
            meaning=told,
        )
