# SPDX-License-Identifier: GPL-2.0-only
"""Which of the ways of accounting slab memory this kernel has; from symbols and BTF, never from its version. Pure."""

from __future__ import annotations

from kmemwatch.kernel.facts import Facts

RECHARGE = "recharge"
"""Child caches per memcg that are reused, slabs that move: the patch set."""
PER_MEMCG = "per-memcg"
"""Child caches per memcg, nothing moves: v4.1 to v5.8."""
OBJCG = "objcg"
"""Shared caches, an owner per object: since Linux kernel commit 10befea91b61 (v5.9)."""


def has_patchset(facts: Facts) -> bool | None:
    """The kernel has ``__memcg_kmem_recharge_slab``; None when neither symbols nor BTF can be read."""
    if facts.symbols is None and not facts.btf:
        return None
    return "__memcg_kmem_recharge_slab" in (facts.symbols or {}) or "__memcg_kmem_recharge_slab" in facts.function_args


def era(facts: Facts) -> str | None:
    """RECHARGE, PER_MEMCG, OBJCG; None when it cannot be told."""
    if has_patchset(facts):
        return RECHARGE
    known = {*(facts.symbols or ()), *facts.function_args}
    if {"memcg_create_kmem_cache", "memcg_kmem_get_cache", "__memcg_kmem_get_cache"} & known:
        return PER_MEMCG
    return OBJCG if "obj_cgroup__memcg" in facts.offsets else None
