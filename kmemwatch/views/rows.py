# SPDX-License-Identifier: GPL-2.0-only
"""Rows of views: objects of the model joined with their rates and names; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from msgspec.structs import replace

from kmemwatch.model import RELEASED, Cache, Cgroup, ChildSlabs, KmemcgId, Pair, RechargePair, Snapshot
from kmemwatch.units import NS_PER_S, UNKNOWN
from kmemwatch.views import derived
from kmemwatch.views.rates import (
    NO_ALLOC,
    NO_RATES,
    UNKNOWN_ALLOC,
    AllocRates,
    CacheKey,
    CgroupRates,
    Rates,
    add,
    held_bytes,
    move_key,
    rates,
)

UNKNOWN_CGROUP = CgroupRates()
MAX_CHILD_NAMES = 3


@dataclass(frozen=True, slots=True)
class CgroupRow:
    cgroup: Cgroup
    rates: CgroupRates
    top_live_cache: str | None = None
    """The cache with most of its live bytes; None when it has none or it is unknown, see `live_is_known`."""
    live_is_known: bool = False


@dataclass(frozen=True, slots=True)
class CacheRow:
    cache: Cache
    rates: AllocRates
    top_cgroup: str | None
    """The cgroup that allocated most in the last interval; None when none did, or it is unknown."""
    slab_growth_bytes_per_s: float | None = None
    copies: int | None = None
    """Number of its child caches; None on kernels without child caches."""

    @property
    def growth_bytes_per_s(self) -> float | None:
        """Change of the cache's memory; within a scope, bytes of objects allocated less bytes of objects freed."""
        if self.cache.slab_bytes is not None:
            return self.slab_growth_bytes_per_s
        allocated, freed = self.rates.allocations_per_s, self.rates.frees_per_s
        if allocated is None or freed is None or self.cache.object_bytes is None:
            return None
        return (allocated - freed) * self.cache.object_bytes


@dataclass(frozen=True, slots=True)
class ZombieRow:
    cgroup: Cgroup
    age_s: float
    age_is_exact: bool
    children: tuple[str, ...] = ()
    """Names of its dying children, which keep it, those with the most memory first; at most `MAX_CHILD_NAMES`, and
    fewer than `Cgroup.dying_children` where the snapshot lacks some."""


@dataclass(frozen=True, slots=True)
class PairRow:
    pair: Pair
    rates: AllocRates
    cgroup: str


@dataclass(frozen=True, slots=True)
class IdRow:
    id: KmemcgId
    cgroup: str
    """Path of the owner; `-` when nobody has the id now."""
    state: str | None
    """State of the owner; None when nobody has the id, or the state is unknown."""
    previous: str
    """The owner before; `-` when kmemwatch saw none."""
    age_s: float | None = None
    """Time since the owner got it, or the last owner gave it back; None when that was before kmemwatch started."""


@dataclass(frozen=True, slots=True)
class RechargeRow:
    pair: RechargePair
    source: str
    target: str
    recharges_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class SlabsRow:
    slabs: ChildSlabs
    owner: str
    """The present owner of the cache's kmemcg_id, which will take the slabs over; `-` when nobody has it."""


@dataclass(frozen=True)
class Frame:
    """What one refresh shows: a snapshot, the rates since the one before, and a scope."""

    snapshot: Snapshot
    rates: Rates = NO_RATES
    scope: str | None = None
    """Path of a cgroup: only it and the cgroups below it are shown; None: all."""

    @cached_property
    def names(self) -> dict[int, str]:
        """cgroup id -> path, as the kernel has it: not yet printable."""
        return {c.id: c.path for c in self.snapshot.cgroups if c.path is not None}

    def name(self, cgroup_id: int) -> str:
        """Path; the id where the path is unknown, as of a cgroup that is no longer in the snapshot."""
        return self.names.get(cgroup_id) or unnamed(cgroup_id)

    @cached_property
    def top_live(self) -> dict[int, tuple[str | None, bool]]:
        """As `derived.top_live_caches`."""
        return derived.top_live_caches(self.snapshot)

    @cached_property
    def dying_below(self) -> dict[int, list[Cgroup]]:
        """cgroup id -> dying memcgs right below it, those with the most memory first."""
        found: dict[int, list[Cgroup]] = {}
        for cgroup in sorted(derived.dying(self.snapshot), key=lambda c: (-(c.memory_bytes or 0), c.id)):
            if cgroup.parent_id is not None:
                found.setdefault(cgroup.parent_id, []).append(cgroup)
        return found

    @cached_property
    def scope_ids(self) -> frozenset[int] | None:
        """Ids of the cgroups in the scope; None: all."""
        if self.scope is None:
            return None
        return frozenset(c.id for c in self.snapshot.cgroups if is_within(c.path, self.scope))

    def has(self, cgroup_id: int | None) -> bool:
        """Whether a cgroup is in the scope."""
        return self.scope_ids is None or cgroup_id in self.scope_ids


