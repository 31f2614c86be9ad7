# SPDX-License-Identifier: GPL-2.0-only
"""What is found in the kernel's memory, on memory that the test has made."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.attach import discover
from kmemwatch.attach.discover import CacheList, CacheRecord, find_stats_tables, is_stats_table
from kmemwatch.errors import KmemwatchError
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.peek import Peek
from tests.unit.fake_source import recorded_facts

TOTAL, ELEMENTS = 58, 45
FACTS = recorded_facts()
OFF = FACTS.offsets


def make_table(seed: int = 1) -> bytes:
    """As ``mem_cgroup_stats_index``: ELEMENTS indices in a row of TOTAL, 255 in the gaps."""
    places = sorted(random.Random(seed).sample(range(TOTAL), ELEMENTS))
    table = bytearray(b"\xff" * TOTAL)
    for index, place in enumerate(places):
        table[place] = index
    return bytes(table)


class FakeMemory(Peek):
    """Kernel memory that the test has written; everything else faults."""

    def __init__(self) -> None:
        self.parts: dict[int, bytearray] = {}

    def put(self, address: int, offset: int, raw: bytes, size: int = 4096) -> None:
        part = self.parts.setdefault(address, bytearray(size))
        part[offset : offset + len(raw)] = raw

    def put_u64(self, address: int, offset: int, value: int) -> None:
        self.put(address, offset, struct.pack("=Q", value))

    def read(self, address: int, size: int) -> bytes:
        for start, part in self.parts.items():
            if start <= address and address + size <= start + len(part):
                return bytes(part[address - start : address - start + size])
        raise OSError(f"kernel memory at {address:#x} cannot be read")

    def read_many(self, addresses: Sequence[int], size: int) -> Iterator[bytes | None]:
        for address in addresses:
            try:
                yield self.read(address, size)
            except OSError:
                yield None


# The table of statistics


@pytest.mark.parametrize("place", [0, 32, 4096, 1_000_000 - 1_000_000 % 32])
def test_a_table_in_random_data_is_found_once(place: int) -> None:
    data = bytearray(random.Random(place).randbytes(2_000_000))
    table = make_table(place)
    data[place : place + TOTAL] = table
    assert find_stats_tables(bytes(data), TOTAL, ELEMENTS) == [table]


def test_a_table_at_the_very_end_and_one_that_is_cut_off() -> None:
    table = make_table()
    assert find_stats_tables(bytes(64) + table, TOTAL, ELEMENTS) == [table]
    assert find_stats_tables(bytes(64) + table[:-1], TOTAL, ELEMENTS) == []


def test_what_is_not_the_table() -> None:
    table = bytearray(make_table())
    for broken in (b"", bytes(TOTAL), b"\xff" * TOTAL, bytes(table[:-1]) + b"\x80"):
        assert not is_stats_table(broken, ELEMENTS)
    assert find_stats_tables(bytes(8) + make_table() + bytes(100), TOTAL, ELEMENTS) == [], "not where the linker aligns"
    twice = bytearray(table)
    twice[table.index(3)] = 4
    assert find_stats_tables(bytes(twice) + bytes(100), TOTAL, ELEMENTS) == []


def test_two_different_tables_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make_table(1), make_table(2)
    padding = bytes(-TOTAL % 32 + 64)
    both = one + padding + other + padding
    assert sorted(find_stats_tables(both, TOTAL, ELEMENTS)) == sorted([one, other])
    monkeypatch.setattr(discover, "_kernel_data", lambda peek, facts: iter([both]))
    assert stats_index() is None
    monkeypatch.setattr(discover, "_kernel_data", lambda peek, facts: iter([one + padding + one + padding]))
    assert stats_index() == {name: one[item] for item, name in enumerate(NAMES) if one[item] < ELEMENTS}


NAMES = [f"STAT_{number}" for number in range(TOTAL)]


def stats_index() -> Mapping[str, int] | None:
    """Of a kernel with NAMES, whose table is not in the symbols."""
    enums = {"memcg_stat_item": {**{name: item for item, name in enumerate(NAMES)}, "MEMCG_NR_STAT": TOTAL}}
    facts = replace(FACTS, enums=enums, sizes={**FACTS.sizes, "vmstats_elements": ELEMENTS}, symbols={})
    return discover.stats_index(FakeMemory(), facts)


def test_before_the_table_the_enum_is_the_index() -> None:
    facts = recorded_facts("debian-6.1")
    index = discover.stats_index(FakeMemory(), facts)
    assert index is not None
    assert index["MEMCG_KMEM"] == facts.enums["memcg_stat_item"]["MEMCG_KMEM"]
    assert "MEMCG_NR_STAT" not in index


def test_a_table_whose_symbol_is_known_is_read_there_and_checked() -> None:
    facts = recorded_facts("debian-7.2")
    total, elements = facts.enums["memcg_stat_item"]["MEMCG_NR_STAT"], facts.sizes["vmstats_elements"]
    address = 0xFFFFFFFF82000000
    facts = replace(facts, symbols={"mem_cgroup_stats_index": address})
    memory = FakeMemory()
    table = bytes(range(elements)) + b"\xff" * (total - elements)
    memory.put(address, 0, table)
    index = discover.stats_index(memory, facts)
    assert index is not None
    assert all(position < elements for position in index.values())
    memory.put(address, 0, bytes(total))
    assert discover.stats_index(memory, facts) is None, "better unknown than wrong"


# SLAB_ACCOUNT


def caches(flags: dict[str, int]) -> list[CacheRecord]:
    return [CacheRecord(4096 + 512 * number, name, 64, value) for number, (name, value) in enumerate(flags.items())]


ACCOUNT, RECLAIM, HWCACHE, PANIC, CMPXCHG = 0x04000000, 0x00020000, 0x00002000, 0x00040000, 0x40000000
PLAIN = dict.fromkeys((f"kmalloc-{size}" for size in ("8", "16", "64", "256", "1k", "4k", "2k")), HWCACHE | CMPXCHG)
FS = {
    "shmem_inode_cache": PANIC | ACCOUNT | CMPXCHG,
    "sock_inode_cache": HWCACHE | RECLAIM | ACCOUNT | CMPXCHG,
    "proc_inode_cache": RECLAIM | PANIC | ACCOUNT | CMPXCHG,
    "files_cache": HWCACHE | PANIC | ACCOUNT | CMPXCHG,
}
OLD = replace(FACTS, enums={})


def test_slab_account_by_the_enum_and_by_the_flags_of_caches() -> None:
    assert discover.slab_account_flag(FACTS, []) == 1 << FACTS.enums["_slab_flag_bits"]["_SLAB_ACCOUNT"]
    assert discover.slab_account_flag(OLD, caches(PLAIN | FS)) == ACCOUNT


@pytest.mark.parametrize(
    "flags",
    [
        {},
        PLAIN,
        FS,
        PLAIN | dict(list(FS.items())[:2]),
        PLAIN | {name: value | PANIC for name, value in FS.items()},
        PLAIN | {name: value & ~ACCOUNT for name, value in FS.items()},
    ],
    ids=["none", "no accounted", "no plain", "too few", "two flags in common", "no flag in common"],
)
def test_slab_account_is_unknown_rather_than_guessed(flags: dict[str, int]) -> None:
    assert discover.slab_account_flag(OLD, caches(flags)) is None


# Caches


def make_caches(memory: FakeMemory, names: list[bytes]) -> list[int]:
    """A circular list of caches and its head, which is no cache; the addresses, the head's last."""
    addresses = [0xFFFF888000000000 + 0x10000 * number for number in range(len(names) + 1)]
    for number, address in enumerate(addresses):
        following = addresses[(number + 1) % len(addresses)] + OFF["kmem_cache__list"]
        memory.put_u64(address, OFF["kmem_cache__list"], following)
        memory.put_u64(address, OFF["kmem_cache__list"] + 8, addresses[number - 1] + OFF["kmem_cache__list"])
        if number < len(names):
            name_at = address + 0x8000
            memory.put(name_at, 0, names[number] + b"\0")
            memory.put_u64(address, OFF["kmem_cache__name"], name_at)
            memory.put(address, OFF["kmem_cache__size"], struct.pack("=I", 64 * (number + 1)))
            memory.put(address, OFF["kmem_cache__flags"], struct.pack("=I", number))
    return addresses


