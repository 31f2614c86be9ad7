# SPDX-License-Identifier: GPL-2.0-only
"""What one row of a view is: objects of the model joined with their rates and names; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from kmemwatch.fields import derived
from kmemwatch.model import RELEASED, Cache, Cgroup, KmemcgId, Pair, RechargePair, Snapshot
from kmemwatch.rates import (
    NO_ALLOC,
    NO_RATES,
    UNKNOWN_ALLOC,
    AllocRates,
    CacheKey,
    CgroupRates,
    Rates,
    add,
    rates,
)
from kmemwatch.units import UNKNOWN

UNKNOWN_CGROUP = CgroupRates()


@dataclass(frozen=True, slots=True)
class CgroupRow:
    cgroup: Cgroup
    rates: CgroupRates


@dataclass(frozen=True, slots=True)
class CacheRow:
    cache: Cache
    rates: AllocRates
    top_cgroup: str | None
    """None when nobody allocated or nobody knows."""

    slab_growth_bytes_per_s: float | None = None

    @property
    def growth_bytes_per_s(self) -> float | None:
        """Change of the cache's memory; for some cgroups only, objects allocated less objects freed."""
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


@dataclass(frozen=True, slots=True)
class PairRow:
    pair: Pair
    rates: AllocRates
    cgroup: str


@dataclass(frozen=True, slots=True)
class IdRow:
    id: KmemcgId
    cgroup: str
    """`-` when the id belongs to nobody now."""


@dataclass(frozen=True, slots=True)
class RechargeRow:
    pair: RechargePair
    source: str
    source_state: str
    target: str


@dataclass(frozen=True)
class Frame:
    """All that one refresh of a view shows: a snapshot, what changed since the one before, and a scope."""

    snapshot: Snapshot
    rates: Rates = NO_RATES
    scope: str | None = None
    """Path of a cgroup: only it and those below it are shown; None: all."""

    @cached_property
    def names(self) -> dict[int, str]:
        """cgroup id -> path, as the kernel has it: not yet printable."""
        return {c.id: c.path for c in self.snapshot.cgroups if c.path is not None}

    def name(self, cgroup_id: int) -> str:
        """Path; the id stands in where nobody knows it, also for a cgroup that the snapshot has forgotten."""
        return self.names.get(cgroup_id) or unnamed(cgroup_id)

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
    """The frame that `after` makes, with rates since `before`."""
    return Frame(after, rates(before, after), scope)


def unnamed(cgroup_id: int) -> str:
    """What stands for the path of a cgroup whose path nobody knows."""
    return f"{UNKNOWN} (id {cgroup_id})"


def is_within(path: str | None, scope: str) -> bool:
    """Whether a path is `scope` or below it."""
    return path is not None and (path == scope or scope == "/" or path.startswith(scope + "/"))


def cgroup_rows(shown: Frame) -> list[CgroupRow]:
    """Cgroups that exist; released ones have nothing left to show."""
    found = shown.rates.cgroups
    return [
        CgroupRow(c, found.get(c.id, UNKNOWN_CGROUP))
        for c in shown.snapshot.cgroups
        if c.state != RELEASED and shown.has(c.id)
    ]


def zombie_rows(shown: Frame) -> list[ZombieRow] | None:
    """Cgroups that are removed and not released; None when there may be some and none could be found."""
    found = [ZombieRow(c, *derived.dying_for(c, shown.snapshot)) for c in derived.dying(shown.snapshot)]
    if not found and shown.snapshot.totals.dying_cgroups != 0:
        return None
    return [row for row in found if shown.has(row.cgroup.id)]


def cache_rows(shown: Frame) -> list[CacheRow]:
    """Caches; with a scope, what the cgroups in it do in them."""
    found = shown.rates
    if shown.scope_ids is not None:
        return _scoped_cache_rows(shown)
    tops = found.top_cgroups
    rows = []
    for cache in shown.snapshot.caches:
        key = (cache.name, cache.address)
        top = tops.get(key)
        name = None if top is None else shown.name(top)
        growth = found.cache_growth_bytes_per_s.get(key)
        rows.append(CacheRow(cache, found.caches.get(key, UNKNOWN_ALLOC), name, growth))
    return rows


def _scoped_cache_rows(shown: Frame) -> list[CacheRow]:
    by_cache: dict[CacheKey, list[Pair]] = {}
    for pair in shown.snapshot.pairs:
        if shown.has(pair.cgroup_id):
            by_cache.setdefault((pair.cache, pair.cache_address), []).append(pair)
    caches = {(c.name, c.address): c for c in shown.snapshot.caches}
    return [_scoped_cache(shown, key, pairs, caches.get(key)) for key, pairs in by_cache.items()]


def _scoped_cache(shown: Frame, key: CacheKey, pairs: list[Pair], cache: Cache | None) -> CacheRow:
    total, best, top = NO_ALLOC, 0.0, None
    for pair in pairs:
        rate = shown.rates.pairs.get((pair.cgroup_id, pair.cache, pair.cache_address), UNKNOWN_ALLOC)
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
    return CacheRow(scoped, total, top)


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
        PairRow(p, found.get((p.cgroup_id, p.cache, p.cache_address), UNKNOWN_ALLOC), shown.name(p.cgroup_id))
        for p in shown.snapshot.pairs
        if (cgroup_id is None or p.cgroup_id == cgroup_id)
        and (cache is None or (p.cache, p.cache_address) == cache)
        and shown.has(p.cgroup_id)
    ]


def id_rows(shown: Frame) -> list[IdRow] | None:
    """The kmemcg_id map; None when this kernel has none or nobody knows it."""
    if shown.snapshot.ids.map is None:
        return None
    return [
        IdRow(i, "-" if i.cgroup_id is None else shown.name(i.cgroup_id))
        for i in shown.snapshot.ids.map
        if shown.has(i.cgroup_id)
    ]


def recharge_rows(shown: Frame) -> list[RechargeRow] | None:
    """Who took slabs over from whom; None when this kernel does not recharge or nobody knows."""
    if shown.snapshot.recharges.pairs is None:
        return None
    known = derived.states(shown.snapshot)
    return [
        RechargeRow(
            p,
            "(nobody)" if p.from_cgroup_id is None else shown.name(p.from_cgroup_id),
            derived.state_of(p.from_cgroup_id, known),
            shown.name(p.to_cgroup_id),
        )
        for p in shown.snapshot.recharges.pairs
        if shown.has(p.from_cgroup_id) or shown.has(p.to_cgroup_id)
    ]
