# SPDX-License-Identifier: GPL-2.0-only
"""The scan for slabs of child caches: its slices, and where memory is; what it finds is checked in the lab."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.errors import KmemwatchError
from kmemwatch.maps import decode
from kmemwatch.maps.handles import MapHandle
from kmemwatch.source import scan
from kmemwatch.source.scan import SlabScan, memory_ranges

DIRECT = 0xFFFF_8880_0000_0000
PAGE_BASE = 0x1000_0000_0000
GB = 1 << 30
LOW, HIGH = (DIRECT + 0x1000, 0x9F000), (DIRECT + GB, 2 * GB)
"""(address, bytes) of the fake kernel's memory."""
RUN_PAGES = 200_000
"""Struct pages that a run of the fake program looks at."""
RUNS = 1 + 3
RUN_S = 0.01


def kcore(*segments: tuple[int, int, int, int]) -> bytes:
    """The head of an ELF file with segments of (type, address, physical address, bytes)."""
    header = struct.pack(
        "=16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    rows = [
        struct.pack("=IIQQQQQQ", kind, 7, 0, address, physical, size, size, 4096)
        for kind, address, physical, size in segments
    ]
    return header + b"".join(rows)


KCORE = kcore(
    (4, 0, 0, 0),
    (1, 0xFFFF_C900_0000_0000, (1 << 64) - 1, 32 << 40),
    (1, 0xFFFF_FFFF_8100_0000, 0x1000_0000, 40 << 20),
    *((1, address, address - DIRECT, size) for address, size in (LOW, HIGH)),
)
"""A note, what vmalloc() gives, the kernel's image, two ranges of memory."""


def test_memory_is_what_lies_as_a_known_slab_does() -> None:
    found = memory_ranges(KCORE, DIRECT + GB + 4096)
    assert found == [(address, address + size) for address, size in (LOW, HIGH)]


def test_a_slab_that_lies_nowhere() -> None:
    with pytest.raises(KmemwatchError, match=r"/proc/kcore: no segment has a slab that is known"):
        memory_ranges(KCORE, DIRECT)


class FakeKernel:
    """Program, maps and clock behind `SlabScan`."""

    def __init__(self) -> None:
        self.state = bytearray(decode.SCAN_STATE.size)
        self.entries: dict[tuple[int, int], tuple[int, int]] = {}
        self.slabs: dict[tuple[int, int], int] = {}
        """(cache, cgroup id) -> pages, found by the run that ends a range."""
        self.full = 0
        self.seen: list[tuple[int, int]] = []
        """(first, behind the last) struct page of each run."""
        self.now_s = 100.0

    def run(self, program_fd: int) -> int:
        assert program_fd == 7
        page, end, number, full = decode.SCAN_STATE.unpack_from(self.state)
        following = min(end, page + 64 * RUN_PAGES)
        self.seen.append((page, following))
        if following == end:
            for key, pages in self.slabs.items():
                before = self.entries.get(key, (0, 0))
                self.entries[key] = number, pages + (before[1] if before[0] == number else 0)
            full += self.full
        self.state[:] = decode.SCAN_STATE.pack(following, end, number, full)
        self.now_s += RUN_S
        return 0

    def items(self) -> tuple[bytes, bytes, int]:
        keys = b"".join(decode.CHILD_SLAB_KEY.pack(*key) for key in self.entries)
        return (
            keys,
            b"".join(decode.CHILD_SLAB_VALUE.pack(*value) for value in self.entries.values()),
            len(self.entries),
        )

    def delete(self, key: bytes) -> None:
        del self.entries[decode.CHILD_SLAB_KEY.unpack_from(key)]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    monkeypatch.setattr(scan, "test_run", fake.run)
    monkeypatch.setattr(scan, "map_memory", lambda handle: fake.state)
    monkeypatch.setattr(scan, "MapReader", lambda handle: fake)
    monkeypatch.setattr(scan, "_kcore", lambda: KCORE)
    monkeypatch.setattr("kmemwatch.source.scan.time.monotonic", lambda: fake.now_s)
    return fake


def new_scan() -> SlabScan:
    maps: dict[str, Any] = dict.fromkeys(("scan", "child_slabs"), MapHandle("", 0, 0, 0, 0, False))
    return SlabScan(7, maps, PAGE_BASE, (4096, 64), DIRECT + GB)


