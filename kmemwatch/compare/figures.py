# SPDX-License-Identifier: GPL-2.0-only
"""The figures that sides are compared by: exported metrics, added up over the labels that do not matter here; pure.

A figure is named as Prometheus writes a series, for example ``kmemwatch_recharges_total{from_state="dying"}``. A
snapshot and a query give the same names, as both are read by way of the one table in `kmemwatch.exporter.metrics`.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmemwatch.exporter.metrics import METRICS
from kmemwatch.model import Latency, Snapshot
from kmemwatch.views.fields import COUNTER

Values = Mapping[str, float]
"""Name of a figure -> value; absent when it is not known."""

ONLINE = "kmemwatch_online_cgroups"
ONLINE_PEAK = "kmemwatch_online_cgroups_peak"
DYING = "kmemwatch_dying_cgroups"
DYING_BYTES = "kmemwatch_dying_cgroup_bytes"
DYING_AGES = "kmemwatch_dying_cgroups_by_age"
OLDEST_DYING = "kmemwatch_oldest_dying_cgroup_seconds"
CHILD_SLABS = "kmemwatch_dying_cgroup_child_slab_bytes"
OFFLINED = "kmemwatch_cgroups_offlined_total"
RELEASED = "kmemwatch_cgroups_released_total"
CACHES_MAX = "kmemwatch_caches_per_root_max"
IDS = "kmemwatch_kmemcg_ids_in_use"
IDS_GIVEN = "kmemwatch_kmemcg_ids_given_total"
IDS_FREED = "kmemwatch_kmemcg_ids_freed_total"
IDS_REUSED = "kmemwatch_kmemcg_id_reuses_total"
CHECKS = "kmemwatch_recharge_checks_total"
FAILURES = "kmemwatch_recharge_failures_total"
LOST_RACES = "kmemwatch_recharge_lost_races_total"
RECHARGES = "kmemwatch_recharges_total"
RECHARGED_BYTES = "kmemwatch_recharged_bytes_total"
ALLOCATIONS = "kmemwatch_cache_allocations_total"
SLAB_BYTES = "kmemwatch_cache_slab_bytes"
KERNEL_BYTES = "kmemwatch_cgroup_kernel_bytes"
LOST = "kmemwatch_events_lost_total"
BPF_SECONDS = "kmemwatch_bpf_run_seconds_total"
BPF_RUNS = "kmemwatch_bpf_runs_total"
LATENCY_SAMPLES = "latency_samples"
LATENCY_NS = "latency_ns"
LATENCY_DROPPED = "latency_dropped"
LATENCY_BUCKET = "latency_bucket"
"""Those of `Snapshot.latency`, which is no metric: by kind, the last by ``KIND/NUMBER``."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric, the labels that are kept, and those that choose series."""

    metric: str
    keep: tuple[str, ...] = ()
    match: tuple[tuple[str, str], ...] = ()
    counter: bool = False
    in_snapshots: bool = True
    """False: only the exporter knows it."""
    grown_by: str | None = None
    """Label to add up growth over: items come and go, so that their plain sum would fall; see `Growth`."""


FIGURES: tuple[Figure, ...] = (
    *(Figure(name) for name in (ONLINE, ONLINE_PEAK, DYING, OLDEST_DYING, CACHES_MAX, IDS, SLAB_BYTES)),
    Figure(KERNEL_BYTES, match=(("cgroup", "/"),)),
    Figure(DYING_BYTES, ("kind",)),
    Figure(DYING_AGES, ("at_least",)),
    Figure(CHILD_SLABS, ("cache",)),
    *(
        Figure(name, counter=True)
        for name in (OFFLINED, RELEASED, IDS_GIVEN, IDS_FREED, IDS_REUSED, CHECKS, FAILURES, LOST_RACES)
    ),
    Figure(ALLOCATIONS, counter=True, in_snapshots=False, grown_by="cache"),
    Figure(RECHARGES, ("from_state",), counter=True),
    Figure(RECHARGED_BYTES, ("from_state",), counter=True),
    Figure(LOST, ("reason",), counter=True),
    Figure(BPF_SECONDS, counter=True, in_snapshots=False),
    Figure(BPF_RUNS, counter=True, in_snapshots=False),
)
_LATENCY = frozenset({LATENCY_SAMPLES, LATENCY_NS, LATENCY_DROPPED, LATENCY_BUCKET})
COUNTERS = frozenset(figure.metric for figure in FIGURES if figure.counter) | _LATENCY


