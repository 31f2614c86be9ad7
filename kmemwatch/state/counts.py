# SPDX-License-Identifier: GPL-2.0-only
"""What was counted, as rows of `Snapshot.caches` and `Snapshot.pairs`, and the totals of each memcg.

No count may be lost when a memcg ends. The rows of a released memcg leave the kernel's maps, but its allocations stay
in the totals of each cache and of all memcgs above it. The kernel reparents the objects that are left when a memcg goes
offline (objcg), so they count for its nearest online ancestor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import NamedTuple

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.counters import GrowingTotals, Growth
from kmemwatch.kernel.facts import OBJCG, RECHARGE
from kmemwatch.maps.decode import PAIR_COUNTS
from kmemwatch.model import Cache, Pair
from kmemwatch.source.reading import (
    ACCOUNT_OBJECTS,
    FREED_OBJECTS,
    PLAIN_OBJECTS,
    MapCounts,
    PairKey,
    Reading,
    SourceInfo,
)
from kmemwatch.state.memcgs import MemcgTree

NOBODY = 0
"""The owner in the maps of objects that nobody is charged for."""


_OF_KMALLOC = ("kmalloc-", "dma-kmalloc-")
"""A kmalloc() that fails does not tell in which of these caches."""
_MAX_CHANGED = 1 << 17
"""Twice as many pairs as the map holds."""


class Subtrees:
    """GrowingTotals of memcgs including all memcgs that are, or were, below them; mutable."""

    def __init__(self, width: int) -> None:
        self._totals: GrowingTotals[int, int] = GrowingTotals(width)
        self._unplaced: GrowingTotals[int, int] = GrowingTotals(width)
        """GrowingTotals of ids whose place in the tree is not yet, or no longer, known."""

    def add(self, cgroup_ids: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        """What these memcgs themselves did, as for `GrowingTotals.add`."""
        self._unplaced.add(cgroup_ids, columns)

    def place(self, parents: Mapping[int, int | None], mapped: Set[int]) -> None:
        """Add it to the totals of the memcgs and of all above them. `mapped`: ids whose place may still become
        known."""
        at: int | None
        for cgroup_id in self._unplaced.keys() & parents.keys():
            above: list[int] = []
            at = cgroup_id
            while at is not None and len(above) <= len(parents):  # ids are reused, so the parents may form a circle
                above.append(at)
                at = parents.get(at)
            self._totals.add_to_all(above, self._unplaced.pop(cgroup_id))
        self._unplaced.keep(mapped)
        self._totals.keep(parents.keys())

    def __getitem__(self, cgroup_id: int) -> tuple[int, ...]:
        return self._totals[cgroup_id]


class Counts:
    """Turns readings of the maps into rows and totals; mutable."""

    def __init__(self, info: SourceInfo, era: str | None, ids: CacheIds) -> None:
        self._info = info
        self._ids = ids
        self._era = era
        self._page_bytes = info.facts.page_bytes
        self._knows_allocations, self._knows_frees = info.gives("alloc"), info.gives("free")
        self._knows_charges = info.gives("charge")
        # With the patch set, objects move to another memcg with their slab.
        knows_live = self._knows_allocations and self._knows_frees and era != RECHARGE
        self._rows = PairRows(self._knows_allocations, self._knows_frees, knows_live)
        self._pairs: Growth[PairKey, int] = Growth(len(PAIR_COUNTS))
        self._changed: dict[PairKey, None] = {}
        """Pairs whose rows are out of date, in the order of the reading, in which making them is twice as fast."""
        self._by_cache: GrowingTotals[int, int] = GrowingTotals(len(PAIR_COUNTS))
        self._charges: Growth[int, int] = Growth(2)
        self._charged: GrowingTotals[int, int] = GrowingTotals(2)
        """Pages charged and uncharged, by cgroup id."""
        self._charged_below: Subtrees = Subtrees(2)
        self._allocated_below: Subtrees = Subtrees(1)
        """Objects allocated by tasks of a memcg, and of those below it, in all caches."""
        self._inherited: dict[PairKey, int] = defaultdict(int)
        """(cache, online ancestor) -> charged objects that released memcgs below it left alive."""
        self._unseen: set[int] = set()
        """Ids in the maps that the last walk did not show: they came after it, or were released before it."""
        self._tree = MemcgTree(None, set(), {}, {}, frozenset())
        self._root_id: int | None = None
        self._accounted = True

    def update(self, reading: Reading, tree: MemcgTree, accounted: bool) -> tuple[list[PairKey], list[int]]:
        """Fold in a reading; return the (pairs, cgroup ids) whose counters the source can drop.

        `accounted`: the kernel charges kernel memory to memcgs.
        """
        self._tree, self._accounted = tree, accounted
        if reading.memcgs:
            self._root_id = next((record.cgroup_id for record in reading.memcgs if not record.parent_css), None)
        self._pass_on_inheritance()
        pairs, charges = reading.pairs or {}, reading.charges or {}
        mapped = {cgroup_id for _, cgroup_id in pairs} | charges.keys()
        self._count(pairs, charges)
        for subtrees in (self._charged_below, self._allocated_below):
            subtrees.place(tree.parents, mapped)
        self._charged.keep(tree.parents.keys() | mapped)
        ended = self._ended(mapped - {NOBODY})
        ended_pairs = [key for key in pairs if key[1] in ended] if ended else []
        if ended_pairs:
            caches = {cache.address: cache for cache in reading.caches or ()}
            for key in ended_pairs:
                self._leave_to_heir(key, pairs[key], caches.get(key[0]))
        self._pairs.end(ended_pairs)
        self._changed.update(dict.fromkeys(ended_pairs))
        self._charges.end(ended)
        return ended_pairs, sorted(ended)

    def _count(self, pairs: Mapping[PairKey, MapCounts], charges: Mapping[int, MapCounts]) -> None:
        """Add the growth of the counters since the last reading."""
        grown = self._pairs.look(pairs)
        self._changed.update(dict.fromkeys(chain(grown.items, grown.gone)))
        if len(self._changed) > _MAX_CHANGED:  # nobody reads snapshots
            self._changed.clear()
            self._rows.make_all_anew()
        self._by_cache.add([address for address, _ in grown.items], grown.columns)
        objects = list(map(int.__add__, grown.columns[PLAIN_OBJECTS], grown.columns[ACCOUNT_OBJECTS]))
        self._allocated_below.add([cgroup_id for _, cgroup_id in grown.items], [objects])
        charged = self._charges.look(charges)
        self._charged.add(charged.items, charged.columns)
        self._charged_below.add(charged.items, charged.columns)

    def _ended(self, mapped: set[int]) -> set[int]:
        """The ids in the maps whose counters can never change again."""
        ended = mapped & self._tree.released
        if self._tree.present is not None:
            unseen = mapped - self._tree.present - ended
            ended |= unseen & self._unseen
            self._unseen = unseen - ended
        return ended

    def _heir(self, cgroup_id: int) -> int | None:
        """The memcg that is charged for what this one left; None if unknown, or if it is this one."""
        heir = self._tree.ancestors.get(cgroup_id, self._root_id)
        return None if heir == cgroup_id else heir

    def _pass_on_inheritance(self) -> None:
        """Pass on what memcgs inherited that are released themselves by now."""
        for address, cgroup_id in list(self._inherited):
            if cgroup_id in self._tree.released or cgroup_id not in self._tree.ancestors:
                heir = self._heir(cgroup_id)
                if heir is not None:
                    self._inherited[address, heir] += self._inherited.pop((address, cgroup_id))

    def _leave_to_heir(self, key: PairKey, counts: MapCounts, cache: CacheRecord | None) -> None:
        charged, heir = self._charged_objects(counts, cache), self._heir(key[1])
        if charged is not None and heir is not None and self._era == OBJCG:
            self._inherited[key[0], heir] += charged - counts[FREED_OBJECTS]

    def charges(self, cgroup_id: int) -> tuple[int | None, int | None]:
        """Bytes (charged, uncharged) by a memcg itself since the start; None without the signal."""
        return self._charged_bytes(self._charged[cgroup_id])

    def charges_below(self, cgroup_id: int) -> tuple[int | None, int | None]:
        """The same of a memcg and all that are, or were, below it."""
        return self._charged_bytes(self._charged_below[cgroup_id])

    def _charged_bytes(self, pages: tuple[int, ...]) -> tuple[int | None, int | None]:
        if not self._knows_charges or not self._accounted:
            return None, None
        return pages[0] * self._page_bytes, pages[1] * self._page_bytes

    def allocations_below(self, cgroup_id: int) -> int | None:
        """Objects that tasks of a memcg, and of all that are or were below it, allocated; None without the signal."""
        return self._allocated_below[cgroup_id][0] if self._knows_allocations else None

    def rows(self, reading: Reading) -> tuple[tuple[Cache, ...], tuple[Pair, ...]]:
        """Rows for `Snapshot.caches` and `Snapshot.pairs`; call it after `update` with the same reading."""
        if reading.pairs is None:
            return (), ()
        caches = {cache.address: cache for cache in reading.caches or ()}
        reparented = self._reparented(caches)
        roots = {address for address, cache in caches.items() if cache.root is None}
        addresses = roots | self._by_cache.keys() | {address for address, _ in reparented.given}
        of_pairs = {address: self._cache_of_pairs(address, caches.get(address)) for address in addresses}
        self._rows.host_bytes = reading.host_bytes
        pairs = self._rows.rows(self._pairs.latest, self._changed, of_pairs, reparented)
        self._changed.clear()
        return self._cache_rows(caches, reading.failed_allocations), pairs

    def _cache_rows(self, caches: Mapping[int, CacheRecord], failed: Mapping[int, int] | None) -> tuple[Cache, ...]:
        """A row for each cache, also if nothing happened in it."""
        allocs, frees = self._knows_allocations, self._knows_frees
        rows = []
        for address in self._by_cache.keys() | caches.keys():
            cache, counts = caches.get(address), self._by_cache[address]
            size = cache.size_bytes if cache else None
            child = cache is not None and cache.root is not None
            objects = counts[PLAIN_OBJECTS] + counts[ACCOUNT_OBJECTS]
            tells = cache is not None and not child and not cache.name.startswith(_OF_KMALLOC)
            rows.append(
                Cache(
                    name=cache.name if cache else self._ids.name(address),
                    id=self._ids[address],
                    object_bytes=size,
                    root=self._root_name(cache, caches),
                    kmemcg_id=cache.kmemcg_id if cache else None,
                    # What happens in a child counts for its root.
                    allocations_total=objects if allocs and not child else None,
                    allocated_bytes_total=objects * size if allocs and size is not None and not child else None,
                    frees_total=counts[FREED_OBJECTS] if frees and not child else None,
                    slab_bytes=cache.slab_bytes if cache else None,
                    failed_allocations_total=failed.get(address, 0) if failed is not None and tells else None,
                )
            )
        return tuple(sorted(rows, key=lambda row: (row.name, row.id or "")))

    def _reparented(self, caches: Mapping[int, CacheRecord]) -> Reparented:
        """With objcg the parent is charged for what a dying memcg had, but its frees may still count for the dying
        one."""
        moved = {own: heir for own, heir in self._tree.ancestors.items() if own != heir} if self._era == OBJCG else {}
        given: dict[PairKey, int] = defaultdict(int)
        for (address, cgroup_id), left in self._inherited.items():
            given[address, self._tree.ancestors.get(cgroup_id, cgroup_id)] += left
        for key, counts in self._pairs.latest.items() if moved else ():
            address, cgroup_id = key
            if cgroup_id in moved:
                charged = self._charged_objects(counts, caches.get(address))
                own, freed = 0 if cgroup_id == self._root_id else charged, counts[FREED_OBJECTS]
                if own is not None and (own or freed):
                    given[address, moved[cgroup_id]] += own - freed
        return Reparented(dict(given), frozenset(moved), self._root_id, self._tree.young)

    def _cache_of_pairs(self, address: int, cache: CacheRecord | None) -> CacheOfPairs:
        if cache is None:
            return CacheOfPairs(self._ids.name(address), self._ids[address], None, None)
        return CacheOfPairs(cache.name, self._ids[address], cache.size_bytes, self._charges_all(cache))

    def _charged_objects(self, counts: MapCounts, cache: CacheRecord | None) -> int | None:
        """The objects that the kernel charged; None if unknown."""
        charges_all = self._charges_all(cache)
        if charges_all is None:
            return None
        return counts[ACCOUNT_OBJECTS] + (counts[PLAIN_OBJECTS] if charges_all else 0)

    def _charges_all(self, cache: CacheRecord | None) -> bool | None:
        """As `CacheOfPairs.charges_all`."""
        if cache is None or self._info.slab_account is None or not self._accounted:
            return None
        if cache.flags & self._info.slab_account:
            return True
        return False if self._info.facts.gfp_account is not None else None

    def _root_name(self, cache: CacheRecord | None, caches: Mapping[int, CacheRecord]) -> str | None:
        """Name of the root cache of a child."""
        if cache is None or cache.root is None:
            return None
        root = caches.get(cache.root)
        return root.name if root is not None else self._ids.name(cache.root)


class CacheOfPairs(NamedTuple):
    """What all pairs of a cache have in common."""

    name: str
    id: str
    object_bytes: int | None
    charges_all: bool | None
    """True: the kernel charges all objects (SLAB_ACCOUNT). False: only those allocated with __GFP_ACCOUNT. None:
    unknown."""


class Reparented(NamedTuple):
    """Which memcg is charged for objects that another one allocated."""

    given: Mapping[PairKey, int]
    """(cache, memcg) -> charged objects that others left to it, less those freed; may be negative."""
    moved: frozenset[int]
    """Ids of dying memcgs whose objects are charged to another memcg."""
    root_id: int | None
    """The root is charged for no objects of its own, only for what removed memcgs below it left."""
    young: frozenset[int]
    """Ids of memcgs made after the probes were attached. None of their objects, nor of those that they left to others,
    is older than the counts."""


_NOTHING: MapCounts = (0,) * len(PAIR_COUNTS)


class PairRows:
    """Rows of `Snapshot.pairs`, kept for the next snapshot: there may be 65,536, and few of them change."""

    def __init__(self, allocs: bool, frees: bool, knows_live: bool) -> None:
        """Which columns this kernel has: allocations, frees, live bytes."""
        self._allocs, self._frees, self._knows_live = allocs, frees, knows_live
        self._rows: dict[int, Pair] = {}
        """Keyed by a number that sorts as the snapshot does. An unchanged row stays the same object."""
        self._caches: Mapping[int, CacheOfPairs] = {}
        self._places: dict[int, int] = {}
        """Cache address -> place among all caches, by (name, id)."""
        self.host_bytes: int | None = None
        """Memory of the host; a larger count of live bytes is wrong."""
        self._reparented = Reparented({}, frozenset(), None, frozenset())

    def make_all_anew(self) -> None:
        """Keep no row for the next snapshot."""
        self._caches = {}

    def rows(
        self,
        counts: Mapping[PairKey, MapCounts],
        changed: Iterable[PairKey],
        caches: Mapping[int, CacheOfPairs],
        reparented: Reparented,
    ) -> tuple[Pair, ...]:
        """One row for each pair that was counted or inherited something. `changed`: pairs whose counts changed since
        the last
        call. `caches`: those of every pair, and better all caches, because a change of them makes all rows anew.
        """
        then, self._reparented = self._reparented, reparented
        if caches != self._caches or then.root_id != reparented.root_id:
            self._caches = caches
            order = sorted(caches, key=lambda address: caches[address][:2])
            self._places = {address: place for place, address in enumerate(order)}
            self._rows = {}
            touched: Iterable[PairKey] = chain(counts, reparented.given)
        else:
            touched = chain(changed, self._touched(counts, then, reparented))
        if self._make(counts, touched):
            # They are nearly sorted already, which makes this fast.
            rows = self._rows
            in_order = sorted(rows)
            self._rows = dict(zip(in_order, map(rows.__getitem__, in_order), strict=True))
        return tuple(self._rows.values())

    @staticmethod
    def _touched(counts: Mapping[PairKey, MapCounts], then: Reparented, now: Reparented) -> Iterator[PairKey]:
        """Pairs whose row changes because another memcg is charged."""
        if then.given != now.given:
            yield from (key for key, _ in then.given.items() ^ now.given.items())
        if changed := (then.moved ^ now.moved) | (then.young ^ now.young):
            yield from (key for key in chain(counts, now.given) if key[1] in changed)

    def _make(self, counts: Mapping[PairKey, MapCounts], keys: Iterable[PairKey]) -> bool:
        """Make the rows of these pairs; return whether one is new. There may be 65,536, so every step counts."""
        allocs, frees, knows_live = self._allocs, self._frees, self._knows_live
        rows, of_pairs, places = self._rows, self._caches, self._places
        given, moved, root_id, young = self._reparented
        caches, number, most = len(places), len(rows), self.host_bytes
        plain, account, freed_at = PLAIN_OBJECTS, ACCOUNT_OBJECTS, FREED_OBJECTS
        for key in keys:
            address, cgroup_id = key
            if cgroup_id == NOBODY:
                continue
            now = counts.get(key)
            place = cgroup_id * caches + places[address]
            if now is None:
                if key not in given:
                    number -= rows.pop(place, None) is not None
                    continue
                now = _NOTHING
            name, id_, size, charges_all = of_pairs[address]
            charged, freed = now[account], now[freed_at]
            objects = charged + now[plain]
            left = None
            if charges_all is not None:
                own = 0 if cgroup_id == root_id else objects if charges_all else charged
                if own or freed:
                    left = 0 if cgroup_id in moved else own - freed
            if given and key in given:
                left = given[key] + (left or 0)
            # Below 0 if objects were charged to another memcg when they were freed.
            live = left if left is not None and left >= 0 and (cgroup_id in young or cgroup_id in moved) else None
            if live is not None and size is not None and most is not None and live * size > most:
                live = None
            rows[place] = Pair(
                name, id_, cgroup_id,
                objects if allocs else None,
                objects * size if allocs and size is not None else None,
                freed if frees and left is not None else None,
                live * size if knows_live and live is not None and size is not None else None,
            )  # fmt: skip
        return len(rows) > number
