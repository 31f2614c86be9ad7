# SPDX-License-Identifier: GPL-2.0-only
"""What keeps a dying memcg, from the numbers the walk has read."""

from __future__ import annotations

import pytest

from kmemwatch.kernel.era import OBJCG, PER_MEMCG
from kmemwatch.pins import Units, local_stats
from kmemwatch.sources.decode import MemcgRecord

PAGE = 4096
INDEX = {"NR_FILE_PAGES": 0, "NR_SHMEM": 1, "NR_ANON_MAPPED": 2, "NR_SWAPCACHE": 3, "MEMCG_SOCK": 4, "MEMCG_SWAP": 5,
         "NR_SLAB_RECLAIMABLE_B": 6, "NR_SLAB_UNRECLAIMABLE_B": 7, "MEMCG_KMEM": 8}  # fmt: skip


def record(css: int = 1, parent: int = 0, memory: int = 1000, **stats: int) -> MemcgRecord:
    values = tuple(stats.get(name, 0) for name in INDEX)
    return MemcgRecord(css, parent, css, css, 0, memory, 0, 7, 3, False, -1, values, "x")


def units(version: int = 2, era: str = OBJCG, index: dict[str, int] | None = INDEX) -> Units:
    return Units(PAGE, version, era, index)


def test_each_kind_is_told_apart() -> None:
    one = record(NR_FILE_PAGES=100, NR_SHMEM=30, NR_SWAPCACHE=20, NR_ANON_MAPPED=5, MEMCG_SWAP=9, MEMCG_SOCK=2)
    assert units().pins(one, one.stats) == {
        "shmem": 30 * PAGE,
        "file": 50 * PAGE,  # page cache counts shmem, and pages on their way to swap, too
        "anon": 5 * PAGE,
        "swap": 9 * PAGE,
        "sock": 2 * PAGE,
    }


def test_sockets_of_v1_have_a_counter_of_their_own() -> None:
    one = record(MEMCG_SOCK=2)
    assert units(version=1).pins(one, one.stats) == {"sock": 3 * PAGE}


def test_slab_pins_only_where_it_does_not_move_to_the_parent() -> None:
    one = record(NR_SLAB_RECLAIMABLE_B=800, NR_SLAB_UNRECLAIMABLE_B=200)
    assert units().pins(one, one.stats) == {}
    assert units(era=PER_MEMCG).pins(one, one.stats) == {"slab": 1000}


def test_statistics_that_are_older_than_the_counter_tell_nothing_yet() -> None:
    one = record(memory=10, NR_FILE_PAGES=11)
    assert units().pins(one, one.stats) is None
    assert units().pins(one._replace(memory_pages=11), one.stats) == {"file": 11 * PAGE}


def test_without_the_order_of_statistics_nothing_is_told() -> None:
    one = record(NR_FILE_PAGES=1)
    assert units(index=None).pins(one, one.stats) is None
    assert units(index=None).kernel_bytes(one) is None
    assert units(version=1, index=None).kernel_bytes(one) == 7 * PAGE, "v1 has a counter"


@pytest.mark.parametrize("name", ["NR_FILE_PAGES", "NR_SHMEM"])
def test_a_memcg_is_not_told_to_hold_what_its_children_hold(name: str) -> None:
    records = [record(1, 0, **{name: 100}), record(2, 1, **{name: 60}), record(3, 2, **{name: 25}), record(4, 1)]
    local = local_stats(records, {1, 2, 3, 4})
    assert [local[css][INDEX[name]] for css in (1, 2, 3, 4)] == [40, 35, 25, 0]
    some = local_stats(records, {2, 4})
    assert some == {css: local[css] for css in (2, 4)}