def name(metric: str, labels: Iterable[tuple[str, str]] = ()) -> str:
    """As Prometheus writes it."""
    inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels)
    return sys.intern(f"{metric}{{{inside}}}") if inside else metric


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def is_counter(figure: str) -> bool:
    """Whether a figure (by its name) only grows."""
    return figure.partition("{")[0] in COUNTERS


def of_metric(values: Iterable[str], metric: str) -> list[str]:
    """Names among `values` that belong to the metric."""
    return [one for one in values if one == metric or one.startswith(metric + "{")]


def label_value(figure: str) -> str:
    """Value of the only label of a figure; empty when it has none."""
    _, _, rest = figure.partition('="')
    return rest.removesuffix('"}').replace('\\"', '"').replace("\\\\", "\\")


def known_sum(values: Values, metric: str) -> float | None:
    """All figures of a metric added up; None when there is none."""
    found = [values[one] for one in of_metric(values, metric)]
    return sum(found) if found else None


def pinned(values: Values) -> float | None:
    """Bytes of all kinds that keep dying memcgs: 0 when none is dying."""
    found = known_sum(values, DYING_BYTES)
    return 0.0 if found is None and values.get(DYING) == 0 else found


class Growth:
    """Adds up what counters grow by, each by itself: one that is gone took nothing away."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, float] = {}
        self._total = 0.0

    def add(self, items: Iterable[tuple[Hashable, float]]) -> float | None:
        """The sum after these (counter, value) were read; None when there are none."""
        seen = dict(items)
        for key, value in seen.items():
            before = self._seen.get(key, 0.0)
            self._total += value - before if value >= before else value
        self._seen = seen
        return self._total if seen else None

    def restart(self) -> None:
        """All counters begin at 0 again, and so does the sum."""
        self._seen, self._total = {}, 0.0


_WANTED = {figure.metric: figure for figure in FIGURES if figure.in_snapshots}


def read(snapshot: Snapshot) -> dict[str, float]:
    """The figures of one snapshot."""
    found: dict[str, float] = {}
    for table in METRICS:
        fields = [(field, _WANTED[field.metric]) for field in table.fields if field.metric in _WANTED]
        if not fields:
            continue
        for item in table.items(snapshot):
            for field, figure in fields:
                value = field.get(item)
                if isinstance(value, int | float) and _matches(table.labels, item, figure):
                    key = name(figure.metric, [(label, table.labels[label](item)) for label in figure.keep])
                    found[key] = found.get(key, 0) + value
    if snapshot.recharges.totals is not None:  # a state that has no row has no recharges
        for state in ("dying", "none", "online"):
            found.setdefault(name(RECHARGES, [("from_state", state)]), 0)
            found.setdefault(name(RECHARGED_BYTES, [("from_state", state)]), 0)
    if snapshot.latency is not None:
        found |= _of_latency(snapshot.latency)
    return found


def _of_latency(latency: Latency) -> dict[str, float]:
    found: dict[str, float] = {
        name(LATENCY_DROPPED, [("kind", what)]): count for what, count in latency.dropped_total.items()
    }
    for one in latency.histograms:
        found[name(LATENCY_SAMPLES, [("kind", one.kind)])] = one.samples_total
        found[name(LATENCY_NS, [("kind", one.kind)])] = one.sum_ns_total
        for number, count in enumerate(one.buckets):
            if count:
                found[name(LATENCY_BUCKET, [("kind", f"{one.kind}/{number}")])] = count
    return found


def _matches(labels: Mapping[str, Any], item: Any, figure: Figure) -> bool:
    return all(labels[label](item) == value for label, value in figure.match)


assert all(field.kind == COUNTER for table in METRICS for field in table.fields if field.metric in COUNTERS)
