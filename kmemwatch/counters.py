# SPDX-License-Identifier: GPL-2.0-only
"""Sums of counters that only grow, although what is counted ends, moves, or begins again at 0.

A memcg is released and its counters leave the map; its id is used again; a cgroup moves to another series; a daemon
restarts. The sum of the counters falls or jumps then, and its rate shows work that nobody did. So nothing here adds up
counters: `Growth` finds what each of them grew by since the last look, and `GrowingTotals` adds that up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import compress
from operator import itemgetter, ne, sub
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
"""What has counters of its own."""
Key = TypeVar("Key", bound=Hashable)
"""What totals are kept of."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Grown(Generic[Item, Number]):
    """What changed from one look to the next."""

    items: Sequence[Item]
    """Those that have a counter that changed, and those that are new."""
    columns: Sequence[Sequence[Number]]
    """For each counter, its growth in each of `items`. Columns, because there may be 65,536 items."""
    gone: Set[Item]
    """Those that were there at the last look only."""


class Growth(Generic[Item, Number]):
    """Keeps only the counters of the latest look."""

    def __init__(self, width: int) -> None:
        """`width`: number of counters of each item."""
        self._new = (0,) * width
        self.latest: Mapping[Item, tuple[Number, ...]] = {}

    def look(self, now: Mapping[Item, tuple[Number, ...]]) -> Grown[Item, Number]:
        """What grew since the last look: from 0 for an item that is new, or of which a counter fell.

        `now` is kept, not copied: nobody may change it afterwards.
        """
        latest = self.latest
        before = list(map(latest.get, now))
        differs = list(map(ne, before, now.values()))
        items, after = list(compress(now, differs)), list(compress(now.values(), differs))
        then = [self._new if row is None else row for row in compress(before, differs)]
        stayed = len(before) - before.count(None)
        gone = latest.keys() - now.keys() if stayed < len(latest) else set()
        self.latest = now
        return Grown(items, _grown(after, then, len(self._new)), gone)

    def end(self, items: Iterable[Item]) -> None:
        """The counters of these begin at 0 when they are seen again."""
        gone = self.latest.keys() & items
        if gone:
            latest = dict(self.latest)
            for item in gone:
                del latest[item]
            self.latest = latest


def _grown(after: Sequence[tuple[Number, ...]], before: Sequence[tuple[Number, ...]], width: int) -> list[list[Number]]:
    columns = [list(map(sub, map(itemgetter(at), after), map(itemgetter(at), before))) for at in range(width)]
    if min(map(min, filter(None, columns)), default=0) < 0:
        for at, row in enumerate(after):
            if any(column[at] < 0 for column in columns):
                for column, value in zip(columns, row, strict=True):
                    column[at] = value
    return columns


class GrowingTotals(Generic[Key, Number]):
    """Sums for each key: as many as the counters that are added to them."""

    def __init__(self, width: int) -> None:
        self._sums: tuple[dict[Key, Number], ...] = tuple(defaultdict(int) for _ in range(width))

    def add(self, keys: Sequence[Key], columns: Iterable[Sequence[Number]]) -> None:
        """Add what counters grew by: columns as in `Grown`, and for each of their rows the key that it belongs to."""
        for sums, column in zip(self._sums, columns, strict=True):
            if sums is self._sums[0] or any(column):  # the first has all keys, and most others did not grow
                for key, grown in zip(keys, column, strict=True):
                    sums[key] += grown

    def add_to_all(self, keys: Iterable[Key], row: Iterable[Number]) -> None:
        """Add the same to each of these keys."""
        for sums, grown in zip(self._sums, row, strict=True):
            for key in keys:
                sums[key] += grown

    def __getitem__(self, key: Key) -> tuple[Number, ...]:
        """0 for a key that nothing was added to."""
        return tuple([sums.get(key, 0) for sums in self._sums])

    def column(self, place: int) -> Mapping[Key, Number]:
        """One of the totals of each key."""
        return self._sums[place]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._sums[0])

    def keys(self) -> Set[Key]:
        """Those that something was added to, be it 0."""
        return self._sums[0].keys()

    def keep(self, keys: Set[Key]) -> None:
        """Drop the totals of all other keys."""
        for sums in self._sums:
            for key in sums.keys() - keys:
                del sums[key]

    def pop(self, key: Key) -> tuple[Number, ...]:
        """The totals of a key, which are dropped."""
        return tuple([sums.pop(key, 0) for sums in self._sums])
