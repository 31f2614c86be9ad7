# SPDX-License-Identifier: GPL-2.0-only
"""One frozen Snapshot: everything that `top`, JSON, Prometheus and recordings show.

Each field is described here, once, by a `About`; their order is that of the JSON. Units are in the names. ``None``
means that this kernel cannot tell; it is never the same as 0. All ``*_total`` fields count since kmemwatch was
attached, and only grow while it runs. Tuples are sorted by the producer, so that two equal states give two equal
snapshots.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

from kmemwatch.shape import BYTES, ID, MOST, NANOSECONDS, SECONDS, TEXT, TIME, About, Count, Gauge, Whole, one_of

SCHEMA_VERSION = 1

ONLINE = "online"
DYING = "dying"
"""rmdir is done and the css is offline, but the kernel has not released it; people say zombie."""
RELEASED = "released"
State = Annotated[str, one_of(ONLINE, DYING, RELEASED)]

ATTACHED = "attached"
FALLBACK = "fallback"
"""Attached, but a better candidate failed; `Probe.why` has the reason."""
MISSING = "missing"
"""Nothing is attached; `Probe.why` says what this kernel lacks."""
ABSENT = "absent"
"""Nothing is attached because this kernel has nothing to measure for the signal; `Probe.why` says why."""
Status = Annotated[str, one_of(ATTACHED, FALLBACK, MISSING, ABSENT)]

FROM_NONE = "none"
"""`from_state` of a slab that was charged to nobody; else ONLINE or DYING."""
FROM_STATES = (ONLINE, DYING, FROM_NONE)
FromState = Annotated[str, one_of(*FROM_STATES)]

LATENCY_KINDS = ("allocation_without_check", "allocation_with_check", "recharge_check")
"""`LatencyHistogram.kind`: an allocation in which no recharge check ran, one in which one did, and the check alone."""
LatencyKind = Annotated[str, one_of(*LATENCY_KINDS)]

EVENT_KINDS = (
    "online",
    "offline",
    "released",
    "cache_created",
    "cache_destroyed",
    "id_given",
    "id_reused",
    "id_freed",
    "recharge",
    "recharge_failed",
)
EventKind = Annotated[str, one_of(*EVENT_KINDS)]

MAX_MEMCG_IDS = 65_535
"""The kernel's MEM_CGROUP_ID_MAX. Since Linux kernel commit 73f576c04b94 ("mm: memcontrol: fix cgroup creation failure
after many small jobs") (v4.8) a memcg gives its id back when it goes offline, unless pages in swap still have it."""
MAX_PREVIOUS_OWNERS = 16
"""Of `KmemcgId.previous_owners`: when there are that many, there may have been more."""

CacheId = Annotated[str, Meta(pattern="^[a-z2-7]{12}$")]
"""See `cacheids`."""
Number = Annotated[float, Meta(ge=0, lt=float(1 << 64))]

if TYPE_CHECKING:
    TimeNs = int
else:

    class TimeNs(int):
        """CLOCK_REALTIME in nanoseconds; a type of its own so that the codec writes it as RFC 3339."""


def _as_times(row: Struct, *names: str) -> None:
    """Times may be given as `int`."""
    for name in names:
        if type(value := getattr(row, name)) is int:
            force_setattr(row, name, TimeNs(value))


class Host(Struct, frozen=True):
    """The host that was measured."""

    hostname: Annotated[str, About("Name of the host.", TEXT)]
    kernel: Annotated[str, About("uname -r.", TEXT)]
    arch: Annotated[str, About("uname -m.", TEXT)]
    boot_id: Annotated[
        str | None,
        About("/proc/sys/kernel/random/boot_id; it changes with a reboot, not with a restart of kmemwatch.", TEXT),
    ]


class Kernel(Struct, frozen=True):
    """What kind of kernel it is, found from its symbols and types."""

    era: Annotated[str | None, About("recharge, per-memcg or objcg.", TEXT)]
    patchset: Annotated[bool | None, About("It has __memcg_kmem_recharge_slab.")]
    cgroup_version: Annotated[
        Count | None, About("Version (1 or 2) of the hierarchy that has the memory controller.", ID)
    ]
    lockdown: Annotated[str | None, About("none, integrity or confidentiality.", TEXT)]


