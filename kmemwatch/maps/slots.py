# SPDX-License-Identifier: GPL-2.0-only
"""The map ``slots``, where programs count most pairs: reads it, and frees the slots of released memcgs.

Programs take a free slot and from then on only add to it; they never free one. User space frees a slot in three steps,
each at another reading: so late additions are still counted, and no program finds a slot that is half empty (ADR 13).
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from kmemwatch.counters import Growth
from kmemwatch.maps.handles import MapHandle
from kmemwatch.maps.structs import constant, layout

Pair = tuple[int, int]
"""(cache address, cgroup id); cgroup id 0: no memcg is charged."""
Counts = tuple[int, ...]
"""As in ``struct pair_value``."""
Windows = Callable[[], Iterator[AbstractContextManager[memoryview]]]
"""Gives the parts of the map, always the same ones, as words that programs write to."""
_Place = tuple[int, int]
"""(number of the window, index of the first word of a slot)."""

_SLOT = layout("slot", "value.count")
WORDS = _SLOT.size // 8
CACHE, OWNER, CGROUP = (_SLOT.offset(member) // 8 for member in ("cache", "owner", "cgroup_id"))
"""Words of a ``struct slot``."""
COUNTS = slice(_SLOT.words[0], _SLOT.words[-1] + 1)
NOBODY = constant("NOBODY")
"""Cgroup id in slots for objects that no memcg is charged for."""
_WINDOW_BYTES = 256 << 10


class Slots:
    """All slots of all CPUs."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._last: dict[Pair, Counts] = {}
        self._dropped: Growth[Pair, int] = Growth(len(_SLOT.words))
        """Pairs that are to be given back, with what the last `read` said of them."""
        self._emptied: list[_Place] = []

    def read(self) -> dict[Pair, Counts]:
        """Counts of each pair, summed over CPUs; of one that was dropped only what has come since, if any has."""
        free, self._emptied = self._emptied, []
        totals: dict[Pair, Counts] = {}
        for number, window in enumerate(self._windows()):
            with window as words:
                for place in free:
                    if place[0] == number:
                        words[place[1] + CACHE] = 0
                for index, pair, counts in _rows(words):
                    before = totals.get(pair)
                    totals[pair] = counts if before is None else _add(before, counts)
                    if pair in self._dropped.latest:
                        self._empty(words, (number, index))
        late = self._dropped.look({pair: totals.pop(pair) for pair in self._dropped.latest if pair in totals})
        totals.update(zip(late.items, zip(*late.columns, strict=True), strict=True))
        self._dropped.end(list(self._dropped.latest))
        self._last = dict(totals)
        return totals

    def _empty(self, words: memoryview, place: _Place) -> None:
        """Clear all members but the cache, which keeps programs away until the next reading; then all see zeros."""
        first = place[1]
        cleared = [0] * WORDS
        cleared[CACHE] = words[first + CACHE]
        words[first : first + WORDS] = memoryview(array("Q", cleared))
        self._emptied.append(place)

    def drop(self, pairs: Iterable[Pair]) -> None:
        """Give back the slots of pairs of released memcgs, whose counts are those of the last `read`."""
        last = {pair: self._last[pair] for pair in pairs if pair in self._last}
        self._dropped.look({**self._dropped.latest, **last})


def slot_windows(handle: MapHandle) -> Windows:
    """Windows into the map. One is mapped at a time, as mapped pages count as memory of this process."""

    @contextmanager
    def window(start: int, size: int) -> Iterator[memoryview]:
        with (
            mmap.mmap(handle.fd, size, offset=start) as memory,
            memoryview(memory) as all_bytes,
            all_bytes.cast("Q") as words,
        ):
            yield words

    size = handle.max_entries * _SLOT.size

    def windows() -> Iterator[AbstractContextManager[memoryview]]:
        for start in range(0, size, _WINDOW_BYTES):
            yield window(start, min(_WINDOW_BYTES, size - start))

    return windows


def _rows(words: memoryview) -> Iterator[tuple[int, Pair, Counts]]:
    """(index, pair, counts) of every taken slot. The cache is read first, as programs write it last."""
    for number, cache in enumerate(words[CACHE::WORDS].tolist()):
        if cache:
            index = number * WORDS
            row = words[index:][:WORDS].tolist()
            if row[OWNER] and row[CGROUP]:  # else a program is taking it, or it is being freed
                yield index, (cache, 0 if row[CGROUP] == NOBODY else row[CGROUP]), tuple(row[COUNTS])


def _add(first: Counts, second: Counts) -> Counts:
    return tuple(map(int.__add__, first, second))
