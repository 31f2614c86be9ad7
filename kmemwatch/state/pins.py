# SPDX-License-Identifier: GPL-2.0-only
"""What a memcg holds, from its record in the tree: bytes by kind, and what pins a dying one. Pure.

A figure below 0, or above the memory of the host, becomes unknown: two counters were read at two moments, or the kernel
has stopped one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kmemwatch.kernel.facts import OBJCG
from kmemwatch.maps.decode import LruPages, MemcgRecord
from kmemwatch.model import ChildSlabs
from kmemwatch.source.reading import Reading

_BATCH = 31 + 32
"""Pages that a CPU may keep back from the lists (PAGEVEC_SIZE, 15 before v6.4), and from a statistic
(MEMCG_CHARGE_BATCH, before v5.13)."""


_SWAP_LIMIT = 1 << 62
"""Bytes. A larger limit than the host's memory, because that does not include swap."""


def gauge(value: int | None, limit: int | None) -> int | None:
    """`value`, or None if it is below 0 or above `limit`."""
    if value is None or value < 0 or (limit is not None and value > limit):
        return None
    return value


def checked(reading: Reading, page_bytes: int) -> Reading:
    """The same reading, with impossible sizes of caches unknown: they change while they are read one after another."""
    limit, caches, slabs = reading.host_bytes, reading.caches, reading.child_slabs
    if any(cache.slab_bytes is not None and gauge(cache.slab_bytes, limit) is None for cache in caches or ()):
        caches = [replace(cache, slab_bytes=gauge(cache.slab_bytes, limit)) for cache in caches or ()]
    if slabs is not None:
        slabs = {
            cgroup_id: pages
            for cgroup_id, pages in slabs.items()
            if gauge(sum(pages.values()) * page_bytes, limit) is not None
        }
    return replace(reading, caches=caches, child_slabs=slabs)


