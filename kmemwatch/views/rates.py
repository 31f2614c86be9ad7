# SPDX-License-Identifier: GPL-2.0-only
"""Two snapshots of the same run -> what happened per second between them; pure.

None means unknown, as everywhere. A new row had done nothing before, because counters start at 0 with the run. A
counter that fell was restarted: its rate is unknown, never negative.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

from msgspec import Struct

from kmemwatch.model import MISSING, Cache, Cgroup, Pair, RechargePair, Snapshot
from kmemwatch.shape import BYTES_PER_S, COUNT_PER_S, TEXT, About
from kmemwatch.units import NS_PER_S

CacheKey = tuple[str, str | None]
"""(name, id): names alone are not unique."""
PairKey = tuple[int, str, str | None]
"""(cgroup id, cache name, cache id)."""
MoveKey = tuple[str, int | None, str, int]
"""(child cache, from id, its state, to id)."""

_START_TOLERANCE_S = 1.0
"""Two snapshots of one run give the same start, up to rounding."""


class AllocRates(Struct, frozen=True):
    """Of one cache, of one pair, or of all pairs of a cgroup."""

    allocations_per_s: Annotated[float | None, About("Objects allocated per second.", COUNT_PER_S, "ALLOC/s")] = None
    allocated_bytes_per_s: Annotated[
        float | None, About("Bytes of objects allocated per second.", BYTES_PER_S, "ALLOC B/s")
    ] = None
    frees_per_s: Annotated[float | None, About("Objects freed per second.", COUNT_PER_S, "FREE/s")] = None


class CgroupRates(Struct, frozen=True):
    """Of the memcg itself; those of its subtree are of all below it as well."""

    charged_bytes_per_s: Annotated[
        float | None,
        About("Kernel memory charged to the memcg itself, bytes per second.", BYTES_PER_S, "OWN CHARGED/s"),
    ] = None
    uncharged_bytes_per_s: Annotated[
        float | None,
        About("Kernel memory uncharged from the memcg itself, bytes per second.", BYTES_PER_S, "OWN UNCHARGED/s"),
    ] = None
    kernel_growth_bytes_per_s: Annotated[
        float | None,
        About("Change of its kernel memory and that of those below it, bytes per second.", BYTES_PER_S, "GROWTH/s"),
    ] = None
    alloc: Annotated[AllocRates, About("What its own tasks do.")] = AllocRates()
    top_cache: Annotated[
        str | None,
        About(
            "Slab cache in which its tasks allocated the most bytes in the last interval, even if they were freed at"
            " once; - when they allocated nothing.",
            TEXT, "ALLOCATED FROM", min_width=16,
        ),
    ] = None  # fmt: skip
    subtree_charged_bytes_per_s: Annotated[
        float | None,
        About("Kernel memory charged to the memcg and those below it, bytes per second.", BYTES_PER_S, "CHARGED/s"),
    ] = None
    subtree_uncharged_bytes_per_s: Annotated[
        float | None,
        About(
            "Kernel memory uncharged from the memcg and those below it, bytes per second.", BYTES_PER_S, "UNCHARGED/s"
        ),
    ] = None
    subtree_allocations_per_s: Annotated[
        float | None,
        About("Objects that tasks of the memcg and of those below it allocated per second.", COUNT_PER_S, "ALLOC/s"),
    ] = None


UNKNOWN_ALLOC = AllocRates()
NO_ALLOC = AllocRates(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over `interval_s`; every map has an entry for every row of the later snapshot."""

    interval_s: float | None = None
    """None: there is nothing to compare with, and the maps are empty."""
    caches: Mapping[CacheKey, AllocRates] = field(default_factory=lambda: MappingProxyType({}))
    cgroups: Mapping[int, CgroupRates] = field(default_factory=lambda: MappingProxyType({}))
    pairs: Mapping[PairKey, AllocRates] = field(default_factory=lambda: MappingProxyType({}))
    cache_growth_bytes_per_s: Mapping[CacheKey, float] = field(default_factory=lambda: MappingProxyType({}))
    """Change of `held_bytes`, negative when it shrinks; absent where unknown."""
    top_cgroups: Mapping[CacheKey, int] = field(default_factory=lambda: MappingProxyType({}))
    """Cache -> id of the cgroup that allocated the most bytes in it; absent when nobody did."""
    moves_per_s: Mapping[MoveKey, float] = field(default_factory=lambda: MappingProxyType({}))
    """Recharges of each `RechargePair`; absent where unknown."""
    checks_per_s: float | None = None
    recharges_per_s: float | None = None