class Probe(Struct, frozen=True):
    """One signal."""

    signal: Annotated[str, About("What is measured: alloc, free, charge, lifecycle, pins, ...", TEXT)]
    attachment: Annotated[
        str | None, About("How, for example raw_tp:kmem_cache_alloc; several hooks are joined by +.", TEXT)
    ]
    status: Annotated[
        Status,
        About(
            "fallback: attached, but not by the best hook. missing: not measured. absent: this kernel has nothing that"
            " the signal could measure.",
            TEXT,
        ),
    ]
    why: Annotated[str | None, About("Why the signal is not attached, or what its hook cannot see; one line.", TEXT)]


class Cache(Struct, frozen=True):
    """One struct kmem_cache."""

    name: Annotated[
        str,
        About(
            "Name of the slab cache (struct kmem_cache), as in /proc/slabinfo.",
            TEXT, "CACHE", column="cache", min_width=16, max_width=32,
        ),
    ]  # fmt: skip
    id: Annotated[
        CacheId | None,
        About("Distinguishes caches of one name; stays the same until a reboot.", ID, "CACHE ID", min_width=12),
    ]
    object_bytes: Annotated[
        Count | None,
        About(
            "Bytes that one object takes in the slab, with metadata and padding (kmem_cache.size).", BYTES, "OBJ SIZE"
        ),
    ]
    root: Annotated[
        str | None,
        About("Root cache that this one is a child of; null for a root cache.", TEXT, "ROOT CACHE", none="-"),
    ]
    kmemcg_id: Annotated[Whole | None, About("kmemcg_id of the memcg that the child cache belongs to.", ID, "ID")]
    allocations_total: Annotated[
        Count | None,
        About(
            "Objects allocated in this slab cache since kmemwatch was attached. Those of a child cache are counted at"
            " its root.",
            title="ALLOCS", metric="kmemwatch_cache_allocations_total",
        ),
    ]  # fmt: skip
    allocated_bytes_total: Annotated[
        Count | None,
        About(
            "Bytes of the objects allocated in this slab cache since kmemwatch was attached.",
            BYTES, "ALLOC BYTES", "kmemwatch_cache_allocated_bytes_total",
        ),
    ]  # fmt: skip
    frees_total: Annotated[
        Count | None,
        About(
            "Objects freed in this slab cache since kmemwatch was attached. Those of a child cache are counted at"
            " its root.",
            title="FREES", metric="kmemwatch_cache_frees_total",
        ),
    ]  # fmt: skip
    slab_bytes: Annotated[
        Count | None,
        About(
            "Memory of all slabs of the cache, including free objects, whenever they were made: num_slabs times"
            " pagesperslab of /proc/slabinfo.",
            BYTES, "SIZE", "kmemwatch_cache_slab_bytes",
        ),
    ] = None  # fmt: skip
    failed_allocations_total: Annotated[
        Count | None,
        About(
            "Calls of kmem_cache_alloc() for this slab cache that returned NULL since kmemwatch was attached. Unknown"
            " for the caches of kmalloc(), and where the hooks do not have the cache.",
            title="FAILED", metric="kmemwatch_cache_failed_allocations_total",
        ),
    ] = None  # fmt: skip


class ChildSlabs(Struct, frozen=True):
    """Slabs of one child cache that are charged to the memcg."""

    cache: Annotated[str, About("Name of the child cache.", TEXT, "CACHE", min_width=20)]
    cache_id: Annotated[CacheId, About("Which cache, as in caches[].id.", ID)]
    kmemcg_id: Annotated[Whole, About("Id that the cache belongs to; another memcg may have it by now.", ID, "ID")]
    slab_bytes: Annotated[Count, About("Whole slabs, including free objects.", BYTES, "BYTES")]


