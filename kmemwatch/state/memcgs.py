# SPDX-License-Identifier: GPL-2.0-only
"""The memcgs that there are, and those that were released a short while ago.

Two sources meet here. The walk of the kernel's tree shows which memcgs exist now, also those that were dying before the
start. Events say when and by which process they changed. Where the two differ the walk is right, and the times of the
events are kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from kmemwatch.kernel.facts import OBJCG
from kmemwatch.maps.decode import LifecycleEvent, MemcgRecord
from kmemwatch.model import DYING, ONLINE, RELEASED, ChildSlabs, Event, Kernel, Totals
from kmemwatch.source.reading import Reading, SourceInfo
from kmemwatch.state import pins
from kmemwatch.units import NS_PER_S

KEEP_RELEASED_NS = 60 * NS_PER_S
"""How long a released memcg stays in snapshots, so that views can show what became of it."""
MAX_RELEASED = 1_000
MAX_DELAYS = 10_000


class Figures(NamedTuple):
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


UNKNOWN = Figures()


@dataclass(slots=True)
class Memcg:
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
    figures: Figures = UNKNOWN


class MemcgTree(NamedTuple):
    """Which memcgs count, and for whom, at one reading."""

    present: Set[int] | None
    """Ids that may still count; None without a walk."""
    released: Set[int]
    """Ids that certainly do not count any more."""
    parents: Mapping[int, int | None]
    """Id -> id of its parent, also for the memcgs that this reading dropped."""
    ancestors: Mapping[int, int]
    """Id -> id of the memcg that the kernel charges for what it leaves: itself while it is online."""
    young: frozenset[int]
    """Ids of memcgs that were made after the probes were attached."""


class Memcgs:
    """All memcgs of one kernel; mutable, bounded. A memcg keeps its name and times when it dies."""

    def __init__(self, info: SourceInfo, kernel: Kernel, monotonic_to_realtime_ns: Callable[[], int]) -> None:
        self._info = info
        self._era = kernel.era
        self._offset_ns = monotonic_to_realtime_ns
        self._stats = _stat_reader(info, kernel)
        self.by_id: dict[int, Memcg] = {}
        self.accounted = not info.facts.nokmem
        """The kernel charges kernel memory to memcgs."""
        self.newest: int | None = None
        """cgroup id of the memcg that went online last."""
        self.release_delays_s: deque[float] = deque(maxlen=MAX_DELAYS)
        self._event_counts = {"online": 0, "offline": 0, "released": 0}
        self._online = 0
        self._peak_online: int | None = None
        self._newest_serial_nr: int | None = None
        """Highest css number in the first walk. Numbers ascend, so a css with a higher one is younger."""
        self._ids_in_use: int | None = None
        """From the latest walk, as in `model.Totals`."""

    # Events

    def apply(self, event: LifecycleEvent) -> Event | None:
        """Fold in an event, and return it for users; None if it is not about a memcg, or known already."""
        memcg = self.by_id.get(event.cgroup_id)
        if event.kind == "online":
            memcg = self._on_online(event)
        elif memcg is None or not self._is_news(memcg, event.kind):
            return None
        memcg.seen_at_monotonic_ns = event.at_monotonic_ns
        at_ns = event.at_monotonic_ns + self._offset_ns()
        if event.kind == "offline":
            self._set_state(memcg, DYING)
            memcg.offline_at_ns = at_ns
            memcg.offline_monotonic_ns = event.at_monotonic_ns
        elif event.kind == "released":
            self._on_released(memcg, event.at_monotonic_ns, at_ns)
        self._event_counts[event.kind] += 1
        return Event(at_ns, event.kind, event.cgroup_id, memcg.path, event.pid, event.comm)

    @staticmethod
    def _is_news(memcg: Memcg, kind: str) -> bool:
        """False for events of a directory whose memory controller was switched off before.

        Only the tracepoints report those. They also report the release of a directory well after the kernel has
        released its memcg. A walk may show that before; the event is news all the same.
        """
        if kind == "offline":
            return memcg.state == ONLINE
        if memcg.state != RELEASED:
            return True
        return not memcg.release_event and (memcg.offline_monotonic_ns is not None or memcg.found_dying)

    def _set_state(self, memcg: Memcg, state: str) -> None:
        """Every change of state goes through here, so that the peak of online memcgs misses none."""
        self._online += (state == ONLINE) - (memcg.state == ONLINE)
        memcg.state = state
        if self._peak_online is not None:
            self._peak_online = max(self._peak_online, self._online)

    def _add(self, memcg: Memcg) -> Memcg:
        state, memcg.state = memcg.state, RELEASED
        self.by_id[memcg.cgroup_id] = memcg
        self._set_state(memcg, state)
        return memcg

    def _on_online(self, event: LifecycleEvent) -> Memcg:
        memcg = self.by_id.get(event.cgroup_id) or self._add(Memcg(event.cgroup_id, ONLINE))
        self.newest = event.cgroup_id
        self._set_state(memcg, ONLINE)  # a second time, if the controller was off for a while
        memcg.name = event.name
        memcg.parent_id = event.parent_id
        memcg.path = self._path(memcg)
        memcg.young |= event.at_monotonic_ns >= self._info.attached_at_monotonic_ns
        memcg.online_at_ns = event.at_monotonic_ns + self._offset_ns()
        memcg.offline_at_ns = memcg.released_at_ns = memcg.offline_monotonic_ns = None
        memcg.release_event = memcg.found_dying = False
        return memcg

    def _on_released(self, memcg: Memcg, at_monotonic_ns: int, at_ns: int) -> None:
        if memcg.offline_monotonic_ns is not None:
            self.release_delays_s.append(max(0, at_monotonic_ns - memcg.offline_monotonic_ns) / NS_PER_S)
        self._end(memcg, at_monotonic_ns, at_ns)
        memcg.release_event = True

    def _end(self, memcg: Memcg, at_monotonic_ns: int, at_ns: int) -> None:
        self._set_state(memcg, RELEASED)
        memcg.released_at_ns, memcg.released_monotonic_ns = at_ns, at_monotonic_ns

    def _path(self, memcg: Memcg) -> str | None:
        """Path from the root of the hierarchy. A known path stays when the parents are gone."""
        if memcg.parent_id is None:
            return "/" if memcg.is_root else memcg.path
        parent = self.by_id.get(memcg.parent_id)
        if parent is None or parent.path is None or memcg.name is None:
            return memcg.path
        return f"{parent.path.rstrip('/')}/{memcg.name}"

    # Readings

    def update(self, reading: Reading, child_slabs: Mapping[int, tuple[ChildSlabs, ...]] | None) -> MemcgTree:
        """Fold in a walk, and drop memcgs that were released a while ago. `child_slabs`: of the dying, by cgroup id."""
        began_ns = reading.at_monotonic_ns
        if reading.memcgs is not None:
            self._reconcile(list(reading.memcgs), reading, child_slabs)
        gone = self._expire(began_ns)
        memcgs = self.by_id.values()
        # A memcg that was released after the reading began may have counted after it was read.
        released = {
            memcg.cgroup_id for memcg in memcgs if memcg.state == RELEASED and memcg.released_monotonic_ns <= began_ns
        }
        return MemcgTree(
            present=self._present_ids(reading),
            released=released | gone.keys(),
            parents={memcg.cgroup_id: memcg.parent_id for memcg in memcgs} | gone,
            ancestors={memcg.cgroup_id: self._living_ancestor(memcg) for memcg in memcgs},
            young=frozenset(memcg.cgroup_id for memcg in memcgs if memcg.young),
        )

    def _present_ids(self, reading: Reading) -> set[int] | None:
        """Ids that may still count; None without a walk."""
        if reading.memcgs is None:
            return None
        young = {
            memcg.cgroup_id for memcg in self.by_id.values() if memcg.seen_at_monotonic_ns >= reading.at_monotonic_ns
        }
        return young | {record.cgroup_id for record in reading.memcgs}

    def _reconcile(
        self,
        records: Collection[MemcgRecord],
        reading: Reading,
        child_slabs: Mapping[int, tuple[ChildSlabs, ...]] | None,
    ) -> None:
        began_ns = reading.at_monotonic_ns
        self._take_facts(records)
        newest = self._newest_serial_nr or 0
        by_css = {record.css: record for record in records}
        # Also those whose offline event came before the walk saw it.
        dying = {memcg.cgroup_id for memcg in self.by_id.values() if memcg.state == DYING}
        own = pins.less_children(
            records, {record.css for record in records if not record.online or record.cgroup_id in dying}
        )
        now_ns = began_ns + self._offset_ns()
        children = self._stats.below(records, dying)
        for record in records:
            memcg = self.by_id.get(record.cgroup_id)
            if memcg is None:
                state = ONLINE if record.online else DYING
                memcg = self._add(Memcg(record.cgroup_id, state, found_dying=not record.online))
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
        for memcg in self.by_id.values():
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
            self.accounted = any(record.kmemcg_id >= 0 for record in below)

    def _figures(
        self,
        record: MemcgRecord,
        own: MemcgRecord | None,
        state: str,
        slabs: tuple[ChildSlabs, ...] | None,
        limit: int | None,
    ) -> Figures:
        dying = state == DYING
        return Figures(
            kmemcg_id=record.kmem_cache_id if record.kmem_cache_id >= 0 else record.kmemcg_id,
            memory_bytes=pins.gauge(record.memory_pages * self._stats.page_bytes, limit),
            kernel_bytes=pins.gauge(self._stats.kernel_bytes(record), limit) if self.accounted else None,
            slab_bytes=pins.gauge(self._stats.slab_bytes(record.stats), limit) if self.accounted else None,
            pins=self._stats.pins(own, slabs, limit) if dying and own is not None else None,
            references=record.references if dying and self._counts_references else None,
            child_slabs=slabs if dying else None,
        )

    def _with_own(self, found: Figures, state: str, below: tuple[int | None, int | None]) -> Figures:
        """Add what the memcg itself has: its counters less `below`, the (kernel, slab) bytes of its children."""
        if state == DYING and self._era == OBJCG:
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
        released = [memcg for memcg in self.by_id.values() if memcg.state == RELEASED]
        released.sort(key=lambda memcg: memcg.released_monotonic_ns)
        too_many = len(released) - MAX_RELEASED
        gone = {}
        for number, memcg in enumerate(released):
            if number < too_many or now_monotonic_ns - memcg.released_monotonic_ns > KEEP_RELEASED_NS:
                del self.by_id[memcg.cgroup_id]
                gone[memcg.cgroup_id] = memcg.parent_id
        return gone

    def _living_ancestor(self, memcg: Memcg) -> int:
        """The memcg that the kernel charges for what this one leaves: itself while it is online."""
        at: Memcg | None = memcg
        for _ in range(64):
            if at is None or at.parent_id is None:
                break
            if at.state == ONLINE:
                return at.cgroup_id
            at = self.by_id.get(at.parent_id)
        return at.cgroup_id if at is not None else memcg.cgroup_id

    # Snapshot

    def totals(self, walked: bool) -> Totals:
        """For `Snapshot.totals`. `walked`: the latest reading had a walk."""
        states = Counter(memcg.state for memcg in self.by_id.values())
        events = self._info.gives("lifecycle")
        return Totals(
            online_cgroups=states[ONLINE] if walked else None,
            online_cgroups_peak=self._peak_online,
            dying_cgroups=states[DYING] if walked else None,
            cgroups_onlined_total=self._event_counts["online"] if events else None,
            cgroups_offlined_total=self._event_counts["offline"] if events else None,
            cgroups_released_total=self._event_counts["released"] if events else None,
            memcg_ids_in_use=self._ids_in_use if walked else None,
        )

    def dying_children(self) -> Mapping[int | None, int]:
        """cgroup id -> dying memcgs right below it."""
        return Counter(memcg.parent_id for memcg in self.by_id.values() if memcg.state == DYING)


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
