# SPDX-License-Identifier: GPL-2.0-only
"""Child caches of memcgs, their kmemcg_ids, and recharges; kernels with shared caches have none of these."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.maps.decode import SlabEvent
from kmemwatch.model import ChildSlabs, Event, Ids, Recharges
from kmemwatch.source.reading import Reading, RechargeKey, SourceInfo
from kmemwatch.state.ids import IdMap, meaning
from kmemwatch.state.recharges import RechargeHistory
from kmemwatch.units import NS_PER_S

LATE_NS = 60 * NS_PER_S
"""A cache leaves the list before it is released; with SLAB_TYPESAFE_BY_RCU, a grace period before."""


@dataclass(frozen=True, slots=True)
class CacheChange:
    kind: str
    """``cache_created`` or ``cache_destroyed``."""
    name: str
    kmemcg_id: int | None


class CacheChanges:
    """Finds caches that came or went, from events and from the list of caches."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, int | None]] | None = None
        """address -> name, kmemcg_id; None before the first reading."""
        self._latest_event: dict[int, int] = {}
        """address -> CLOCK_MONOTONIC of its latest event; a list that was read before is older news."""
        self._early: list[SlabEvent] = []
        """Before the first reading."""
        self._ahead: dict[tuple[int, str], int] = {}
        """(address, kind) -> CLOCK_MONOTONIC of a change that the list showed before its event came."""

        self._without_event: list[CacheChange] = []
        """Changes that follow from an event of another kind, whose own event was lost."""

    def take_event(self, event: SlabEvent) -> bool:
        """An event of kind ``cache_created`` or ``cache_destroyed``; False if `take_list` has reported that change
        already."""
        if event.cache is None:
            return True
        self._latest_event[event.cache] = event.at_monotonic_ns
        if self._known is None:
            self._early.append(event)
            return True
        if self._ahead.pop((event.cache, event.kind), None) is not None:
            return False
        if event.kind == "cache_created":
            before = self._known.get(event.cache)
            if before is not None:  # its cache_destroyed event was lost
                self._without_event.append(CacheChange("cache_destroyed", *before))
            self._known[event.cache] = event.cache_name or "", event.kmemcg_id if event.kmemcg_id >= 0 else None
        else:
            self._known.pop(event.cache, None)
        return True

    def take_list(self, caches: Iterable[CacheRecord], began_monotonic_ns: int) -> Iterator[CacheChange]:
        """Changes since the last list that no event reported; nothing for the first list."""
        now = {cache.address: (cache.name, cache.kmemcg_id) for cache in caches}
        if self._known is None:
            self._known = now
            for event in self._early:
                if event.at_monotonic_ns >= began_monotonic_ns:
                    self.take_event(event)
            self._early.clear()
            return
        yield from self._without_event
        self._without_event.clear()
        self._latest_event = {address: at for address, at in self._latest_event.items() if at >= began_monotonic_ns}
        self._ahead = {change: at for change, at in self._ahead.items() if began_monotonic_ns - at < LATE_NS}
        for address, (name, kmemcg_id) in list(self._known.items()):
            if now.get(address) != (name, kmemcg_id) and address not in self._latest_event:
                del self._known[address]
                self._ahead[address, "cache_destroyed"] = began_monotonic_ns
                yield CacheChange("cache_destroyed", name, kmemcg_id)
        for address, (name, kmemcg_id) in now.items():
            if address not in self._known and address not in self._latest_event:
                self._known[address] = name, kmemcg_id
                self._ahead[address, "cache_created"] = began_monotonic_ns
                yield CacheChange("cache_created", name, kmemcg_id)


class ChildCaches:
    """The part of `KernelState` that is about child caches; mutable."""

    def __init__(self, info: SourceInfo, patchset: bool | None, cache_ids: CacheIds) -> None:
        self._cache_ids = cache_ids
        self._info = info
        self._patchset = patchset
        self._exist = "kmem_cache__memcg_params__root_cache" in info.facts.offsets
        self._page_bytes = info.facts.page_bytes
        self._ids = IdMap()
        self._recharges = RechargeHistory(self._page_bytes, cache_ids)
        self._changes = CacheChanges()
        self._caches: dict[int, CacheRecord] = {}
        """Of the latest reading, by address."""

    def apply(self, event: SlabEvent, newest: int | None) -> Event | None:
        """Fold in an event, and return it for users, with CLOCK_MONOTONIC as its time and no path. None: it is known
        already.

        `newest`: cgroup id of the memcg that went online last.
        """
        shown = Event(
            at_ns=event.at_monotonic_ns,
            kind=event.kind,
            cgroup_id=event.cgroup_id,
            pid=event.pid,
            comm=event.comm,
            cache=event.cache_name,
            kmemcg_id=event.kmemcg_id if event.kmemcg_id >= 0 else None,
        )
        if event.kind == "id_given":
            # A kretprobe does not see the memcg. It is the one that went online last: cgroup_mutex lets only one do so
            # at a time.
            owner = event.cgroup_id or newest
            reused, previous = self._ids.give(event.kmemcg_id, owner, event.at_monotonic_ns)
            return replace(shown, kind="id_reused" if reused else shown.kind, cgroup_id=owner, other_cgroup_id=previous)
        if event.kind == "id_freed":
            return replace(shown, cgroup_id=self._ids.free(event.kmemcg_id, event.at_monotonic_ns))
        if event.kind in ("cache_created", "cache_destroyed"):
            if not self._changes.take_event(event):
                return None
            return replace(shown, cgroup_id=event.cgroup_id or self._ids.owner(event.kmemcg_id))
        moved = event.pages * self._page_bytes if event.kind == "recharge" else None
        return replace(shown, other_cgroup_id=event.from_id, bytes=moved)

    def begin(self, reading: Reading) -> None:
        """Take in the caches and the ids of a reading."""
        self._caches = {cache.address: cache for cache in reading.caches or ()}
        if self._exist and reading.memcgs is not None:
            self._ids.update(reading.memcgs, self._caches.values(), reading.at_monotonic_ns)

    def finish(self, reading: Reading, ended: Collection[int], gone: Collection[int]) -> list[RechargeKey]:
        """Add the recharges of a reading; return the keys that the source can drop, see `RechargeHistory.update`."""
        return self._recharges.update(reading.recharges, self._caches, ended, gone)

    def changes(self, reading: Reading) -> Iterator[Event]:
        """Events for caches that came or went without an event, with CLOCK_MONOTONIC as their time."""
        if reading.caches is not None:
            for change in self._changes.take_list(reading.caches, reading.at_monotonic_ns):
                yield Event(reading.at_monotonic_ns, change.kind, cache=change.name, kmemcg_id=change.kmemcg_id)

    def slabs(self, reading: Reading) -> dict[int, tuple[ChildSlabs, ...]] | None:
        """cgroup id of a dying memcg -> what child caches hold of it, largest first. Absent, or None, if that is
        unknown."""
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
        what_it_is = meaning(self._info.facts, self._exist, self._patchset, reading.memcgs)
        if not self._exist or reading.memcgs is None:
            return Ids(peak_online_memcgs=peak_online_memcgs, meaning=what_it_is)
        events = self._info.gives("ids")
        return Ids(
            in_use=self._ids.in_use,
            peak_online_memcgs=peak_online_memcgs,
            reuses_total=self._ids.reuses_total if events else None,
            map=self._ids.rows(self._caches.values(), monotonic_to_realtime_ns),
            given_total=self._ids.given_total if events else None,
            freed_total=self._ids.freed_total if events else None,
            meaning=what_it_is,
        )