class Cgroup(Struct, frozen=True):
    """One memory cgroup, from its creation until the kernel frees it."""

    id: Annotated[
        Count,
        About(
            "kernfs id of the directory, what stat -c %i shows in the hierarchy of the memory controller.",
            ID, "CGROUP ID", column="cgroup_id",
        ),
    ]  # fmt: skip
    path: Annotated[
        str | None,
        About(
            "Path of the memcg from the root of its hierarchy, / for the root; kept after death; escaped.",
            TEXT, "CGROUP", column="cgroup", min_width=20,
        ),
    ]  # fmt: skip
    state: Annotated[
        State,
        About("online; dying = removed but not yet released by the kernel; released.", TEXT, "STATE", min_width=6),
    ]
    kmemcg_id: Annotated[
        Whole | None,
        About(
            "Index of the memcg in the kernel's per-memcg tables. With child caches, the one that it got when it went"
            " online, kept after death; on objcg kernels the present one. The kernel reuses it.",
            ID, "KMEMCG ID",
        ),
    ]  # fmt: skip
    online_at_ns: Annotated[TimeNs | None, About("When it was made, if kmemwatch saw it.", TIME, "ONLINE SINCE")] = (
        field(name="online_at")
    )
    offline_at_ns: Annotated[
        TimeNs | None, About("When it was removed, if kmemwatch saw it; null while online.", TIME, "REMOVED AT")
    ] = field(name="offline_at")
    released_at_ns: Annotated[TimeNs | None, About("When the kernel released it; only in state released.", TIME)] = (
        field(name="released_at")
    )
    memory_bytes: Annotated[
        Gauge | None,
        About(
            "All memory of the memcg and those below it, in bytes: the page counter that memory.current shows.",
            BYTES, "MEMORY",
        ),
    ]  # fmt: skip
    kernel_bytes: Annotated[
        Gauge | None,
        About(
            "Kernel memory of the memcg and those below it, in bytes: memory.stat kernel (v2),"
            " memory.kmem.usage_in_bytes (v1).",
            BYTES, "KERNEL", "kmemwatch_cgroup_kernel_bytes",
        ),
    ]  # fmt: skip
    slab_bytes: Annotated[
        Gauge | None,
        About(
            "Slab memory of the memcg and those below it, in bytes: memory.stat slab.",
            BYTES, "SLAB", "kmemwatch_cgroup_slab_bytes",
        ),
    ]  # fmt: skip
    charged_bytes_total: Annotated[
        Count | None,
        About(
            "Kernel memory charged to the memcg itself since kmemwatch was attached, in bytes.",
            BYTES, "OWN CHARGED", "kmemwatch_cgroup_charged_bytes_total",
        ),
    ]  # fmt: skip
    uncharged_bytes_total: Annotated[
        Count | None,
        About(
            "Kernel memory uncharged from the memcg itself since kmemwatch was attached, in bytes.",
            BYTES, "OWN UNCHARGED", "kmemwatch_cgroup_uncharged_bytes_total",
        ),
    ]  # fmt: skip
    pins: Annotated[
        Mapping[str, Gauge] | None,
        About(
            "What keeps a dying memcg, in bytes by kind, without the kinds that are 0; null while online or unknown."
            " Kinds: file (page cache), shmem, anon, swap, swapcache (shmem on its way to or from swap), slab, sock,"
            " percpu, kernel (kernel memory that is none of the others).",
            BYTES,
        ),
    ] = None
    references: Annotated[
        Gauge | None,
        About(
            "References that keep a dying memcg (css reference count): one for each folio of page cache, shmem or"
            " anonymous memory, one for each dying child, and one for every other reference. Unknown for a moment"
            " after the removal, until the kernel has added up the counts of all CPUs.",
            title="REFS",
        ),
    ] = None
    child_slabs: Annotated[
        tuple[ChildSlabs, ...] | None,
        About(
            "What child caches still hold of a dying memcg, largest first; null while online, while it is not yet"
            " known, and on kernels without child caches.",
        ),
    ] = None
    parent_id: Annotated[
        Count | None,
        About(
            "CGROUP ID of the memcg right above it, kept after death; null for the root, and where it is unknown.",
            ID, "PARENT ID",
        ),
    ] = None  # fmt: skip
    dying_children: Annotated[
        Count | None,
        About(
            "Dying memcgs right below it; each holds one of its references. null once it is released, and where it is"
            " unknown.",
            title="DYING BELOW",
        ),
    ] = None
    own_kernel_bytes: Annotated[
        Gauge | None,
        About(
            "Kernel memory of the memcg itself, in bytes: KERNEL less that of its children, including what removed"
            " ones left to it. Unknown where the kernel does not show it, as of dying memcgs on objcg kernels.",
            BYTES, "OWN KERNEL",
        ),
    ] = None  # fmt: skip
    own_slab_bytes: Annotated[
        Gauge | None,
        About("Slab memory of the memcg itself, in bytes: SLAB less that of its children.", BYTES, "OWN SLAB"),
    ] = None
    subtree_charged_bytes_total: Annotated[
        Count | None,
        About(
            "Kernel memory charged to the memcg and those below it, including removed ones, since kmemwatch was"
            " attached, in bytes.",
            BYTES, "CHARGED",
        ),
    ] = None  # fmt: skip
    subtree_uncharged_bytes_total: Annotated[
        Count | None,
        About(
            "Kernel memory uncharged from the memcg and those below it, including removed ones, since kmemwatch was"
            " attached, in bytes.",
            BYTES, "UNCHARGED",
        ),
    ] = None  # fmt: skip
    subtree_allocations_total: Annotated[
        Count | None,
        About(
            "Objects that tasks of the memcg and of those below it, including removed ones, allocated in all caches"
            " since kmemwatch was attached.",
            title="ALLOCS",
        ),
    ] = None

    def __post_init__(self) -> None:
        _as_times(self, "online_at_ns", "offline_at_ns", "released_at_ns")