def frame(before: Snapshot | None, after: Snapshot, scope: str | None = None) -> Frame:
    """The frame of `after`, with rates since `before`."""
    return Frame(after, rates(before, after), scope)


def unnamed(cgroup_id: int) -> str:
    """Stands for the path of a cgroup whose path is unknown."""
    return f"{UNKNOWN} (id {cgroup_id})"


def is_within(path: str | None, scope: str) -> bool:
    """Whether a path is `scope` or below it."""
    return path is not None and (path == scope or scope == "/" or path.startswith(scope + "/"))


def cgroup_rows(shown: Frame) -> list[CgroupRow]:
    """All cgroups that exist; a released one has nothing left to show."""
    return [cgroup_row(shown, c) for c in shown.snapshot.cgroups if c.state != RELEASED and shown.has(c.id)]


def cgroup_row(shown: Frame, cgroup: Cgroup) -> CgroupRow:
    """The row of a cgroup."""
    found = shown.rates.cgroups.get(cgroup.id, UNKNOWN_CGROUP)
    name, known = shown.top_live.get(cgroup.id, (None, derived.has_no_older_objects(cgroup, shown.snapshot)))
    return CgroupRow(cgroup, found, name, known)


def zombie_rows(shown: Frame) -> list[ZombieRow] | None:
    """Dying cgroups; None when there may be some, but none could be found."""
    found = [zombie_row(shown, c) for c in derived.dying(shown.snapshot)]
    if not found and shown.snapshot.totals.dying_cgroups != 0:
        return None
    return [row for row in found if shown.has(row.cgroup.id)]


def zombie_row(shown: Frame, cgroup: Cgroup) -> ZombieRow:
    """The row of a dying cgroup."""
    children = shown.dying_below.get(cgroup.id, [])[:MAX_CHILD_NAMES]
    names = tuple(unnamed(c.id) if c.path is None else c.path.rpartition("/")[2] for c in children)
    return ZombieRow(cgroup, *derived.dying_for(cgroup, shown.snapshot), names)


def cache_rows(shown: Frame) -> list[CacheRow]:
    """Root caches, each with its child caches; within a scope, what the cgroups in it do in them."""
    found = shown.rates
    if shown.scope_ids is not None:
        return _scoped_cache_rows(shown)
    copies, held = derived.caches_per_root(shown.snapshot), held_bytes(shown.snapshot.caches)
    rows = []
    for cache in shown.snapshot.caches:
        if cache.root is not None:
            continue
        key = (cache.name, cache.id)
        top = found.top_cgroups.get(key)
        rows.append(
            CacheRow(
                replace(cache, slab_bytes=held.get(key)),
                found.caches.get(key, UNKNOWN_ALLOC),
                None if top is None else shown.name(top),
                found.cache_growth_bytes_per_s.get(key),
                None if copies is None else copies.get(cache.name, 0),
            )
        )
    return rows


def _scoped_cache_rows(shown: Frame) -> list[CacheRow]:
    by_cache: dict[CacheKey, list[Pair]] = {}
    for pair in shown.snapshot.pairs:
        if shown.has(pair.cgroup_id):
            by_cache.setdefault((pair.cache, pair.cache_id), []).append(pair)
    caches = {(c.name, c.id): c for c in shown.snapshot.caches}
    copies = _scoped_copies(shown)
    return [
        _scoped_cache(shown, key, pairs, caches.get(key), None if copies is None else copies[key[0]])
        for key, pairs in by_cache.items()
    ]


def _scoped_copies(shown: Frame) -> Counter[str] | None:
    """Root cache -> child caches whose kmemcg_id belongs to a cgroup in the scope."""
    if derived.caches_per_root(shown.snapshot) is None or shown.snapshot.ids.map is None:
        return None
    inside = {i.kmemcg_id for i in shown.snapshot.ids.map if i.cgroup_id is not None and shown.has(i.cgroup_id)}
    return Counter(c.root for c in shown.snapshot.caches if c.root is not None and c.kmemcg_id in inside)


