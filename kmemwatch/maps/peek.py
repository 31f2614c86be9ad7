# SPDX-License-Identifier: GPL-2.0-only
"""Reads kernel memory on demand: runs the programs of bpf/peek.bpf.c, which answer through maps in our memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from kmemwatch.errors import KmemwatchError
from kmemwatch.maps import decode
from kmemwatch.maps.decode import MemcgRecord
from kmemwatch.maps.handles import MapHandle, map_memory, test_run
from kmemwatch.maps.structs import constant

PEEK_BYTES, PEEK_PARTS, PEEK_PART_BYTES = constant("PEEK_BYTES"), constant("PEEK_PARTS"), constant("PEEK_PART_BYTES")
_WALK_TRIES = 5
_WALK_DONE, _WALK_LOST = constant("WALK_DONE"), constant("WALK_LOST")


class Peek:
    """Reads the kernel's memory and its tree of memcgs."""

    def __init__(self, programs: Mapping[str, int], maps: Mapping[str, MapHandle], stats_count: int) -> None:
        self._peek_fd = programs["peek"]
        self._many_fd = programs["peek_many"]
        self._walk_fd = programs["walk"]
        self._stats_count = stats_count
        self._out = map_memory(maps["peek_out"])
        self._in = map_memory(maps["peek_in"])
        self._parts = map_memory(maps["peek_parts"])
        self._walk_out = map_memory(maps["walk_out"])
        self._walk = map_memory(maps["walk"])

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at `address`. Raises OSError when it is not readable kernel memory."""
        parts = []
        while size:
            part = min(size, PEEK_BYTES)
            if test_run(self._peek_fd, address, part):
                raise OSError("kernel memory cannot be read")
            parts.append(self._out[:part])
            address += part
            size -= part
        return b"".join(parts)

    def read_many(self, addresses: Sequence[int], size: int) -> Iterator[bytes | None]:
        """As `read` for each address, but far faster; None where it cannot be read. `size`: at most PEEK_PART_BYTES."""
        for first in range(0, len(addresses), PEEK_PARTS):
            some = addresses[first : first + PEEK_PARTS]
            self._in[: 8 * len(some)] = struct.pack(f"={len(some)}Q", *some)
            test_run(self._many_fd, len(some), size)
            readable = struct.unpack_from(f"={len(some)}Q", self._in)
            parts = self._parts[: PEEK_PART_BYTES * len(some)]
            for index, address in enumerate(readable):
                at = PEEK_PART_BYTES * index
                yield parts[at : at + size] if address else None

    def u64(self, address: int) -> int:
        """One unsigned 64-bit number. Raises OSError."""
        return int(struct.unpack("=Q", self.read(address, 8))[0])

    def string(self, address: int, size: int = 64) -> str:
        """A NUL-terminated string of up to `size` bytes. Raises OSError."""
        # The next page may be unreadable: never read over the end of a page in one go.
        room = PEEK_BYTES - address % PEEK_BYTES
        raw = self.read(address, min(size, room))
        if b"\0" not in raw and room < size:
            raw += self.read(address + room, size - room)
        return decode.text(raw)

    def memcgs(self) -> list[MemcgRecord]:
        """Every memcg that the kernel has not released, parents before children, from one walk.

        Only a batch is consistent: a memcg that is made or released meanwhile may be in the result or not. Raises
        KmemwatchError when the tree changes too fast to be walked.
        """
        for _ in range(_WALK_TRIES):
            records = self._walk_once()
            if records is not None:
                return records
        raise KmemwatchError(f"the tree of memory cgroups changed under {_WALK_TRIES} walks in a row")

    def _walk_once(self) -> list[MemcgRecord] | None:
        records: list[MemcgRecord] = []
        self._walk[: decode.WALK_STATE.size] = bytes(decode.WALK_STATE.size)
        while True:
            test_run(self._walk_fd)
            count, done = decode.WALK_STATE.unpack_from(self._walk)
            if done == _WALK_LOST:
                return None
            raw = self._walk_out[: count * decode.MEMCG_RECORD.size]
            records += [
                decode.memcg_record(raw, index * decode.MEMCG_RECORD.size, self._stats_count) for index in range(count)
            ]
            if done == _WALK_DONE:
                return records
            if len(records) > 1_000_000:
                raise KmemwatchError("the walk of memory cgroups does not end: 1,000,000 visited")

    def close(self) -> None:
        """Unmap the maps."""
        for memory in (self._out, self._in, self._parts, self._walk_out, self._walk):
            memory.close()
