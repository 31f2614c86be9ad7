# SPDX-License-Identifier: GPL-2.0-only
"""A kernel of the test's own, with a clock, cgroups, caches and counters, as a `Source`.

It does what the real one does and no more: counters live in maps until they are forgotten, a removed cgroup stays in
the walk until it is released, what it leaves belongs to its nearest ancestor that is online, and events can get lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.decode import PAIR_COUNTS, LifecycleEvent, MemcgRecord, SlabEvent
from kmemwatch.model import ATTACHED, MISSING, Host, Probe
from kmemwatch.source.reading import (
    ACCOUNT_OBJECTS,
    FREED_OBJECTS,
    PLAIN_OBJECTS,
    FinalCounts,
    MapCounts,
    PairKey,
    Reading,
    SourceInfo,
)
from kmemwatch.state.kernel_state import KernelState

FACTS_DIR = Path(__file__).parent / "facts"
SLAB_ACCOUNT = 0x2000
MS = 1_000_000
SECOND = 1000 * MS
STATS = {"NR_FILE_PAGES": 0, "NR_SHMEM": 1, "NR_ANON_MAPPED": 2, "NR_SWAPCACHE": 3, "MEMCG_SWAP": 4, "MEMCG_KMEM": 5,
         "NR_SLAB_RECLAIMABLE_B": 6, "NR_SLAB_UNRECLAIMABLE_B": 7, "MEMCG_SOCK": 8}  # fmt: skip
SIGNALS = ("pins", "alloc", "free", "charge", "lifecycle")
ROOT = 1
DENTRY, FILP, KMALLOC = 0xFFFF888000001000, 0xFFFF888000002000, 0xFFFF888000003000
CACHES = (
    CacheRecord(DENTRY, "dentry", 192, SLAB_ACCOUNT),
    CacheRecord(FILP, "filp", 256, SLAB_ACCOUNT),
    CacheRecord(KMALLOC, "kmalloc-64", 64, 0),
)


def recorded_facts(name: str = "6.18-lockdown") -> Facts:
    """Facts of a real kernel, see tests/unit/facts/README.md."""
    return Facts.from_json((FACTS_DIR / f"{name}.json").read_text())


@dataclass
class Memcg:
    cgroup_id: int
    name: str
    parent: Memcg | None
    online: bool = True
    released: bool = False
    stats: dict[str, int] = field(default_factory=dict)
    """This memcg's own."""
    in_swap: bool = False
    """Swap speaks of it, so that it keeps its id after death."""

    @property
    def owner(self) -> Memcg:
        """Who is charged for its objects now."""
        return self if self.online or self.parent is None else self.parent.owner


