# SPDX-License-Identifier: GPL-2.0-only
"""Caches: each with its size, as /proc/slabinfo has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kmemwatch.feeds.live import LiveFeed
from tests.live.helpers import snapshot
from tests.waiting import settled

SLABINFO = Path("/proc/slabinfo")
PAGE = 4096


def slabinfo() -> dict[str, tuple[int, int]]:
    """name -> (object size, bytes of all slabs), for names that only one cache has."""
    rows = [line.split() for line in SLABINFO.read_text().splitlines()[2:]]
    times = Counter(row[0] for row in rows)
    # name active_objs num_objs objsize objperslab pagesperslab : tunables ... : slabdata active_slabs num_slabs shared
    return {row[0]: (int(row[3]), int(row[14]) * int(row[5]) * PAGE) for row in rows if times[row[0]] == 1}


def test_sizes_equal_slabinfo_at_rest(feed: LiveFeed, patience: Callable[[float], float]) -> None:
    """Others allocate meanwhile, so each cache has several tries; all of them must have been equal once."""
    equal: set[str] = set()

    def different() -> list[str]:
        before = slabinfo()
        ours = {cache.name: (cache.object_bytes, cache.slab_bytes) for cache in snapshot(feed).caches}
        after = slabinfo()
        for name in before.keys() & after.keys():
            if ours.get(name) in (before[name], after[name]):
                equal.add(name)
        return sorted((before.keys() & after.keys()) - equal)

    nothing: list[str] = []
    assert settled(different, nothing, patience(30)) == nothing


def test_every_cache_of_slabinfo_is_there_and_no_other(feed: LiveFeed, patience: Callable[[float], float]) -> None:
    """The kernel destroys caches a little after the last use, so both are read until they agree."""

    def difference() -> tuple[Counter[str], Counter[str]]:
        """(those only in slabinfo, those only in kmemwatch)."""
        names = Counter(line.split()[0] for line in SLABINFO.read_text().splitlines()[2:])
        ours = Counter(cache.name for cache in snapshot(feed).caches)
        return names - ours, ours - names

    none: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    assert settled(difference, none, patience(30)) == none