NO_RATES = Rates()


def rates(before: Snapshot | None, after: Snapshot) -> Rates:
    """Rates between two snapshots; `NO_RATES` when they are not of one run, or not in this order."""
    if before is None or not same_run(before, after):
        return NO_RATES
    interval_s = (after.monotonic_ns - before.monotonic_ns) / NS_PER_S
    if interval_s <= 0:
        return NO_RATES
    pairs = _pair_rates(before.pairs, after.pairs, interval_s)
    top_caches, top_cgroups = _tops(pairs)
    return Rates(
        interval_s,
        _cache_rates(before.caches, after.caches, interval_s),
        _cgroup_rates(before, after, _sum_by_cgroup(pairs), top_caches, interval_s),
        pairs,
        _cache_growth(before.caches, after.caches, interval_s),
        top_cgroups,
        _move_rates(before.recharges.pairs or (), after.recharges.pairs or (), interval_s),
        per_second(before.recharges.checks_total, after.recharges.checks_total, interval_s),
        per_second(before.recharges.recharges_total, after.recharges.recharges_total, interval_s),
    )


def move_key(pair: RechargePair) -> MoveKey:
    """Identifies a pair."""
    return pair.cache, pair.from_cgroup_id, pair.from_state, pair.to_cgroup_id


def _move_rates(
    before: Iterable[RechargePair], after: Iterable[RechargePair], interval_s: float
) -> dict[MoveKey, float]:
    old = {move_key(pair): pair.recharges_total for pair in before}
    found = {move_key(pair): per_second(old.get(move_key(pair), 0), pair.recharges_total, interval_s) for pair in after}
    return {key: rate for key, rate in found.items() if rate is not None}


def same_run(before: Snapshot, after: Snapshot) -> bool:
    """Whether both come from one attachment on one boot, so that their counters can be compared."""
    if before.host.hostname != after.host.hostname or before.host.boot_id != after.host.boot_id:
        return False
    start_before = before.monotonic_ns / NS_PER_S - before.duration_s
    start_after = after.monotonic_ns / NS_PER_S - after.duration_s
    return abs(start_after - start_before) < _START_TOLERANCE_S


def per_second(before: int | None, after: int | None, interval_s: float) -> float | None:
    """Rate of a counter; None when either end is unknown or it was restarted in between."""
    if before is None or after is None or after < before:
        return None
    return (after - before) / interval_s


def _alloc(before: Cache | Pair, after: Cache | Pair, interval_s: float) -> AllocRates:
    return AllocRates(
        per_second(before.allocations_total, after.allocations_total, interval_s),
        per_second(before.allocated_bytes_total, after.allocated_bytes_total, interval_s),
        per_second(before.frees_total, after.frees_total, interval_s),
    )


def _first(after: Cache | Pair, interval_s: float) -> AllocRates:
    return AllocRates(
        per_second(0, after.allocations_total, interval_s),
        per_second(0, after.allocated_bytes_total, interval_s),
        per_second(0, after.frees_total, interval_s),
    )


def _pair_rates(before: tuple[Pair, ...], after: tuple[Pair, ...], interval_s: float) -> dict[PairKey, AllocRates]:
    old = {(p.cgroup_id, p.cache, p.cache_id): p for p in before}
    found: dict[PairKey, AllocRates] = {}
    for pair in after:
        key = (pair.cgroup_id, pair.cache, pair.cache_id)
        was = old.get(key)
        if was is None:
            found[key] = _first(pair, interval_s)
        elif (  # most pairs of a big host are idle and share one object
            was.allocations_total == pair.allocations_total is not None
            and was.frees_total == pair.frees_total is not None
            and was.allocated_bytes_total == pair.allocated_bytes_total is not None
        ):
            found[key] = NO_ALLOC
        else:
            found[key] = _alloc(was, pair, interval_s)
    return found


def held_bytes(caches: tuple[Cache, ...]) -> dict[CacheKey, int]:
    """Memory of each root cache and its child caches; absent where it is not known of all of them."""
    below: dict[str, int] = defaultdict(int)
    unknown = set()
    for cache in caches:
        if cache.root is not None:
            below[cache.root] += cache.slab_bytes or 0
            if cache.slab_bytes is None:
                unknown.add(cache.root)
    return {
        (cache.name, cache.id): cache.slab_bytes + below.get(cache.name, 0)
        for cache in caches
        if cache.root is None and cache.slab_bytes is not None and cache.name not in unknown
    }


