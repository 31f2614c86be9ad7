# SPDX-License-Identifier: GPL-2.0-only
"""What the BPF programs write, as bytes: the same structs, in the same order, as in bpf/.

`check_sizes` compares with the sizes that the compiler saw, so that the two can never drift apart unnoticed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kmemwatch.errors import KmemwatchError
from kmemwatch.kernel.defines import PEEK_PART_BYTES, STATS_MAX

PAIR_KEY = struct.Struct("=QQ")
"""``struct pair_key``: cache address, cgroup id."""
PAIR_VALUE = struct.Struct("=QQQ")
"""``struct pair_value``: objects without and with __GFP_ACCOUNT, freed objects."""
CHARGE_VALUE = struct.Struct("=QQ")
"""``struct charge_value``: charged pages, uncharged pages."""
LIFECYCLE_EVENT = struct.Struct("=QQQII16s")
"""``struct lifecycle_event``."""
NAME_BYTES = 256
ONLINE_EVENT_BYTES = LIFECYCLE_EVENT.size + NAME_BYTES
CACHE_NAME_BYTES = 128
"""That of a child cache has the name of its cgroup in it."""
SLAB_EVENT = struct.Struct(f"=4QiI{CACHE_NAME_BYTES}s")
"""``struct slab_event`` after its ``event``: cache, root cache, from id, pages, kmemcg_id, from online, name."""
SLAB_EVENT_BYTES = LIFECYCLE_EVENT.size + SLAB_EVENT.size
RECHARGE_KEY = struct.Struct("=4Q")
"""``struct recharge_key``: cache address, from id, to id, ``enum recharge_from``."""
RECHARGE_VALUE = struct.Struct("=QQ")
"""``struct recharge_value``: recharges, pages."""
RECHARGE_COUNTS = ("checks", "failures", "lost_races")
"""Index of the map ``recharge_counts``; ``enum recharge_count`` in bpf/recharge.bpf.c."""
RECHARGE_FROM = ("none", "online", "dying")
"""``enum recharge_from``, in `model.RechargePair.from_state`'s words."""
TIMED_CALL = struct.Struct("=7Q")
"""``struct timed_call``: calls, dropped, place, and what is of use to the programs only."""
TIMED, TIMED_CHECK = 4, 3
"""Functions in ``struct timed_calls``, and the index of the recharge check; ``enum timed_function``."""
LATENCY_BUCKETS = 40
LATENCY_VALUE = struct.Struct(f"={2 + LATENCY_BUCKETS}Q")
"""``struct latency_value``: samples, their nanoseconds, samples in each bucket."""
LATENCY_KINDS = ("allocation_without_check", "allocation_with_check", "recharge_check")
"""Index of the map ``latency``; ``enum latency_kind``."""
CHILD_SLAB_KEY = struct.Struct("=QQ")
"""``struct child_slab_key``: cache address, cgroup id."""
CHILD_SLAB_VALUE = struct.Struct("=QQ")
"""``struct child_slab_value``: number of the scan, pages."""
SCAN_STATE = struct.Struct("=6Q")
"""``struct scan_state``: page to go on at, end, number of the scan, slabs that found the map full, and its own."""
MEMCG_HEAD = struct.Struct("=9QI4i4x")
MEMCG_RECORD_BYTES = MEMCG_HEAD.size + 8 * STATS_MAX + NAME_BYTES
WALK_STATE = struct.Struct("=6Q")
PEEK_BYTES = 4096
REFERENCES_COUNTED = 1 << 62
"""A percpu_ref has PERCPU_COUNT_BIAS, 2^63, in its count from its start until an RCU grace period after it was killed,
when the counts of all CPUs have been added and the bias is taken off; so has a memcg that is just being removed. Before
that the count may lie on either side of the bias; after it, it is far below this."""

LOST_REASONS = (
    "ringbuf_full",
    "pair_map_full",
    "charge_map_full",
    "cgroup_unreadable",
    "cache_unreadable",
    "recharge_map_full",
    "recharge_unfollowed",
)
"""Index of the map ``lost``; ``enum lost_reason`` in bpf/maps.h."""

NOTED_SIGNALS = ("alloc", "free")
"""Index of the map ``recovered``; ``enum noted`` in bpf/alloc.bpf.c."""

LIFECYCLE_KINDS = {1: "online", 2: "offline", 3: "released"}
SLAB_KINDS = {
    4: "id_given",
    5: "id_freed",
    6: "cache_created",
    7: "cache_destroyed",
    8: "recharge",
    9: "recharge_failed",
}

_LEAF_BYTES: Mapping[str, int] = {
    "lost": 8,
    "pairs": PAIR_VALUE.size,
    "charges": CHARGE_VALUE.size,
    "walk_out": MEMCG_RECORD_BYTES,
    "walk": WALK_STATE.size,
    "peek_out": PEEK_BYTES,
    "peek_in": 8,
    "peek_parts": PEEK_PART_BYTES,
    "recovered": 8,
    "runs": 8,
    "recharge_counts": 8,
    "recharges": RECHARGE_VALUE.size,
    "timed": TIMED * TIMED_CALL.size,
    "latency": LATENCY_VALUE.size,
    "child_slabs": CHILD_SLAB_VALUE.size,
    "scan": SCAN_STATE.size,
}


