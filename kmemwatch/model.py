# SPDX-License-Identifier: GPL-2.0-only
"""One frozen Snapshot: everything that `top`, JSON, Prometheus and recordings show.

Units are in the names. ``None`` means that this kernel cannot tell; it is never the same as 0.
All ``*_total`` fields count since kmemwatch was attached, and only grow while it runs.
Tuples are sorted by the producer so that two equal states give two equal snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

SCHEMA_VERSION = 1

ONLINE = "online"
DYING = "dying"
"""rmdir is done and the css is offline, but the kernel has not released it; people say zombie."""
RELEASED = "released"

ATTACHED = "attached"
FALLBACK = "fallback"
"""Attached, but a better candidate failed; `Probe.why` says how."""
MISSING = "missing"
"""Nothing is attached; `Probe.why` says what this kernel lacks."""
ABSENT = "absent"
"""Nothing is attached because this kernel does nothing that the signal could tell of; `Probe.why` says what."""


@dataclass(frozen=True, slots=True)
class Host:
    hostname: str
    kernel: str
    """``uname -r``."""
    arch: str
    boot_id: str | None
    """/proc/sys/kernel/random/boot_id: tells a reboot from a restart of kmemwatch."""


@dataclass(frozen=True, slots=True)
class Kernel:
    era: str | None
    """``recharge``, ``per-memcg`` or ``objcg``; see docs, vocabulary."""
    patchset: bool | None
    """The kernel has ``__memcg_kmem_recharge_slab``."""
    cgroup_version: int | None
    """Version (1 or 2) of the hierarchy that has the memory controller."""
    lockdown: str | None
    """``none``, ``integrity`` or ``confidentiality``."""


@dataclass(frozen=True, slots=True)
class Probe:
    signal: str
    """What is measured: ``alloc``, ``free``, ``charge``, ``lifecycle``, ``pins``, ..."""
    attachment: str | None
    """How, for example ``raw_tp:kmem_cache_alloc``; several hooks are joined by ``+``."""
    status: str
    """ATTACHED, FALLBACK, MISSING or ABSENT."""
    why: str | None
    """Reason for all but ATTACHED, and what an attached probe cannot see; one line."""


@dataclass(frozen=True, slots=True)
class Cache:
    """One ``struct kmem_cache``.

    What happens in a child cache is counted at its root cache: the totals of a child are None.
    """

    name: str
    id: str | None
    """Tells caches of one name apart, until a reboot; stands for the kernel's address, see `cacheids`."""
    object_bytes: int | None
    """``kmem_cache.size``: bytes that one object takes in the slab, metadata and padding included."""
    root: str | None
    """Name of the root cache that this one is a child of; None for a root cache."""
    kmemcg_id: int | None
    allocations_total: int | None
    allocated_bytes_total: int | None
    frees_total: int | None
    slab_bytes: int | None = None
    """Memory of all its slabs, free objects in them included, whenever they were made: /proc/slabinfo's
    num_slabs times pagesperslab."""


@dataclass(frozen=True, slots=True)
class ChildSlabs:
    """Slabs of one child cache that are charged to one memcg."""

    cache: str
    cache_id: str
    """`Cache.id`."""
    kmemcg_id: int
    """Of the cache; on a kernel with the patch set the present owner of the id may be another memcg."""
    slab_bytes: int
    """Whole slabs, free objects in them included."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One memory cgroup, from its birth to the moment the kernel frees it."""

    id: int
    """kernfs id of the directory: ``stat -c %i`` in the hierarchy that has the memory controller."""
    path: str | None
    """From the root of that hierarchy, ``/`` for the root; kept after death.

    Bytes that are not UTF-8 are surrogate escapes, as in `os.fsdecode`; escape with
    `units.printable` before showing.
    """
    state: str
    """ONLINE, DYING or RELEASED."""
    kmemcg_id: int | None
    """The one that it was given when it went online, kept after death; on objcg kernels, where nothing is bound to
    it, what the memcg has now."""
    online_at_ns: int | None
    """CLOCK_REALTIME; None when it was born before kmemwatch looked."""
    offline_at_ns: int | None
    """CLOCK_REALTIME; None while online, or when it died before kmemwatch looked."""
    memory_bytes: int | None
    """``mem_cgroup.memory``, the page counter that ``memory.current`` shows, children included."""
    kernel_bytes: int | None
    """``memory.stat`` ``kernel`` (v2) or ``memory.kmem.usage_in_bytes`` (v1), children included."""
    slab_bytes: int | None
    """``memory.stat`` ``slab``, children included."""
    charged_bytes_total: int | None
    """Kernel memory charged to this memcg itself since the start, children not included."""
    uncharged_bytes_total: int | None
    pins: Mapping[str, int] | None = None
    """What keeps a dying memcg: kind -> bytes, only kinds that are not 0; None while online or unknown.

    Kinds: ``file`` (page cache), ``shmem``, ``anon``, ``swap``, ``swapcache`` (shmem on its way to or from swap),
    ``slab``, ``sock``, ``percpu``, ``kernel`` (kernel memory that is none of the others).
    """
    references: int | None = None
    """css reference count of a dying memcg (``percpu_ref_data.count``); what is left at 0 bytes. None for a moment
    after the removal, until the kernel has added up the counts of all CPUs."""
    released_at_ns: int | None = None
    """CLOCK_REALTIME; only in RELEASED."""
    child_slabs: tuple[ChildSlabs, ...] | None = None
    """What child caches still hold of a dying memcg, largest first; None while online, while it is not known yet, and
    on kernels without child caches."""
    parent_id: int | None = None
    """`id` of the memcg above it, kept after death; None for the root, and where nobody knows."""
    dying_children: int | None = None
    """Dying memcgs right below it: each holds one reference, so they keep a dying parent. None once released."""
    own_kernel_bytes: int | None = None
    """`kernel_bytes` less those of its children: what is charged to this memcg itself, and on objcg kernels what dead
    ones below it left to it. None of a dying memcg there, for it has none, but its counter stays as it was."""
    own_slab_bytes: int | None = None
    """The same of `slab_bytes`."""
    subtree_charged_bytes_total: int | None = None
    """`charged_bytes_total` of this memcg and of all that are, or were, below it."""
    subtree_uncharged_bytes_total: int | None = None
    subtree_allocations_total: int | None = None
    """Objects that tasks of this memcg and of all below it allocated since the start, in all caches."""


