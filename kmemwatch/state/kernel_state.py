# SPDX-License-Identifier: GPL-2.0-only
"""Folds events and readings into snapshots: the only mutable data. Bounded, keeps names after death.

Two sources meet here. The walk of the kernel's tree shows which memcgs exist now, also those that were dying before the
start. Events say when and by which process they changed. Where the two differ the walk is right, and the state keeps
the times of the events.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from kmemwatch.cacheids import CacheIds
from kmemwatch.kernel.facts import OBJCG, era, has_patchset
from kmemwatch.maps.decode import LifecycleEvent, MemcgRecord, SlabEvent
from kmemwatch.model import (
    DYING,
    ONLINE,
    RELEASED,
    Cgroup,
    ChildSlabs,
    Event,
    Host,
    Kernel,
    Lost,
    Snapshot,
    Totals,
)
from kmemwatch.source.reading import FinalCounts, Reading, SourceInfo
from kmemwatch.state import pins
from kmemwatch.state.child_caches import ChildCaches
from kmemwatch.state.counts import Counts
from kmemwatch.units import NS_PER_S

KEEP_RELEASED_NS = 60 * NS_PER_S
"""How long a released memcg stays in snapshots, so that views can show what became of it."""
MAX_RELEASED = 1_000
MAX_DELAYS = 10_000
MAX_PENDING_EVENTS = 100_000
"""Above this number the oldest events are dropped. They count as lost if anybody reads events at all."""


class _Figures(NamedTuple):
    """From a walk, as in `model.Cgroup`."""

    kmemcg_id: int | None = None
    memory_bytes: int | None = None
    kernel_bytes: int | None = None
    slab_bytes: int | None = None
    pins: Mapping[str, int] | None = None
    references: int | None = None
    child_slabs: tuple[ChildSlabs, ...] | None = None
    own_kernel_bytes: int | None = None
    own_slab_bytes: int | None = None


_UNKNOWN = _Figures()


@dataclass(slots=True)
class _Memcg:
    cgroup_id: int
    state: str
    path: str | None = None
    name: str | None = None
    parent_id: int | None = None
    online_at_ns: int | None = None
    offline_at_ns: int | None = None
    released_at_ns: int | None = None
    offline_monotonic_ns: int | None = None
    """CLOCK_MONOTONIC of the event, as below. Durations use this clock because nobody can set it."""
    released_monotonic_ns: int = 0
    release_event: bool = False
    """Its event has come; the walk may have shown the release before."""
    found_dying: bool = False
    """It was dying when it was first seen, so its offline event is missing."""
    seen_at_monotonic_ns: int = 0
    """Time of its latest event; a walk that began earlier may not show the change yet."""
    is_root: bool = False
    young: bool = False
    """It was made after the probes were attached, so everything that is charged to it was counted."""
    figures: _Figures = _UNKNOWN


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
        self._stats = _stat_reader(info, self._kernel)
        self._memcgs: dict[int, _Memcg] = {}
        self._counts = Counts(info, self._kernel.era, cache_ids)
        self._counts.accounted = not info.facts.nokmem
        self._child_caches = ChildCaches(info, self._kernel.patchset, cache_ids)
        self._newest: int | None = None
        """cgroup id of the memcg that went online last."""
        self._events: deque[Event] = deque()
        self._events_dropped = 0
        self._events_taken = False
        self._delays: deque[float] = deque(maxlen=MAX_DELAYS)
        self._event_counts = {"online": 0, "offline": 0, "released": 0}
        self._online = 0
        self._peak_online: int | None = None
        self._newest_serial_nr: int | None = None
        """Highest css number in the first walk. Numbers ascend, so a css with a higher one is younger."""
        self._ids_in_use: int | None = None
        """From the latest walk, as in `model.Totals`."""

    # Events

    def apply(self, events: Iterable[LifecycleEvent | SlabEvent]) -> None:
        """Fold in events from the ring buffer, oldest first."""
        for event in events:
            if isinstance(event, SlabEvent):
                self._keep_from_children(self._child_caches.apply(event, self._newest))
                continue
            memcg = self._memcgs.get(event.cgroup_id)
            if event.kind == "online":
                memcg = self._on_online(event)
            elif memcg is None or not self._is_news(memcg, event.kind):
                continue
            memcg.seen_at_monotonic_ns = event.at_monotonic_ns
            at_ns = event.at_monotonic_ns + self._offset_ns()
            if event.kind == "offline":
                self._set_state(memcg, DYING)
                memcg.offline_at_ns = at_ns
                memcg.offline_monotonic_ns = event.at_monotonic_ns
            elif event.kind == "released":
                self._on_released(memcg, event.at_monotonic_ns, at_ns)
            self._event_counts[event.kind] += 1
            self._keep(Event(at_ns, event.kind, event.cgroup_id, memcg.path, event.pid, event.comm))

    @staticmethod
    def _is_news(memcg: _Memcg, kind: str) -> bool:
        """False for events of a directory whose memory controller was switched off before.

        Only the tracepoints report those. They also report the release of a directory well after the kernel has
        released its memcg. A walk may show that before; the event is news all the same.
        """
        if kind == "offline":
            return memcg.state == ONLINE
        if memcg.state != RELEASED:
            return True
        return not memcg.release_event and (memcg.offline_monotonic_ns is not None or memcg.found_dying)

    def _keep_from_children(self, event: Event | None) -> None:
        """Keep an event that `children` returned, if any."""
        if event is None:
            return
        memcg = self._memcgs.get(event.cgroup_id or 0)
        path = memcg.path if memcg is not None else None
        self._keep(replace(event, at_ns=event.at_ns + self._offset_ns(), path=path))

    def _set_state(self, memcg: _Memcg, state: str) -> None:
        """Every change of state goes through here, so that the peak of online memcgs misses none."""
        self._online += (state == ONLINE) - (memcg.state == ONLINE)
        memcg.state = state
        if self._peak_online is not None:
            self._peak_online = max(self._peak_online, self._online)

    def _add(self, memcg: _Memcg) -> _Memcg:
        state, memcg.state = memcg.state, RELEASED
        self._memcgs[memcg.cgroup_id] = memcg
        self._set_state(memcg, state)
        return memcg

    def _on_online(self, event: LifecycleEvent) -> _Memcg:
        memcg = self._memcgs.get(event.cgroup_id) or self._add(_Memcg(event.cgroup_id, ONLINE))
        self._newest = event.cgroup_id
        self._set_state(memcg, ONLINE)  # a second time, if the controller was off for a while
        memcg.name = event.name
        memcg.parent_id = event.parent_id
        memcg.path = self._path(memcg)
        memcg.young |= event.at_monotonic_ns >= self._info.attached_at_monotonic_ns
        memcg.online_at_ns = event.at_monotonic_ns + self._offset_ns()
        memcg.offline_at_ns = memcg.released_at_ns = memcg.offline_monotonic_ns = None
        memcg.release_event = memcg.found_dying = False
        return memcg

    def _on_released(self, memcg: _Memcg, at_monotonic_ns: int, at_ns: int) -> None:
        if memcg.offline_monotonic_ns is not None:
            self._delays.append(max(0, at_monotonic_ns - memcg.offline_monotonic_ns) / NS_PER_S)
        self._end(memcg, at_monotonic_ns, at_ns)
        memcg.release_event = True

    def _end(self, memcg: _Memcg, at_monotonic_ns: int, at_ns: int) -> None:
        self._set_state(memcg, RELEASED)
        memcg.released_at_ns, memcg.released_monotonic_ns = at_ns, at_monotonic_ns

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

    def _path(self, memcg: _Memcg) -> str | None:
        """Path from the root of the hierarchy. A known path stays when the parents are gone."""
        if memcg.parent_id is None:
            return "/" if memcg.is_root else memcg.path
        parent = self._memcgs.get(memcg.parent_id)
        if parent is None or parent.path is None or memcg.name is None:
            return memcg.path
        return f"{parent.path.rstrip('/')}/{memcg.name}"

    # Readings

    def update(self, reading: Reading) -> FinalCounts:
        """Fold in one reading; return the counters in it that are final, which the source can drop."""
        reading, began_ns = pins.checked(reading, self._stats.page_bytes), reading.at_monotonic_ns
        self._child_caches.begin(reading)
        if reading.memcgs is not None:
            self._reconcile(reading.memcgs, reading, self._child_caches.slabs(reading))
        for event in self._child_caches.changes(reading):
            self._keep_from_children(event)
        gone = self._expire(began_ns)
        ancestors = {memcg.cgroup_id: self._living_ancestor(memcg) for memcg in self._memcgs.values()}
        # A memcg that was released after the reading began may have counted after it was read.
        released = {
            memcg.cgroup_id
            for memcg in self._memcgs.values()
            if memcg.state == RELEASED and memcg.released_monotonic_ns <= began_ns
        } | gone.keys()
        young = frozenset(memcg.cgroup_id for memcg in self._memcgs.values() if memcg.young)
        parents = {memcg.cgroup_id: memcg.parent_id for memcg in self._memcgs.values()} | gone
        pairs, cgroup_ids = self._counts.update(
            reading, self._present_ids(reading), released, ancestors, parents, young
        )
        return FinalCounts(pairs, cgroup_ids, self._child_caches.finish(reading, released, gone.keys()))

    def _present_ids(self, reading: Reading) -> set[int] | None:
        """Ids that may still count; None without a walk."""
        if reading.memcgs is None:
            return None
        young = {
            memcg.cgroup_id for memcg in self._memcgs.values() if memcg.seen_at_monotonic_ns >= reading.at_monotonic_ns
        }
        return young | {record.cgroup_id for record in reading.memcgs}

    def _reconcile(
        self,
        records: Iterable[MemcgRecord],
        reading: Reading,
        child_slabs: Mapping[int, tuple[ChildSlabs, ...]] | None,
    ) -> None:
        records, began_ns = list(records), reading.at_monotonic_ns
        self._take_facts(records)
        newest = self._newest_serial_nr or 0
        by_css = {record.css: record for record in records}
        # Also those whose offline event came before the walk saw it.
        dying = {memcg.cgroup_id for memcg in self._memcgs.values() if memcg.state == DYING}
        own = pins.less_children(
            records, {record.css for record in records if not record.online or record.cgroup_id in dying}
        )
        now_ns = began_ns + self._offset_ns()
        children = self._stats.below(records, dying)
        for record in records:
            memcg = self._memcgs.get(record.cgroup_id)
            if memcg is None:
                state = ONLINE if record.online else DYING
                memcg = self._add(_Memcg(record.cgroup_id, state, found_dying=not record.online))
            memcg.young |= record.serial_nr > newest
            memcg.is_root = not record.parent_css
            memcg.name = record.name
            parent = by_css.get(record.parent_css)
            memcg.parent_id = parent.cgroup_id if parent is not None else None
            memcg.path = self._path(memcg)
            if memcg.seen_at_monotonic_ns < began_ns:
                self._set_state(memcg, ONLINE if record.online else DYING)
            slabs = None if child_slabs is None else child_slabs.get(record.cgroup_id)
            figures = self._figures(record, own.get(record.css), memcg.state, slabs, reading.host_bytes)
            memcg.figures = self._with_own(figures, memcg.state, children.get(record.css, (0, 0)))
        seen = {record.cgroup_id for record in records}
        for memcg in self._memcgs.values():
            if memcg.cgroup_id not in seen and memcg.state != RELEASED and memcg.seen_at_monotonic_ns < began_ns:
                # Its event was lost, or no hook sends events.
                self._end(memcg, began_ns, now_ns)
        self._peak_online = max(self._peak_online or 0, self._online)

    def _take_facts(self, records: Collection[MemcgRecord]) -> None:
        """What a walk shows of all memcgs together."""
        if "mem_cgroup__id" in self._info.facts.offsets:
            self._ids_in_use = sum(record.memcg_id != 0 for record in records)
        if self._newest_serial_nr is None:
            self._newest_serial_nr = max((record.serial_nr for record in records), default=None)
        if below := [record for record in records if record.online and record.parent_css]:
            # Without a kmemcg_id it has no kernel memory: memcg_online_kmem() did nothing (cgroup.memory=nokmem).
            self._counts.accounted = any(record.kmemcg_id >= 0 for record in below)

    def _figures(
        self,
        record: MemcgRecord,
        own: MemcgRecord | None,
        state: str,
        slabs: tuple[ChildSlabs, ...] | None,
        limit: int | None,
    ) -> _Figures:
        dying = state == DYING
        return _Figures(
            kmemcg_id=record.kmem_cache_id if record.kmem_cache_id >= 0 else record.kmemcg_id,
            memory_bytes=pins.gauge(record.memory_pages * self._stats.page_bytes, limit),
            kernel_bytes=pins.gauge(self._stats.kernel_bytes(record), limit) if self._counts.accounted else None,
            slab_bytes=pins.gauge(self._stats.slab_bytes(record.stats), limit) if self._counts.accounted else None,
            pins=self._stats.pins(own, slabs, limit) if dying and own is not None else None,
            references=record.references if dying and self._counts_references else None,
            child_slabs=slabs if dying else None,
        )

    def _with_own(self, found: _Figures, state: str, below: tuple[int | None, int | None]) -> _Figures:
        """Add what the memcg itself has: its counters less `below`, the (kernel, slab) bytes of its children."""
        if state == DYING and self._kernel.era == OBJCG:
            return found  # it has nothing of its own any more, but its counters stay as they were
        kernel, slab = (
            None if whole is None or part is None else pins.gauge(whole - part, None)
            for whole, part in zip((found.kernel_bytes, found.slab_bytes), below, strict=True)
        )
        return found._replace(own_kernel_bytes=kernel, own_slab_bytes=slab)

    @property
    def _counts_references(self) -> bool:
        return "percpu_ref_data__count" in self._info.facts.offsets

    def _expire(self, now_monotonic_ns: int) -> dict[int, int | None]:
        """Drop memcgs that were released a while ago, the oldest first; return their ids and those of their parents."""
        released = [memcg for memcg in self._memcgs.values() if memcg.state == RELEASED]
        released.sort(key=lambda memcg: memcg.released_monotonic_ns)
        too_many = len(released) - MAX_RELEASED
        gone = {}
        for number, memcg in enumerate(released):
            if number < too_many or now_monotonic_ns - memcg.released_monotonic_ns > KEEP_RELEASED_NS:
                del self._memcgs[memcg.cgroup_id]
                gone[memcg.cgroup_id] = memcg.parent_id
        return gone

    def _living_ancestor(self, memcg: _Memcg) -> int:
        """The memcg that the kernel charges for what this one leaves: itself while it is online."""
        at: _Memcg | None = memcg
        for _ in range(64):
            if at is None or at.parent_id is None:
                break
            if at.state == ONLINE:
                return at.cgroup_id
            at = self._memcgs.get(at.parent_id)
        return at.cgroup_id if at is not None else memcg.cgroup_id

    # Snapshot

    def snapshot(self, reading: Reading) -> Snapshot:
        """The snapshot; call it after `update` with the same reading."""
        caches, pairs = self._counts.rows(pins.checked(reading, self._stats.page_bytes))
        states = [memcg.state for memcg in self._memcgs.values()]
        walked = reading.memcgs is not None
        peak = None if self._peak_online is None else max(0, self._peak_online - 1)  # the root has no kmemcg_id
        below = Counter(memcg.parent_id for memcg in self._memcgs.values() if memcg.state == DYING)
        events = self._info.gives("lifecycle")
        return Snapshot(
            taken_at_ns=reading.at_monotonic_ns + self._offset_ns(),
            monotonic_ns=reading.at_monotonic_ns,
            duration_s=(reading.at_monotonic_ns - self._info.attached_at_monotonic_ns) / NS_PER_S,
            host=self._host,
            kernel=self._kernel,
            probes=self._info.probes,
            caches=caches,
            cgroups=tuple(self._cgroup(self._memcgs[cgroup_id], below) for cgroup_id in sorted(self._memcgs)),
            pairs=pairs,
            recharges=self._child_caches.recharges(),
            ids=self._child_caches.ids(reading, peak, self._offset_ns()),
            lost=self._lost(reading.lost),
            totals=Totals(
                online_cgroups=states.count(ONLINE) if walked else None,
                online_cgroups_peak=self._peak_online,
                dying_cgroups=states.count(DYING) if walked else None,
                cgroups_onlined_total=self._event_counts["online"] if events else None,
                cgroups_offlined_total=self._event_counts["offline"] if events else None,
                cgroups_released_total=self._event_counts["released"] if events else None,
                memcg_ids_in_use=self._ids_in_use if walked else None,
            ),
            maps=reading.maps,
            release_delays_s=tuple(self._delays),
            latency=reading.latency,
        )

    def _cgroup(self, memcg: _Memcg, dying_children: Mapping[int | None, int]) -> Cgroup:
        charged, uncharged = self._counts.charges(memcg.cgroup_id)
        charged_below, uncharged_below = self._counts.charges_below(memcg.cgroup_id)
        figures = memcg.figures if memcg.state != RELEASED else _UNKNOWN
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


def _stat_reader(info: SourceInfo, kernel: Kernel) -> pins.StatReader:
    facts = info.facts
    swap = facts.offsets.get("mem_cgroup__swap__usage")
    return pins.StatReader(
        facts.page_bytes,
        kernel.cgroup_version,
        kernel.era,
        info.stats_index,
        facts.cpus,
        memsw=swap is not None and swap == facts.offsets.get("mem_cgroup__memsw__usage"),
        pages_move="lru_reparent_memcg" in (facts.symbols or facts.function_args),
    )