def _cache_growth(before: tuple[Cache, ...], after: tuple[Cache, ...], interval_s: float) -> dict[CacheKey, float]:
    # A root cache that is new may have held memory before it was found.
    old = held_bytes(before)
    return {key: (held - old[key]) / interval_s for key, held in held_bytes(after).items() if key in old}


def _cache_rates(before: tuple[Cache, ...], after: tuple[Cache, ...], interval_s: float) -> dict[CacheKey, AllocRates]:
    old = {(c.name, c.id): c for c in before}
    found: dict[CacheKey, AllocRates] = {}
    for cache in after:
        was = old.get((cache.name, cache.id))
        found[cache.name, cache.id] = _alloc(was, cache, interval_s) if was else _first(cache, interval_s)
    return found


def _tops(pairs: Mapping[PairKey, AllocRates]) -> tuple[dict[int, str], dict[CacheKey, int]]:
    """Per cgroup the cache, and per cache the cgroup, with the most bytes (objects where bytes are unknown)."""
    best_cache: dict[int, tuple[float, str]] = {}
    best_cgroup: dict[CacheKey, tuple[float, int]] = {}
    for (cgroup_id, cache, cache_id), rate in pairs.items():
        if rate is NO_ALLOC:
            continue
        amount = rate.allocated_bytes_per_s if rate.allocated_bytes_per_s is not None else rate.allocations_per_s
        if not amount:
            continue
        if amount > best_cache.get(cgroup_id, (0.0, ""))[0]:
            best_cache[cgroup_id] = (amount, cache)
        if amount > best_cgroup.get((cache, cache_id), (0.0, 0))[0]:
            best_cgroup[cache, cache_id] = (amount, cgroup_id)
    return {id_: name for id_, (_, name) in best_cache.items()}, {k: id_ for k, (_, id_) in best_cgroup.items()}


def add(one: AllocRates, other: AllocRates) -> AllocRates:
    """Sum, unknown where either is unknown."""

    def plus(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    return AllocRates(
        plus(one.allocations_per_s, other.allocations_per_s),
        plus(one.allocated_bytes_per_s, other.allocated_bytes_per_s),
        plus(one.frees_per_s, other.frees_per_s),
    )


def _sum_by_cgroup(pairs: Mapping[PairKey, AllocRates]) -> dict[int, AllocRates]:
    sums: dict[int, AllocRates] = {}
    for (cgroup_id, _, _), rate in pairs.items():
        so_far = sums.get(cgroup_id)
        if so_far is None:
            sums[cgroup_id] = rate
        elif rate is not NO_ALLOC:
            sums[cgroup_id] = add(so_far, rate)
    return sums


def _without_pairs(snapshot: Snapshot) -> AllocRates:
    """Rates of a cgroup that has no pairs: nothing where the signal is measured, unknown where it is not."""
    seen = {p.signal for p in snapshot.probes if p.status != MISSING}
    alloc = 0.0 if "alloc" in seen else None
    return AllocRates(alloc, alloc, 0.0 if "free" in seen else None)


def _cgroup_rates(
    before: Snapshot,
    after: Snapshot,
    alloc: Mapping[int, AllocRates],
    top_caches: Mapping[int, str],
    interval_s: float,
) -> dict[int, CgroupRates]:
    old = {c.id: c for c in before.cgroups}
    idle = _without_pairs(after)
    return {
        c.id: _cgroup(old.get(c.id), c, alloc.get(c.id, idle), top_caches.get(c.id), interval_s) for c in after.cgroups
    }


def _cgroup(was: Cgroup | None, now: Cgroup, alloc: AllocRates, top: str | None, interval_s: float) -> CgroupRates:
    growth = None
    if was is not None and was.kernel_bytes is not None and now.kernel_bytes is not None:
        growth = (now.kernel_bytes - was.kernel_bytes) / interval_s
    return CgroupRates(
        per_second(was.charged_bytes_total if was else 0, now.charged_bytes_total, interval_s),
        per_second(was.uncharged_bytes_total if was else 0, now.uncharged_bytes_total, interval_s),
        growth,
        alloc,
        top,
        *(per_second(getattr(was, total) if was else 0, getattr(now, total), interval_s) for total in _SUBTREE_TOTALS),
    )


_SUBTREE_TOTALS = ("subtree_charged_bytes_total", "subtree_uncharged_bytes_total", "subtree_allocations_total")
