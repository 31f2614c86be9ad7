# SPDX-License-Identifier: GPL-2.0-only
"""Every metric that a Snapshot can fill, with labels; the exporter only loops over `METRICS`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kmemwatch import __version__
from kmemwatch.model import ABSENT, MISSING, MapFill, Pair, Probe, Snapshot
from kmemwatch.shape import BYTES, COUNT, COUNTER, GAUGE, HISTOGRAM, INFO, SECONDS
from kmemwatch.views import derived
from kmemwatch.views.fields import CACHE, CGROUP, PAIR, RECHARGE_TOTAL, Field, MetricTable, label


def _exported(fields: tuple[Field[Any], ...]) -> tuple[Field[Any], ...]:
    return tuple(f for f in fields if f.metric is not None)


def _count(metric: str, kind: str, help_: str, get: Any) -> Field[Snapshot]:
    name = metric.removeprefix("kmemwatch_")
    return Field(name, name.replace("_", " ").upper(), COUNT, help_, get, metric, kind)


SNAPSHOT: tuple[Field[Snapshot], ...] = (
    _count("kmemwatch_online_cgroups", GAUGE, "Memory cgroups that are online.", derived.online_count),
    _count(
        "kmemwatch_online_cgroups_peak",
        GAUGE,
        "Most memory cgroups that were online at once since kmemwatch was attached.",
        lambda s: s.totals.online_cgroups_peak,
    ),
    _count(
        "kmemwatch_dying_cgroups",
        GAUGE,
        "Memory cgroups that are removed and not yet released by the kernel.",
        derived.dying_count,
    ),
    Field(
        "oldest_dying_cgroup_seconds",
        "OLDEST DYING",
        SECONDS,
        "Seconds since the oldest dying memory cgroup was removed; one that was removed before kmemwatch was"
        " attached counts from then, so it is a lower bound. Absent when none is dying.",
        derived.oldest_dying_s,
        "kmemwatch_oldest_dying_cgroup_seconds",
    ),
    _count(
        "kmemwatch_memcg_ids_in_use",
        GAUGE,
        "Memory cgroups that have one of the kernel's 65,535 ids: those online, and the dying ones that still have"
        " memory in swap.",
        lambda s: s.totals.memcg_ids_in_use,
    ),
    _count(
        "kmemwatch_cgroups_offlined_total",
        COUNTER,
        "Memory cgroups removed since kmemwatch was attached.",
        lambda s: s.totals.cgroups_offlined_total,
    ),
    _count(
        "kmemwatch_cgroups_released_total",
        COUNTER,
        "Memory cgroups released by the kernel since kmemwatch was attached.",
        lambda s: s.totals.cgroups_released_total,
    ),
    Field(
        "release_delay_seconds",
        "RELEASE DELAY",
        SECONDS,
        "Seconds from the removal of a memory cgroup to its release.",
        # Where releases cannot be seen, no delays are not the same as none.
        lambda s: None if s.totals.cgroups_released_total is None else s.release_delays_s,
        "kmemwatch_cgroup_release_delay_seconds",
        HISTOGRAM,
    ),
    _count(
        "kmemwatch_recharge_checks_total",
        COUNTER,
        "Checks whether a slab must be moved to the memcg that allocates from it.",
        lambda s: s.recharges.checks_total,
    ),
    _count(
        "kmemwatch_recharge_failures_total",
        COUNTER,
        "Slabs that could not be moved to another memcg.",
        lambda s: s.recharges.failures_total,
    ),
    _count(
        "kmemwatch_recharge_lost_races_total",
        COUNTER,
        "Slabs that another task had moved meanwhile.",
        lambda s: s.recharges.lost_races_total,
    ),
    _count("kmemwatch_kmemcg_ids_in_use", GAUGE, "kmemcg_ids that belong to a memcg.", lambda s: s.ids.in_use),
    _count(
        "kmemwatch_kmemcg_id_reuses_total",
        COUNTER,
        "kmemcg_ids given to a memcg after another one had them.",
        lambda s: s.ids.reuses_total,
    ),
    _count("kmemwatch_kmemcg_ids_given_total", COUNTER, "kmemcg_ids given to a memcg.", lambda s: s.ids.given_total),
    _count("kmemwatch_kmemcg_ids_freed_total", COUNTER, "kmemcg_ids given back.", lambda s: s.ids.freed_total),
    _count(
        "kmemwatch_caches_per_root_max",
        GAUGE,
        "Child caches of the root cache that has the most of them.",
        lambda s: None if (found := derived.caches_per_root(s)) is None else max(found.values(), default=0),
    ),
)

_Labelled = tuple[str, int]


def _one(metric: str, unit: str, kind: str, help_: str) -> tuple[Field[_Labelled], ...]:
    """One metric over (label value, figure) items."""
    return (Field(metric.removeprefix("kmemwatch_"), "", unit, help_, lambda item: item[1], metric, kind),)


def _items(found: dict[str, int] | None) -> Iterable[_Labelled]:
    return () if found is None else sorted(found.items())


_CacheKey = tuple[str, str | None]


def _roots(snapshot: Snapshot) -> dict[_CacheKey, str]:
    """(name, id) of each child cache -> its root cache, under which it is exported.

    Where every memcg has its own `dentry(3:name)`, a label for each would have no bound.
    """
    return {(c.name, c.id): c.root for c in snapshot.caches if c.root is not None}


def _pairs(snapshot: Snapshot) -> Iterable[tuple[Pair, str | None, str]]:
    paths = {c.id: c.path for c in snapshot.cgroups}
    roots = _roots(snapshot)
    return ((p, paths.get(p.cgroup_id), roots.get((p.cache, p.cache_id), p.cache)) for p in snapshot.pairs)


def _first(item: tuple[Any, ...]) -> Any:
    return item[0]


_BUILD = Field[Snapshot](
    "build_info", "", COUNT, "Version of kmemwatch; always 1.", lambda s: 1, "kmemwatch_build_info", INFO
)
_KERNEL = Field[Snapshot](
    "kernel_info",
    "",
    COUNT,
    "The kernel that is watched and its era (recharge, per-memcg or objcg); always 1.",
    lambda s: 1,
    "kmemwatch_kernel_info",
    INFO,
)
_PROBE = Field[Probe](
    "probe_attached",
    "",
    COUNT,
    "1 when the signal is measured by this attachment, 0 when nothing could be attached.",
    lambda p: int(p.status != MISSING),
    "kmemwatch_probe_attached",
)
_MAPS: tuple[Field[MapFill], ...] = (
    Field("map_entries", "", COUNT, "Entries in a BPF map.", lambda m: m.entries, "kmemwatch_map_entries"),
    Field(
        "map_capacity", "", COUNT, "Entries that a BPF map can hold.", lambda m: m.capacity, "kmemwatch_map_capacity"
    ),
)

METRICS: tuple[MetricTable[Any], ...] = (
    MetricTable(lambda s: (s,), {"version": lambda s: __version__}, (_BUILD,)),
    MetricTable(
        lambda s: (s,),
        {
            "release": lambda s: label(s.host.kernel),
            "era": lambda s: label(s.kernel.era),
            "patchset": lambda s: label(s.kernel.patchset),
        },
        (_KERNEL,),
    ),
    MetricTable(
        lambda s: (p for p in s.probes if p.status != ABSENT),
        {"signal": lambda p: label(p.signal), "attachment": lambda p: label(p.attachment or "none")},
        (_PROBE,),
    ),
    MetricTable(
        lambda s: _items(derived.losses(s.lost)),
        {"reason": lambda item: label(item[0])},
        _one(
            "kmemwatch_events_lost_total",
            COUNT,
            COUNTER,
            "What the kernel did and kmemwatch could not count, by reason.",
        ),
    ),
    MetricTable(lambda s: s.maps, {"map": lambda m: label(m.name)}, _MAPS),
    MetricTable(lambda s: (s,), {}, SNAPSHOT),
    MetricTable(
        lambda s: _items(derived.pinned_bytes(derived.dying(s))),
        {"kind": lambda item: label(item[0])},
        _one("kmemwatch_dying_cgroup_bytes", BYTES, GAUGE, "Bytes that keep dying memory cgroups, by kind of memory."),
    ),
    MetricTable(
        lambda s: _items(derived.dying_by_age(s)),
        {"at_least": lambda item: label(item[0])},
        _one(
            "kmemwatch_dying_cgroups_by_age",
            COUNT,
            GAUGE,
            "Dying memory cgroups by the time since they were removed: at least this, and less than the next larger"
            " at_least. One that was removed before kmemwatch was attached counts from then.",
        ),
    ),
    MetricTable(
        lambda s: _items(derived.caches_per_root(s)),
        {"root": lambda item: label(item[0])},
        _one("kmemwatch_caches_per_root", COUNT, GAUGE, "Child caches of a root cache."),
    ),
    MetricTable(
        lambda s: _items(derived.dying_slab_bytes(s)),
        {"cache": lambda item: label(item[0])},
        _one(
            "kmemwatch_dying_cgroup_child_slab_bytes",
            BYTES,
            GAUGE,
            "Slabs in child caches of a root cache that are charged to dying memory cgroups, in bytes.",
        ),
    ),
    MetricTable(lambda s: s.caches, {"cache": lambda c: label(c.root or c.name)}, _exported(CACHE)),
    MetricTable(lambda s: s.cgroups, {"cgroup": lambda c: label(c.path)}, _exported(CGROUP)),
    MetricTable(
        _pairs,
        {"cgroup": lambda item: label(item[1]), "cache": lambda item: label(item[2])},
        tuple(f.of(_first) for f in _exported(PAIR)),
    ),
    MetricTable(
        lambda s: s.recharges.totals or (),
        {"cache": lambda t: label(t.cache), "from_state": lambda t: label(t.from_state)},
        RECHARGE_TOTAL,
    ),
)
