# SPDX-License-Identifier: GPL-2.0-only
"""Facts -> the -D macros that bpf/ is compiled with, and the macros that each file of bpf/ requires. Pure.

Only numbers that depend on the kernel are here. Those that are the same everywhere are written in bpf/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.structs import constant, layout

SLOT_BITS = 12
"""4,096 pairs can have a slot on each CPU, fewer where there are many CPUs; others are counted in the hash."""
SLOTS_BYTES = 16 << 20
"""All slots together, at most: 4,096 per CPU for up to 64 CPUs, 1,024 per CPU for 256."""
RING_BYTES = 2 << 20
"""Room for the whole lives of 4,900 memcgs: about one second when 5,000 come and go per second. It is mapped twice, and
both mappings count as memory of the process."""

_CURRENT = ("task_struct__cgroups", "task_struct__active_memcg", "css_set__subsys", "MEMORY_CGRP_ID")
_CSS_ID = ("cgroup_subsys_state__cgroup", "cgroup__kn", "kernfs_node__id")
_SLAB = ("page__compound_head", "slab__slab_cache", "slab__obj_exts", "obj_cgroup__memcg", "kmem_cache__size")

_FIND_SLAB = (*_CURRENT, *_CSS_ID, *_SLAB, "SLAB_MARK", "PAGE_STRUCT_BYTES", "OBJ_EXT_BYTES")
_CHILD_CACHES = (
    *_CSS_ID,
    "kmem_cache__name",
    "kmem_cache__memcg_params__root_cache",
    "kmem_cache__memcg_params__id",
)

_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "alloc.bpf.c": (*_FIND_SLAB, "cgroup_subsys_state__serial_nr"),
    "recharge.bpf.c": (*_FIND_SLAB, *_CHILD_CACHES, "cgroup__subsys"),
    "caches.bpf.c": _CHILD_CACHES,
    "scan.bpf.c": (*_FIND_SLAB, "page__flags", "PG_HEAD", "COMPOUND_ORDER", "kmem_cache__memcg_params__root_cache"),
    "charge.bpf.c": _CSS_ID,
    "latency.bpf.c": (),
    "lifecycle.bpf.c": (
        *_CSS_ID,
        "kernfs_node__name",
        "cgroup_subsys_state__parent",
        "cgroup__root",
        "cgroup__self",
        "cgroup__subsys",
        "cgroup_root__hierarchy_id",
        "MEMORY_CGRP_ID",
    ),
    "peek.bpf.c": (
        *_CURRENT,
        *_CSS_ID,
        "kernfs_node__name",
        "cgroup__subsys",
        "cgroup_subsys_state__parent",
        "cgroup_subsys_state__serial_nr",
        "cgroup_subsys_state__children",
        "cgroup_subsys_state__sibling",
        "mem_cgroup__memory__usage",
        "mem_cgroup__swap__usage",
        "mem_cgroup__kmemcg_id",
        "mem_cgroup__vmstats",
        "STATS_COUNT",
    ),
}


@dataclass(frozen=True, slots=True)
class Defines:
    values: Mapping[str, int]
    """Macro -> value."""

    def lacking(self, source: str) -> str | None:
        """Why `source` cannot be compiled for this kernel; None when it can be."""
        for name in _REQUIRED[source]:
            if name == "SLAB_MARK":
                if not {"PG_SLAB", "PGTY_SLAB"} & self.values.keys():
                    return "BTF does not say how a page is marked as slab (PG_slab or PGTY_slab)"
            elif name not in self.values and f"OFF_{name}" not in self.values:
                return f"BTF has no {name.replace('__', '.')}"
        return None


def defines(facts: Facts) -> Defines:
    """All macros that follow from the facts; those of members that the kernel lacks are absent."""
    values = {f"OFF_{name}": offset for name, offset in facts.offsets.items()}
    values |= {"RING_PAGES": RING_BYTES // facts.page_bytes, "KMW_PAGE_BYTES": facts.page_bytes}
    statistics = facts.sizes.get("vmstats_elements")
    optional = {
        "MEMORY_CGRP_ID": facts.enums.get("cgroup_subsys_id", {}).get("memory_cgrp_id"),
        "MEMCG_KMEM": facts.enums.get("memcg_stat_item", {}).get("MEMCG_KMEM"),
        "GFP_ACCOUNT": facts.gfp_account,
        "PAGE_STRUCT_BYTES": facts.sizes.get("page"),
        # Before struct slabobj_ext, the vector had pointers.
        "OBJ_EXT_BYTES": facts.sizes.get("slabobj_ext", 8),
        "STATS_COUNT": statistics and min(statistics, constant("STATS_MAX")),
        "MEMORY_HIERARCHY_ID": facts.hierarchy["hierarchy_id"] if facts.hierarchy else None,
        "PG_HEAD": facts.enums.get("pageflags", {}).get("PG_head"),
        "COMPOUND_ORDER": _compound_order(facts),
        **_slab_mark(facts),
    }
    values |= {name: int(value) for name, value in optional.items() if value is not None}  # type: ignore[call-overload]
    values |= _per_cpu(facts.possible_cpus or facts.cpus)
    if facts.current_task_btf:
        values["HAVE_CURRENT_TASK_BTF"] = 1
    if facts.tracepoint_args.get("kmem_cache_alloc", ())[2:3] == ("kmem_cache *",):
        values["HAVE_CACHE_IN_TP_ALLOC"] = 1
    if "kmem_cache__memcg_params__root_cache" in facts.offsets:
        values["CHILD_CACHES"] = 1
    if "kfence_metadata" in facts.sizes and _near(facts.offsets, "slab__objects", "slab__obj_exts"):
        values["KFENCE"] = 1
    if facts.sizes.get("vmstats_pointer"):
        values["VMSTATS_POINTER"] = 1
    elif "memcg_vmstats__state" in facts.offsets and "mem_cgroup__vmstats" in facts.offsets:
        # Embedded, v5.13 to v6.0: one offset leads to the array.
        values["OFF_mem_cgroup__vmstats"] += facts.offsets["memcg_vmstats__state"]
    return Defines(values)


def _near(offsets: Mapping[str, int], first: str, last: str) -> bool:
    """Whether one read of a few words gets both members."""
    return first in offsets and last in offsets and 0 <= offsets[last] - offsets[first] < 32


def _per_cpu(cpus: int) -> dict[str, int]:
    """Sizes of arrays that have a part for each CPU."""
    bits = min(SLOT_BITS, (SLOTS_BYTES // layout("slot").size // cpus).bit_length() - 1)
    return {"SLOT_BITS": bits, "ALL_SLOTS": cpus << bits, "POSSIBLE_CPUS": cpus}


def _compound_order(facts: Facts) -> int | None:
    """Offset of the byte with the order of a compound page, from its first struct page on."""
    if "page__compound_order" in facts.offsets and "page" in facts.sizes:
        return facts.sizes["page"] + facts.offsets["page__compound_order"]
    if "folio__folio_order" in facts.offsets:
        return facts.offsets["folio__folio_order"]
    return facts.offsets.get("folio__flags_1") if sys.byteorder == "little" else None


def _slab_mark(facts: Facts) -> dict[str, int | None]:
    """A slab page is marked by a page type (v6.12), or by a page flag (before v6.10)."""
    if "PGTY_slab" in facts.enums.get("pagetype", {}):
        return {"PGTY_SLAB": facts.enums["pagetype"]["PGTY_slab"]}
    return {"PG_SLAB": facts.enums.get("pageflags", {}).get("PG_slab")}