@pytest.mark.parametrize("bytes_there", [b"\x10\x064\xab\xff\xff", b"\n", b"caf\xc3\xa9", b" ", b"\\\x10", b""])
def test_bytes_that_are_no_name_belong_to_the_head(bytes_there: bytes) -> None:
    """What lies where the head would have its members may be addresses of anything."""
    memory = FakeMemory()
    *addresses, head = make_caches(memory, [b"dentry", b"kmalloc-64"])
    memory.put(head + 0x8000, 0, bytes_there + b"\0")
    memory.put_u64(head, OFF["kmem_cache__name"], head + 0x8000)
    memory.put(head, OFF["kmem_cache__size"], struct.pack("=I", 64))
    assert [cache.name for cache in CacheList(memory, FACTS, addresses[0]).read()] == ["dentry", "kmalloc-64"]


def test_a_name_may_have_a_backslash() -> None:
    memory = FakeMemory()
    *addresses, _ = make_caches(memory, [b"dentry(3:a\\x2db)"])
    assert [cache.name for cache in CacheList(memory, FACTS, addresses[0]).read()] == [r"dentry(3:a\\x2db)"]


def with_head(address: int) -> Facts:
    """Facts of a kernel that names the head of its list of caches."""
    return replace(FACTS, symbols={"slab_caches": address + OFF["kmem_cache__list"]})


