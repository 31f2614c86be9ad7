# SPDX-License-Identifier: GPL-2.0-only
"""Bytes that the BPF programs write -> Python. Layouts and numbers are those of the C files, see `structs`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kmemwatch.errors import KmemwatchError
from kmemwatch.maps.structs import constant, layout, names, numbers, value_bytes
from kmemwatch.units import printable

PAIR_VALUE = layout("pair_value", "count")
PAIR_KEY = layout("pair_key", "cache", "cgroup_id")
CHILD_SLAB_KEY = layout("child_slab_key", "cache", "cgroup_id")
CHILD_SLAB_VALUE = layout("child_slab_value", "scan", "pages")
CHARGE_VALUE = layout("charge_value", "charged_pages", "uncharged_pages")
RECHARGE_VALUE = layout("recharge_value", "recharges", "pages")
LATENCY_VALUE = layout("latency_value", "samples", "sum_ns", "buckets")
RECHARGE_KEY = layout("recharge_key", "cache", "from_id", "to_id", "from_state")
TIMED_CALL = layout("timed_call", "calls", "dropped", "place")
SCAN_STATE = layout("scan_state", "page", "end", "scan", "full")
WALK_STATE = layout("walk_state", "count", "done")

LIFECYCLE_EVENT = layout("lifecycle_event", "at_ns", "cgroup_id", "parent_id", "kind", "pid", "comm")
ONLINE_EVENT = layout("online_event", "name")
SLAB_EVENT = layout("slab_event", "cache", "from_id", "pages", "kmemcg_id", "name")
MEMCG_RECORD = layout(
    "memcg_record",
    "css", "parent_css", "serial_nr", "cgroup_id", "references", "memory_pages", "swap_pages", "kmem_pages",
    "tcpmem_pages", "online", "kmemcg_id", "kmem_cache_id", "kmem_cache_id_held", "memcg_id", "name",
)  # fmt: skip

PAIR_COUNTS = names("pair_count", "PAIR_", "PAIR_COUNTS")
"""Index of ``pair_value.count``."""
LOST_REASONS = names("lost_reason", "LOST_", "LOST_REASONS")
"""Index of the map ``lost``."""
MISSED_SIGNALS = names("missed_signal", "MISSED_", "MISSED_SIGNALS")
"""Index of the map ``missed_runs``."""
RECHARGE_COUNTS = names("recharge_count", "RECHARGE_", "RECHARGE_COUNTS")
"""Index of the map ``recharge_counts``."""
RECHARGE_FROM = names("recharge_from", "FROM_")
"""Values of `model.RechargePair.from_state`."""
LATENCY_KINDS = names("latency_kind", "LATENCY_", "LATENCY_KINDS")
"""Index of the map ``latency``."""
TIMED, TIMED_CHECK = constant("TIMED"), constant("TIMED_CHECK")
"""Functions in ``struct timed_calls``, and the index of the recharge check."""
LATENCY_BUCKETS, LATENCY_ONE_IN = constant("LATENCY_BUCKETS"), constant("LATENCY_ONE_IN")
"""Buckets of the map ``latency``, and calls of which one is timed."""
MAX_CHILD_SLABS = constant("MAX_CHILD_SLABS")
CACHE_NAME_BYTES = constant("CACHE_NAME_BYTES")
"""Longest name of a cache: that of a child cache contains the name of its cgroup."""
REFERENCES_COUNTED = 1 << 62
"""The count of a percpu_ref includes PERCPU_COUNT_BIAS, 2^63, until an RCU grace period after the ref was killed; then
the kernel has added the counts of all CPUs and removes the bias. This includes memcgs that are just being removed.
Until then the count may be on either side of the bias; afterwards it is far below this number."""

_EVENT_KINDS = {value: name for name, value in numbers("event_kind", "EVENT_").items()}
LIFECYCLE_KINDS = {value: name for value, name in _EVENT_KINDS.items() if name in ("online", "offline", "released")}
SLAB_KINDS = {value: name for value, name in _EVENT_KINDS.items() if value not in LIFECYCLE_KINDS}


def check_sizes(leaf_bytes: Mapping[str, int]) -> None:
    """Compare with ``sizeof`` of each map's value, as the compiler has it. Raises KmemwatchError when one differs."""
    ours = value_bytes()
    for name, size in leaf_bytes.items():
        expected = ours.get(name, size)
        if expected != size:
            raise KmemwatchError(f"bpf/: map {name} has values of {size} bytes, kmemwatch expects {expected}")


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    kind: str
    at_monotonic_ns: int
    cgroup_id: int
    parent_id: int | None
    pid: int
    comm: str
    name: str | None
    """Last component of the path; only of ``online``."""


@dataclass(frozen=True, slots=True)
class SlabEvent:
    """Something about a cache, a kmemcg_id or a slab; see `SLAB_KINDS`."""

    kind: str
    at_monotonic_ns: int
    cgroup_id: int | None
    """The memcg that got the id, the cache or the slab; None when the hook does not have it."""
    pid: int
    comm: str
    kmemcg_id: int
    """-1: none."""
    cache: int | None = None
    """Address."""
    cache_name: str | None = None
    from_id: int | None = None
    """cgroup id of the memcg that lost a slab; None: no memcg was charged for it."""
    pages: int = 0


