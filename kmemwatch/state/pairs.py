# SPDX-License-Identifier: GPL-2.0-only
"""Rows of `Snapshot.pairs`, kept from one snapshot to the next: there may be 65,536, and few of them have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import chain, compress
from operator import ne
from typing import NamedTuple

from kmemwatch.model import Pair
from kmemwatch.source.reading import PairCounts

NOBODY = 0
"""cgroup id of objects that nobody is charged for."""
OBJECTS, ACCOUNT_OBJECTS = 0, 1
"""Of `PairCounts`: what the kernel may charge."""

Key = tuple[int, int]
"""Cache address, cgroup id."""
_Change = tuple[Key, "PairCounts | None", "PairCounts | None"]
"""What is counted of a pair now, and what was; None: nothing."""

_NOTHING = PairCounts(0, 0, 0)


class Column(NamedTuple):
    """What all pairs of a cache have in common."""

    name: str
    id: str
    object_bytes: int | None
    charged: int | None
    """OBJECTS or ACCOUNT_OBJECTS; None where the kernel does not tell what it charges."""


class Owners(NamedTuple):
    """Who is charged for objects, besides those who had them allocated."""

    given: Mapping[Key, int]
    """(cache, memcg) -> charged objects that others have left to it; negative when more than that were freed."""
    moved: frozenset[int]
    """Ids of the dying whose objects are charged to somebody else."""
    root_id: int | None
    """It is charged for nothing of its own, only for what the dead below it have left."""
    young: frozenset[int]
    """Ids of memcgs born after the probes were attached: they, and whoever left something to them, have no objects that
    are older than the counts."""


class PairRows:
    """The rows; mutable."""

    def __init__(self, allocs: bool, frees: bool, knows_live: bool) -> None:
        """Which columns there are: allocations, frees, bytes that are alive."""
        self._allocs, self._frees, self._knows_live = allocs, frees, knows_live
        self._counts: dict[Key, PairCounts] = {}
        self._rows: dict[int, Pair] = {}
        """By a number that sorts as the snapshot does; a row of which nothing has changed stays the same object."""
        self._columns: Mapping[int, Column] = {}
        self._places: dict[int, int] = {}
        """Cache address -> place among all caches, by (name, id)."""
        self.host_bytes: int | None = None
        """Memory of the host: what is counted to be more is not alive."""
        self._owners = Owners({}, frozenset(), None, frozenset())
        self._changed: list[_Change] = []
        self.totals: dict[int, list[int]] = {}
        """Cache address -> objects, freed objects of all its pairs, those of NOBODY included."""
        self.allocated: dict[int, int] = {}
        """cgroup id -> objects of all its pairs."""

    def take(self, counts: Mapping[Key, PairCounts]) -> Set[int]:
        """What the maps count now; addresses of all caches that were counted since the start."""
        before = self._counts
        then, now = list(map(before.get, counts)), counts.values()
        differs = list(map(ne, then, now))
        self._changed = list(compress(zip(counts, now, then, strict=True), differs))
        before.update(zip(compress(counts, differs), compress(now, differs), strict=True))
        if len(before) > len(counts):
            self._changed += [(key, None, before.pop(key)) for key in before.keys() - counts.keys()]
        for address in {key[0] for key, _, _ in self._changed}:
            self.totals.setdefault(address, [0, 0])
        return self.totals.keys()

    def rows(self, columns: Mapping[int, Column], owners: Owners) -> tuple[Pair, ...]:
        """One for each pair that was counted or was given something, after `take`. `columns`: of every such cache, and
        better of all that there are: when they change, all rows are made anew."""
        then, self._owners = self._owners, owners
        if columns != self._columns or then.root_id != owners.root_id:
            self._columns = columns
            caches = sorted(columns, key=lambda address: columns[address][:2])
            self._places = {address: place for place, address in enumerate(caches)}
            self._rows = {}
            touched: Iterable[Key] = (self._counts.keys() | owners.given.keys()) - {key for key, _, _ in self._changed}
        else:
            touched = self._touched(then, owners)
        also = [(key, count, count) for key in touched for count in (self._counts.get(key),)]
        if self._make(chain(self._changed, also)):
            # Nearly sorted as they are, which is quick.
            rows = self._rows
            order = sorted(rows)
            self._rows = dict(zip(order, map(rows.__getitem__, order), strict=True))
        self._count_by_cgroup()
        self._changed = []
        return tuple(self._rows.values())

    def _count_by_cgroup(self) -> None:
        """Keep `allocated` up to date."""
        allocated = self.allocated
        for (_, cgroup_id), now, then in self._changed:
            allocated[cgroup_id] = allocated.get(cgroup_id, 0) + (now[0] if now else 0) - (then[0] if then else 0)
            if now is None and not allocated[cgroup_id]:
                del allocated[cgroup_id]

    def _touched(self, then: Owners, now: Owners) -> Iterator[Key]:
        """Pairs that change with the owners."""
        if then.given != now.given:
            yield from (key for key, _ in then.given.items() ^ now.given.items())
        if changed := (then.moved ^ now.moved) | (then.young ^ now.young):
            yield from (key for key in chain(self._counts, now.given) if key[1] in changed)

    def _make(self, changes: Iterable[_Change]) -> bool:
        """Rows of these, anew; True when there were none of some. As many as 65,536, so every step counts."""
        allocs, frees, knows_live = self._allocs, self._frees, self._knows_live
        rows, columns, places, totals = self._rows, self._columns, self._places, self.totals
        given, moved, root_id, young = self._owners
        caches, number, most = len(places), len(rows), self.host_bytes
        for key, now, then in changes:
            address, cgroup_id = key
            objects, _, freed = value = now or _NOTHING
            if then is not now:
                total = totals[address]
                total[0] += objects - (then[0] if then else 0)
                total[1] += freed - (then[2] if then else 0)
            if cgroup_id == NOBODY:
                continue
            place = cgroup_id * caches + places[address]
            if now is None and key not in given:
                number -= rows.pop(place, None) is not None
                continue
            name, id_, size, charged = columns[address]
            left = None
            if charged is not None:
                own = 0 if cgroup_id == root_id else value[charged]
                if own or freed:
                    left = 0 if cgroup_id in moved else own - freed
            if given and key in given:
                left = given[key] + (left or 0)
            # Below 0, more went than was counted: objects that others were charged for by the time they were freed.
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