@dataclass(frozen=True, slots=True)
class StatReader:
    """How to read the statistics of this kernel."""

    page_bytes: int
    cgroup_version: int | None
    era: str | None
    index: Mapping[str, int] | None
    """`discover.stats_index`."""
    cpus: int = 1
    memsw: bool = False
    """On v1, `MemcgRecord.swap_pages` counts memory and swap together."""
    pages_move: bool = False
    """Pages of a memcg that goes offline become its parent's, and no longer pin it."""

    def stat(self, stats: Sequence[int], name: str, unit_bytes: int) -> int | None:
        """One statistic in bytes; None if this kernel does not have it or its place is unknown."""
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

    def below(self, records: Iterable[MemcgRecord], dying: Collection[int]) -> dict[int, tuple[int | None, int | None]]:
        """css -> (kernel, slab) bytes of its children; None if those of one child are unknown.

        With objcg, a memcg's kernel memory becomes its parent's when it goes offline, and its counters stay as they
        were.
        So what dying children had is part of the parent's own. `dying`: cgroup ids of memcgs whose offline event came
        before the walk saw it.
        """
        found: dict[int, tuple[int | None, int | None]] = {}
        for record in records:
            if self.era == OBJCG and (not record.online or record.cgroup_id in dying):
                continue
            kernel, slab = found.get(record.parent_css, (0, 0))
            more_kernel, more_slab = gauge(self.kernel_bytes(record), None), gauge(self.slab_bytes(record.stats), None)
            found[record.parent_css] = _plus(kernel, more_kernel), _plus(slab, more_slab)
        return found

    def kernel_bytes(self, record: MemcgRecord) -> int | None:
        """``memory.kmem.usage_in_bytes`` on v1, ``memory.stat`` kernel on v2; None on v2 before v5.18."""
        if self.cgroup_version == 1:
            return record.kmem_pages * self.page_bytes
        return self.stat(record.stats, "MEMCG_KMEM", self.page_bytes)

    def pins(
        self, own: MemcgRecord, slabs: Sequence[ChildSlabs] | None = None, limit: int | None = None
    ) -> dict[str, int] | None:
        """What pins a dying memcg: kind -> bytes. `own`: its record `less_children`; `slabs`: those of child caches
        that are charged to it, if known (exact, unlike the statistics); `limit`: memory of the host.

        With objcg, slab and other kernel memory moves to the parent when the memcg goes offline: it cannot be the pin,
        although the memcg's statistics still show it. None if the pins are unknown, or not yet known.
        """
        if self.index is None:
            return None
        resident = self._resident(own)
        if resident is None:
            return None
        found = {**resident, "sock": self._sock(own)}
        if slabs is not None:
            found["slab"] = sum(cache.slab_bytes for cache in slabs)
        elif self.era != OBJCG:
            found["slab"] = self.slab_bytes(own.stats)
        if any(size is not None and gauge(size, limit) is None for size in found.values()):
            return None
        if (
            self.cgroup_version == 2
            and found["sock"]
            and sum(resident.values()) + found["sock"] > self._user_bytes(own)
        ):
            return None  # v2 charges sockets to the same counter
        found["swap"] = self._swap(own)
        if found["swap"] is not None and gauge(found["swap"], _SWAP_LIMIT) is None:
            return None
        return {kind: size for kind, size in found.items() if size}

    def _sock(self, own: MemcgRecord) -> int | None:
        page = self.page_bytes
        return own.tcpmem_pages * page if self.cgroup_version == 1 else self.stat(own.stats, "MEMCG_SOCK", page)

    def _swap(self, own: MemcgRecord) -> int | None:
        """From the page counter if there is one, because it is exact."""
        if self.cgroup_version == 2:
            return own.swap_pages * self.page_bytes
        if self.memsw:
            # Memory is charged to both, swap only to this one. 0: the kernel does not account swap (swapaccount=0).
            return (own.swap_pages - own.memory_pages) * self.page_bytes if own.swap_pages else 0
        return self.stat(own.stats, "MEMCG_SWAP", self.page_bytes)

    def _resident(self, own: MemcgRecord) -> dict[str, int] | None:
        """Kinds of pages that processes and files have, in bytes.

        Only the statistics distinguish the kinds, but they may be two seconds old. Some kernels (RHEL 8 and 9) even
        stop
        them when a memcg goes offline, and count for an ancestor from then on. The memcg's page counter and the lengths
        of its own LRU lists, which reclaim uses, are always right. So the statistics count if both agree with them.
        """
        if self.pages_move:
            return {}
        counted, limit = self._counted(own), self._user_bytes(own)
        if limit == 0 and (own.lru is None or not own.lru.total):
            return {}  # only children, or references
        return counted if self._agree(counted, own, limit) else self._of_lists(own.lru, counted)

    def _counted(self, own: MemcgRecord) -> dict[str, int]:
        """From the statistics; a kind may be below 0."""
        page = self.page_bytes
        # Linux kernel commit 0d1c20722ab3 ("mm: memcontrol: switch to native NR_FILE_PAGES and NR_SHMEM counters") and
        # a similar one for anonymous pages (in v5.8): before, memcgs had statistics of their own.
        cache = self._first(own.stats, "MEMCG_CACHE", "NR_FILE_PAGES")
        shmem = self.stat(own.stats, "NR_SHMEM", page)
        anon = self._first(own.stats, "MEMCG_RSS", "NR_ANON_MAPPED")
        # The kernel counts pages on their way to or from swap in the page cache of the node, never in that of a memcg:
        # add_to_swap_cache() changes NR_FILE_PAGES by __mod_node_page_state(). Those that are mapped count as anon.
        swapcache = self.stat(own.stats, "NR_SWAPCACHE", page) if not anon else None
        found = {
            "shmem": shmem,
            "anon": anon,
            "file": None if cache is None or shmem is None else cache - shmem,
            "swapcache": swapcache,
        }
        return {kind: size for kind, size in found.items() if size is not None}

    def _first(self, stats: Sequence[int], *names: str) -> int | None:
        return next((found for name in names if (found := self.stat(stats, name, self.page_bytes)) is not None), None)

    def _user_bytes(self, own: MemcgRecord) -> int:
        """Pages that are not the kernel's, from the page counters; including the kernel's where those do not separate
        it.

        The kernel memory that dying memcgs had is charged to their parents and still in their own counters. It is in
        both of these counters, so the difference is right.
        """
        kernel = self.kernel_bytes(own)
        return own.memory_pages * self.page_bytes - (kernel or 0)

    def _agree(self, counted: Mapping[str, int], own: MemcgRecord, limit: int) -> bool:
        """Whether the page counter and the LRU lists agree with the statistics."""
        total = sum(counted.values())
        if min(counted.values(), default=0) < 0 or total > limit:
            return False
        return own.lru is None or abs(total // self.page_bytes - own.lru.total) <= _BATCH * self.cpus

    def _of_lists(self, lists: LruPages | None, counted: Mapping[str, int]) -> dict[str, int] | None:
        """From the LRU lists: one has the page cache and the other all else, for which the statistics must leave only
        one kind. None if they leave more, and for unevictable pages, which may be of any kind."""
        if lists is None or lists.unevictable or min(lists) < 0:
            return None
        found = {"file": lists.file * self.page_bytes}
        if lists.anon:
            kinds = [kind for kind, size in counted.items() if kind != "file" and size > 0]
            if len(kinds) != 1:
                return None
            found[kinds[0]] = lists.anon * self.page_bytes
        return found


def less_children(records: Iterable[MemcgRecord], wanted: Collection[int]) -> dict[int, MemcgRecord]:
    """css, of those `wanted` -> its record with what it holds itself; the kernel's counters include those below."""
    local: dict[int, tuple[MemcgRecord, list[int]]] = {}
    for record in records:  # parents come before children
        if record.css in wanted:
            local[record.css] = record, [*_counters(record), *record.stats]
        if record.parent_css in local:
            parent = local[record.parent_css][1]
            for index, value in enumerate((*_counters(record), *record.stats)):
                parent[index] -= value
    return {css: _own(record, counters) for css, (record, counters) in local.items()}


def _counters(record: MemcgRecord) -> tuple[int, int, int, int]:
    return record.memory_pages, record.swap_pages, record.kmem_pages, record.tcpmem_pages


def _own(record: MemcgRecord, counters: Sequence[int]) -> MemcgRecord:
    memory, swap, kmem, tcpmem, *stats = counters
    return record._replace(
        memory_pages=memory, swap_pages=swap, kmem_pages=kmem, tcpmem_pages=tcpmem, stats=tuple(stats)
    )


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
