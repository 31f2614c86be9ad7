# SPDX-License-Identifier: GPL-2.0-only
"""Slabs of child caches by the memcg that they are charged to: bpf/scan.bpf.c, run over every struct page there is."""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kmemwatch.errors import KmemwatchError
from kmemwatch.maps import decode
from kmemwatch.maps.handles import MapHandle, MapReader, map_memory, test_run

KCORE = Path("/proc/kcore")
ZONEINFO = Path("/proc/zoneinfo")
FIRST_BUDGET_S = 0.25
"""For the first reading: a user waits for it, or it is the only one."""
BUDGET_S = 0.025
"""For each later reading."""

_ELF_HEADER = struct.Struct("=16sHHIQQQIHHH")
_ELF_SEGMENT = struct.Struct("=IIQQQQQQ")
_PT_LOAD = 1


class SlabScan:
    """Looks for slabs while some memcg is dying; each reading scans a slice.

    A slice ends with its budget, which is enough for 10 GB of memory at 9 ns per struct page. If a scan takes several
    slices, its result is used until the next scan ends, so no figure is older than two scans take.
    """

    def __init__(
        self, program_fd: int, maps: Mapping[str, MapHandle], page_base: int, sizes: tuple[int, int], known: int
    ) -> None:
        """`page_base`: see `discover.page_base`; `sizes`: bytes of a page and of a struct page; `known`: address of
        any object in a slab."""
        self._program_fd = program_fd
        self._state = map_memory(maps["scan"])
        self._slabs = MapReader(maps["child_slabs"])
        self._page_base = page_base
        self._page_bytes, self._struct_bytes = sizes
        self._known = known
        self._head: bytes | None = None
        self._present: list[bytes] | None = None
        """Pages of each zone when the head of /proc/kcore was read."""
        self._read_head()
        self._number = 0
        self._left: list[tuple[int, int]] = []
        """(address of the first struct page, address behind the last) of the ranges that this scan has not seen yet."""
        self._dying: tuple[int, ...] = ()
        self._found: dict[int, dict[int, int]] | None = None
        self._budget_s = FIRST_BUDGET_S
        self._full = False
        self.entries = 0
        """Entries in the map at the end of the last scan."""

    def read(self, dying: Collection[int]) -> Mapping[int, Mapping[int, int]] | None:
        """cgroup id -> address of a child cache -> pages of its slabs that are charged to that memcg.

        It has all ids that were `dying` when the last complete scan began, also those without any slab. None before the
        first scan is complete, or if the map was too small. Raises KmemwatchError, OSError.
        """
        if not dying:
            self._left, self._found = [], None
            return {}
        if not self._left and not self._begin(dying):
            self._found = None
            return None
        if self._go_on(time.monotonic() + self._budget_s):
            self._found = self._collect()
        self._budget_s = BUDGET_S
        return self._found

    def _begin(self, dying: Collection[int]) -> bool:
        """False if it is unknown where memory is."""
        # Read it each time, because memory may be plugged and unplugged.
        head = self._read_head()
        if head is None:
            return False
        self._left = [(self._page(start), self._page(end)) for start, end in memory_ranges(head, self._known)]
        self._dying = tuple(dying)
        self._number += 1
        self._full = False
        self._set_state(*self._left[-1])
        return True

    def _read_head(self) -> bytes | None:
        """Opening /proc/kcore takes CAP_SYS_RAWIO, which a daemon gives up (docs/adr/0014-two-processes.md). It then
        uses what it read before, as long as no memory was plugged or unplugged."""
        try:
            self._head, self._present = _kcore(), _present_pages()
        except PermissionError:
            if self._present != _present_pages():
                self._head = None
        return self._head

    def _page(self, address: int) -> int:
        """Address of the struct page of `address`, as bpf/slab.h computes it."""
        return (self._page_base + address // self._page_bytes * self._struct_bytes) % (1 << 64)

    def _set_state(self, page: int, end: int) -> None:
        self._state[: decode.SCAN_STATE.size] = decode.SCAN_STATE.pack(page, end, self._number, 0)

    def _go_on(self, deadline_s: float) -> bool:
        """Returns whether the scan is complete."""
        while time.monotonic() < deadline_s:
            test_run(self._program_fd)
            page, end, _, full = decode.SCAN_STATE.unpack_from(self._state)
            if page < end:
                continue
            self._full |= bool(full)
            self._left.pop()
            if not self._left:
                return True
            self._set_state(*self._left[-1])
        return False

    def _entries(self) -> dict[tuple[int, int], int]:
        """What this scan counted. Removes entries from the map that only older scans met."""
        keys, values, number = self._slabs.items()
        found = {}
        for key, value in zip(
            decode.CHILD_SLAB_KEY.iter_unpack(keys), decode.CHILD_SLAB_VALUE.iter_unpack(values), strict=True
        ):
            scan, pages = value
            if scan == self._number:
                found[key[0], key[1]] = pages
            else:
                self._slabs.delete(decode.CHILD_SLAB_KEY.pack(*key))
        self.entries = number
        return found

    def _collect(self) -> dict[int, dict[int, int]] | None:
        found: dict[int, dict[int, int]] = {cgroup_id: {} for cgroup_id in self._dying}
        for (cache, cgroup_id), pages in self._entries().items():
            if cgroup_id in found:
                found[cgroup_id][cache] = pages
        return None if self._full else found

    def close(self) -> None:
        """Unmap the map."""
        self._state.close()


def memory_ranges(header: bytes, known: int) -> list[tuple[int, int]]:
    """(start, end) of all memory, by its addresses in the kernel's direct map, from the head of /proc/kcore.

    There are other segments: the kernel's image is mapped a second time, and vmalloc() maps pages elsewhere. In the
    direct map, the distance between address and physical address is that of the segment with `known`, an object in a
    slab. Raises KmemwatchError if no segment has it.
    """
    segments = list(_segments(header))
    distance = next((start - physical for start, size, physical in segments if start <= known < start + size), None)
    if distance is None:
        raise KmemwatchError(f"{KCORE}: no segment has a slab that is known")
    return [(start, start + size) for start, size, physical in segments if start - physical == distance]


def _segments(header: bytes) -> Iterator[tuple[int, int, int]]:
    """(address, bytes, physical address)."""
    elf = _ELF_HEADER.unpack_from(header)
    offset, size, number = elf[5], elf[9], elf[10]
    for index in range(number):
        kind, _, _, address, physical, _, memory_bytes, _ = _ELF_SEGMENT.unpack_from(header, offset + index * size)
        if kind == _PT_LOAD:
            yield address, memory_bytes, physical


def _kcore() -> bytes:
    """ELF header and program headers."""
    with KCORE.open("rb", buffering=0) as file:
        header = file.read(_ELF_HEADER.size)
        elf = _ELF_HEADER.unpack(header)
        file.seek(0)
        return file.read(elf[5] + elf[9] * elf[10])


def _present_pages() -> list[bytes]:
    """Pages of each zone in /proc/zoneinfo. It changes when memory is plugged or unplugged, but not with balloons."""
    return [line for line in ZONEINFO.read_bytes().splitlines() if line.lstrip().startswith(b"present ")]