def test_the_list_of_caches_without_its_head() -> None:
    memory = FakeMemory()
    addresses = make_caches(memory, [b"dentry", b"kmalloc-64", b"a:name (with) odd, parts"])
    for first in addresses[:3]:
        caches = CacheList(memory, FACTS, first)
        found = caches.read()
        assert caches.read() == found, "the second time, the structs of the first are read at once"
        assert sorted(cache.address for cache in found) == addresses[:3]
        assert {cache.name: cache.size_bytes for cache in found}["kmalloc-64"] == 128
    assert discover.first_cache(memory, with_head(addresses[3])) == addresses[2]


def test_caches_that_came_and_went_since_the_last_reading() -> None:
    memory = FakeMemory()
    one, two, head = make_caches(memory, [b"one", b"two"])
    caches = CacheList(memory, FACTS, one)
    assert [cache.name for cache in caches.read()] == ["one", "two"]
    new = 0xFFFF888000900000
    memory.put(new, 0, bytes(memory.parts[two]))
    memory.put(new + 0x8000, 0, b"three\0")
    memory.put_u64(new, OFF["kmem_cache__name"], new + 0x8000)
    memory.put_u64(one, OFF["kmem_cache__list"], new + OFF["kmem_cache__list"])
    memory.put_u64(head, OFF["kmem_cache__list"] + 8, new + OFF["kmem_cache__list"])
    del memory.parts[two]
    assert [cache.name for cache in caches.read()] == ["one", "three"]
    assert head


def test_a_list_that_never_comes_back() -> None:
    memory = FakeMemory()
    first, second, _ = make_caches(memory, [b"one", b"two"])
    memory.put_u64(second, OFF["kmem_cache__list"], second + OFF["kmem_cache__list"])
    with pytest.raises(KmemwatchError, match="does not lead back"):
        CacheList(memory, FACTS, first).read()


def test_a_list_that_leads_nowhere() -> None:
    memory = FakeMemory()
    first, *_ = make_caches(memory, [b"one"])
    memory.put_u64(first, OFF["kmem_cache__list"], 0xDEAD)
    with pytest.raises(KmemwatchError, match="does not lead back"):
        CacheList(memory, FACTS, first).read()


class Dying(FakeMemory):
    """Where caches are destroyed while others look."""

    def __init__(self) -> None:
        super().__init__()
        self.doomed: list[int] = []
        self.every = 1
        self._reads = 0

    def read(self, address: int, size: int) -> bytes:
        self._reads += 1
        if self.doomed and self._reads % self.every == 0:
            self.destroy(self.doomed.pop(0))
        return super().read(address, size)

    def destroy(self, address: int) -> None:
        """As list_del() does it; some of the memory is used by others afterwards."""
        link = OFF["kmem_cache__list"]
        following, before = struct.unpack_from("=QQ", self.parts[address], link)
        self.put_u64(before - link, link, following)
        self.put_u64(following - link, link + 8, before)
        self.put_u64(address, link, 0xDEAD000000000100)
        self.put_u64(address, link + 8, 0xDEAD000000000122)
        if address % 3 == 0:
            del self.parts[address]


@pytest.mark.parametrize("seed", range(40))
def test_caches_that_are_destroyed_while_the_list_is_followed(seed: int) -> None:
    shuffle = random.Random(seed)
    memory = Dying()
    first, *others, _ = make_caches(memory, [b"cache-%d" % number for number in range(40)])
    caches = CacheList(memory, FACTS, first)
    assert len(caches.read()) == 40
    shuffle.shuffle(others)
    memory.every = shuffle.randint(1, 4)
    memory.doomed, staying = others[:30], {first, *others[30:]}
    while memory.doomed:
        assert staying <= {cache.address for cache in caches.read()}
    assert {cache.address for cache in caches.read()} == staying


def test_the_newest_cache_is_destroyed() -> None:
    memory = Dying()
    newest, *older, head = make_caches(memory, [b"child", b"dentry", b"kmem_cache"])
    caches = CacheList(memory, FACTS, discover.first_cache(memory, with_head(head)))
    memory.destroy(newest)
    assert {cache.address for cache in caches.read()} == set(older)


