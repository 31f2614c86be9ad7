# SPDX-License-Identifier: GPL-2.0-only
"""Facts that neither BTF nor kallsyms has on every kernel, found in the kernel's memory and verified there."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmemwatch.errors import KmemwatchError, raise_if_shortage
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps import decode
from kmemwatch.maps.peek import PEEK_PART_BYTES, Peek

IOMEM = Path("/proc/iomem")
_NAME = re.compile(r"(?:[\x21-\x5b\x5d-\x7e]|\\\\)(?:[\x20-\x5b\x5d-\x7e]|\\\\)*")
"""In the escaped form of `units.printable`: ASCII in which only backslashes are escaped."""
_U64 = (1 << 64) - 1
_SAMPLES = 64
_LIST_TRIES = 5
_REPAIRS = 1000
"""Caches that may leave the list during one walk through it, at most."""
_ORDER_SHIFT = 16
_PREVIOUS = 8
"""Offset of `prev` in a ``struct list_head``."""
POSSIBLE_NODES = Path("/sys/devices/system/node/possible")


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """One ``struct kmem_cache``."""

    address: int
    name: str
    size_bytes: int
    flags: int
    slab_bytes: int | None = None
    """Memory of all its slabs. The kernel counts them with CONFIG_SLUB_DEBUG; None without."""
    root: int | None = None
    """Address of the root cache; None for a root cache itself, and on kernels without child caches."""
    kmemcg_id: int | None = None
    """Of a child cache."""


class CacheList:
    """The kernel's list of caches."""

    def __init__(self, peek: Peek, facts: Facts, first: int) -> None:
        """`first`: address of a cache that is never destroyed, see `first_cache`."""
        self._peek = peek
        self._offsets = facts.offsets
        self._first = first
        # All of these members are in the first bytes of the struct; `node`, a long array, ends it.
        wanted = ("name", "size", "flags", "list", "node")
        self._nodes = range(possible_nodes())
        self._stride = facts.sizes.get("kmem_cache_node_stride", 8)
        last = max(self._offsets[f"kmem_cache__{member}"] for member in wanted)
        self._child = "kmem_cache__memcg_params__root_cache" in self._offsets
        if self._child:
            last = max(last, *(self._offsets[f"kmem_cache__memcg_params__{member}"] for member in ("root_cache", "id")))
        self._bytes = last + max(16, self._stride * len(self._nodes))
        self._page_bytes = facts.page_bytes
        self._known: list[int] = []
        """Addresses that the last `read` found."""

    def read(self) -> list[CacheRecord]:
        """All caches. Raises OSError or KmemwatchError when the list cannot be followed."""
        structs = self._some_structs()
        names = self._names([self._pointer(raw, "name") for raw in structs.values()])
        slabs = self._slabs(list(structs.values()))
        found = []
        for (address, raw), name, number in zip(structs.items(), names, slabs, strict=True):
            record = self._record(address, raw, name, number)
            if record is not None:
                found.append(record)
        self._known = list(structs)
        return found

    def _some_structs(self) -> dict[int, bytes]:
        # The links of a cache that is destroyed meanwhile lead anywhere; in the next try it has left the list.
        for _ in range(_LIST_TRIES - 1):
            try:
                return self._structs()
            except (OSError, KmemwatchError):
                self._known = []
        return self._structs()

    def _structs(self) -> dict[int, bytes]:
        """address -> the struct, in the list's order. Reads those of the last time at once, then follows the links.

        Hundreds of child caches may be destroyed meanwhile. So the `prev` of each struct must lead back to the one
        before it. Where it does not, the one before is read again, and dropped if it has left the list itself.
        """
        link = self._offsets["kmem_cache__list"]
        known = self._known if self._bytes <= PEEK_PART_BYTES else []
        guessed = dict(zip(known, self._peek.read_many(known, self._bytes), strict=True))
        found = {self._first: self._peek.read(self._first, self._bytes)}
        path, repairs = [self._first], 0
        while (address := self._links(found[path[-1]])[0] - link) != self._first:
            raw = guessed.pop(address, None) or self._try(address)
            if raw is not None and self._links(raw)[1] == path[-1] + link and address not in found:
                found[address] = raw
                path.append(address)
                continue
            repairs += 1
            if repairs > _REPAIRS:
                raise KmemwatchError(
                    f"the list of slab caches does not lead back to its beginning ({len(path)} visited)"
                )
            self._reread_last(found, path)
        return found

    def _reread_last(self, found: dict[int, bytes], path: list[int]) -> None:
        """Read the last of `path` again; drop it if it has left the list."""
        last = path[-1]
        raw = self._try(last)
        if len(path) == 1:
            found[last] = raw or self._peek.read(last, self._bytes)
        elif raw is not None and self._links(raw)[1] == path[-2] + self._offsets["kmem_cache__list"]:
            found[last] = raw
        else:
            del found[path.pop()]

    def _try(self, address: int) -> bytes | None:
        """The struct; None at an unreadable address, such as a link that the kernel has poisoned."""
        try:
            return self._peek.read(address, self._bytes)
        except OSError as error:
            raise_if_shortage(error)
            return None

    def _links(self, raw: bytes) -> tuple[int, int]:
        """(next, previous): addresses of the links of other caches."""
        following, previous = struct.unpack_from("=QQ", raw, self._offsets["kmem_cache__list"])
        return following, previous

    def _pointer(self, raw: bytes, member: str) -> int:
        return int(struct.unpack_from("=Q", raw, self._offsets[f"kmem_cache__{member}"])[0])

    def _names(self, addresses: Sequence[int]) -> Iterator[str | None]:
        """None where no name can be read: the head of the list is no cache."""
        size = decode.CACHE_NAME_BYTES
        for address, raw in zip(addresses, self._peek.read_many(addresses, size), strict=True):
            if raw is not None and b"\0" in raw:
                yield decode.text(raw)
                continue
            try:  # it may end shortly before unreadable memory
                yield self._peek.string(address, size)
            except OSError as error:
                raise_if_shortage(error)
                yield None

    def _slabs(self, structs: Sequence[bytes]) -> list[int | None]:
        """Slabs of each cache, on all nodes; None where the kernel does not count them."""
        offsets = self._offsets
        if not {"kmem_cache__oo", "kmem_cache_node__nr_slabs"} <= offsets.keys():
            return [None] * len(structs)
        nodes, owners = [], []
        for index, raw in enumerate(structs):
            for number in self._nodes:
                (node,) = struct.unpack_from("=Q", raw, offsets["kmem_cache__node"] + number * self._stride)
                if node:
                    nodes.append(node + offsets["kmem_cache_node__nr_slabs"])
                    owners.append(index)
        sums: list[int | None] = [0] * len(structs)
        for index, counted in zip(owners, self._peek.read_many(nodes, 8), strict=True):
            before = sums[index]
            sums[index] = None if counted is None or before is None else before + struct.unpack("=Q", counted)[0]
        return sums

    def _record(self, address: int, raw: bytes, name: str | None, slabs: int | None) -> CacheRecord | None:
        """None for the head of the list, which is no cache: the bytes in place of a name are no name."""
        offsets = self._offsets
        (size,) = struct.unpack_from("=I", raw, offsets["kmem_cache__size"])
        (flags,) = struct.unpack_from("=I", raw, offsets["kmem_cache__flags"])
        if name is None or not size or size % 8 or not _NAME.fullmatch(name):
            return None
        root, kmemcg_id = self._parent(raw)
        slab_bytes = None
        if slabs is not None:
            (order_and_objects,) = struct.unpack_from("=I", raw, offsets["kmem_cache__oo"])
            # Objects per slab below, page order above: OO_SHIFT, a macro of mm/slub.c. tests/live compares with
            # slabinfo.
            slab_bytes = slabs * self._page_bytes << (int(order_and_objects) >> _ORDER_SHIFT)
        return CacheRecord(address, name, size, flags, slab_bytes, root, kmemcg_id)

    def _parent(self, raw: bytes) -> tuple[int | None, int | None]:
        """(root cache, kmemcg_id) of a child cache."""
        if not self._child:
            return None, None
        (root,) = struct.unpack_from("=Q", raw, self._offsets["kmem_cache__memcg_params__root_cache"])
        if not root:
            return None, None
        (kmemcg_id,) = struct.unpack_from("=i", raw, self._offsets["kmem_cache__memcg_params__id"])
        return root, kmemcg_id