class LruPages(NamedTuple):
    """Lengths of the LRU lists of one memcg itself, children not included, in pages.

    Exact, apart from pages that a CPU has not put on a list yet, as reclaim depends on them.
    """

    anon: int
    """Anonymous memory, shmem, and both on their way to and from swap."""
    file: int
    unevictable: int
    """Locked in memory, of either kind."""

    @property
    def total(self) -> int:
        """Pages on all lists."""
        return self.anon + self.file + self.unevictable


class MemcgRecord(NamedTuple):
    """One memcg as the walk found it. Units as in the kernel; 0 where the kernel lacks the field.

    A named tuple, as there may be thousands in each reading: a frozen dataclass takes several times as long to make.
    """

    css: int
    parent_css: int
    serial_nr: int
    cgroup_id: int
    references: int | None
    """None: the kernel still counts them on each CPU, see `REFERENCES_COUNTED`."""
    memory_pages: int
    swap_pages: int
    kmem_pages: int
    tcpmem_pages: int
    online: bool
    kmemcg_id: int
    """The current one: on most kernels a dying memcg has that of its parent."""
    stats: tuple[int, ...]
    """``memcg_vmstats.state``, signed."""
    name: str
    kmem_cache_id: int = -1
    """The kmemcg_id that it got when it went online; -1 where the kernel does not keep that."""
    kmem_cache_id_held: bool = False
    """It still has that id."""
    memcg_id: int = 0
    """``mem_cgroup.id.id``; 0 once it is dying, unless swap still refers to it."""
    lru: LruPages | None = None
    """None while the memcg is online, and where the lists cannot be read."""


def text(raw: bytes) -> str:
    """A NUL-terminated name, as `units.printable` escapes it."""
    return printable(raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"))


def event(raw: bytes) -> LifecycleEvent | SlabEvent:
    """Decode one record of the ring buffer. Raises ValueError for an unknown size or kind."""
    return slab_event(raw) if len(raw) == SLAB_EVENT.size else lifecycle_event(raw)


def slab_event(raw: bytes) -> SlabEvent:
    """Decode a ``struct slab_event``. Raises ValueError for an unknown kind."""
    at_ns, cgroup_id, _, kind, pid, comm = LIFECYCLE_EVENT.unpack_from(raw, SLAB_EVENT.offset("event.at_ns"))
    if kind not in SLAB_KINDS:
        raise ValueError(f"slab event of kind {kind}")
    cache, from_id, pages, kmemcg_id, name = SLAB_EVENT.unpack_from(raw)
    return SlabEvent(
        kind=SLAB_KINDS[kind],
        at_monotonic_ns=at_ns,
        cgroup_id=cgroup_id or None,
        pid=pid,
        comm=text(comm),
        kmemcg_id=kmemcg_id,
        cache=cache or None,
        cache_name=text(name) or None,
        from_id=from_id or None,
        pages=pages,
    )


def lifecycle_event(raw: bytes) -> LifecycleEvent:
    """Decode an event about a memcg. Raises ValueError for an unknown size or kind."""
    if len(raw) not in (LIFECYCLE_EVENT.size, ONLINE_EVENT.size):
        raise ValueError(f"lifecycle event of {len(raw)} bytes")
    is_online = len(raw) == ONLINE_EVENT.size
    at_ns, cgroup_id, parent_id, kind, pid, comm = LIFECYCLE_EVENT.unpack_from(
        raw, ONLINE_EVENT.offset("event.at_ns") if is_online else 0
    )
    if kind not in LIFECYCLE_KINDS:
        raise ValueError(f"lifecycle event of kind {kind}")
    name = text(ONLINE_EVENT.unpack_from(raw)[0]) if is_online else None
    return LifecycleEvent(LIFECYCLE_KINDS[kind], at_ns, cgroup_id, parent_id or None, pid, text(comm), name)


def memcg_record(raw: bytes, offset: int, stats_count: int) -> MemcgRecord:
    """Decode one record of ``walk_out`` at `offset` bytes."""
    (css, parent_css, serial_nr, cgroup_id, references, memory, swap, kmem, tcpmem,
     online, kmemcg_id, kmem_cache_id, held, memcg_id, name) = MEMCG_RECORD.unpack_from(raw, offset)  # fmt: skip
    return MemcgRecord(
        css=css,
        parent_css=parent_css,
        serial_nr=serial_nr,
        cgroup_id=cgroup_id,
        references=references if references < REFERENCES_COUNTED else None,
        memory_pages=memory,
        swap_pages=swap,
        kmem_pages=kmem,
        tcpmem_pages=tcpmem,
        online=bool(online),
        kmemcg_id=kmemcg_id,
        kmem_cache_id=kmem_cache_id,
        kmem_cache_id_held=bool(held),
        memcg_id=memcg_id,
        stats=struct.unpack_from(f"={stats_count}q", raw, offset + MEMCG_RECORD.offset("stats")),
        name=text(name),
    )
