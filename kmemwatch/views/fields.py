# SPDX-License-Identifier: GPL-2.0-only
"""What a field is, and the fields of caches, memcgs, pairs, ids and recharges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kmemwatch.model import MAX_PREVIOUS_OWNERS, Cache, Cgroup, KmemcgId, Pair, RechargePair, RechargeTotal, Snapshot
from kmemwatch.shape import BYTES, BYTES_PER_S, COUNT, COUNT_PER_S, COUNTER, GAUGE, ID, SECONDS, TEXT, TIME
from kmemwatch.units import UNKNOWN, bytes_human, count_human, printable, rfc3339, seconds_human
from kmemwatch.views.rates import AllocRates, CgroupRates

T = TypeVar("T")
R = TypeVar("R")

Value = float | str | tuple[float, ...] | None
"""int, float or text; a tuple for a histogram; None when this kernel cannot tell."""

SEPARATOR = " · "
"""Between the parts of a line of totals."""

_WIDTHS = {BYTES: 7, BYTES_PER_S: 7, COUNT: 6, COUNT_PER_S: 6, SECONDS: 6, ID: 6, TIME: 20, TEXT: 12}


def rate_human(value: float | None) -> str:
    """A rate of counts: one decimal below 10 (0.3 a second is not 0), else as `count_human`."""
    if value is not None and 0 < abs(value) < 9.95:
        return f"{value:.1f}"
    return count_human(value)


def _id_text(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def _name_text(value: Any) -> str:
    return UNKNOWN if value is None else printable(value)


def _time_text(ns: int | None) -> str:
    stamp = rfc3339(ns)
    return UNKNOWN if stamp is None else stamp.partition(".")[0] + "Z"


_TEXTS: Mapping[str, Callable[[Any], str]] = {
    BYTES: bytes_human,
    BYTES_PER_S: bytes_human,
    COUNT: count_human,
    COUNT_PER_S: rate_human,
    SECONDS: seconds_human,
    ID: _id_text,
    TIME: _time_text,
    TEXT: _name_text,
}


@dataclass(frozen=True)
class Field(Generic[T]):
    """One figure of a `T`. Every screen, file and metric that shows it loops over these."""

    key: str
    """Stable name with the unit in it: ``--sort``, CSV header, JSON key of a row."""
    title: str
    """Column header."""
    unit: str
    help: str
    """One sentence: what it is, where it comes from, in which unit."""
    get: Callable[[T], Value]
    metric: str | None = None
    """Full Prometheus name; None: not exported."""
    kind: str = GAUGE
    show: Callable[[T], str] | None = None
    """Text for a screen when the unit alone does not say it; None: by unit."""
    rank: int = 0
    """Columns with the highest rank go first when the terminal is narrow; 0 always stays."""
    min_width: int = 0
    max_width: int = 0
    """More room than this is of no use; 0: as much as there is."""

    @property
    def is_text(self) -> bool:
        """Left-aligned, and sorted from A to Z; everything else is a number: right, largest first."""
        return self.unit == TEXT

    @property
    def width(self) -> int:
        """Columns that header and every usual value need."""
        return max(len(self.title), self.min_width or _WIDTHS[self.unit])

    def text(self, item: T) -> str:
        """For a screen: short, in units a person reads, ``?`` for unknown, safe to print."""
        return self.show(item) if self.show is not None else _TEXTS[self.unit](self.get(item))

    def exact(self, item: T) -> float | str | None:
        """For files: full precision, text escaped by `units.printable`, None for unknown."""
        value = self.get(item)
        if self.unit == TIME:
            return rfc3339(None if value is None else int(value))  # type: ignore[arg-type]
        return printable(value) if isinstance(value, str) else value  # type: ignore[return-value]

    def of(
        self, part: Callable[[R], T], *, rank: int = 0, title: str | None = None, key: str | None = None
    ) -> Field[R]:
        """The same field of something that has a `T`: the column of a row."""
        show = self.show
        return Field(
            key or self.key,
            title or self.title,
            self.unit,
            self.help,
            lambda row: self.get(part(row)),
            self.metric,
            self.kind,
            None if show is None else lambda row: show(part(row)),
            rank,
            self.min_width,
            self.max_width,
        )


@dataclass(frozen=True)
class MetricTable(Generic[T]):
    """Metrics that share their labels: one series per item, field and label values.

    Two items may have the same labels (two caches of one name, a path that was used twice):
    whoever exports them adds them up.
    """

    items: Callable[[Snapshot], Iterable[T]]
    labels: Mapping[str, Callable[[T], str]]
    """Label name -> value, already escaped; ``?`` where the name is unknown."""
    fields: tuple[Field[T], ...]
    """Only fields with a metric. A value of None means that the series is absent."""


def label(value: object) -> str:
    """Label value; ``?`` for None, ``true``/``false`` for a bool."""
    if isinstance(value, bool):
        return str(value).lower()
    return UNKNOWN if value is None else printable(str(value))


NOTHING = "-"
"""What a screen shows for a name that is known not to exist; unlike `?`."""

CACHE: tuple[Field[Cache], ...] = (
    Field(
        "cache",
        "CACHE",
        TEXT,
        "Name of the slab cache (struct kmem_cache).",
        lambda c: c.name,
        min_width=16,
        max_width=32,
    ),
    Field(
        "id",
        "CACHE ID",
        ID,
        "Tells caches of one name apart; stays the same until a reboot.",
        lambda c: c.id,
        min_width=12,
    ),
    Field("object_bytes", "OBJ SIZE", BYTES, "Bytes one object takes in the slab.", lambda c: c.object_bytes),
    Field(
        "slab_bytes",
        "SIZE",
        BYTES,
        "Memory of all slabs of the cache, free objects in them included, as in /proc/slabinfo.",
        lambda c: c.slab_bytes,
        "kmemwatch_cache_slab_bytes",
        GAUGE,
    ),
    Field(
        "root",
        "ROOT CACHE",
        TEXT,
        "Root cache that this one is a child of.",
        lambda c: c.root,
        show=lambda c: NOTHING if c.root is None else printable(c.root),
    ),
    Field(
        "kmemcg_id",
        "ID",
        ID,
        "kmemcg_id of the memcg that the child cache belongs to.",
        lambda c: c.kmemcg_id,
        show=lambda c: NOTHING if c.root is None else UNKNOWN if c.kmemcg_id is None else str(c.kmemcg_id),
    ),
    Field(
        "allocations_total",
        "ALLOCS",
        COUNT,
        "Objects allocated in this slab cache since kmemwatch was attached.",
        lambda c: c.allocations_total,
        "kmemwatch_cache_allocations_total",
        COUNTER,
    ),
    Field(
        "frees_total",
        "FREES",
        COUNT,
        "Objects freed in this slab cache since kmemwatch was attached.",
        lambda c: c.frees_total,
        "kmemwatch_cache_frees_total",
        COUNTER,
    ),
    Field(
        "allocated_bytes_total",
        "ALLOC BYTES",
        BYTES,
        "Bytes of the objects allocated in this slab cache since kmemwatch was attached.",
        lambda c: c.allocated_bytes_total,
        "kmemwatch_cache_allocated_bytes_total",
        COUNTER,
    ),
)

CGROUP: tuple[Field[Cgroup], ...] = (
    Field(
        "cgroup",
        "CGROUP",
        TEXT,
        "Path of the memcg from the root of its hierarchy; kept after death.",
        lambda c: c.path,
        show=lambda c: cgroup_name(c.id, c.path),
        min_width=20,
    ),
    Field("cgroup_id", "CGROUP ID", ID, "kernfs id of the directory, what stat -c %i shows.", lambda c: c.id),
    Field("state", "STATE", TEXT, "online; dying = removed but not yet released.", lambda c: c.state, min_width=6),
    Field("kmemcg_id", "KMEMCG ID", ID, "Index of the memcg in the kernel's per-memcg tables.", lambda c: c.kmemcg_id),
    Field("online_at", "ONLINE SINCE", TIME, "When it was made, if kmemwatch saw it.", lambda c: c.online_at_ns),
    Field("offline_at", "REMOVED AT", TIME, "When it was removed, if kmemwatch saw it.", lambda c: c.offline_at_ns),
    Field(
        "kernel_bytes",
        "KERNEL",
        BYTES,
        "Kernel memory of the memcg and those below it, in bytes: memory.stat kernel (v2), memory.kmem.usage_in_bytes"
        " (v1).",
        lambda c: c.kernel_bytes,
        "kmemwatch_cgroup_kernel_bytes",
    ),
    Field(
        "slab_bytes",
        "SLAB",
        BYTES,
        "Slab memory of the memcg and those below it, in bytes: memory.stat slab.",
        lambda c: c.slab_bytes,
        "kmemwatch_cgroup_slab_bytes",
    ),
    Field(
        "memory_bytes",
        "MEMORY",
        BYTES,
        "All memory of the memcg and those below it, in bytes: the page counter that memory.current shows.",
        lambda c: c.memory_bytes,
    ),
    Field(
        "own_kernel_bytes",
        "OWN KERNEL",
        BYTES,
        "Kernel memory of the memcg itself, in bytes: KERNEL less that of its children; what dead ones left to it is in"
        " it.",
        lambda c: c.own_kernel_bytes,
    ),
    Field(
        "own_slab_bytes",
        "OWN SLAB",
        BYTES,
        "Slab memory of the memcg itself, in bytes: SLAB less that of its children.",
        lambda c: c.own_slab_bytes,
    ),
    Field(
        "charged_bytes_total",
        "OWN CHARGED",
        BYTES,
        "Kernel memory charged to the memcg itself since kmemwatch was attached, in bytes.",
        lambda c: c.charged_bytes_total,
        "kmemwatch_cgroup_charged_bytes_total",
        COUNTER,
    ),
    Field(
        "uncharged_bytes_total",
        "OWN UNCHARGED",
        BYTES,
        "Kernel memory uncharged from the memcg itself since kmemwatch was attached, in bytes.",
        lambda c: c.uncharged_bytes_total,
        "kmemwatch_cgroup_uncharged_bytes_total",
        COUNTER,
    ),
    Field(
        "subtree_charged_bytes_total",
        "CHARGED",
        BYTES,
        "Kernel memory charged to the memcg and those below it since kmemwatch was attached, in bytes.",
        lambda c: c.subtree_charged_bytes_total,
    ),
    Field(
        "subtree_uncharged_bytes_total",
        "UNCHARGED",
        BYTES,
        "Kernel memory uncharged from the memcg and those below it since kmemwatch was attached, in bytes.",
        lambda c: c.subtree_uncharged_bytes_total,
    ),
    Field(
        "subtree_allocations_total",
        "ALLOCS",
        COUNT,
        "Objects that tasks of the memcg and of those below it allocated since kmemwatch was attached.",
        lambda c: c.subtree_allocations_total,
    ),
    Field(
        "references",
        "REFS",
        COUNT,
        "References that keep a dying memcg (css reference count): one for each folio of page cache, shmem or anonymous"
        " memory, one for each dying child, one for whatever else refers to it.",
        lambda c: c.references,
    ),
    Field("parent_id", "PARENT ID", ID, "CGROUP ID of the memcg right above it.", lambda c: c.parent_id),
    Field(
        "dying_children",
        "DYING BELOW",
        COUNT,
        "Dying memcgs right below it; each holds one of its references.",
        lambda c: c.dying_children,
    ),
)

PAIR: tuple[Field[Pair], ...] = (
    Field("cache", "CACHE", TEXT, "Name of the slab cache.", lambda p: p.cache, min_width=16),
    Field(
        "allocations_total",
        "ALLOCS",
        COUNT,
        "Objects that tasks of the cgroup allocated in the slab cache since kmemwatch was attached.",
        lambda p: p.allocations_total,
        "kmemwatch_cgroup_cache_allocations_total",
        COUNTER,
    ),
    Field(
        "frees_total",
        "FREES",
        COUNT,
        "Objects charged to the cgroup that were freed since kmemwatch was attached.",
        lambda p: p.frees_total,
    ),
    Field(
        "allocated_bytes_total",
        "ALLOC BYTES",
        BYTES,
        "Bytes of the objects allocated since kmemwatch was attached.",
        lambda p: p.allocated_bytes_total,
    ),
    Field(
        "live_bytes",
        "LIVE",
        BYTES,
        "Bytes of the objects that are charged to the cgroup and not freed; unknown for a cgroup that is older than"
        " kmemwatch, which may have objects that were never counted.",
        lambda p: p.live_bytes,
    ),
)

ALLOC_RATES: tuple[Field[AllocRates], ...] = (
    Field("allocations_per_s", "ALLOC/s", COUNT_PER_S, "Objects allocated per second.", lambda r: r.allocations_per_s),
    Field("frees_per_s", "FREE/s", COUNT_PER_S, "Objects freed per second.", lambda r: r.frees_per_s),
    Field(
        "allocated_bytes_per_s",
        "ALLOC B/s",
        BYTES_PER_S,
        "Bytes of objects allocated per second.",
        lambda r: r.allocated_bytes_per_s,
    ),
)

CGROUP_RATES: tuple[Field[CgroupRates], ...] = (
    Field(
        "charged_bytes_per_s",
        "OWN CHARGED/s",
        BYTES_PER_S,
        "Kernel memory charged to the memcg itself, bytes per second.",
        lambda r: r.charged_bytes_per_s,
    ),
    Field(
        "uncharged_bytes_per_s",
        "OWN UNCHARGED/s",
        BYTES_PER_S,
        "Kernel memory uncharged from the memcg itself, bytes per second.",
        lambda r: r.uncharged_bytes_per_s,
    ),
    Field(
        "kernel_growth_bytes_per_s",
        "GROWTH/s",
        BYTES_PER_S,
        "Change of its kernel memory and that of those below it, bytes per second.",
        lambda r: r.kernel_growth_bytes_per_s,
    ),
    Field(
        "subtree_charged_bytes_per_s",
        "CHARGED/s",
        BYTES_PER_S,
        "Kernel memory charged to the memcg and those below it, bytes per second.",
        lambda r: r.subtree_charged_bytes_per_s,
    ),
    Field(
        "subtree_uncharged_bytes_per_s",
        "UNCHARGED/s",
        BYTES_PER_S,
        "Kernel memory uncharged from the memcg and those below it, bytes per second.",
        lambda r: r.subtree_uncharged_bytes_per_s,
    ),
    Field(
        "subtree_allocations_per_s",
        "ALLOC/s",
        COUNT_PER_S,
        "Objects that tasks of the memcg and of those below it allocated per second.",
        lambda r: r.subtree_allocations_per_s,
    ),
    Field(
        "top_cache",
        "ALLOCATED FROM",
        TEXT,
        "Slab cache in which its tasks allocated the most bytes in the last interval, even if they were freed at once;"
        " - when they allocated nothing.",
        lambda r: r.top_cache,
        show=lambda r: _top(r.top_cache, r.alloc),
        min_width=16,
    ),
)

KMEMCG_ID: tuple[Field[KmemcgId], ...] = (
    Field(
        "kmemcg_id", "ID", ID, "Index of the memcg in each root cache's table of child caches.", lambda i: i.kmemcg_id
    ),
    Field("cgroup_id", "CGROUP ID", ID, "The memcg that has the id now.", lambda i: i.cgroup_id),
    Field("since", "SINCE", TIME, "Since when it has it.", lambda i: i.since_ns),
    Field("child_caches", "CACHES", COUNT, "Child caches with this id.", lambda i: i.caches),
    Field(
        "slab_bytes",
        "SIZE",
        BYTES,
        "Memory of all slabs of these caches, whoever they are charged to.",
        lambda i: i.slab_bytes,
    ),
    Field(
        "reuses",
        "REUSES",
        COUNT,
        f"Memcgs that had the id before, as far as kmemwatch saw; it remembers {MAX_PREVIOUS_OWNERS}.",
        lambda i: len(i.previous_owners),
        show=lambda i: f"{len(i.previous_owners)}{'+' * (len(i.previous_owners) >= MAX_PREVIOUS_OWNERS)}",
    ),
    Field(
        "previous_owners",
        "OWNERS BEFORE",
        TEXT,
        "cgroup ids of these memcgs, oldest first; - when kmemwatch saw none.",
        lambda i: " ".join(map(str, i.previous_owners)) or NOTHING,
        min_width=16,
    ),
)

RECHARGE_TOTAL: tuple[Field[RechargeTotal], ...] = (
    Field(
        "recharges_total",
        "RECHARGES",
        COUNT,
        "Slabs moved from one memcg to another since kmemwatch was attached.",
        lambda t: t.recharges_total,
        "kmemwatch_recharges_total",
        COUNTER,
    ),
    Field(
        "recharged_bytes_total",
        "BYTES",
        BYTES,
        "Bytes of the slabs moved from one memcg to another since kmemwatch was attached.",
        lambda t: t.recharged_bytes_total,
        "kmemwatch_recharged_bytes_total",
        COUNTER,
    ),
)

RECHARGE: tuple[Field[RechargePair], ...] = (
    Field("cache", "CACHE", TEXT, "Child cache whose slabs were moved.", lambda p: p.cache, min_width=16),
    Field("kmemcg_id", "ID", ID, "kmemcg_id that the cache belongs to.", lambda p: p.kmemcg_id),
    Field(
        "from_cgroup_id",
        "FROM ID",
        ID,
        "Memcg that the slabs were charged to.",
        lambda p: p.from_cgroup_id,
        show=lambda p: NOTHING if p.from_cgroup_id is None else str(p.from_cgroup_id),
    ),
    Field(
        "from_state",
        "WAS",
        TEXT,
        "State of that memcg when the slabs moved; none: they were charged to nobody.",
        lambda p: p.from_state,
        min_width=6,
    ),
    Field("to_cgroup_id", "TO ID", ID, "Memcg that took them over.", lambda p: p.to_cgroup_id),
    Field(
        "recharges_total",
        "SLABS",
        COUNT,
        "Slabs moved from one memcg to the other since kmemwatch was attached.",
        lambda p: p.recharges_total,
    ),
    Field(
        "recharged_bytes_total",
        "BYTES",
        BYTES,
        "Bytes of these slabs.",
        lambda p: p.recharged_bytes_total,
    ),
)


def cgroup_name(cgroup_id: int, path: str | None) -> str:
    """Printable path; the id stands in where nobody knows it."""
    return f"{UNKNOWN} (id {cgroup_id})" if path is None else printable(path)


def _top(name: str | None, alloc: AllocRates) -> str:
    """A name; `-` when nothing was allocated; `?` when nobody knows."""
    known = alloc.allocated_bytes_per_s if alloc.allocated_bytes_per_s is not None else alloc.allocations_per_s
    if name is None:
        return UNKNOWN if known is None else NOTHING
    return printable(name)


def by_key(fields: tuple[Field[Any], ...]) -> Mapping[str, Field[Any]]:
    """Fields of one table, found by their stable name."""
    return {f.key: f for f in fields}