class Pair(Struct, frozen=True, gc=False):
    """What one memcg does in one cache. A snapshot may have 65,536 of them."""

    cache: Annotated[str, About("Name of the slab cache.", TEXT, "CACHE", min_width=16)]
    cache_id: Annotated[CacheId | None, About("Which cache, as in caches[].id.", ID)]
    cgroup_id: Annotated[Count, About("Id of the memcg, as in cgroups[].id.", ID)]
    allocations_total: Annotated[
        Count | None,
        About(
            "Objects that tasks of the cgroup allocated in the slab cache since kmemwatch was attached, whether the"
            " kernel charges them or not.",
            title="ALLOCS", metric="kmemwatch_cgroup_cache_allocations_total",
        ),
    ]  # fmt: skip
    allocated_bytes_total: Annotated[
        Count | None, About("Bytes of the objects allocated since kmemwatch was attached.", BYTES, "ALLOC BYTES")
    ]
    frees_total: Annotated[
        Count | None,
        About(
            "Objects charged to the cgroup that any task freed since kmemwatch was attached.",
            title="FREES",
        ),
    ]
    live_bytes: Annotated[
        Gauge | None,
        About(
            "Bytes of the objects that are charged to the cgroup and not freed; unknown for a cgroup that is older than"
            " kmemwatch, such as the root, because it may have objects that were never counted, and where the counts"
            " are impossible.",
            BYTES, "LIVE",
        ),
    ]  # fmt: skip


class RechargePair(Struct, frozen=True):
    """Recharges of one cache from one memcg to another."""

    cache: Annotated[str, About("Child cache whose slabs were moved.", TEXT, "CACHE", min_width=16)]
    from_cgroup_id: Annotated[
        Count | None,
        About("Memcg that the slabs were charged to; null when they were charged to nobody.", ID, "FROM ID", none="-"),
    ]
    from_state: Annotated[
        FromState,
        About("State of that memcg when the slabs moved; none: they were charged to nobody.", TEXT, "WAS", min_width=6),
    ]
    to_cgroup_id: Annotated[Count, About("Memcg that took them over.", ID, "TO ID")]
    recharges_total: Annotated[
        Count, About("Slabs moved from one memcg to the other since kmemwatch was attached.", title="SLABS")
    ]
    recharged_bytes_total: Annotated[Count, About("Bytes of these slabs.", BYTES, "BYTES")]
    kmemcg_id: Annotated[Whole | None, About("kmemcg_id that the cache belongs to.", ID, "ID")] = None


