# SPDX-License-Identifier: GPL-2.0-only
"""Folds events and readings into snapshots: the only mutable data. Bounded, keeps names after death.

Two sources meet here. The walk of the kernel's tree says who is there now, also those that were dead before we came;
events say when and by whom. Where they differ the walk is right, and the event's times are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kmemwatch import pins
from kmemwatch.kernel.era import era, has_patchset
from kmemwatch.ledger import Ledger
from kmemwatch.model import (
    DYING,
    ONLINE,
    RELEASED,
    Cgroup,
    Event,
    Host,
    Ids,
    Kernel,
    Lost,
    Recharges,
    Snapshot,
    Totals,
)
from kmemwatch.sources.base import Known, Reading
from kmemwatch.sources.decode import LifecycleEvent, MemcgRecord
from kmemwatch.units import NS_PER_S

KEEP_RELEASED_NS = 60 * NS_PER_S
"""How long a released memcg stays in snapshots, so that views can show where it went."""
MAX_RELEASED = 1_000
MAX_DELAYS = 10_000
MAX_PENDING_EVENTS = 100_000
"""Events are dropped beyond this, oldest first, and counted as lost if anybody takes events at all."""


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
    """Of the event; as below, durations are taken from this clock, which nobody sets."""
    released_monotonic_ns: int = 0
    release_told: bool = False
    """Its event came; the walk may have shown the end before."""
    found_dying: bool = False
    """It was dying when it was first seen, so there is no event of that."""
    seen_at_monotonic_ns: int = 0
    """Of its latest event; a walk that began earlier may not show it yet."""
    record: MemcgRecord | None = None
    figures: dict[str, object] = field(default_factory=dict)
    """Sizes in `model.Cgroup`'s names."""