def check_sizes(leaf_bytes: Mapping[str, int]) -> None:
    """Compare with ``sizeof`` of each map's value as compiled. Raises KmemwatchError when one differs."""
    for name, size in leaf_bytes.items():
        expected = _LEAF_BYTES.get(name, size)
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
    """The memcg that got the id, the cache or the slab; None when the hook is not told."""
    pid: int
    comm: str
    kmemcg_id: int
    """-1: none."""
    cache: int | None = None
    """Address."""
    root_cache: int | None = None
    """Address; None for a root cache."""
    cache_name: str | None = None
    from_id: int | None = None
    """cgroup id of the memcg that lost a slab; None: it was charged to nobody."""
    pages: int = 0


class LruPages(NamedTuple):
    """Lengths of the LRU lists of one memcg itself, children not included, in pages.

    Exact, apart from pages that a CPU has not put on a list yet: reclaim works by them.
    """

    anon: int
    """Anonymous memory, shmem, and both on their way to and from swap."""
    file: int
    unevictable: int
    """Locked in memory, of either kind."""

    @property
    def total(self) -> int:
        """Of all lists."""
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
    """None: the kernel counts them on each CPU still, see `REFERENCES_COUNTED`."""
    memory_pages: int
    swap_pages: int
    kmem_pages: int
    tcpmem_pages: int
    online: bool
    kmemcg_id: int
    """Of this moment: from its death on that of its parent, on most kernels."""
    stats: tuple[int, ...]
    """``memcg_vmstats.state``, signed."""
    name: str
    kmem_cache_id: int = -1
    """The kmemcg_id that it was given when it went online; -1 where the kernel does not keep that."""
    kmem_cache_id_held: bool = False
    """It has not given that back."""
    memcg_id: int = 0
    """``mem_cgroup.id.id``; 0 from its death on, unless swap still speaks of it."""
    lru: LruPages | None = None
    """None while online, and where the lists cannot be read."""


def text(raw: bytes) -> str:
    """A NUL-terminated name; bytes that are not UTF-8 become surrogate escapes."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def event(raw: bytes) -> LifecycleEvent | SlabEvent:
    """Decode one record of the ring buffer. Raises ValueError when it has another size or kind than ours."""
    return slab_event(raw) if len(raw) == SLAB_EVENT_BYTES else lifecycle_event(raw)


def slab_event(raw: bytes) -> SlabEvent:
    """Decode a ``struct slab_event``. Raises ValueError for a kind that is not ours."""
    at_ns, cgroup_id, _, kind, pid, comm = LIFECYCLE_EVENT.unpack_from(raw)
    if kind not in SLAB_KINDS:
        raise ValueError(f"slab event of kind {kind}")
    cache, root, from_id, pages, kmemcg_id, _, name = SLAB_EVENT.unpack_from(raw, LIFECYCLE_EVENT.size)
    return SlabEvent(
        kind=SLAB_KINDS[kind],
        at_monotonic_ns=at_ns,
        cgroup_id=cgroup_id or None,
        pid=pid,
        comm=text(comm),
        kmemcg_id=kmemcg_id,
        cache=cache or None,
        root_cache=root or None,
        cache_name=text(name) or None,
        from_id=from_id or None,
        pages=pages,
    )


def lifecycle_event(raw: bytes) -> LifecycleEvent:
    """Decode one about a memcg. Raises ValueError when it has another size or kind than ours."""
    if len(raw) not in (LIFECYCLE_EVENT.size, ONLINE_EVENT_BYTES):
        raise ValueError(f"lifecycle event of {len(raw)} bytes")
    at_ns, cgroup_id, parent_id, kind, pid, comm = LIFECYCLE_EVENT.unpack_from(raw)
    if kind not in LIFECYCLE_KINDS:
        raise ValueError(f"lifecycle event of kind {kind}")
    name = text(raw[LIFECYCLE_EVENT.size :]) if len(raw) == ONLINE_EVENT_BYTES else None
    return LifecycleEvent(LIFECYCLE_KINDS[kind], at_ns, cgroup_id, parent_id or None, pid, text(comm), name)


def memcg_record(raw: bytes, offset: int, stats_count: int) -> MemcgRecord:
    """Decode one record of ``walk_out`` at `offset` bytes."""
    fields = MEMCG_HEAD.unpack_from(raw, offset)
    stats = struct.unpack_from(f"={stats_count}q", raw, offset + MEMCG_HEAD.size)
    name_at = offset + MEMCG_HEAD.size + 8 * STATS_MAX
    css, parent_css, serial_nr, cgroup_id, references, memory, swap, kmem, tcpmem, online = fields[:10]
    kmemcg_id, kmem_cache_id, held, memcg_id = fields[10:]
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
        stats=stats,
        name=text(raw[name_at : name_at + NAME_BYTES]),
    )