def test_every_struct_page_is_seen_once(kernel: FakeKernel) -> None:
    slabs = new_scan()
    kernel.slabs = {(0xC, 5): 3, (0xD, 5): 1, (0xC, 6): 8, (0xC, 9): 1}
    found = slabs.read([5, 6, 7])
    # The fake finds all of its slabs in both ranges. Nobody asked for 9; 7 has none, which is known.
    assert found == {5: {0xC: 6, 0xD: 2}, 6: {0xC: 16}, 7: {}}
    expected = set()
    for address, size in (LOW, HIGH):
        page = PAGE_BASE + address // 4096 * 64
        expected |= set(range(page, page + size // 4096 * 64, 64))
    pages = [page for first, end in kernel.seen for page in range(first, end, 64)]
    assert len(kernel.seen) == RUNS
    assert (len(pages), set(pages)) == (len(expected), expected)
    assert slabs.entries == 4


def test_slices(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FIRST_BUDGET_S", 2 * RUN_S)
    monkeypatch.setattr(scan, "BUDGET_S", RUN_S)
    slabs = new_scan()
    slabs._budget_s = scan.FIRST_BUDGET_S
    kernel.slabs = {(0xC, 5): 1}
    readings = [slabs.read([5]), slabs.read([5, 6]), slabs.read([5, 6])]
    assert readings == [None, None, {5: {0xC: 2}}], "6 died after the scan had begun"
    kernel.slabs = {(0xC, 6): 1}
    readings = [slabs.read([5, 6]) for _ in range(RUNS)]
    assert readings == [{5: {0xC: 2}}] * 3 + [{5: {}, 6: {0xC: 2}}], "the last complete scan is given until the next is"
    assert len(kernel.entries) == 1, "what is no more does not stay in the map"


def test_nothing_is_done_while_nobody_is_dying(kernel: FakeKernel) -> None:
    slabs = new_scan()
    assert slabs.read([]) == {}
    assert not kernel.seen
    assert slabs.read([5]) == {5: {}}
    runs = len(kernel.seen)
    assert slabs.read([]) == {}
    assert len(kernel.seen) == runs


def test_an_interrupted_scan_is_not_resumed_for_others(kernel: FakeKernel) -> None:
    slabs = new_scan()
    slabs._budget_s = RUN_S
    assert slabs.read([5]) is None
    assert slabs.read([]) == {}
    kernel.seen.clear()
    kernel.slabs = {(0xC, 6): 1}
    while (found := slabs.read([6])) is None:
        pass
    assert found == {6: {0xC: 2}}
    assert len(kernel.seen) == RUNS


def test_a_map_that_is_too_small_gives_nothing_wrong(kernel: FakeKernel) -> None:
    slabs = new_scan()
    kernel.slabs, kernel.full = {(0xC, 5): 1}, 1
    assert slabs.read([5]) is None
    kernel.full = 0
    while (found := slabs.read([5])) is None:
        pass
    assert found == {5: {0xC: 2}}


# After a daemon has given up the privilege to open /proc/kcore

ZONES = """Node 0, zone      DMA
  pages free     1
        present  {}
        managed  {}
"""


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "zoneinfo"
    path.write_text(ZONES.format(1000, 900))
    monkeypatch.setattr(scan, "ZONEINFO", path)
    return path


def refuse() -> bytes:
    raise PermissionError(1, "Operation not permitted")


def test_it_goes_on_with_what_it_read_before(kernel: FakeKernel, zones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slabs = new_scan()
    monkeypatch.setattr(scan, "_kcore", refuse)
    kernel.slabs = {(0xC, 5): 3}
    assert slabs.read([5]) == {5: {0xC: 6}}
    zones.write_text(ZONES.format(1000, 800))  # a balloon takes memory, and none is unplugged
    assert slabs.read([5]) == {5: {0xC: 6}}


def test_it_knows_nothing_once_memory_was_plugged(
    kernel: FakeKernel, zones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = new_scan()
    kernel.slabs = {(0xC, 5): 3}
    assert slabs.read([5]) == {5: {0xC: 6}}
    monkeypatch.setattr(scan, "_kcore", refuse)
    zones.write_text(ZONES.format(2000, 1900))
    assert slabs.read([5]) is None
    zones.write_text(ZONES.format(1000, 900))
    assert slabs.read([5]) is None, "what came and went may have been another memory"


def test_where_it_may_it_reads_anew(kernel: FakeKernel, zones: Path) -> None:
    slabs = new_scan()
    kernel.slabs = {(0xC, 5): 3}
    zones.write_text(ZONES.format(2000, 1900))
    assert slabs.read([5]) == {5: {0xC: 6}}
