# SPDX-License-Identifier: GPL-2.0-only
"""Counters per cache, per pair and per memcg, over the lives of memcgs: nothing that was counted is lost when they end.

A memcg that is released takes its rows out of the kernel's maps. Its allocations stay in the totals of each cache; what
it left alive belongs, from its death on, to the nearest living ancestor, as the kernel has it (objcg).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.kernel.facts import OBJCG, RECHARGE
from kmemwatch.model import Cache, Pair
from kmemwatch.source.reading import ChargeCounts, PairCounts, Reading, SourceInfo
from kmemwatch.state.pairs import ACCOUNT_OBJECTS, NOBODY, OBJECTS, Column, Owners, PairRows
from kmemwatch.state.subtrees import Counts

_NO_CHARGES = ChargeCounts(0, 0)

Pairs = Mapping[tuple[int, int], PairCounts]
"""(cache, cgroup id) -> what the maps count."""


class Ledger:
    """Turns the kernel's counters into rows of `model`."""

    def __init__(self, info: SourceInfo, era: str | None, ids: CacheIds) -> None:
        self._info = info
        self._ids = ids
        self._era = era
        allocs, frees = info.gives("alloc"), info.gives("free")
        # With the patch set objects go with their slab from one memcg to another.
        self._pairs = PairRows(allocs, frees, knows_live=allocs and frees and era != RECHARGE)
        self._knows_charges = info.gives("charge")
        self._charges: dict[int, ChargeCounts] = {}
        self._settled: dict[int, ChargeCounts] = {}
        """cgroup id -> counts that were forgotten in the maps, for as long as the released memcg is shown."""
        self._retired: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        """cache address -> objects, freed objects of pairs that were forgotten."""
        self._retired_by: dict[int, int] = defaultdict(int)
        """cgroup id -> objects that it allocated in them, for as long as it is shown."""
        self._inherited: dict[tuple[int, int], int] = defaultdict(int)
        """(cache, living ancestor) -> charged objects that released descendants left alive."""
        self._unseen: set[int] = set()
        """Ids in the maps that the last walk did not show: born after it, or released before it."""
        self._ancestors: Mapping[int, int] = {}
        self._released: set[int] = set()
        self._final: set[tuple[int, int]] = set()
        """Pairs that the maps are about to forget."""
        self._root_id: int | None = None
        self._young: frozenset[int] = frozenset()
        self.accounted = True
        """The kernel charges kernel memory to memcgs."""

    def update(
        self,
        reading: Reading,
        present: set[int] | None,
        released: set[int],
        ancestors: Mapping[int, int],
        young: frozenset[int],
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Take in a reading; (pairs, cgroup ids) that can be forgotten in the maps.

        `present`: ids that still count; `released`: ids that certainly do not; `ancestors`: id -> id that is charged
        for what it leaves; `young`: as in `pairs.Owners`.
        """
        self._ancestors = ancestors
        self._young = young
        self._released = released
        self._charges = dict(reading.charges or {})
        if reading.memcgs:
            self._root_id = next((record.cgroup_id for record in reading.memcgs if not record.parent_css), None)
        self._hand_down()
        mapped = {cgroup_id for _, cgroup_id in reading.pairs or ()} | self._charges.keys()
        final = (mapped & released) - {NOBODY}
        if present is not None:
            unseen = mapped - present - final - {NOBODY}
            final |= unseen & self._unseen
            self._unseen = unseen - final
        pairs = [key for key in reading.pairs or () if key[1] in final] if final else []
        for key in pairs:
            self._retire(key, (reading.pairs or {})[key], {cache.address: cache for cache in reading.caches or ()})
        self._final = set(pairs)
        self._settle(final)
        return pairs, sorted(final)

    def _settle(self, final: set[int]) -> None:
        """Keep the charges of `final` ids, which the maps are about to forget."""
        for cgroup_id in final & self._charges.keys():
            charged, uncharged = self._total_charges(cgroup_id)
            del self._charges[cgroup_id]
            self._settled[cgroup_id] = ChargeCounts(charged, uncharged)
        # Also what a memcg did that is not shown any more is added to those above it, once.
        shown = self._ancestors.keys() | final
        self._settled = {key: counts for key, counts in self._settled.items() if key in shown}
        for cgroup_id in self._retired_by.keys() - shown:
            del self._retired_by[cgroup_id]

    def _total_charges(self, cgroup_id: int) -> tuple[int, int]:
        then, now = self._settled.get(cgroup_id, _NO_CHARGES), self._charges.get(cgroup_id, _NO_CHARGES)
        return then.charged_pages + now.charged_pages, then.uncharged_pages + now.uncharged_pages

    def _hand_down(self) -> None:
        """What was inherited by memcgs that are released themselves by now goes to their heirs."""
        for address, cgroup_id in list(self._inherited):
            if cgroup_id in self._released or cgroup_id not in self._ancestors:
                heir = self._ancestors.get(cgroup_id, self._root_id)
                if heir is not None and heir != cgroup_id:
                    self._inherited[address, heir] += self._inherited.pop((address, cgroup_id))

    def _retire(self, key: tuple[int, int], counts: PairCounts, caches: Mapping[int, CacheRecord]) -> None:
        total = self._retired[key[0]]
        total[0] += counts.objects
        total[1] += counts.freed_objects
        self._retired_by[key[1]] += counts.objects
        charged = self._charged_objects(counts, caches.get(key[0]))
        if charged is not None and self._era == OBJCG:
            heir = self._ancestors.get(key[1], self._root_id)
            if heir is not None and heir != key[1]:
                self._inherited[key[0], heir] += charged - counts.freed_objects

    def charges(self, cgroup_id: int) -> tuple[int | None, int | None]:
        """Bytes (charged, uncharged) by a memcg itself since the start; None without the signal."""
        if not self._knows_charges or not self.accounted:
            return None, None
        charged, uncharged = self._total_charges(cgroup_id)
        page = self._info.facts.page_bytes
        return charged * page, uncharged * page

    def own(self, cgroup_id: int) -> Counts:
        """What a memcg itself did since the start; after `rows`."""
        objects = self._pairs.allocated.get(cgroup_id, 0) + self._retired_by.get(cgroup_id, 0)
        return Counts(*self._total_charges(cgroup_id), objects)

    def rows(self, reading: Reading) -> tuple[tuple[Cache, ...], tuple[Pair, ...]]:
        """Rows for `Snapshot.caches` and `Snapshot.pairs`; after `update` with the same reading."""
        if reading.pairs is None:
            return (), ()
        caches = {cache.address: cache for cache in reading.caches or ()}
        counts: Pairs = reading.pairs
        if self._final:
            counts = {key: value for key, value in counts.items() if key not in self._final}
        counted = self._pairs.take(counts)
        owners = self._owners(counts, caches)
        roots = {address for address, cache in caches.items() if cache.root is None}
        addresses = roots | counted | {address for address, _ in owners.given}
        columns = {address: self._column(address, caches.get(address)) for address in addresses}
        self._pairs.host_bytes = reading.host_bytes
        pairs = self._pairs.rows(columns, owners)
        return self._cache_rows(self._totals(caches), caches), pairs

    def _totals(self, caches: Mapping[int, CacheRecord]) -> Mapping[int, tuple[int, int]]:
        """Cache address -> objects, freed objects: also of caches that nothing happened in, they are rows, too."""
        totals = {}
        for address in self._pairs.totals.keys() | self._retired.keys() | caches.keys():
            parts = self._pairs.totals.get(address, (0, 0)), self._retired.get(address, (0, 0))
            totals[address] = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        return totals

    def _cache_rows(
        self, totals: Mapping[int, tuple[int, int]], caches: Mapping[int, CacheRecord]
    ) -> tuple[Cache, ...]:
        allocs, frees = self._info.gives("alloc"), self._info.gives("free")
        rows = []
        for address, (objects, freed) in totals.items():
            cache = caches.get(address)
            size = cache.size_bytes if cache else None
            child = cache is not None and cache.root is not None
            rows.append(
                Cache(
                    name=cache.name if cache else self._ids.name(address),
                    id=self._ids[address],
                    object_bytes=size,
                    root=self._root_name(cache, caches),
                    kmemcg_id=cache.kmemcg_id if cache else None,
                    # What happens in a child is counted at its root.
                    allocations_total=objects if allocs and not child else None,
                    allocated_bytes_total=objects * size if allocs and size is not None and not child else None,
                    frees_total=freed if frees and not child else None,
                    slab_bytes=cache.slab_bytes if cache else None,
                )
            )
        return tuple(sorted(rows, key=lambda row: (row.name, row.id or "")))

    def _owners(self, counts: Pairs, caches: Mapping[int, CacheRecord]) -> Owners:
        """With objcg what the dying have belongs to others; but they still show what was freed of it."""
        moved = {own: heir for own, heir in self._ancestors.items() if own != heir} if self._era == OBJCG else {}
        given: dict[tuple[int, int], int] = defaultdict(int)
        for (address, cgroup_id), left in self._inherited.items():
            given[address, self._ancestors.get(cgroup_id, cgroup_id)] += left
        for key in [key for key in counts if key[1] in moved] if moved else ():
            address, cgroup_id = key
            charged = self._charged_objects(counts[key], caches.get(address))
            own = 0 if cgroup_id == self._root_id else charged
            freed = counts[key].freed_objects
            if own is not None and (own or freed):
                given[address, moved[cgroup_id]] += own - freed
        return Owners(dict(given), frozenset(moved), self._root_id, self._young)

    def _column(self, address: int, cache: CacheRecord | None) -> Column:
        if cache is None:
            return Column(self._ids.name(address), self._ids[address], None, None)
        return Column(cache.name, self._ids[address], cache.size_bytes, self._charged_column(cache))

    def _charged_objects(self, counts: PairCounts, cache: CacheRecord | None) -> int | None:
        """Those that the kernel charged; None where it does not tell."""
        column = self._charged_column(cache)
        return None if column is None else counts[column]

    def _charged_column(self, cache: CacheRecord | None) -> int | None:
        """Which of `PairCounts` the kernel charges: all of a SLAB_ACCOUNT cache, else those with __GFP_ACCOUNT."""
        if cache is None or self._info.slab_account is None or not self.accounted:
            return None
        if cache.flags & self._info.slab_account:
            return OBJECTS
        return ACCOUNT_OBJECTS if self._info.facts.gfp_account is not None else None

    def _root_name(self, cache: CacheRecord | None, caches: Mapping[int, CacheRecord]) -> str | None:
        """Name of the root cache of a child."""
        if cache is None or cache.root is None:
            return None
        root = caches.get(cache.root)
        return root.name if root is not None else self._ids.name(cache.root)
