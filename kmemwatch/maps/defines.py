# SPDX-License-Identifier: GPL-2.0-only
"""Facts -> the -D macros that bpf/ is compiled with, and what a file of bpf/ cannot do without. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from kmemwatch.kernel.facts import Facts

MAX_PAIRS = 65_536
"""(cache, memcg) pairs that are counted at once; the pairs of released memcgs are removed."""
SLOT_BITS = 12
"""4,096 pairs can have a slot of their own on each CPU, others are counted in the hash; fewer on many CPUs."""
SLOT_BYTES = 64
SLOT_PLACES = 4
"""Slots that a pair can have on a CPU: the first that is free, of neighbours; a power of 2."""
SLOTS_BYTES = 16 << 20
"""Of the slots of all CPUs at most: 4,096 each for up to 64 CPUs, 1,024 each for 256."""
SLOT_HASH, OWNER_HASH = 0x9E3779B97F4A7C15, 0x9E3779B1
"""2 ** 64, and 2 ** 32, divided by the golden ratio: they spread addresses and serial numbers evenly."""
MAX_CGROUPS = 65_536
"""Memcgs whose charges are counted at once; those of released ones are removed. Few hosts have more, as no more than
65,535 can be online."""
MAX_RECHARGES = 16_384
"""(child cache, from memcg, to memcg) that slabs moved between; those of released memcgs are removed."""
MAX_RECHARGING = 1024
"""Tasks that are in the middle of a recharge at once."""
MAX_CHILD_SLABS = 65_536
"""(child cache, memcg) that have slabs charged to them at once."""
SCAN_STEPS = 32
"""Chunks of 64 struct pages, or slabs, per run of the scan. Each costs the verifier 850 instructions at start-up; and a
run costs 4 us by itself, which is little beside the 15 us that 2,048 struct pages take."""
RING_BYTES = 2 << 20
"""Lifecycle events: the whole lives of 4,900 memcgs, which is a second of 5,000 that come and go per second. The kernel
lets it be mapped twice, and both count as memory of the process."""
LATENCY_ONE_IN = 64
"""Calls of which one is timed, with --latency; a power of 2."""
PEEK_PARTS = 64
"""Addresses that are read in one run."""
PEEK_PART_BYTES = 512
WALK_BATCH = 32
WALK_STEPS = 96
"""Edges per run of the walk: a leaf takes three."""
STATS_MAX = 64

LIMITS = {
    "MAX_PAIRS": MAX_PAIRS,
    "SLOT_HASH": SLOT_HASH,
    "OWNER_HASH": OWNER_HASH,
    "SLOT_PLACES": SLOT_PLACES,
    "MAX_CGROUPS": MAX_CGROUPS,
    "MAX_RECHARGES": MAX_RECHARGES,
    "MAX_RECHARGING": MAX_RECHARGING,
    "MAX_CHILD_SLABS": MAX_CHILD_SLABS,
    "SCAN_STEPS": SCAN_STEPS,
    "LATENCY_ONE_IN": LATENCY_ONE_IN,
    "PEEK_PARTS": PEEK_PARTS,
    "PEEK_PART_BYTES": PEEK_PART_BYTES,
    "WALK_BATCH": WALK_BATCH,
    "WALK_STEPS": WALK_STEPS,
    "STATS_MAX": STATS_MAX,
}
"""Macros that are the same for every kernel."""

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
        """Why `source` cannot be compiled for this kernel; None when it can."""
        for name in _REQUIRED[source]:
            if name == "SLAB_MARK":
                if not {"PG_SLAB", "PGTY_SLAB"} & self.values.keys():
                    return "BTF does not tell how a page is marked as slab (PG_slab or PGTY_slab)"
            elif name not in self.values and f"OFF_{name}" not in self.values:
                return f"BTF has no {name.replace('__', '.')}"
        return None


def defines(facts: Facts) -> Defines:
    """All macros that the facts give; what the kernel lacks is absent."""
    values = {f"OFF_{name}": offset for name, offset in facts.offsets.items()}
    values |= LIMITS | {"RING_PAGES": RING_BYTES // facts.page_bytes, "KMW_PAGE_BYTES": facts.page_bytes}
    optional = {
        "MEMORY_CGRP_ID": facts.enums.get("cgroup_subsys_id", {}).get("memory_cgrp_id"),
        "MEMCG_KMEM": facts.enums.get("memcg_stat_item", {}).get("MEMCG_KMEM"),
        "GFP_ACCOUNT": facts.gfp_account,
        "PAGE_STRUCT_BYTES": facts.sizes.get("page"),
        # Before struct slabobj_ext, the vector had plain pointers.
        "OBJ_EXT_BYTES": facts.sizes.get("slabobj_ext", 8),
        "STATS_COUNT": min(facts.sizes["vmstats_elements"], STATS_MAX) if "vmstats_elements" in facts.sizes else None,
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
    """Whether one read of a few words has both members."""
    return first in offsets and last in offsets and 0 <= offsets[last] - offsets[first] < 32


def _per_cpu(cpus: int) -> dict[str, int]:
    """Sizes of arrays that have a part for each CPU."""
    bits = min(SLOT_BITS, (SLOTS_BYTES // SLOT_BYTES // cpus).bit_length() - 1)
    return {"SLOT_BITS": bits, "ALL_SLOTS": cpus << bits, "POSSIBLE_CPUS": cpus}


def _compound_order(facts: Facts) -> int | None:
    """Where the byte is that has the order of a compound page, from its first struct page on."""
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