class RechargeTotal(Struct, frozen=True):
    """All recharges in the child caches of one root cache, including those between memcgs that are gone."""

    cache: Annotated[str, About("Name of the root cache.", TEXT)]
    from_state: Annotated[
        FromState,
        About("State of the former owner when the slabs moved; none: they were charged to nobody.", TEXT),
    ]
    recharges_total: Annotated[
        Count,
        About(
            "Slabs moved from one memcg to another since kmemwatch was attached.",
            title="RECHARGES", metric="kmemwatch_recharges_total",
        ),
    ]  # fmt: skip
    recharged_bytes_total: Annotated[
        Count,
        About(
            "Bytes of the slabs moved from one memcg to another since kmemwatch was attached.",
            BYTES, "BYTES", "kmemwatch_recharged_bytes_total",
        ),
    ]  # fmt: skip


class Recharges(Struct, frozen=True):
    """Slabs that moved from one memcg to another; all null on kernels without recharging."""

    checks_total: Annotated[
        Count | None,
        About(
            "Checks whether a slab must be moved to the memcg that allocates from it: one for each object allocated"
            " from a child cache.",
            metric="kmemwatch_recharge_checks_total",
        ),
    ] = None
    recharges_total: Annotated[
        Count | None, About("Slabs moved from one memcg to another since kmemwatch was attached.")
    ] = None
    recharged_bytes_total: Annotated[
        Count | None, About("Bytes of the slabs that moved since kmemwatch was attached.", BYTES)
    ] = None
    failures_total: Annotated[
        Count | None,
        About(
            "Slabs that did not move because they could not be charged to the new memcg; the allocation failed.",
            metric="kmemwatch_recharge_failures_total",
        ),
    ] = None
    lost_races_total: Annotated[
        Count | None,
        About("Slabs that another task had moved meanwhile.", metric="kmemwatch_recharge_lost_races_total"),
    ] = None
    pairs: Annotated[
        tuple[RechargePair, ...] | None,
        About(
            "By child cache, former owner and its state then, and new owner, until one of the two is released and not"
            " shown any more; sorted by new owner, former owner and cache.",
        ),
    ] = None
    totals: Annotated[
        tuple[RechargeTotal, ...] | None,
        About(
            "All recharges by root cache and state of the former owner, including those between memcgs that"
            " are gone; sorted by these two.",
        ),
    ] = None


class KmemcgId(Struct, frozen=True):
    """One kmemcg_id."""

    kmemcg_id: Annotated[Whole, About("Index of the memcg in each root cache's table of child caches.", ID, "ID")]
    cgroup_id: Annotated[
        Count | None,
        About("The memcg that has the id now; null when it was given back and nobody has it.", ID, "CGROUP ID"),
    ]
    since_ns: Annotated[
        TimeNs | None,
        About(
            "When the owner got it, or the last one gave it back; null if that was before the start.",
            TIME, "SINCE",
        ),
    ] = field(name="since")  # fmt: skip
    previous_owners: Annotated[
        tuple[Count, ...],
        About(
            f"cgroup ids of the memcgs that had the id before, oldest first, as far as kmemwatch saw; the latest"
            f" {MAX_PREVIOUS_OWNERS}.",
            TEXT, "OWNERS BEFORE", min_width=16,
        ),
    ]  # fmt: skip
    caches: Annotated[Count | None, About("Child caches with this id.", title="CACHES", column="child_caches")]
    slab_bytes: Annotated[
        Count | None, About("Memory of all slabs of these caches, charged to any memcg or none.", BYTES, "SIZE")
    ] = None

    def __post_init__(self) -> None:
        _as_times(self, "since_ns")


