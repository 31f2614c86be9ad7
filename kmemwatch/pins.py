# SPDX-License-Identifier: GPL-2.0-only
"""What a memcg holds, from its record in the tree: bytes by kind, and what keeps a dying one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kmemwatch.kernel.era import OBJCG
from kmemwatch.model import ChildSlabs
from kmemwatch.sources.decode import MemcgRecord


@dataclass(frozen=True, slots=True)
class Units:
    """How to read the statistics of this kernel."""

    page_bytes: int
    cgroup_version: int | None
    era: str | None
    index: Mapping[str, int] | None
    """`discover.stats_index`."""

    def stat(self, stats: Sequence[int], name: str, unit_bytes: int) -> int | None:
        """One statistic in bytes; None when this kernel does not have it or its place is not known."""
        if self.index is None or name not in self.index:
            return None
        return stats[self.index[name]] * unit_bytes

    def slab_bytes(self, stats: Sequence[int]) -> int | None:
        """``memory.stat`` slab. Bytes since Linux kernel commit d42f3245c7e2 (v5.9), pages before."""
        found = self._sum(stats, "NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B", 1)
        if found is None:
            found = self._sum(stats, "NR_SLAB_RECLAIMABLE", "NR_SLAB_UNRECLAIMABLE", self.page_bytes)
        return found

    def _sum(self, stats: Sequence[int], one: str, other: str, unit_bytes: int) -> int | None:
        first, second = self.stat(stats, one, unit_bytes), self.stat(stats, other, unit_bytes)
        return None if first is None or second is None else first + second

    def kernel_bytes(self, record: MemcgRecord) -> int | None:
        """``memory.kmem.usage_in_bytes`` on v1, ``memory.stat`` kernel on v2; None on v2 before v5.18."""
        if self.cgroup_version == 1:
            return record.kmem_pages * self.page_bytes
        return self.stat(record.stats, "MEMCG_KMEM", self.page_bytes)

    def pins(
        self, record: MemcgRecord, local: Sequence[int], slabs: Sequence[ChildSlabs] | None = None
    ) -> dict[str, int] | None:
        """What keeps a dying memcg: kind -> bytes. `local`: its statistics less those of its children; `slabs`: those
        of child caches that are charged to it, where that is known: exact, unlike the statistics.

        With objcg, slab and other kernel memory moves to the parent when the memcg goes offline: it cannot be the pin,
        although the memcg's statistics still show what it once had. None when nothing can be told, or not yet.
        """
        if self.index is None:
            return None
        page = self.page_bytes
        shmem = self.stat(local, "NR_SHMEM", page)
        cache = self.stat(local, "NR_FILE_PAGES", page)
        found = {
            "shmem": shmem,
            "anon": self.stat(local, "NR_ANON_MAPPED", page),
            # Page cache counts shmem, and anonymous pages on their way to swap, too.
            "file": None
            if cache is None or shmem is None
            else cache - shmem - (self.stat(local, "NR_SWAPCACHE", page) or 0),
            "swap": self.stat(local, "MEMCG_SWAP", page),
            "sock": record.tcpmem_pages * page if self.cgroup_version == 1 else self.stat(local, "MEMCG_SOCK", page),
        }
        resident = sum(found[kind] or 0 for kind in ("shmem", "anon", "file"))
        if resident > record.memory_pages * page:
            # The page counter is exact, statistics are up to two seconds older: right after a death they still show
            # what has been freed since.
            return None
        if slabs is not None:
            found["slab"] = sum(cache.slab_bytes for cache in slabs)
        elif self.era != OBJCG:
            found["slab"] = self.slab_bytes(local)
        return {kind: size for kind, size in found.items() if size}


def local_stats(records: Iterable[MemcgRecord], wanted: Collection[int]) -> dict[int, list[int]]:
    """css, of those `wanted` -> statistics less those of its children: the kernel adds up what is below a memcg."""
    local = {}
    for record in records:  # parents come before children
        if record.css in wanted:
            local[record.css] = list(record.stats)
        parent = local.get(record.parent_css)
        if parent is not None:
            for index, value in enumerate(record.stats):
                parent[index] -= value
    return local