class Pair(NamedTuple):
    """What one memcg does in one cache.

    A named tuple, as a snapshot may have 65,536 of them: a frozen dataclass takes several times as long to make.
    """

    cache: str
    cache_id: str | None
    """`Cache.id`."""
    cgroup_id: int
    allocations_total: int | None
    """Objects allocated by tasks of this memcg, whether the kernel charges them or not."""
    allocated_bytes_total: int | None
    frees_total: int | None
    """Objects freed that were charged to this memcg, whoever freed them."""
    live_bytes: int | None
    """Charged to this memcg and not yet freed. None as long as it may have objects that are older than the counts: of
    memcgs that are older than kmemwatch, the root among them; and where the counts cannot be right."""


MAX_MEMCG_IDS = 65_535
"""The kernel's MEM_CGROUP_ID_MAX. Since Linux kernel commit 73f576c04b94 ("mm: memcontrol: fix cgroup creation failure
after many small jobs") (v4.8) a memcg gives its id back when it goes offline, unless swap still speaks of it."""

FROM_NONE = "none"
"""`from_state` of a slab that was charged to nobody; else ONLINE or DYING."""
FROM_STATES = (ONLINE, DYING, FROM_NONE)


@dataclass(frozen=True, slots=True)
class RechargePair:
    """Slabs of one cache that moved from one memcg to another."""

    cache: str
    """The child cache."""
    from_cgroup_id: int | None
    """None: the slab was charged to nobody."""
    from_state: str
    """Of the memcg that lost the slab, when it did: ONLINE, DYING or FROM_NONE."""
    to_cgroup_id: int
    recharges_total: int
    recharged_bytes_total: int
    kmemcg_id: int | None = None
    """Of the cache."""


@dataclass(frozen=True, slots=True)
class RechargeTotal:
    """All recharges in the child caches of one root cache, those between memcgs that are long gone included."""

    cache: str
    """The root cache."""
    from_state: str
    """As in `RechargePair`."""
    recharges_total: int
    recharged_bytes_total: int


@dataclass(frozen=True, slots=True)
class Recharges:
    """What ``__memcg_kmem_recharge_slab`` did; None on kernels without it."""

    checks_total: int | None = None
    """Calls: one for each object allocated from a child cache."""
    recharges_total: int | None = None
    recharged_bytes_total: int | None = None
    failures_total: int | None = None
    """Slabs that should have moved, but could not be charged: the allocation failed."""
    lost_races_total: int | None = None
    """Slabs that another task had moved meanwhile."""
    pairs: tuple[RechargePair, ...] | None = None
    """Until one of the two memcgs is released; sorted by (to, from, cache)."""
    totals: tuple[RechargeTotal, ...] | None = None
    """Sorted by (cache, from_state); only grows."""


@dataclass(frozen=True, slots=True)
class KmemcgId:
    kmemcg_id: int
    cgroup_id: int | None
    """Present owner; None when it was given back and nobody has it."""
    since_ns: int | None
    """CLOCK_REALTIME when the owner got it, or the last one gave it back; None when that was before we looked."""
    previous_owners: tuple[int, ...]
    """cgroup ids, oldest first; the latest 16 that we saw."""
    caches: int | None
    """Child caches with this id."""
    slab_bytes: int | None = None
    """Memory of all slabs of these caches, whoever they are charged to."""