class Ids(Struct, frozen=True):
    """kmemcg_ids, on kernels where child caches belong to them; elsewhere only `meaning` and the peak are known."""

    in_use: Annotated[
        Count | None,
        About("kmemcg_ids that belong to a memcg, online or dying.", metric="kmemwatch_kmemcg_ids_in_use"),
    ] = None
    peak_online_memcgs: Annotated[
        Count | None, About("Most memcgs below the root that were online at once since kmemwatch was attached.")
    ] = None
    reuses_total: Annotated[
        Count | None,
        About(
            "kmemcg_ids given to a memcg after another one had them, as far as kmemwatch knows: one that was given back"
            " before the start, and has left no child caches, is new to it.",
            metric="kmemwatch_kmemcg_id_reuses_total",
        ),
    ] = None
    map: Annotated[
        tuple[KmemcgId, ...] | None,
        About(
            "One entry for each id that has an owner, child caches or a former owner, sorted by id; null on kernels"
            " where no cache belongs to an id.",
        ),
    ] = None
    given_total: Annotated[
        Count | None, About("kmemcg_ids given to a memcg.", metric="kmemwatch_kmemcg_ids_given_total")
    ] = None
    freed_total: Annotated[Count | None, About("kmemcg_ids given back.", metric="kmemwatch_kmemcg_ids_freed_total")] = (
        None
    )
    meaning: Annotated[str | None, About("What a kmemcg_id is on this kernel; one line.", TEXT)] = None


class Lost(Struct, frozen=True):
    """What happened in the kernel and is missing from the figures, by cause."""

    events_total: Annotated[
        Count | None,
        About("Lifecycle events that found the ring buffer full, and program runs that the kernel skipped."),
    ]
    map_full_total: Annotated[Count | None, About("Counts that found a BPF map full.")]
    unresolved_total: Annotated[Count | None, About("Allocations or charges whose cache or memcg could not be read.")]
    reasons: Annotated[
        Mapping[str, Count],
        About("The same, split by reason: for example ringbuf_full, skipped_alloc, pair_map_full."),
    ]

    @property
    def total(self) -> int | None:
        """Sum of all of them; None if one is unknown."""
        counts = (self.events_total, self.map_full_total, self.unresolved_total)
        return None if None in counts else sum(filter(None, counts))


class Totals(Struct, frozen=True):
    """Counts of memcgs."""

    online_cgroups: Annotated[Count | None, About("Memory cgroups that are online.")] = None
    online_cgroups_peak: Annotated[
        Count | None,
        About(
            "Most memory cgroups that were online at once since kmemwatch was attached.",
            metric="kmemwatch_online_cgroups_peak",
        ),
    ] = None
    dying_cgroups: Annotated[
        Count | None, About("Memory cgroups that are removed and not yet released by the kernel.")
    ] = None
    cgroups_onlined_total: Annotated[Count | None, About("Memory cgroups created since kmemwatch was attached.")] = None
    cgroups_offlined_total: Annotated[
        Count | None,
        About("Memory cgroups removed since kmemwatch was attached.", metric="kmemwatch_cgroups_offlined_total"),
    ] = None
    cgroups_released_total: Annotated[
        Count | None,
        About(
            "Memory cgroups released by the kernel since kmemwatch was attached.",
            metric="kmemwatch_cgroups_released_total",
        ),
    ] = None
    memcg_ids_in_use: Annotated[
        Count | None,
        About(
            "Memory cgroups that have one of the kernel's 65,535 ids (mem_cgroup.id): those online, and the dying ones"
            " that still have memory in swap.",
            metric="kmemwatch_memcg_ids_in_use",
        ),
    ] = None


class MapFill(Struct, frozen=True):
    """One map."""

    name: Annotated[str, About("Name of the map.", TEXT)]
    entries: Annotated[Count, About("Entries in a BPF map.", metric="kmemwatch_map_entries")]
    capacity: Annotated[Count, About("Entries that a BPF map can hold.", metric="kmemwatch_map_capacity")]


class LatencyHistogram(Struct, frozen=True):
    """Times of one kind of call."""

    kind: Annotated[
        LatencyKind,
        About(
            "allocation_without_check: no recharge check ran in it; allocation_with_check: one did; recharge_check: the"
            " check alone.",
            TEXT,
        ),
    ]
    samples_total: Annotated[Count, About("Calls that were timed.")]
    sum_ns_total: Annotated[
        Count,
        About("Nanoseconds of all of them, including kmemwatch's own programs that ran meanwhile.", NANOSECONDS),
    ]
    buckets: Annotated[
        tuple[Count, ...],
        About("Samples; bucket n has those from 2^n up to 2^(n+1) nanoseconds, the first also 0, the last all above."),
    ]


