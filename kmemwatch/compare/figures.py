# SPDX-License-Identifier: GPL-2.0-only
"""The figures that sides are compared by: exported metrics, added up over the labels that do not matter here; pure.

`Metric` is the one table: `read` fills its figures from a snapshot, `kmemwatch.compare.prometheus` from queries.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from kmemwatch.counters import Growth
from kmemwatch.exporter.metrics import METRICS, MetricTable
from kmemwatch.model import Latency, Snapshot


@dataclass(frozen=True, slots=True)
class Series:
    """Which series of an exported metric make the figures of a `Metric`."""

    metric: str
    """Its exported name; those of `Snapshot.latency` are not exported."""
    label: str | None = None
    """Label that gives each figure its own; over all other labels the series are added up."""
    counter: bool = False
    match: tuple[tuple[str, str], ...] = ()
    """Labels that choose series."""
    in_snapshots: bool = True
    """False: only the exporter knows it, or `Snapshot` needs a way of its own."""
    in_prometheus: bool = True
    grown_by: str | None = None
    """Label to add up growth over: its values come and go, so the plain sum would fall; see `GrowthSum`."""


def _latency(name: str) -> Series:
    return Series(name, "kind", counter=True, in_snapshots=False, in_prometheus=False)


class Metric(Enum):
    """Everything that sides are compared by."""

    ONLINE = Series("kmemwatch_online_cgroups")
    ONLINE_PEAK = Series("kmemwatch_online_cgroups_peak")
    DYING = Series("kmemwatch_dying_cgroups")
    OLDEST_DYING = Series("kmemwatch_oldest_dying_cgroup_seconds")
    CACHES_MAX = Series("kmemwatch_caches_per_root_max")
    IDS = Series("kmemwatch_kmemcg_ids_in_use")
    SLAB_BYTES = Series("kmemwatch_cache_slab_bytes")
    KERNEL_BYTES = Series("kmemwatch_cgroup_kernel_bytes", match=(("cgroup", "/"),))
    DYING_BYTES = Series("kmemwatch_dying_cgroup_bytes", "kind")
    CHILD_SLABS = Series("kmemwatch_dying_cgroup_child_slab_bytes", "cache")
    OFFLINED = Series("kmemwatch_cgroups_offlined_total", counter=True)
    RELEASED = Series("kmemwatch_cgroups_released_total", counter=True)
    IDS_GIVEN = Series("kmemwatch_kmemcg_ids_given_total", counter=True)
    IDS_FREED = Series("kmemwatch_kmemcg_ids_freed_total", counter=True)
    IDS_REUSED = Series("kmemwatch_kmemcg_id_reuses_total", counter=True)
    CHECKS = Series("kmemwatch_recharge_checks_total", counter=True)
    FAILURES = Series("kmemwatch_recharge_failures_total", counter=True)
    LOST_RACES = Series("kmemwatch_recharge_lost_races_total", counter=True)
    ALLOCATIONS = Series("kmemwatch_cache_allocations_total", counter=True, in_snapshots=False, grown_by="cache")
    RECHARGES = Series("kmemwatch_recharges_total", "from_state", counter=True)
    RECHARGED_BYTES = Series("kmemwatch_recharged_bytes_total", "from_state", counter=True)
    LOST = Series("kmemwatch_events_lost_total", "reason", counter=True)
    BPF_SECONDS = Series("kmemwatch_bpf_run_seconds_total", counter=True, in_snapshots=False)
    BPF_RUNS = Series("kmemwatch_bpf_runs_total", counter=True, in_snapshots=False)
    LATENCY_SAMPLES = _latency("latency_samples")
    LATENCY_NS = _latency("latency_ns")
    LATENCY_DROPPED = _latency("latency_dropped")
    LATENCY_BUCKET = _latency("latency_bucket")

    __hash__ = object.__hash__  # Enum's is written in Python, and every look-up would call it

    def of(self, values: Values) -> float | None:
        """The figure of a metric that is not split by a label."""
        return values.get(figure(self))

    def total(self, values: Values) -> float | None:
        """All its figures added up; None when there is none."""
        found = [value for one, value in values.items() if one.metric is self]
        return sum(found) if found else None


class Figure(NamedTuple):
    """What a sample has one value of."""

    metric: Metric
    label: str = ""
    """Value of `Series.label`; empty without one."""
    bucket: int = 0
    """Of a histogram of latencies: its number."""


Values = Mapping[Figure, float]
"""A figure that is not known is absent."""


@functools.cache
def figure(metric: Metric, label: str = "", bucket: int = 0) -> Figure:
    """The same object each time: thousands of samples have it as a key."""
    return Figure(metric, label, bucket)


def pinned(values: Values) -> float | None:
    """Bytes of all kinds that keep memcgs dying: 0 when none is dying."""
    found = Metric.DYING_BYTES.total(values)
    return 0.0 if found is None and Metric.DYING.of(values) == 0 else found


class GrowthSum:
    """Adds up what counters grow by, each by itself, so that one that disappears takes nothing away."""

    def __init__(self) -> None:
        self.restart()

    def add(self, items: Iterable[tuple[Hashable, float]]) -> float | None:
        """The sum after these (counter, value) were read; None when there are none."""
        values = {counter: (value,) for counter, value in items}
        self._total += sum(self._growth.look(values).columns[0])
        return self._total if values else None

    def restart(self) -> None:
        """All counters begin at 0 again, and so does the sum."""
        self._growth: Growth[Hashable, float] = Growth(1)
        self._total = 0.0


_BY_NAME = {metric.value.metric: metric for metric in Metric if metric.value.in_snapshots}
FROM_STATES = ("dying", "none", "online")
"""Who had a slab before it was recharged."""


def read(snapshot: Snapshot) -> dict[Figure, float]:
    """The figures of one snapshot."""
    found: dict[Figure, float] = {}
    for table in METRICS:
        fields = [(field.get, _BY_NAME[field.metric]) for field in table.fields if field.metric in _BY_NAME]
        for item in table.items(snapshot) if fields else ():
            for get, metric in fields:
                value = get(item)
                if isinstance(value, int | float) and _matches(table, item, metric.value):
                    label = metric.value.label
                    key = figure(metric, table.labels[label](item) if label is not None else "")
                    found[key] = found.get(key, 0) + value
    if snapshot.recharges.totals is not None:  # a state that has no row has no recharges
        for state in FROM_STATES:
            found.setdefault(figure(Metric.RECHARGES, state), 0)
            found.setdefault(figure(Metric.RECHARGED_BYTES, state), 0)
    if snapshot.latency is not None:
        found |= _read_latency(snapshot.latency)
    return found


def _matches(table: MetricTable[Snapshot, Any], item: Any, series: Series) -> bool:
    return all(table.labels[label](item) == value for label, value in series.match)


def _read_latency(latency: Latency) -> dict[Figure, float]:
    found: dict[Figure, float] = {
        figure(Metric.LATENCY_DROPPED, kind): count for kind, count in latency.dropped_total.items()
    }
    for one in latency.histograms:
        found[figure(Metric.LATENCY_SAMPLES, one.kind)] = one.samples_total
        found[figure(Metric.LATENCY_NS, one.kind)] = one.sum_ns_total
        for number, count in enumerate(one.buckets):
            if count:
                found[figure(Metric.LATENCY_BUCKET, one.kind, number)] = count
    return found
