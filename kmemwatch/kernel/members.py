# SPDX-License-Identifier: GPL-2.0-only
"""Members of kernel structs that kmemwatch reads, their macros, and where they were on older kernels.

``OFF_<name>`` in bpf/ is the offset of the first alternative that this kernel has. Later alternatives are older
layouts; the commit that moved the member stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

from kmemwatch.kernel.btf import Btf

MEMBERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "task_struct__cgroups": (("task_struct", "cgroups"),),
    "task_struct__active_memcg": (("task_struct", "active_memcg"),),
    "task_struct__files": (("task_struct", "files"),),
    "css_set__subsys": (("css_set", "subsys"),),
    "cgroup__kn": (("cgroup", "kn"),),
    "cgroup__root": (("cgroup", "root"),),
    "cgroup__self": (("cgroup", "self"),),
    "cgroup__subsys": (("cgroup", "subsys"),),
    "cgroup_root__hierarchy_id": (("cgroup_root", "hierarchy_id"),),
    "cgroup_subsys_state__cgroup": (("cgroup_subsys_state", "cgroup"),),
    "cgroup_subsys_state__parent": (("cgroup_subsys_state", "parent"),),
    "cgroup_subsys_state__serial_nr": (("cgroup_subsys_state", "serial_nr"),),
    "cgroup_subsys_state__children": (("cgroup_subsys_state", "children"),),
    "cgroup_subsys_state__sibling": (("cgroup_subsys_state", "sibling"),),
    "cgroup_subsys_state__refcnt__data": (("cgroup_subsys_state", "refcnt.data"),),
    "percpu_ref_data__count": (("percpu_ref_data", "count"),),
    "kernfs_node__id": (("kernfs_node", "id"),),
    "kernfs_node__name": (("kernfs_node", "name"),),
    "mem_cgroup__memory__usage": (("mem_cgroup", "memory.usage"),),
    "mem_cgroup__swap__usage": (("mem_cgroup", "swap.usage"),),
    "mem_cgroup__memsw__usage": (("mem_cgroup", "memsw.usage"),),
    "mem_cgroup__kmem__usage": (("mem_cgroup", "kmem.usage"),),
    "mem_cgroup__tcpmem__usage": (("mem_cgroup", "tcpmem.usage"),),
    "mem_cgroup__kmemcg_id": (("mem_cgroup", "kmemcg_id"),),
    # A pointer since commit 410f8e82689e ("memcg: extract memcg_vmstats from struct mem_cgroup") (in v6.1); a plain
    # array before commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in v5.13).
    "mem_cgroup__vmstats": (("mem_cgroup", "vmstats"),),
    "memcg_vmstats__state": (("memcg_vmstats", "state"),),
    "mem_cgroup__nodeinfo": (("mem_cgroup", "nodeinfo"),),
    "mem_cgroup_per_node__memcg": (("mem_cgroup_per_node", "memcg"),),
    "mem_cgroup_per_node__lru_zone_size": (("mem_cgroup_per_node", "lru_zone_size"),),
    # Only with CONFIG_LRU_GEN, since commit ec1c86b25f4b ("mm: multi-gen LRU: groundwork") (in v6.1).
    "mem_cgroup_per_node__lru_generations": (("mem_cgroup_per_node", "lruvec.lrugen.nr_pages"),),
    "kmem_cache__name": (("kmem_cache", "name"),),
    "kmem_cache__size": (("kmem_cache", "size"),),
    "kmem_cache__flags": (("kmem_cache", "flags"),),
    "kmem_cache__list": (("kmem_cache", "list"),),
    # The first element of either array. The nodes share an array with the barns of sheaves by v7.2.
    "kmem_cache__node": (("kmem_cache", "per_node.node"), ("kmem_cache", "node")),
    "kmem_cache__oo": (("kmem_cache", "oo"),),
    # Only where memcgs have child caches.
    "kmem_cache__memcg_params__root_cache": (("kmem_cache", "memcg_params.root_cache"),),
    "kmem_cache__memcg_params__id": (("kmem_cache", "memcg_params.id"),),
    "mem_cgroup__kmem_cache_id": (("mem_cgroup", "kmem_cache_id"),),
    "mem_cgroup__kmem_cache_id_held": (("mem_cgroup", "kmem_cache_id_held"),),
    "mem_cgroup__id": (("mem_cgroup", "id.id"),),
    "kmem_cache_node__partial": (("kmem_cache_node", "partial"),),
    "kmem_cache_node__nr_slabs": (("kmem_cache_node", "nr_slabs"),),
    "page__flags": (("page", "flags"),),
    "page__page_type": (("page", "page_type"),),
    # The order of a compound page is in its second struct page. That became a part of struct folio, and then the order
    # moved to the low byte of `_flags_1` (by v6.12). `_flags_1` is older than that: the first one that exists counts.
    "page__compound_order": (("page", "compound_order"),),
    "folio__folio_order": (("folio", "_folio_order"),),
    "folio__flags_1": (("folio", "_flags_1"),),
    # Renamed by "mm: rename the 'compound_head' field in the 'struct page' to 'compound_info'" (by v7.2).
    "page__compound_head": (("page", "compound_info"), ("page", "compound_head")),
    # Commit d122019bf061 ("mm: Split slab into its own type") (in v5.17); members of struct page before.
    "slab__slab_cache": (("slab", "slab_cache"), ("page", "slab_cache")),
    "slab__slab_list": (("slab", "slab_list"), ("page", "slab_list")),
    "slab__freelist": (("slab", "freelist"), ("page", "freelist")),
    # Commit 21c690a349ba ("mm: introduce slabobj_ext to support slab object extensions") (in v6.10); memcg_data since
    # commit bcfe06bf2622 ("mm: memcontrol: Use helpers to read page's memcg data") (in v5.11); obj_cgroups before.
    "slab__obj_exts": (("slab", "obj_exts"), ("slab", "memcg_data"), ("page", "memcg_data"), ("page", "obj_cgroups")),
    # A bit field of 15 bits that begins at a byte; only with the allocator SLUB.
    "slab__objects": (("slab", "objects"), ("page", "objects")),
    # Only where a vector may lie in unused space of the slab itself, with this many bytes between entries (by v7.2).
    "slab__stride": (("slab", "stride"),),
    # kfree_rcu() puts objects into a sheaf of their cache, where they wait for a grace period (by v6.18).
    "slab_sheaf__size": (("slab_sheaf", "size"),),
    "slab_sheaf__objects": (("slab_sheaf", "objects"),),
    "obj_cgroup__memcg": (("obj_cgroup", "memcg"),),
    "files_struct__fdt": (("files_struct", "fdt"),),
    "fdtable__fd": (("fdtable", "fd"),),
    "file__private_data": (("file", "private_data"),),
    # A kprobe behind its perf event: only where the kernel has kprobes. The same names from v5.10 to v7.2.
    "perf_event__tp_event": (("perf_event", "tp_event"),),
    "trace_probe_event__call": (("trace_probe_event", "call"),),
    "trace_probe_event__probes": (("trace_probe_event", "probes"),),
    "trace_probe__list": (("trace_probe", "list"),),
    "trace_kprobe__tp": (("trace_kprobe", "tp"),),
    "trace_kprobe__symbol": (("trace_kprobe", "symbol"),),
    "trace_kprobe__nhit": (("trace_kprobe", "nhit"),),
    "trace_kprobe__rp__handler": (("trace_kprobe", "rp.handler"),),
    "trace_kprobe__rp__nmissed": (("trace_kprobe", "rp.nmissed"),),
    "trace_kprobe__rp__kp__addr": (("trace_kprobe", "rp.kp.addr"),),
    "trace_kprobe__rp__kp__nmissed": (("trace_kprobe", "rp.kp.nmissed"),),
    "trace_kprobe__rp__kp__symbol_name": (("trace_kprobe", "rp.kp.symbol_name"),),
    "socket__sk": (("socket", "sk"),),
    "sock__skc_prot": (("sock", "__sk_common.skc_prot"),),
    "proto__slab": (("proto", "slab"),),
}

ENUMS = (
    "cgroup_subsys_id",
    "memcg_stat_item",
    "node_stat_item",
    "pageflags",
    "pagetype",
    "_slab_flag_bits",
    "lru_list",
)
"""Enums whose constants are facts; one that the kernel lacks is empty."""


def read_offsets(btf: Btf) -> dict[str, int]:
    """Macro name without ``OFF_`` -> offset in bytes, for every member that this kernel has."""
    found = {}
    for macro, alternatives in MEMBERS.items():
        for struct, path in alternatives:
            member = btf.field(struct, path)
            if member is not None:
                found[macro] = member.offset_bytes
                break
    return found


def read_sizes(btf: Btf) -> dict[str, int]:
    """Sizes in bytes and lengths in elements that the programs need; absent where the kernel lacks the type."""
    found = {}
    for struct in ("page", "slabobj_ext", "kfence_metadata"):
        size = btf.size(struct)
        if size is not None:
            found[struct] = size
    vmstats = btf.field("mem_cgroup", "vmstats")
    if vmstats is not None:
        found["vmstats_pointer"] = int(vmstats.pointer)
        state = btf.field("memcg_vmstats", "state")
        elements = state.elements if state is not None else vmstats.elements
        if elements is not None:
            found["vmstats_elements"] = elements
    for name, path in (("lru_zone_size", "lru_zone_size"), ("lru_generations", "lruvec.lrugen.nr_pages")):
        lists = btf.field("mem_cgroup_per_node", path)
        if lists is not None:
            found[name] = lists.size_bytes
    for member in ("per_node", "node"):
        nodes = btf.field("kmem_cache", member)
        if nodes is not None and nodes.elements is not None:
            # An array that ends the struct may be declared longer or shorter than it is, so only its stride is used.
            # BTF has no size for an array of no elements; it is an array of pointers.
            found["kmem_cache_node_stride"] = nodes.size_bytes // nodes.elements if nodes.elements else 8
            break
    return found