class Latency(Struct, frozen=True):
    """How long some of the allocations took, and some of the recharge checks."""

    one_in: Annotated[Annotated[int, Meta(ge=1, le=MOST)], About("One of this many calls on a CPU is timed.")]
    calls_total: Annotated[
        Mapping[str, Count],
        About("Calls of the functions that are timed: allocation, and recharge_check where the kernel has it."),
    ]
    dropped_total: Annotated[
        Mapping[str, Count],
        About("The same keys: selected calls that could not be followed from entry to return."),
    ]
    histograms: Annotated[
        tuple[LatencyHistogram, ...],
        About("One for each kind of call; only the first on kernels without a recharge check."),
    ]


class Snapshot(Struct, frozen=True, tag_field="schema", tag=SCHEMA_VERSION):
    """Everything kmemwatch knows at one moment."""

    taken_at_ns: Annotated[TimeNs, About("Wall clock of the host that was measured.", TIME)] = field(name="taken_at")
    monotonic_ns: Annotated[
        Count,
        About("CLOCK_MONOTONIC of that host in nanoseconds; never jumps, so rates are computed from it.", NANOSECONDS),
    ]
    duration_s: Annotated[Number, About("Seconds since the probes were attached.", SECONDS)]
    host: Annotated[Host, About("The host that was measured.")]
    kernel: Annotated[Kernel, About("What kind of kernel it is, found from its symbols and types.")]
    probes: Annotated[tuple[Probe, ...], About("What is attached, and what is not.")]
    caches: Annotated[tuple[Cache, ...], About("Sorted by name and id.")]
    cgroups: Annotated[tuple[Cgroup, ...], About("Sorted by id.")]
    pairs: Annotated[tuple[Pair, ...], About("Sorted by cgroup id, cache and cache_id.")]
    recharges: Annotated[
        Recharges, About("Slabs that moved from one memcg to another; all null on kernels without recharging.")
    ]
    ids: Annotated[Ids, About("The ids that name a memcg's child caches.")]
    lost: Annotated[Lost, About("What happened in the kernel and is missing from the figures, by cause.")]
    totals: Annotated[Totals, About("Counts of memcgs.")]
    maps: Annotated[tuple[MapFill, ...], About("How full the BPF maps are.")]
    release_delays_s: Annotated[
        tuple[Number, ...],
        About(
            "Seconds from removal to release of the memcgs released since the probes were attached, newest last;"
            " bounded.",
            SECONDS,
        ),
    ]
    latency: Annotated[
        Latency | None,
        About(
            "How long some of the allocations took, and some of the recharge checks. Null unless --latency asked for"
            " it, and where functions cannot be timed; missing in documents older than this field.",
        ),
    ] = None

    def __post_init__(self) -> None:
        _as_times(self, "taken_at_ns")


class Event(Struct, frozen=True):
    """Something that happened once: lifecycle of a memcg, of a cache, of an id."""

    at_ns: Annotated[TimeNs, About("When.", TIME)] = field(name="at")
    kind: Annotated[EventKind, About("What.", TEXT)]
    cgroup_id: Annotated[Count | None, About("The memcg, as in cgroups[].id.", ID)] = None
    path: Annotated[str | None, About("Its path, as in cgroups[].path.", TEXT)] = None
    pid: Annotated[Count | None, About("The task that did it.", ID)] = None
    comm: Annotated[str | None, About("Its name.", TEXT)] = None
    cache: Annotated[str | None, About("The slab cache.", TEXT)] = None
    kmemcg_id: Annotated[Whole | None, About("The kmemcg_id.", ID)] = None
    other_cgroup_id: Annotated[Count | None, About("Who had the id, or the slab, before.", ID)] = None
    bytes: Annotated[Whole | None, About("Bytes of the slab.", BYTES)] = None

    def __post_init__(self) -> None:
        _as_times(self, "at_ns")


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the garbage collector while a snapshot, or the series of one, is made.

    There are up to 65,536 pairs and 100,000 series, without cycles. The collector would search all of them again and
    again: half as long as a snapshot takes otherwise, and a quarter of the time of the series.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