class State:
    """Everything known about one kernel since the probes were attached."""

    def __init__(self, known: Known, host: Host, monotonic_to_realtime_ns: Callable[[], int]) -> None:
        """`monotonic_to_realtime_ns`: what to add to CLOCK_MONOTONIC now, to get CLOCK_REALTIME."""
        self._known = known
        self._host = host
        self._offset_ns = monotonic_to_realtime_ns
        hierarchy = known.facts.hierarchy or {}
        version = hierarchy.get("version")
        self._kernel = Kernel(
            era=era(known.facts),
            patchset=has_patchset(known.facts),
            cgroup_version=version if isinstance(version, int) else None,
            lockdown=known.facts.lockdown,
        )
        self._units = pins.Units(
            known.facts.page_bytes, self._kernel.cgroup_version, self._kernel.era, known.stats_index
        )
        self._memcgs: dict[int, _Memcg] = {}
        self._ledger = Ledger(known, self._kernel.era)
        self._events: deque[Event] = deque()
        self._events_dropped = 0
        self._events_taken = False
        self._delays: deque[float] = deque(maxlen=MAX_DELAYS)
        self._counts = {"online": 0, "offline": 0, "released": 0}
        self._peak_online: int | None = None

    # Events

    def apply(self, events: Iterable[LifecycleEvent]) -> None:
        """Fold in what the ring buffer gave, oldest first."""
        for event in events:
            memcg = self._memcgs.get(event.cgroup_id)
            if event.kind == "online":
                memcg = self._on_online(event)
            elif memcg is None or not self._is_news(memcg, event.kind):
                continue
            memcg.seen_at_monotonic_ns = event.at_monotonic_ns
            at_ns = event.at_monotonic_ns + self._offset_ns()
            if event.kind == "offline":
                memcg.state, memcg.offline_at_ns = DYING, at_ns
                memcg.offline_monotonic_ns = event.at_monotonic_ns
            elif event.kind == "released":
                self._on_released(memcg, event.at_monotonic_ns, at_ns)
            self._counts[event.kind] += 1
            self._note(Event(at_ns, event.kind, event.cgroup_id, memcg.path, event.pid, event.comm))

    @staticmethod
    def _is_news(memcg: _Memcg, kind: str) -> bool:
        """False for what becomes of a directory whose memory controller was switched off before.

        Only the tracepoints tell of those. They also tell of the release of a directory well after the kernel has
        released its memcg, so a walk may be first to show that; the event is news all the same.
        """
        if kind == "offline":
            return memcg.state == ONLINE
        if memcg.state != RELEASED:
            return True
        return not memcg.release_told and (memcg.offline_monotonic_ns is not None or memcg.found_dying)

    def _on_online(self, event: LifecycleEvent) -> _Memcg:
        memcg = self._memcgs.setdefault(event.cgroup_id, _Memcg(event.cgroup_id, ONLINE))
        memcg.state = ONLINE  # again, when the controller was off for a while
        memcg.name = event.name
        memcg.parent_id = event.parent_id
        memcg.path = self._path(memcg)
        memcg.online_at_ns = event.at_monotonic_ns + self._offset_ns()
        memcg.offline_at_ns = memcg.released_at_ns = memcg.offline_monotonic_ns = None
        memcg.release_told = memcg.found_dying = False
        return memcg

    def _on_released(self, memcg: _Memcg, at_monotonic_ns: int, at_ns: int) -> None:
        if memcg.offline_monotonic_ns is not None:
            self._delays.append(max(0, at_monotonic_ns - memcg.offline_monotonic_ns) / NS_PER_S)
        memcg.state, memcg.released_at_ns, memcg.released_monotonic_ns = RELEASED, at_ns, at_monotonic_ns
        memcg.release_told = True

    def _note(self, event: Event) -> None:
        if len(self._events) >= MAX_PENDING_EVENTS:
            self._events.popleft()
            self._events_dropped += self._events_taken
        self._events.append(event)

    def take_events(self) -> tuple[Event, ...]:
        """Events that were not taken yet, oldest first."""
        self._events_taken = True
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def _path(self, memcg: _Memcg) -> str | None:
        """From the root of the hierarchy; the path that is known stays when the parents are gone."""
        if memcg.parent_id is None:
            return "/" if memcg.record is not None and not memcg.record.parent_css else memcg.path
        parent = self._memcgs.get(memcg.parent_id)
        if parent is None or parent.path is None or memcg.name is None:
            return memcg.path
        return f"{parent.path.rstrip('/')}/{memcg.name}"

    # Readings

    def update(self, reading: Reading) -> tuple[list[tuple[int, int]], list[int]]:
        """Fold in one reading; (pairs, cgroup ids) whose counters are final and can be forgotten by the source."""
        if reading.memcgs is not None:
            self._reconcile(reading.memcgs, reading.at_monotonic_ns)
        gone = self._expire(reading.at_monotonic_ns)
        ancestors = {memcg.cgroup_id: self._living_ancestor(memcg) for memcg in self._memcgs.values()}
        released = {memcg.cgroup_id for memcg in self._memcgs.values() if memcg.state == RELEASED} | gone
        return self._ledger.update(reading, self._present_ids(reading), released, ancestors)

    def _present_ids(self, reading: Reading) -> set[int] | None:
        """Ids that still count; None without a walk."""
        if reading.memcgs is None:
            return None
        young = {
            memcg.cgroup_id for memcg in self._memcgs.values() if memcg.seen_at_monotonic_ns >= reading.at_monotonic_ns
        }
        return young | {record.cgroup_id for record in reading.memcgs}

    def _reconcile(self, records: Iterable[MemcgRecord], began_ns: int) -> None:
        records = list(records)
        by_css = {record.css: record for record in records}
        local = pins.local_stats(records)
        now_ns = began_ns + self._offset_ns()
        for record in records:
            memcg = self._memcgs.get(record.cgroup_id)
            if memcg is None:
                memcg = self._memcgs[record.cgroup_id] = _Memcg(record.cgroup_id, ONLINE, found_dying=not record.online)
            memcg.record = record
            memcg.name = record.name
            parent = by_css.get(record.parent_css)
            memcg.parent_id = parent.cgroup_id if parent is not None else None
            memcg.path = self._path(memcg)
            if memcg.seen_at_monotonic_ns < began_ns:
                memcg.state = ONLINE if record.online else DYING
            memcg.figures = self._figures(record, local[record.css], memcg.state)
        seen = {record.cgroup_id for record in records}
        for memcg in self._memcgs.values():
            if memcg.cgroup_id not in seen and memcg.state != RELEASED and memcg.seen_at_monotonic_ns < began_ns:
                # Its event was lost, or nothing sends any.
                memcg.state, memcg.released_at_ns, memcg.released_monotonic_ns = RELEASED, now_ns, began_ns
        self._count_online()

    def _count_online(self) -> None:
        online = sum(memcg.state == ONLINE for memcg in self._memcgs.values())
        self._peak_online = max(self._peak_online or 0, online)

    def _figures(self, record: MemcgRecord, local: list[int], state: str) -> dict[str, object]:
        return {
            "kmemcg_id": record.kmemcg_id,
            "memory_bytes": record.memory_pages * self._units.page_bytes,
            "kernel_bytes": self._units.kernel_bytes(record),
            "slab_bytes": self._units.slab_bytes(record.stats),
            "pins": self._units.pins(record, local) if state == DYING else None,
            "references": record.references if state == DYING and self._counts_references else None,
        }

    @property
    def _counts_references(self) -> bool:
        return "percpu_ref_data__count" in self._known.facts.offsets

    def _expire(self, now_monotonic_ns: int) -> set[int]:
        """Forget the released after a while, the oldest first; their ids."""
        released = [memcg for memcg in self._memcgs.values() if memcg.state == RELEASED]
        released.sort(key=lambda memcg: memcg.released_monotonic_ns)
        too_many = len(released) - MAX_RELEASED
        gone = set()
        for number, memcg in enumerate(released):
            if number < too_many or now_monotonic_ns - memcg.released_monotonic_ns > KEEP_RELEASED_NS:
                del self._memcgs[memcg.cgroup_id]
                gone.add(memcg.cgroup_id)
        return gone

    def _living_ancestor(self, memcg: _Memcg) -> int:
        """The memcg that the kernel charges what this one leaves behind: itself while online."""
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
        """The state after `update` with the same reading."""
        caches, pairs = self._ledger.rows(reading)
        states = [memcg.state for memcg in self._memcgs.values()]
        walked = reading.memcgs is not None
        events = self._known.gives("lifecycle")
        return Snapshot(
            taken_at_ns=reading.at_monotonic_ns + self._offset_ns(),
            monotonic_ns=reading.at_monotonic_ns,
            duration_s=(reading.at_monotonic_ns - self._known.attached_at_monotonic_ns) / NS_PER_S,
            host=self._host,
            kernel=self._kernel,
            probes=self._known.probes,
            caches=caches,
            cgroups=tuple(self._cgroup(self._memcgs[cgroup_id]) for cgroup_id in sorted(self._memcgs)),
            pairs=pairs,
            recharges=Recharges(),
            ids=Ids(peak_online_memcgs=self._peak_online),
            lost=self._lost(reading.lost),
            totals=Totals(
                online_cgroups=states.count(ONLINE) if walked else None,
                online_cgroups_peak=self._peak_online,
                dying_cgroups=states.count(DYING) if walked else None,
                cgroups_onlined_total=self._counts["online"] if events else None,
                cgroups_offlined_total=self._counts["offline"] if events else None,
                cgroups_released_total=self._counts["released"] if events else None,
            ),
            maps=reading.maps,
            release_delays_s=tuple(self._delays),
        )

    def _cgroup(self, memcg: _Memcg) -> Cgroup:
        charged, uncharged = self._ledger.charges(memcg.cgroup_id)
        figures = memcg.figures if memcg.state != RELEASED else {}
        sizes = {name: figures.get(name) for name in _FIGURES}
        return Cgroup(
            id=memcg.cgroup_id,
            path=memcg.path,
            state=memcg.state,
            online_at_ns=memcg.online_at_ns,
            offline_at_ns=memcg.offline_at_ns if memcg.state != ONLINE else None,
            released_at_ns=memcg.released_at_ns if memcg.state == RELEASED else None,
            charged_bytes_total=charged,
            uncharged_bytes_total=uncharged,
            **sizes,  # type: ignore[arg-type]
        )

    def _lost(self, lost: Mapping[str, int]) -> Lost:
        reasons = dict(lost)
        if self._events_dropped:
            reasons["event_queue_full"] = self._events_dropped
        events = {"ringbuf_full", "undecodable", "event_queue_full"}
        events |= {reason for reason in reasons if reason.startswith("skipped_")}
        return Lost(
            events_total=sum(reasons.get(reason, 0) for reason in events),
            map_full_total=sum(reasons.get(reason, 0) for reason in ("pair_map_full", "charge_map_full")),
            unresolved_total=sum(reasons.get(reason, 0) for reason in ("cgroup_unreadable", "cache_unreadable")),
            reasons=reasons,
        )


_FIGURES = ("kmemcg_id", "memory_bytes", "kernel_bytes", "slab_bytes", "pins", "references")
