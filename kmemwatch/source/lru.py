# SPDX-License-Identifier: GPL-2.0-only
"""Lengths of the LRU lists of memcgs: what each memcg has itself, also if the kernel stopped its statistics."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from kmemwatch.attach.discover import possible_nodes
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.decode import LruPages
from kmemwatch.maps.peek import PEEK_PART_BYTES, Peek

_MEMBERS = ("mem_cgroup__nodeinfo", "mem_cgroup_per_node__memcg", "mem_cgroup_per_node__lru_zone_size")
_LISTS = {
    "anon": ("LRU_INACTIVE_ANON", "LRU_ACTIVE_ANON"),
    "file": ("LRU_INACTIVE_FILE", "LRU_ACTIVE_FILE"),
    "unevictable": ("LRU_UNEVICTABLE",),
}
_TYPES = 2
"""ANON_AND_FILE: the two types in a generation of the multi-generational LRU, in this order."""


class LruLists:
    """Reads the lengths through `Peek`, for all nodes and zones of the machine."""

    def __init__(self, peek: Peek, facts: Facts) -> None:
        """Use it only if `are_known`."""
        self._peek = peek
        self._offsets = facts.offsets
        self._enum = facts.enums["lru_list"]
        self._bytes = facts.sizes["lru_zone_size"]
        self._generations_bytes = facts.sizes.get("lru_generations", 0)
        self._zones = self._bytes // 8 // self._enum["NR_LRU_LISTS"]
        self._nodes = possible_nodes()

    @staticmethod
    def are_known(facts: Facts) -> bool:
        """Whether this kernel's BTF has the members of the lists."""
        sizes = facts.sizes.get("lru_zone_size", 0), facts.sizes.get("lru_generations", 0)
        known = facts.offsets.keys() >= set(_MEMBERS) and "NR_LRU_LISTS" in facts.enums.get("lru_list", {})
        return known and 0 < sizes[0] <= PEEK_PART_BYTES and sizes[1] <= PEEK_PART_BYTES

    def read(self, addresses: Sequence[int]) -> list[LruPages | None]:
        """Lengths for the memcg at each address; None if it is gone."""
        first = self._offsets["mem_cgroup__nodeinfo"]
        pointers = [memcg + first + 8 * node for memcg in addresses for node in range(self._nodes)]
        nodes = [0 if raw is None else int(_U64.unpack(raw)[0]) for raw in self._peek.read_many(pointers, 8)]
        owners = self._parts(nodes, "mem_cgroup_per_node__memcg", 8)
        lists = self._parts(nodes, "mem_cgroup_per_node__lru_zone_size", self._bytes)
        generations = self._parts(nodes, "mem_cgroup_per_node__lru_generations", self._generations_bytes)
        sums: list[LruPages | None] = [LruPages(0, 0, 0)] * len(addresses)
        for index, parts in enumerate(zip(nodes, owners, lists, generations, strict=True)):
            node, owner, sizes, more = parts
            place = index // self._nodes
            before = sums[place]
            if not node or before is None:  # the kernel has no lists for a node that cannot exist
                continue
            if owner is None or sizes is None or _U64.unpack(owner)[0] != addresses[place]:
                sums[place] = None
            else:
                sums[place] = LruPages(*map(sum, zip(before, self._count(sizes, more), strict=True)))
        return sums

    def _parts(self, nodes: Sequence[int], member: str, size: int) -> Iterator[bytes | None]:
        if not size or member not in self._offsets:
            return iter([None] * len(nodes))
        return self._peek.read_many([node + self._offsets[member] if node else 0 for node in nodes], size)

    def _count(self, sizes: bytes, generations: bytes | None) -> LruPages:
        lengths = struct.unpack(f"={len(sizes) // 8}q", sizes)
        lists = self._enum["NR_LRU_LISTS"]
        found: Mapping[str, int] = {
            name: sum(sum(lengths[self._enum[one] :: lists]) for one in names) for name, names in _LISTS.items()
        }
        anon, file = self._in_generations(generations)
        return LruPages(found["anon"] + anon, found["file"] + file, found["unevictable"])

    def _in_generations(self, raw: bytes | None) -> tuple[int, int]:
        """Linux kernel commit ec1c86b25f4b ("mm: multi-gen LRU: groundwork") (in v6.1): ``nr_pages[gen][type][zone]``
        has the lengths of its lists instead; the others have only unevictable pages."""
        if raw is None:
            return 0, 0
        lengths = struct.unpack(f"={len(raw) // 8}q", raw)
        rows = [sum(lengths[at : at + self._zones]) for at in range(0, len(lengths), self._zones)]
        return sum(rows[0::_TYPES]), sum(rows[1::_TYPES])


_U64 = struct.Struct("=Q")