@dataclass(frozen=True, slots=True)
class Ids:
    """kmemcg_ids, on kernels where child caches belong to them; elsewhere only `meaning` and the peak are known."""

    in_use: int | None = None
    """Ids that belong to a memcg, be it dead."""
    peak_online_memcgs: int | None = None
    """The most memcgs below the root that were online at once since the start."""
    reuses_total: int | None = None
    """Ids given to a memcg after another one had them, as far as we know: one that was given back before the start, and
    has left no child caches, is new to us."""
    map: tuple[KmemcgId, ...] | None = None
    """Every id that has an owner or child caches; sorted by id."""
    given_total: int | None = None
    freed_total: int | None = None
    meaning: str | None = None
    """What a kmemcg_id is on this kernel; one line."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Every way in which something the kernel did is missing from the figures above."""

    events_total: int | None = 0
    """Lifecycle events that found the ring buffer full, and program runs the kernel skipped."""
    map_full_total: int | None = 0
    """Counts that found a BPF map full."""
    unresolved_total: int | None = 0
    """Allocations or charges whose cache or memcg could not be read."""
    reasons: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """The same, split: for example ``ringbuf_full``, ``skipped_alloc``, ``pair_map_full``."""

    @property
    def total(self) -> int | None:
        """Sum of all of them; None when one is not known, as the sum could be anything then."""
        counts = (self.events_total, self.map_full_total, self.unresolved_total)
        return None if None in counts else sum(filter(None, counts))


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of memcgs that need no row each."""

    online_cgroups: int | None = None
    online_cgroups_peak: int | None = None
    dying_cgroups: int | None = None
    """The kernel's own count at the root where it has one, else our walk's."""
    cgroups_onlined_total: int | None = None
    cgroups_offlined_total: int | None = None
    cgroups_released_total: int | None = None
    memcg_ids_in_use: int | None = None
    """Memcgs, dying ones too, that have a 16-bit id (``mem_cgroup.id``) now; at most `MAX_MEMCG_IDS`."""


@dataclass(frozen=True, slots=True)
class MapFill:
    name: str
    entries: int
    capacity: int


LATENCY_KINDS = ("allocation_without_check", "allocation_with_check", "recharge_check")
"""`LatencyHistogram.kind`: an allocation in which no recharge check ran, one in which one did, and the check alone."""


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    kind: str
    """One of LATENCY_KINDS."""
    samples_total: int
    sum_ns_total: int
    """Of all samples, kmemwatch's own programs that ran meanwhile included."""
    buckets: tuple[int, ...]
    """Samples: bucket n has those from 2^n up to 2^(n+1) nanoseconds, the first also 0, the last all above."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long some of the allocations took, and some of the recharge checks."""

    one_in: int
    """Of so many calls on a CPU one is timed."""
    calls_total: Mapping[str, int]
    """``allocation``, and ``recharge_check`` on kernels that have it: calls of the functions that are timed."""
    dropped_total: Mapping[str, int]
    """The same: calls that were to be timed, and could not be followed from entry to return."""
    histograms: tuple[LatencyHistogram, ...]
    """In the order of LATENCY_KINDS; only the first on kernels without a recharge check."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    taken_at_ns: int
    """CLOCK_REALTIME."""
    monotonic_ns: int
    """CLOCK_MONOTONIC of the host that took it; rates use this one, it never jumps."""
    duration_s: float
    """Since the probes were attached."""
    host: Host
    kernel: Kernel
    probes: tuple[Probe, ...]
    caches: tuple[Cache, ...]
    """Sorted by (name, id)."""
    cgroups: tuple[Cgroup, ...]
    """Sorted by id."""
    pairs: tuple[Pair, ...]
    """Sorted by (cgroup_id, cache, cache_id)."""
    recharges: Recharges
    ids: Ids
    lost: Lost
    totals: Totals = Totals()
    maps: tuple[MapFill, ...] = ()
    release_delays_s: tuple[float, ...] = ()
    """Delay from offline to release of the memcgs released since the start, newest last, bounded."""
    latency: Latency | None = None
    """None when it was not asked for (``--latency``), and where functions cannot be timed."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once: lifecycle of a memcg, of a cache, of an id; see `EVENT_KINDS`."""

    at_ns: int
    """CLOCK_REALTIME."""
    kind: str
    cgroup_id: int | None = None
    path: str | None = None
    pid: int | None = None
    comm: str | None = None
    cache: str | None = None
    kmemcg_id: int | None = None
    other_cgroup_id: int | None = None
    bytes: int | None = None


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
