# SPDX-License-Identifier: GPL-2.0-only
"""What keeps a dying memcg, from the numbers the walk has read."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.kernel.facts import OBJCG, PER_MEMCG
from kmemwatch.maps.decode import LruPages, MemcgRecord
from kmemwatch.model import ChildSlabs
from kmemwatch.state.pins import StatReader, less_children

PAGE = 4096
INDEX = {"NR_FILE_PAGES": 0, "NR_SHMEM": 1, "NR_ANON_MAPPED": 2, "NR_SWAPCACHE": 3, "MEMCG_SOCK": 4, "MEMCG_SWAP": 5,
         "NR_SLAB_RECLAIMABLE_B": 6, "NR_SLAB_UNRECLAIMABLE_B": 7, "MEMCG_KMEM": 8}  # fmt: skip


def record(
    css: int = 1, parent: int = 0, memory: int = 1000, swap: int = 0, lru: LruPages | None = None, **stats: int
) -> MemcgRecord:
    values = tuple(stats.get(name, 0) for name in INDEX)
    return MemcgRecord(css, parent, css, css, 0, memory, swap, 7, 3, False, -1, values, "x", lru=lru)


def units(version: int = 2, era: str = OBJCG, index: dict[str, int] | None = INDEX) -> StatReader:
    return StatReader(PAGE, version, era, index)


def test_each_kind_is_told_apart() -> None:
    one = record(NR_FILE_PAGES=100, NR_SHMEM=30, NR_SWAPCACHE=20, NR_ANON_MAPPED=5, swap=9, MEMCG_SOCK=2)
    assert units().pins(one) == {
        "shmem": 30 * PAGE,
        "file": 70 * PAGE,  # page cache counts shmem, too; pages on their way to swap it does not
        "anon": 5 * PAGE,  # which may be on their way to swap, and are counted once
        "swap": 9 * PAGE,
        "sock": 2 * PAGE,
    }


def test_shmem_on_its_way_to_swap_is_neither_shmem_nor_page_cache() -> None:
    """As an own cgroup on v6.18 has it whose shmem was reclaimed: 15 file pages, 433 in the swap cache."""
    lists = LruPages(anon=3896, file=15, unevictable=0)
    one = record(memory=3932, lru=lists, NR_FILE_PAGES=3478, NR_SHMEM=3463, NR_SWAPCACHE=433, MEMCG_SWAP=4296)
    one = one._replace(kmem_pages=21, swap_pages=3932 + 4296, tcpmem_pages=0)
    expected = {"shmem": 3463 * PAGE, "file": 15 * PAGE, "swapcache": 433 * PAGE, "swap": 4296 * PAGE}
    assert replace(units(version=1), memsw=True).pins(one) == expected
    assert units(version=1).pins(one) == expected, "kernels whose counters are elsewhere have a statistic"


def test_swap_that_is_not_accounted_is_nobodys() -> None:
    assert replace(units(version=1), memsw=True).pins(record(swap=0)._replace(tcpmem_pages=0)) == {}


def test_sockets_of_v1_have_a_counter_of_their_own() -> None:
    one = record(MEMCG_SOCK=2)
    assert units(version=1).pins(one) == {"sock": 3 * PAGE}


def test_slab_pins_only_where_it_does_not_move_to_the_parent() -> None:
    one = record(NR_SLAB_RECLAIMABLE_B=800, NR_SLAB_UNRECLAIMABLE_B=200)
    assert units().pins(one) == {}
    assert units(era=PER_MEMCG).pins(one) == {"slab": 1000}
    slabs = [ChildSlabs("dentry(1:x)", "c1", 1, 8 * PAGE)]
    assert units(era=PER_MEMCG).pins(one, slabs) == {"slab": 8 * PAGE}


def test_statistics_that_are_older_than_the_counter_tell_nothing_yet() -> None:
    one = record(memory=10, NR_FILE_PAGES=11)
    assert units().pins(one) is None
    assert units().pins(one._replace(memory_pages=11)) == {"file": 11 * PAGE}
    kernel = record(memory=11, NR_FILE_PAGES=11, MEMCG_KMEM=1)
    assert units().pins(kernel) is None, "a page of these ten is the kernel's"
    sockets = record(memory=11, NR_FILE_PAGES=10, MEMCG_SOCK=2)
    assert units().pins(sockets) is None, "v2 charges sockets to the same counter"


def test_older_kernels_have_statistics_of_other_names() -> None:
    index = {"MEMCG_CACHE": 0, "NR_SHMEM": 1, "MEMCG_RSS": 2, "NR_FILE_PAGES": 3, "NR_ANON_MAPPED": 4}
    one = record()._replace(stats=(100, 30, 5, 0, 0))
    assert units(index=index).pins(one) == {"shmem": 30 * PAGE, "file": 70 * PAGE, "anon": 5 * PAGE}


def test_without_the_order_of_statistics_nothing_is_told() -> None:
    one = record(NR_FILE_PAGES=1)
    assert units(index=None).pins(one) is None
    assert units(index=None).kernel_bytes(one) is None
    assert units(version=1, index=None).kernel_bytes(one) == 7 * PAGE, "v1 has a counter"


def test_a_memcg_is_not_told_to_hold_what_its_children_hold() -> None:
    records = [record(1, 0, NR_SHMEM=100), record(2, 1, NR_SHMEM=60), record(3, 2, NR_SHMEM=25), record(4, 1)]
    own = less_children(records, {1, 2, 3, 4})
    assert [own[css].stats[INDEX["NR_SHMEM"]] for css in (1, 2, 3, 4)] == [40, 35, 25, 0]
    some = less_children(records, {2, 4})
    assert some == {css: own[css] for css in (2, 4)}


def test_page_counters_are_added_up_as_well() -> None:
    above, below = record(1, 0, memory=100, swap=9), record(2, 1, memory=60, swap=4)
    own = less_children([above, below], {1, 2})
    assert (own[1].memory_pages, own[1].swap_pages, own[1].kmem_pages, own[1].tcpmem_pages) == (40, 5, 0, 0)
    assert own[2] == below


def test_a_parent_has_what_its_counter_has_beside_that_of_its_children() -> None:
    """A kernel that stops the statistics of a memcg when it goes offline, and counts for an ancestor from then on: as
    in RHEL 8.10, where the file of a dying child was deleted after its parent had died as well."""
    parent = record(1, memory=22, lru=LruPages(0, 0, 0), NR_FILE_PAGES=22, NR_SHMEM=0)
    child = record(2, 1, memory=22, lru=LruPages(0, 22, 0), NR_FILE_PAGES=134, NR_SHMEM=112)
    own = less_children([parent, child], {1, 2})
    told = units()
    assert told.pins(own[1]) == {}, "only its child keeps it"
    assert told.pins(own[2]) == {"file": 22 * PAGE}
    # Without the lists: the counter is exact, and the kinds are not known.
    assert told.pins(own[1]._replace(lru=None)) == {}
    assert told.pins(own[2]._replace(lru=None)) is None


def test_the_longer_list_is_of_the_only_kind_that_there_can_be() -> None:
    stopped = record(memory=500, lru=LruPages(100, 20, 0), NR_FILE_PAGES=900, NR_SHMEM=800)
    assert units().pins(stopped) == {"shmem": 100 * PAGE, "file": 20 * PAGE}
    both = record(memory=500, lru=LruPages(100, 20, 0), NR_FILE_PAGES=900, NR_SHMEM=800, NR_ANON_MAPPED=3)
    assert units().pins(both) is None
    locked = record(memory=500, lru=LruPages(100, 20, 1), NR_FILE_PAGES=900, NR_SHMEM=800)
    assert units().pins(locked) is None


def test_pages_that_a_cpu_has_not_put_on_a_list_yet_are_counted_by_the_statistics() -> None:
    one = record(lru=LruPages(0, 0, 0), NR_FILE_PAGES=2, NR_SHMEM=2)
    assert units().pins(one) == {"shmem": 2 * PAGE}
    two_cpus = replace(units(), cpus=2)
    assert two_cpus.pins(record(lru=LruPages(0, 0, 0), NR_FILE_PAGES=126, NR_SHMEM=126)) == {"shmem": 126 * PAGE}
    assert two_cpus.pins(record(lru=LruPages(0, 0, 0), NR_FILE_PAGES=127, NR_SHMEM=127)) == {}


def test_pages_that_become_the_parents_keep_nobody() -> None:
    one = record(NR_FILE_PAGES=100, NR_SHMEM=30, NR_ANON_MAPPED=5, swap=2)
    assert replace(units(), pages_move=True).pins(one) == {"swap": 2 * PAGE}


numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200)
pages = st.integers(0, 2**64 - 1) | st.integers(0, 200)
lists = st.none() | st.builds(LruPages, numbers, numbers, numbers)


@given(
    st.lists(st.tuples(pages, pages, pages, pages, st.lists(numbers, min_size=9, max_size=9), lists), max_size=4),
    st.sampled_from((1, 2, None)),
    st.sampled_from((OBJCG, PER_MEMCG)),
    st.booleans(),
    st.booleans(),
)
def test_no_kind_is_ever_negative_or_larger_than_the_host(
    counters: list[tuple[int, int, int, int, list[int], LruPages | None]],
    version: int | None,
    era: str,
    memsw: bool,
    pages_move: bool,
) -> None:
    """Whatever the readings are, those that contradict each other as well."""
    records = [
        MemcgRecord(css, css - 1, css, css, 0, memory, swap, kmem, tcpmem, False, -1, tuple(stats), "x", lru=lru)
        for css, (memory, swap, kmem, tcpmem, stats, lru) in enumerate(counters, 1)
    ]
    how, limit = StatReader(PAGE, version, era, INDEX, 2, memsw, pages_move), 100 * PAGE
    for own in less_children(records, {one.css for one in records}).values():
        for kind, size in (how.pins(own, None, limit) or {}).items():
            assert size > 0
            assert size <= limit or kind == "swap"