# struct page

VMEMMAP, DIRECT = 0xFFFFEA0000000000, 0xFFFF888000000000


def make_slab(memory: FakeMemory, cache: int, pfn: int, pages: int, object_page: int, tail: str) -> None:
    """A partial slab of `pages` pages whose first free object is in page `object_page`."""
    node, head = cache + 0x4000, VMEMMAP + 64 * pfn
    memory.put_u64(cache, OFF["kmem_cache__node"], node)
    link = head + OFF["slab__slab_list"]
    for field in (0, 8):
        memory.put_u64(node, OFF["kmem_cache_node__partial"] + field, link)
        memory.put(head, OFF["slab__slab_list"] + field, struct.pack("=Q", node + OFF["kmem_cache_node__partial"]), 64)
    memory.put(head, OFF["slab__slab_cache"], struct.pack("=Q", cache), 64)
    memory.put(head, OFF["slab__freelist"], struct.pack("=Q", DIRECT + (pfn + object_page) * 4096 + 128), 64)
    for number in range(1, pages):
        info = head + 1 if tail == "pointer" else 2**64 - pages * 64 | 1
        memory.put(head + 64 * number, OFF["page__compound_head"], struct.pack("=Q", info), 64)


@pytest.mark.parametrize("tail", ["pointer", "mask"])
@pytest.mark.parametrize("object_pages", [[0, 0, 0], [3, 0, 7], [0, 5, 1]])
def test_page_base_is_learned_from_slabs(object_pages: list[int], tail: str) -> None:
    memory, records = FakeMemory(), []
    for number, object_page in enumerate(object_pages):
        cache = DIRECT + 0x100000 * (number + 1)
        make_slab(memory, cache, 1024 * (number + 1), 8, object_page, tail)
        records.append(CacheRecord(cache, f"cache{number}", 64, 0))
    base = discover.page_base(memory, FACTS, records)
    for number in range(3):
        page = (base + (DIRECT + 1024 * (number + 1) * 4096) // 4096 * 64) % 2**64
        assert page == VMEMMAP + 64 * 1024 * (number + 1)


def test_slabs_that_are_freed_meanwhile_are_no_samples() -> None:
    """Their links then lead to what is no memory, or their struct pages to other slabs."""
    memory, records = FakeMemory(), []
    for number in range(12):
        cache = DIRECT + 0x100000 * (number + 1)
        make_slab(memory, cache, 1024 * (number + 1), 8, 0, "pointer")
        records.append(CacheRecord(cache, f"cache{number}", 64, 0))
    memory.put_u64(records[3].address + 0x4000, OFF["kmem_cache_node__partial"], 0xDEAD000000000100)
    first = VMEMMAP + 64 * 1024
    memory.put(first, OFF["slab__slab_list"], struct.pack("=Q", 0xDEAD000000000100), 64)
    base = discover.page_base(memory, FACTS, records)
    assert (base + (DIRECT + 1024 * 4096) // 4096 * 64) % 2**64 == first


def test_no_partial_slab_or_one_that_contradicts() -> None:
    memory = FakeMemory()
    with pytest.raises(KmemwatchError, match="no partially filled slab"):
        discover.page_base(memory, FACTS, [])
    for number in range(2):
        make_slab(memory, DIRECT + 0x100000 * (number + 1), 1024 * (number + 1), 8, 0, "pointer")
    # An object that is nowhere near its slab's pages: what is taken for its struct page is none, or leads elsewhere.
    memory.put(VMEMMAP + 64 * 1024, OFF["slab__freelist"], struct.pack("=Q", DIRECT + 2048 * 4096), 64)
    records = [CacheRecord(DIRECT + 0x100000 * (number + 1), "c", 64, 0) for number in range(2)]
    with pytest.raises(KmemwatchError, match="1 of 2 objects do not lead back to their slab"):
        discover.page_base(memory, FACTS, records)


@given(st.integers(0, 18), st.integers(1, 2**18 - 1), st.integers(0, 2**20))
def test_head_of_a_tail_page_both_ways(order: int, tail: int, block: int) -> None:
    pages = 1 << order
    head = VMEMMAP + 64 * pages * block
    page = head + 64 * (tail % pages)
    if page == head:
        assert discover.head_page(page, 0xFFFFEA0000001000) == page
    else:
        assert discover.head_page(page, head + 1) == head
        assert discover.head_page(page, (2**64 - 64 * pages) | 1) == head