class FakeSource:
    """`source.reading.Source` of the invented kernel."""

    def __init__(self, missing: Iterable[str] = (), facts: Facts | None = None) -> None:
        self.now_ns = 1000 * SECOND
        probes = tuple(
            Probe(name, None, MISSING, "taken away") if name in set(missing) else Probe(name, "fake", ATTACHED, None)
            for name in SIGNALS
        )
        self._missing = set(missing)
        base = facts or recorded_facts()
        base = replace(base, offsets={**base.offsets, "mem_cgroup__id": 200})  # the recorded ones are older than it
        hierarchy = {"version": 2, "hierarchy_id": 0, "mount": "/sys/fs/cgroup"}
        self.info = SourceInfo(replace(base, hierarchy=hierarchy), probes, STATS, SLAB_ACCOUNT, self.now_ns)
        self.root = Memcg(ROOT, "", None)
        self.memcgs: dict[int, Memcg] = {ROOT: self.root}
        self.pairs: dict[tuple[int, int], list[int]] = {}
        """Objects, those of them with __GFP_ACCOUNT, freed."""
        self.charges: dict[int, list[int]] = {}
        self.caches: list[CacheRecord] = list(CACHES)
        self.lost: dict[str, int] = {}
        self.losing_events = False
        self.nokmem = False
        self.closed = 0
        self.reads = 0
        self._events: list[LifecycleEvent | SlabEvent] = []
        self._next_id = 100
        self._arrived = threading.Event()

    # What happens in the kernel

    def mkdir(self, name: str, parent: Memcg | None = None) -> Memcg:
        memcg = Memcg(self._next_id, name, parent or self.root)
        self._next_id += 1
        self.memcgs[memcg.cgroup_id] = memcg
        self._send("online", memcg, name)
        return memcg

    def rmdir(self, memcg: Memcg) -> None:
        self._send("offline", memcg)
        memcg.online = False

    def release(self, memcg: Memcg, tell: bool = True) -> None:
        """`tell`: its event comes now; else call `tell_released` when it should."""
        memcg.released = True
        del self.memcgs[memcg.cgroup_id]
        if tell:
            self.tell_released(memcg)

    def tell_released(self, memcg: Memcg) -> None:
        self._send("released", memcg)

    def alloc(self, memcg: Memcg, cache: int = DENTRY, objects: int = 1, account: bool = False) -> None:
        counts = self.pairs.setdefault((cache, memcg.cgroup_id), [0, 0, 0])
        counts[0] += objects
        counts[1] += objects if account else 0

    def free(self, memcg: Memcg, cache: int = DENTRY, objects: int = 1) -> None:
        """Objects that `memcg` allocated: counted for who is charged for them now; for the root that is nobody."""
        owner = memcg.owner.cgroup_id if memcg is not self.root else 0
        self.pairs.setdefault((cache, owner), [0, 0, 0])[2] += objects

    def charge(self, memcg: Memcg, pages: int) -> None:
        counts = self.charges.setdefault(memcg.cgroup_id, [0, 0])
        counts[0 if pages > 0 else 1] += abs(pages)

    def _send(self, kind: str, memcg: Memcg, name: str | None = None) -> None:
        self.now_ns += MS
        if self.losing_events:
            self.lost["ringbuf_full"] = self.lost.get("ringbuf_full", 0) + 1
            return
        parent = memcg.parent.cgroup_id if memcg.parent else None
        self._events.append(LifecycleEvent(kind, self.now_ns, memcg.cgroup_id, parent, 42, "sh", name))
        self._arrived.set()

    # Source

    def poll(self, timeout_s: float) -> list[LifecycleEvent | SlabEvent]:
        if not self._events and timeout_s:
            self._arrived.wait(timeout_s)
        self._arrived.clear()
        events, self._events = self._events, []
        return events

    def read(self) -> Reading:
        self.reads += 1
        self.now_ns += MS
        signals = set(SIGNALS) - self._missing
        return Reading(
            at_monotonic_ns=self.now_ns,
            memcgs=list(self._walk(self.root)) if "pins" in signals else None,
            caches=list(self.caches),
            pairs=dict(self._pair_counts()) if "alloc" in signals else None,
            charges={key: (counts[0], counts[1]) for key, counts in self.charges.items()}
            if "charge" in signals
            else None,
            lost=dict(self.lost),
        )

    def _pair_counts(self) -> Iterator[tuple[PairKey, MapCounts]]:
        for key, (objects, account, freed) in self.pairs.items():
            counts = {PLAIN_OBJECTS: objects - account, ACCOUNT_OBJECTS: account, FREED_OBJECTS: freed}
            yield key, tuple(counts.get(place, 0) for place in range(len(PAIR_COUNTS)))

    def _walk(self, top: Memcg) -> Iterable[MemcgRecord]:
        children: dict[int, list[Memcg]] = {}
        for memcg in self.memcgs.values():
            if memcg.parent is not None:
                children.setdefault(memcg.parent.cgroup_id, []).append(memcg)
        order = [top]
        for memcg in order:  # parents before children
            order += children.get(memcg.cgroup_id, [])
        sums = {memcg.cgroup_id: dict(memcg.stats) for memcg in order}
        for memcg in reversed(order[1:]):
            assert memcg.parent is not None
            above = sums[memcg.parent.cgroup_id]
            for name, value in sums[memcg.cgroup_id].items():
                above[name] = above.get(name, 0) + value
        for memcg in order:
            yield self._record(memcg, sums[memcg.cgroup_id], len(children.get(memcg.cgroup_id, [])))

    def _record(self, memcg: Memcg, sums: dict[str, int], children: int) -> MemcgRecord:
        return MemcgRecord(
            css=0xFFFF888100000000 + memcg.cgroup_id * 4096,
            parent_css=0 if memcg.parent is None else 0xFFFF888100000000 + memcg.parent.cgroup_id * 4096,
            serial_nr=memcg.cgroup_id,
            cgroup_id=memcg.cgroup_id,
            references=3 + children,
            memory_pages=sum(sums.get(name, 0) for name in ("NR_FILE_PAGES", "NR_ANON_MAPPED", "MEMCG_KMEM")),
            swap_pages=sums.get("MEMCG_SWAP", 0),
            kmem_pages=0,
            tcpmem_pages=0,
            online=memcg.online,
            kmemcg_id=-1 if memcg.parent is None or self.nokmem else memcg.cgroup_id,
            stats=tuple(sums.get(name, 0) for name in STATS),
            name=memcg.name,
            memcg_id=memcg.cgroup_id if memcg.online or memcg.in_swap else 0,
        )

    def drop(self, final: FinalCounts) -> None:
        for pair in final.pairs:
            self.pairs.pop(pair, None)
        for cgroup_id in final.cgroup_ids:
            self.charges.pop(cgroup_id, None)

    def close(self) -> None:
        self.closed += 1


class Clock:
    """CLOCK_REALTIME less CLOCK_MONOTONIC, which an administrator may change at any time."""

    def __init__(self) -> None:
        self.offset_ns = 1_795_000_000 * SECOND

    def __call__(self) -> int:
        return self.offset_ns


IDS = CacheIds(b"secret of the invented kernel")
"""Its ids of caches."""


def make_state(source: FakeSource, clock: Clock | None = None) -> KernelState:
    return KernelState(source.info, Host("test", "6.18", "x86_64", None), clock or Clock(), IDS)
