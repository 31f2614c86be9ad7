# SPDX-License-Identifier: GPL-2.0-only
"""Folds events and readings into snapshots: the only mutable data, and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from kmemwatch.cacheids import CacheIds
from kmemwatch.kernel.facts import era, has_patchset
from kmemwatch.maps.decode import LifecycleEvent, SlabEvent
from kmemwatch.model import ONLINE, RELEASED, Cgroup, Event, Host, Kernel, Lost, Snapshot
from kmemwatch.source.reading import FinalCounts, Reading, SourceInfo
from kmemwatch.state import pins
from kmemwatch.state.child_caches import ChildCaches
from kmemwatch.state.counts import Counts
from kmemwatch.state.memcgs import UNKNOWN, Memcg, Memcgs
from kmemwatch.units import NS_PER_S

MAX_PENDING_EVENTS = 100_000
"""Above this number the oldest events are dropped. They count as lost if anybody reads events at all."""


class KernelState:
    """Everything known about one kernel since the probes were attached."""

    def __init__(
        self,
        info: SourceInfo,
        host: Host,
        monotonic_to_realtime_ns: Callable[[], int],
        cache_ids: CacheIds | None = None,
    ) -> None:
        """`monotonic_to_realtime_ns`: add it to CLOCK_MONOTONIC to get CLOCK_REALTIME; `cache_ids`: ids that are valid
        for this boot, or else for this process."""
        cache_ids = CacheIds() if cache_ids is None else cache_ids
        self._info = info
        self._host = host
        self._offset_ns = monotonic_to_realtime_ns
        self._kernel = _kernel(info)
        self._memcgs = Memcgs(info, self._kernel, monotonic_to_realtime_ns)
        self._counts = Counts(info, self._kernel.era, cache_ids)
        self._child_caches = ChildCaches(info, self._kernel.patchset, cache_ids)
        self._events: deque[Event] = deque()
        self._events_dropped = 0
        self._events_taken = False

    def apply(self, events: Iterable[LifecycleEvent | SlabEvent]) -> None:
        """Fold in events from the ring buffer, oldest first."""
        for event in events:
            if isinstance(event, SlabEvent):
                self._keep_from_children(self._child_caches.apply(event, self._memcgs.newest))
            elif (happened := self._memcgs.apply(event)) is not None:
                self._keep(happened)

    def _keep_from_children(self, event: Event | None) -> None:
        """Keep an event that `children` returned, if any."""
        if event is None:
            return
        memcg = self._memcgs.by_id.get(event.cgroup_id or 0)
        path = memcg.path if memcg is not None else None
        self._keep(replace(event, at_ns=event.at_ns + self._offset_ns(), path=path))

    def _keep(self, event: Event) -> None:
        if len(self._events) >= MAX_PENDING_EVENTS:
            self._events.popleft()
            self._events_dropped += self._events_taken
        self._events.append(event)

    def take_events(self) -> tuple[Event, ...]:
        """Events that nobody has read yet, oldest first."""
        self._events_taken = True
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def update(self, reading: Reading) -> FinalCounts:
        """Fold in one reading; return the counters in it that are final, which the source can drop."""
        reading = pins.checked(reading, self._info.facts.page_bytes)
        self._child_caches.begin(reading)
        tree = self._memcgs.update(reading, self._child_caches.slabs(reading))
        for event in self._child_caches.changes(reading):
            self._keep_from_children(event)
        pairs, cgroup_ids = self._counts.update(reading, tree, self._memcgs.accounted)
        gone = tree.parents.keys() - self._memcgs.by_id.keys()
        return FinalCounts(pairs, cgroup_ids, self._child_caches.finish(reading, tree.released, gone))

    def snapshot(self, reading: Reading) -> Snapshot:
        """The snapshot; call it after `update` with the same reading."""
        caches, pairs = self._counts.rows(pins.checked(reading, self._info.facts.page_bytes))
        memcgs, totals = self._memcgs.by_id, self._memcgs.totals(walked=reading.memcgs is not None)
        below, peak = self._memcgs.dying_children(), totals.online_cgroups_peak
        if peak is not None:
            peak = max(0, peak - 1)  # the root has no kmemcg_id
        return Snapshot(
            taken_at_ns=reading.at_monotonic_ns + self._offset_ns(),
            monotonic_ns=reading.at_monotonic_ns,
            duration_s=(reading.at_monotonic_ns - self._info.attached_at_monotonic_ns) / NS_PER_S,
            host=self._host,
            kernel=self._kernel,
            probes=self._info.probes,
            caches=caches,
            cgroups=tuple(self._cgroup(memcgs[cgroup_id], below) for cgroup_id in sorted(memcgs)),
            pairs=pairs,
            recharges=self._child_caches.recharges(),
            ids=self._child_caches.ids(reading, peak, self._offset_ns()),
            lost=self._lost(reading.lost),
            totals=totals,
            maps=reading.maps,
            release_delays_s=tuple(self._memcgs.release_delays_s),
            latency=reading.latency,
        )

    def _cgroup(self, memcg: Memcg, dying_children: Mapping[int | None, int]) -> Cgroup:
        charged, uncharged = self._counts.charges(memcg.cgroup_id)
        charged_below, uncharged_below = self._counts.charges_below(memcg.cgroup_id)
        figures = memcg.figures if memcg.state != RELEASED else UNKNOWN
        return Cgroup(
            id=memcg.cgroup_id,
            path=memcg.path,
            state=memcg.state,
            kmemcg_id=figures.kmemcg_id,
            online_at_ns=memcg.online_at_ns,
            offline_at_ns=memcg.offline_at_ns if memcg.state != ONLINE else None,
            memory_bytes=figures.memory_bytes,
            kernel_bytes=figures.kernel_bytes,
            slab_bytes=figures.slab_bytes,
            charged_bytes_total=charged,
            uncharged_bytes_total=uncharged,
            pins=figures.pins,
            references=figures.references,
            released_at_ns=memcg.released_at_ns if memcg.state == RELEASED else None,
            child_slabs=figures.child_slabs,
            parent_id=memcg.parent_id,
            dying_children=dying_children.get(memcg.cgroup_id, 0) if memcg.state != RELEASED else None,
            own_kernel_bytes=figures.own_kernel_bytes,
            own_slab_bytes=figures.own_slab_bytes,
            subtree_charged_bytes_total=charged_below,
            subtree_uncharged_bytes_total=uncharged_below,
            subtree_allocations_total=self._counts.allocations_below(memcg.cgroup_id),
        )

    def _lost(self, lost: Mapping[str, int | None]) -> Lost:
        reasons = {reason: count for reason, count in lost.items() if count is not None}
        if self._events_dropped:
            reasons["event_queue_full"] = self._events_dropped
        events = {"ringbuf_full", "undecodable", "event_queue_full"}
        events |= {reason for reason in reasons if reason.startswith("skipped_")}
        return Lost(
            events_total=None if None in lost.values() else sum(reasons.get(reason, 0) for reason in events),
            map_full_total=sum(reasons.get(reason, 0) for reason in _MAP_FULL),
            unresolved_total=sum(reasons.get(reason, 0) for reason in _UNRESOLVED),
            reasons=reasons,
        )


_MAP_FULL = ("pair_map_full", "charge_map_full", "recharge_map_full")
_UNRESOLVED = ("cgroup_unreadable", "cache_unreadable", "recharge_unfollowed")


def _kernel(info: SourceInfo) -> Kernel:
    version = (info.facts.hierarchy or {}).get("version")
    return Kernel(
        era=era(info.facts),
        patchset=has_patchset(info.facts),
        cgroup_version=version if isinstance(version, int) else None,
        lockdown=info.facts.lockdown,
    )