def _scoped_cache(shown: Frame, key: CacheKey, pairs: list[Pair], cache: Cache | None, copies: int | None) -> CacheRow:
    total, best, top = NO_ALLOC, 0.0, None
    for pair in pairs:
        rate = shown.rates.pairs.get((pair.cgroup_id, pair.cache, pair.cache_id), UNKNOWN_ALLOC)
        total = add(total, rate)
        amount = rate.allocated_bytes_per_s if rate.allocated_bytes_per_s is not None else rate.allocations_per_s
        if amount is not None and amount > best:
            best, top = amount, shown.name(pair.cgroup_id)
    scoped = Cache(
        key[0],
        key[1],
        cache.object_bytes if cache else None,
        cache.root if cache else None,
        cache.kmemcg_id if cache else None,
        total_of(pairs, lambda p: p.allocations_total),
        total_of(pairs, lambda p: p.allocated_bytes_total),
        total_of(pairs, lambda p: p.frees_total),
    )
    return CacheRow(scoped, total, top, copies=copies)


def total_of(pairs: Iterable[Pair], get: Callable[[Pair], int | None]) -> int | None:
    """Sum of a figure; None as soon as one of them is unknown."""
    total = 0
    for pair in pairs:
        value = get(pair)
        if value is None:
            return None
        total += value
    return total


def pair_rows(shown: Frame, *, cgroup_id: int | None = None, cache: CacheKey | None = None) -> list[PairRow]:
    """Pairs of one cgroup or of one cache."""
    found = shown.rates.pairs
    return [
        PairRow(p, found.get((p.cgroup_id, p.cache, p.cache_id), UNKNOWN_ALLOC), shown.name(p.cgroup_id))
        for p in shown.snapshot.pairs
        if (cgroup_id is None or p.cgroup_id == cgroup_id)
        and (cache is None or (p.cache, p.cache_id) == cache)
        and shown.has(p.cgroup_id)
    ]


def id_rows(shown: Frame) -> list[IdRow] | None:
    """The map of kmemcg_ids; None when this kernel has none, or it is unknown."""
    if shown.snapshot.ids.map is None:
        return None
    known = derived.states(shown.snapshot)
    return [
        IdRow(
            i,
            "-" if i.cgroup_id is None else shown.name(i.cgroup_id),
            None if i.cgroup_id is None else known.get(i.cgroup_id),
            shown.name(i.previous_owners[-1]) if i.previous_owners else "-",
            None if i.since_ns is None else max(0.0, (shown.snapshot.taken_at_ns - i.since_ns) / NS_PER_S),
        )
        for i in shown.snapshot.ids.map
        if shown.has(i.cgroup_id)
    ]


def recharge_rows(shown: Frame) -> list[RechargeRow] | None:
    """Which memcg took slabs over from which; None when this kernel does not recharge, or it is unknown."""
    if shown.snapshot.recharges.pairs is None:
        return None
    return [
        RechargeRow(
            p,
            "(nobody)" if p.from_cgroup_id is None else shown.name(p.from_cgroup_id),
            shown.name(p.to_cgroup_id),
            shown.rates.moves_per_s.get(move_key(p)),
        )
        for p in shown.snapshot.recharges.pairs
        if shown.has(p.from_cgroup_id) or shown.has(p.to_cgroup_id)
    ]


def child_rows(shown: Frame, kmemcg_id: int) -> list[Cache]:
    """Child caches with one kmemcg_id."""
    return [c for c in shown.snapshot.caches if c.root is not None and c.kmemcg_id == kmemcg_id]


def slabs_rows(shown: Frame, cgroup_id: int) -> list[SlabsRow] | None:
    """Slabs of a dying memcg in child caches; None when they are unknown."""
    cgroup = next((c for c in shown.snapshot.cgroups if c.id == cgroup_id), None)
    if cgroup is None or cgroup.child_slabs is None:
        return None
    owners = {i.kmemcg_id: i.cgroup_id for i in shown.snapshot.ids.map or ()}
    found = []
    for slabs in cgroup.child_slabs:
        owner = owners.get(slabs.kmemcg_id)
        found.append(SlabsRow(slabs, "-" if owner is None else shown.name(owner)))
    return found
