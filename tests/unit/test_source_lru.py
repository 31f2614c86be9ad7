# SPDX-License-Identifier: GPL-2.0-only
"""Lengths of LRU lists, on memory that the test has made."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from kmemwatch.maps.decode import LruPages
from kmemwatch.source import lru
from kmemwatch.source.lru import LruLists
from tests.unit.fake_source import recorded_facts
from tests.unit.test_attach_discover import FakeMemory

ZONES, GENERATIONS = 5, 4
LISTS = {
    "LRU_INACTIVE_ANON": 0,
    "LRU_ACTIVE_ANON": 1,
    "LRU_INACTIVE_FILE": 2,
    "LRU_ACTIVE_FILE": 3,
    "LRU_UNEVICTABLE": 4,
    "NR_LRU_LISTS": 5,
}
NODEINFO, OWNER, SIZES, GENERATION_SIZES = 2136, 456, 256, 640
OFFSETS = {
    "mem_cgroup__nodeinfo": NODEINFO,
    "mem_cgroup_per_node__memcg": OWNER,
    "mem_cgroup_per_node__lru_zone_size": SIZES,
    "mem_cgroup_per_node__lru_generations": GENERATION_SIZES,
}
BASE = recorded_facts()
FACTS = replace(
    BASE,
    offsets={**BASE.offsets, **OFFSETS},
    sizes={**BASE.sizes, "lru_zone_size": 8 * ZONES * 5, "lru_generations": 8 * GENERATIONS * 2 * ZONES},
    enums={**BASE.enums, "lru_list": LISTS},
)
MEMCG, NODES = 0xFFFF888000010000, (0xFFFF888000020000, 0xFFFF888000030000)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    monkeypatch.setattr(lru, "possible_nodes", lambda: len(NODES))
    made = FakeMemory()
    for number, node in enumerate(NODES):
        made.put_u64(MEMCG, NODEINFO + 8 * number, node)
        made.put_u64(node, OWNER, MEMCG)
    return made


def put_lists(memory: FakeMemory, node: int, zone: int, *pages: int) -> None:
    memory.put(node, SIZES + 8 * 5 * zone, struct.pack("=5q", *pages))


def test_all_zones_and_nodes_are_added_up(memory: FakeMemory) -> None:
    put_lists(memory, NODES[0], 1, 1, 2, 10, 20, 5)
    put_lists(memory, NODES[0], 2, 100, 200, 1000, 2000, 7)
    put_lists(memory, NODES[1], 2, 3, 0, 0, 4, 0)
    assert LruLists(memory, FACTS).read([MEMCG]) == [LruPages(anon=306, file=3034, unevictable=12)]


def test_generations_are_the_lists_of_a_multi_generational_lru(memory: FakeMemory) -> None:
    put_lists(memory, NODES[0], 2, 0, 0, 0, 0, 9)
    sizes = [[[0] * ZONES, [0] * ZONES] for _ in range(GENERATIONS)]
    sizes[1][0][2], sizes[3][0][0], sizes[0][1][2], sizes[2][1][1] = 11, 2, 30, 4
    flat = [number for generation in sizes for kind in generation for number in kind]
    memory.put(NODES[1], GENERATION_SIZES, struct.pack(f"={len(flat)}q", *flat))
    assert LruLists(memory, FACTS).read([MEMCG]) == [LruPages(anon=13, file=34, unevictable=9)]
    without = replace(FACTS, sizes={k: v for k, v in FACTS.sizes.items() if k != "lru_generations"})
    assert LruLists(memory, without).read([MEMCG]) == [LruPages(0, 0, 9)]


def test_a_memcg_that_is_gone_meanwhile_is_unknown_and_others_are_not(memory: FakeMemory) -> None:
    put_lists(memory, NODES[0], 0, 1, 0, 0, 0, 0)
    gone, reused = MEMCG + 0x100000, MEMCG + 0x200000
    memory.put_u64(reused, NODEINFO, NODES[0])  # which is another's by now
    assert LruLists(memory, FACTS).read([gone, MEMCG, reused]) == [LruPages(0, 0, 0), LruPages(1, 0, 0), None]
    assert LruLists(memory, FACTS).read([]) == []


def test_kernels_whose_types_do_not_tell_are_left_alone() -> None:
    assert LruLists.are_known(FACTS)
    assert not LruLists.are_known(BASE)
    assert not LruLists.are_known(replace(FACTS, enums=BASE.enums))
    assert not LruLists.are_known(replace(FACTS, sizes={**FACTS.sizes, "lru_zone_size": 520}))