def first_cache(peek: Peek, facts: Facts) -> int:
    """Address of a cache that is never destroyed: the oldest one, which the symbol ``slab_caches`` leads to (the kernel
    adds new ones at the front), else the cache of AF_UNIX sockets.

    Kernels without CONFIG_KALLSYMS_ALL have no symbols of data. There the way is: this task, its files, the file of a
    socket, its protocol, the protocol's cache. Raises OSError or KeyError when this kernel does not have that way.
    """
    offsets = facts.offsets
    head = (facts.symbols or {}).get("slab_caches", 0)
    if head:
        return peek.u64(head + _PREVIOUS) - offsets["kmem_cache__list"]
    with socket.socket(socket.AF_UNIX) as own:
        table = peek.u64(peek.u64(peek.u64(0) + offsets["task_struct__files"]) + offsets["files_struct__fdt"])
        file = peek.u64(peek.u64(table + offsets["fdtable__fd"]) + 8 * own.fileno())
        sock = peek.u64(peek.u64(file + offsets["file__private_data"]) + offsets["socket__sk"])
        return peek.u64(peek.u64(sock + offsets["sock__skc_prot"]) + offsets["proto__slab"])


def page_base(peek: Peek, facts: Facts, caches: Sequence[CacheRecord]) -> int:
    """The value of the map ``page_base`` (bpf/slab.h), derived from slabs whose page and objects are both known.

    A partial slab has the address of its page and of its first free object. The page of an object at v is
    ``base + v / page size * sizeof(struct page)``. In a slab of several pages the object may be k pages further, which
    gives a base that is k pages too low; so the highest one is right. Then every sample must lead back to its slab.
    Raises KmemwatchError when there is no sample, or too many do not lead back.
    """
    page_struct = facts.sizes["page"]
    samples = list(_slab_samples(peek, facts, caches))
    if not samples:
        raise KmemwatchError("no partially filled slab was found to learn from where struct pages are")
    base = max((page - object_at // facts.page_bytes * page_struct) & _U64 for page, object_at in samples)
    own_pages = [(base + object_at // facts.page_bytes * page_struct) & _U64 for _, object_at in samples]
    heads = peek.read_many([own + facts.offsets["page__compound_head"] for own in own_pages], 8)
    wrong = sum(
        raw is None or head_page(own, int.from_bytes(raw, sys.byteorder)) != page
        for (page, _), own, raw in zip(samples, own_pages, heads, strict=True)
    )
    # Some slabs are freed and made meanwhile; a wrong base would be wrong for all samples.
    if wrong > len(samples) // 10:
        raise KmemwatchError(f"{wrong} of {len(samples)} objects do not lead back to their slab")
    return base


def head_page(page: int, compound_info: int) -> int:
    """Address of the head of the page at `page`: as ``head_of_tail`` in bpf/slab.h."""
    if not compound_info & 1:
        return page
    return page & compound_info if compound_info > _U64 - (1 << 32) else compound_info - 1


def _slab_samples(peek: Peek, facts: Facts, caches: Sequence[CacheRecord]) -> Iterator[tuple[int, int]]:
    """(address of the slab's head page, address of its first free object), of some slabs of different caches."""
    number = 0
    for cache in caches:
        found = []
        try:
            for sample in _partial_slabs(peek, facts.offsets, cache):
                found.append(sample)
        except OSError as error:  # the slab was freed meanwhile, and its links lead nowhere
            raise_if_shortage(error, "reading kernel memory")
        yield from found
        number += len(found)
        if number >= _SAMPLES:
            return


def _partial_slabs(peek: Peek, offsets: Mapping[str, int], cache: CacheRecord) -> Iterator[tuple[int, int]]:
    """The same of the first two slabs of a cache's list. Raises OSError when one is freed meanwhile."""
    node = peek.u64(cache.address + offsets["kmem_cache__node"])
    if not node:
        return
    head = node + offsets["kmem_cache_node__partial"]
    entry = peek.u64(head)
    for _ in range(2):
        if entry == head:
            return
        page = entry - offsets["slab__slab_list"]
        object_at, owner = peek.u64(page + offsets["slab__freelist"]), peek.u64(page + offsets["slab__slab_cache"])
        if owner != cache.address:
            return  # it has left the list meanwhile
        if object_at:
            yield page, object_at
        entry = peek.u64(entry)


def slab_account_flag(facts: Facts, caches: Sequence[CacheRecord]) -> int | None:
    """Value of SLAB_ACCOUNT; None when it cannot be found out.

    An enum since the Linux kernel commit "mm, slab: use an enum to define SLAB_ cache creation flags" (in v6.9), a
    macro before. Then it is the one flag that all of some well-known accounted caches have and no plain kmalloc cache
    has.
    """
    bit = facts.enums.get("_slab_flag_bits", {}).get("_SLAB_ACCOUNT")
    if bit is not None:
        return 1 << bit
    accounted = [cache.flags for cache in caches if cache.name in _ACCOUNTED]
    plain = [
        cache.flags for cache in caches if re.fullmatch(r"kmalloc-(8|16|32|64|96|128|192|256|512|1k|2k|4k)", cache.name)
    ]
    if len(accounted) < 3 or len(plain) < 6:
        return None
    common = 0xFFFFFFFF
    for flags in accounted:
        common &= flags
    for flags in plain:
        common &= ~flags
    return common if common.bit_count() == 1 else None


_ACCOUNTED = (
    "task_struct",
    "shmem_inode_cache",
    "sock_inode_cache",
    "ext4_inode_cache",
    "xfs_inode",
    "files_cache",
    "fs_cache",
    "kmalloc-cg-64",
    "kmalloc-cg-1k",
    "proc_inode_cache",
    "skbuff_head_cache_accounted",
)


def stats_index(peek: Peek, facts: Facts) -> Mapping[str, int] | None:
    """Index in ``memcg_vmstats.state`` of each statistic, by its name in the kernel's enums; None when unknown.

    Until Linux kernel commit ff48c71c26aa ("memcg: reduce memory for the lruvec and memcg stats") (in v6.10) the enum
    itself is the index; since then the kernel has a table, which is read from its memory.
    """
    names = dict(facts.enums.get("node_stat_item", {})) | dict(facts.enums.get("memcg_stat_item", {}))
    total = names.pop("MEMCG_NR_STAT", None)
    elements = facts.sizes.get("vmstats_elements")
    if total is None or elements is None:
        return None
    if elements >= total:
        return names
    table = _stats_table(peek, facts, total, elements)
    if table is None:
        return None
    return {name: table[item] for name, item in names.items() if item < total and table[item] < elements}


def _stats_table(peek: Peek, facts: Facts, total: int, elements: int) -> bytes | None:
    """``mem_cgroup_stats_index``: one byte per statistic, its index, or 255 for those that memcgs do not have."""
    address = (facts.symbols or {}).get("mem_cgroup_stats_index", 0)
    if address:
        table = peek.read(address, total)
        return table if is_stats_table(table, elements) else None
    found = {table for data in _kernel_data(peek, facts) for table in find_stats_tables(data, total, elements)}
    return found.pop() if len(found) == 1 else None


def is_stats_table(table: bytes, elements: int) -> bool:
    """Every index from 0 to `elements` - 1 once, and 255 everywhere else."""
    # The count of zeros alone rejects nearly everything that is no such table, at once.
    return table.count(0) == 1 and sorted(table.replace(b"\xff", b"")) == list(range(elements))


def find_stats_tables(data: bytes, total: int, elements: int) -> list[bytes]:
    """All tables of statistics in `data`; the linker aligns an array this long to 32 bytes."""
    # First a search that runs in C: beside its one 0, at least half of the table is one run of other plausible bytes.
    plausible = bytes(0 < value < elements or value == 0xFF for value in range(256))
    marks = data.translate(plausible)
    starts: set[int] = set()
    run = marks.find(bytes([1]) * (total // 2))
    while run >= 0:
        end = marks.find(0, run)
        end = len(data) if end < 0 else end
        earliest = max(0, run - total)
        starts.update(range(-(-earliest // 32) * 32, min(end, len(data) - total + 1), 32))
        run = marks.find(bytes([1]) * (total // 2), end)
    tables = (data[start : start + total] for start in sorted(starts))
    return [table for table in tables if is_stats_table(table, elements)]


def _kernel_data(peek: Peek, facts: Facts) -> Iterator[bytes]:
    """The kernel's initialised data, at the addresses that follow from /proc/iomem and ``_text``."""
    try:
        ranges = dict(re.findall(r"([0-9a-f]+-[0-9a-f]+) : Kernel (\w+)", IOMEM.read_text()))
    except OSError as error:
        raise_if_shortage(error)
        return
    sections = {name: [int(end, 16) for end in span.split("-")] for span, name in ranges.items()}
    text = (facts.symbols or {}).get("_text", 0)
    if not text or "code" not in sections or "data" not in sections or not sections["code"][0]:
        return
    first, last = sections["data"]
    try:
        yield peek.read(text + first - sections["code"][0], last - first + 1)
    except OSError as error:
        raise_if_shortage(error)
        return


def possible_nodes() -> int:
    """Number of NUMA nodes that the kernel prepared for; 1 on kernels without NUMA."""
    try:
        return int(re.split(r"[-,]", POSSIBLE_NODES.read_text().strip())[-1]) + 1
    except (OSError, ValueError) as error:
        raise_if_shortage(error)
        return 1


def boot_id() -> str | None:
    """/proc/sys/kernel/random/boot_id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        raise_if_shortage(error)
        return None


def hostname() -> str:
    """``uname -n``."""
    return os.uname().nodename
