# SPDX-License-Identifier: GPL-2.0-only
"""Every metric that a Snapshot can fill, with labels; the exporter only loops over `METRICS`.

The model has names and help of the metrics of its members. Here are their labels, and the metrics that are derived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, TypeVar

from kmemwatch import __version__
from kmemwatch.model import ABSENT, MISSING, Ids, MapFill, Pair, Recharges, Snapshot, Totals
from kmemwatch.shape import BYTES, COUNT, HISTOGRAM, SECONDS, About, shape_of
from kmemwatch.units import UNKNOWN
from kmemwatch.views import derived
from kmemwatch.views.fields import CACHE, CGROUP, PAIR, RECHARGE_TOTAL, Field, Value, member_fields

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class MetricTable(Generic[S, T]):
    """Metrics that share their labels: one series per item, field and label values.

    Two items may have the same labels (two caches of one name, a path that was used twice); their values are added up.
    """

    items: Callable[[S], Iterable[T]]
    labels: Mapping[str, Callable[[T], str]]
    """Label name -> value, already escaped; ``?`` where the name is unknown."""
    fields: tuple[Field[T], ...]
    """Only fields with a metric. A value of None means that the series is absent."""


def label(value: object) -> str:
    """Label value; ``?`` for None, ``true``/``false`` for a bool."""
    if isinstance(value, bool):
        return str(value).lower()
    return UNKNOWN if value is None else str(value)


def exported(fields: Mapping[str, Field[T]]) -> tuple[Field[T], ...]:
    """Those that have a metric."""
    return tuple(f for f in fields.values() if f.metric is not None)


def _derived(metric: str, help_: str, get: Callable[[T], Value], unit: str = COUNT, kind: str = "") -> Field[T]:
    """A metric that is no member of the model. `kind`: where its name does not tell."""
    return Field(metric, About(help_, unit, metric=f"kmemwatch_{metric}"), get, kind=kind)


def _max_copies(snapshot: Snapshot) -> int | None:
    found = derived.caches_per_root(snapshot)
    return None if found is None else max(found.values(), default=0)


def _release_delays(snapshot: Snapshot) -> tuple[float, ...] | None:
    # Where releases cannot be seen, no delays are not the same as none.
    return None if snapshot.totals.cgroups_released_total is None else snapshot.release_delays_s


SNAPSHOT: tuple[Field[Snapshot], ...] = (
    *(f.of(lambda s: s.totals) for f in exported(member_fields(Totals))),
    *(f.of(lambda s: s.recharges) for f in exported(member_fields(Recharges))),
    *(f.of(lambda s: s.ids) for f in exported(member_fields(Ids))),
    # Where the producer does not count these two, the rows of the snapshot do.
    _derived("online_cgroups", shape_of(Totals)["online_cgroups"].about.help, derived.online_count),
    _derived("dying_cgroups", shape_of(Totals)["dying_cgroups"].about.help, derived.dying_count),
    _derived(
        "oldest_dying_cgroup_seconds",
        "Seconds since the oldest dying memory cgroup was removed; one that was removed before kmemwatch was"
        " attached counts from then, so it is a lower bound. Absent when none is dying.",
        derived.oldest_dying_s,
        SECONDS,
    ),
    _derived(
        "cgroup_release_delay_seconds",
        "Seconds from the removal of a memory cgroup to its release.",
        _release_delays,
        SECONDS,
        kind=HISTOGRAM,
    ),
    _derived("caches_per_root_max", "Child caches of the root cache that has the most of them.", _max_copies),
)

_Labelled = tuple[str, int]


def _by_label(
    name: str, find: Callable[[Snapshot], dict[str, int] | None], metric: str, help_: str, unit: str = COUNT
) -> MetricTable[Snapshot, _Labelled]:
    """One metric with one label, of a dictionary from label values to figures."""
    return MetricTable(
        lambda s: sorted((find(s) or {}).items()),
        {name: lambda item: label(item[0])},
        (_derived(metric, help_, itemgetter(1), unit),),
    )


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


def _itself(snapshot: Snapshot) -> tuple[Snapshot]:
    return (snapshot,)


METRICS: tuple[MetricTable[Snapshot, Any], ...] = (
    MetricTable(
        _itself,
        {"version": lambda s: __version__},
        (_derived("build_info", "Version of kmemwatch; always 1.", lambda s: 1),),
    ),
    MetricTable(
        _itself,
        {
            "release": lambda s: label(s.host.kernel),
            "era": lambda s: label(s.kernel.era),
            "patchset": lambda s: label(s.kernel.patchset),
        },
        (
            _derived(
                "kernel_info",
                "The kernel that is watched and its era (recharge, per-memcg or objcg); always 1.",
                lambda s: 1,
            ),
        ),
    ),
    MetricTable(
        lambda s: (p for p in s.probes if p.status != ABSENT),
        {"signal": lambda p: label(p.signal), "attachment": lambda p: label(p.attachment or "none")},
        (
            _derived(
                "probe_attached",
                "1 when the signal is measured by this attachment, 0 when nothing could be attached.",
                lambda p: int(p.status != MISSING),
            ),
        ),
    ),
    _by_label(
        "reason",
        lambda s: derived.losses(s.lost),
        "events_lost_total",
        "What the kernel did and kmemwatch could not count, by reason.",
    ),
    MetricTable(lambda s: s.maps, {"map": lambda m: label(m.name)}, exported(member_fields(MapFill))),
    MetricTable(_itself, {}, SNAPSHOT),
    _by_label(
        "kind",
        lambda s: derived.pinned_bytes(derived.dying(s)),
        "dying_cgroup_bytes",
        "Bytes that keep dying memory cgroups, by kind of memory.",
        BYTES,
    ),
    _by_label(
        "at_least",
        derived.dying_by_age,
        "dying_cgroups_by_age",
        "Dying memory cgroups by the time since they were removed: at least this, and less than the next larger"
        " at_least. One that was removed before kmemwatch was attached counts from then.",
    ),
    _by_label("root", derived.caches_per_root, "caches_per_root", "Child caches of a root cache."),
    _by_label(
        "cache",
        derived.dying_slab_bytes,
        "dying_cgroup_child_slab_bytes",
        "Slabs in child caches of a root cache that are charged to dying memory cgroups, in bytes.",
        BYTES,
    ),
    MetricTable(lambda s: s.caches, {"cache": lambda c: label(c.root or c.name)}, exported(CACHE)),
    MetricTable(lambda s: s.cgroups, {"cgroup": lambda c: label(c.path)}, exported(CGROUP)),
    MetricTable(
        _pairs,
        {"cgroup": lambda item: label(item[1]), "cache": lambda item: label(item[2])},
        tuple(f.of(itemgetter(0)) for f in exported(PAIR)),
    ),
    MetricTable(
        lambda s: s.recharges.totals or (),
        {"cache": lambda t: label(t.cache), "from_state": lambda t: label(t.from_state)},
        exported(RECHARGE_TOTAL),
    ),
)
