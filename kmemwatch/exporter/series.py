# SPDX-License-Identifier: GPL-2.0-only
"""Snapshot -> series, in a loop over `metrics.METRICS`.

Items with equal labels are one series. Gauges are added up, and the sum is absent when a part is unknown. Counters
never fall, see `CounterSeries`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from kmemwatch.counters import GrowingTotals, Growth
from kmemwatch.exporter.folding import OTHER, Folding, fold
from kmemwatch.exporter.metrics import METRICS, MetricTable, label
from kmemwatch.exporter.selection import ALL, SeriesSelection
from kmemwatch.model import RELEASED, Cache, Cgroup, Pair, Snapshot
from kmemwatch.shape import COUNTER, HISTOGRAM
from kmemwatch.views.fields import Field

CGROUP_LABEL = "cgroup"
CACHE_LABELS = ("cache", "root")
"""Labels whose values are root caches."""
BUCKETS_S = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0)

Labels = tuple[str, ...]
Get = Callable[[Any], Any]


@dataclass(frozen=True)
class Histogram:
    """Counts of a Prometheus histogram."""

    counts: tuple[int, ...]
    """Cumulative, one for each of BUCKETS_S and one for infinity."""
    sum: float


@dataclass(frozen=True)
class Family:
    """All series of one metric."""

    field: Field[Any]
    label_names: tuple[str, ...]
    series: Mapping[Labels, float | Histogram]

    @property
    def size(self) -> int:
        """Series that Prometheus stores for it."""
        return sum(len(v.counts) + 2 if isinstance(v, Histogram) else 1 for v in self.series.values())


@dataclass(frozen=True)
class BuiltSeries:
    """The series of one snapshot."""

    families: tuple[Family, ...]
    folded_cgroups: int
    folded_series: int
    excluded_cgroups: int | None = None
    """None when there is no option to exclude any; so below."""
    excluded_caches: int | None = None


class CounterSeries:
    """The series of one counter metric, each of which adds up what its items grow by, see `kmemwatch.counters`.

    A dying cgroup is released while a new one has its path, and a cgroup moves to ``other``: what it grows by is added
    to the series that it belongs to now.
    """

    def __init__(self) -> None:
        self.kept: Mapping[Labels, float] = {}
        """The series of ``other``, which stay even while nothing is added to them."""
        self._growth: Growth[Hashable, float] = Growth(1)
        self._totals: GrowingTotals[Labels, float] = GrowingTotals(1)
        self._values: dict[Hashable, tuple[float]] = {}
        self._labels: dict[Hashable, Labels] = {}

    def add(self, item: Hashable, labels: Labels, value: float) -> None:
        """Count `item`, whose own counter is at `value`."""
        self._values[item] = (value,)
        self._labels[item] = labels

    def finish(self) -> Mapping[Labels, float]:
        """The series; those without an item are gone, except those of ``other``, which stay."""
        grown = self._growth.look(self._values)
        self._totals.add([self._labels[item] for item in grown.items], grown.columns)
        series: dict[Labels, float] = dict.fromkeys(chain(self.kept, self._labels.values()), 0)
        self._values, self._labels = {}, {}
        self._totals.keep(series.keys())
        series.update(self._totals.column(0))
        self.kept = {labels: total for labels, total in series.items() if OTHER in labels}
        return series


@dataclass
class DelayHistogram:
    """A histogram of `Snapshot.release_delays_s`, which has only the latest values."""

    _known: tuple[float, ...] = ()
    _counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    _sum: float = 0.0

    def add(self, delays: tuple[float, ...]) -> Histogram:
        """Count the new values, which are at the end of `delays`."""
        common = min(len(delays), len(self._known))
        while common and delays[:common] != self._known[-common:]:
            common -= 1
        for delay in delays[common:]:
            self._sum += delay
            for i, bound in enumerate(BUCKETS_S):
                self._counts[i] += delay <= bound
            self._counts[-1] += 1
        self._known = delays
        return Histogram(tuple(self._counts), self._sum)


@dataclass(frozen=True)
class _CgroupLabels:
    """The labels of items that have a cgroup, in one snapshot."""

    folding: Folding
    labels: Mapping[str, Labels]
    """Value of the label ``cgroup`` -> values of the labels that come with it."""


class SeriesBuilder:
    """Turns snapshots, in the order in which they were taken, into series. Not thread-safe."""

    def __init__(self, max_series: int, selection: SeriesSelection = ALL) -> None:
        self._max_series = max_series
        self._selection = selection
        self._own_series: frozenset[str] = frozenset()
        self._counters: dict[str, CounterSeries] = {}
        self._delays: dict[str, DelayHistogram] = {}
        self._more_labels: dict[str, Labels] = {}

    def build(self, snapshot: Snapshot) -> BuiltSeries:
        """All families of `snapshot` that have a series."""
        items = [self._chosen(table, snapshot) for table in METRICS]
        free: list[Family] = []
        for table, some in zip(METRICS, items, strict=True):
            if CGROUP_LABEL not in table.labels:
                free += self._families(table, some, None)
        room = self._max_series - sum(family.size for family in free) - self._kept()
        per_cgroup = sum(_is_of_cgroup(table) * len(table.fields) for table in METRICS)
        chosen, excluded = self._cgroups(snapshot)
        folding = fold(chosen, _pairs(items), per_cgroup, room, self._own_series)
        self._own_series = folding.own_series if folding.folded_series else frozenset()
        cgroups = _CgroupLabels(folding, self._labels(folding))
        for table, some in zip(METRICS, items, strict=True):
            if CGROUP_LABEL in table.labels:
                free += self._families(table, some, cgroups)
        return BuiltSeries(
            tuple(f for f in free if f.series),
            folding.folded_cgroups,
            folding.folded_series,
            excluded if self._selection.filters_cgroups else None,
            self._excluded_caches(snapshot),
        )

    def _chosen(self, table: MetricTable[Snapshot, Any], snapshot: Snapshot) -> Iterable[Any]:
        """Items of `table` without those of caches that are excluded."""
        items, name = table.items(snapshot), next((n for n in CACHE_LABELS if n in table.labels), None)
        if name is None or not self._selection.filters_caches:
            return items if CGROUP_LABEL not in table.labels else list(items)
        get, known = table.labels[name], _Answers(self._selection.has_cache)
        return [item for item in items if known[get(item)]]

    def _cgroups(self, snapshot: Snapshot) -> tuple[dict[str, list[Cgroup]], int]:
        """(cgroups that have series, by label; number of excluded cgroups)."""
        found: dict[str, list[Cgroup]] = {}
        excluded = 0
        for cgroup in snapshot.cgroups:
            if cgroup.state != RELEASED:
                name = label(cgroup.path)
                if name in found or self._selection.has_cgroup(name):
                    found.setdefault(name, []).append(cgroup)
                else:
                    excluded += 1
        return found, excluded

    def _excluded_caches(self, snapshot: Snapshot) -> int | None:
        if not self._selection.filters_caches:
            return None
        return sum(not self._selection.has_cache(name) for name in {label(c.root or c.name) for c in snapshot.caches})

    def _labels(self, folding: Folding) -> Mapping[str, Labels]:
        selection, before = self._selection, self._more_labels
        if not selection.cgroup_labels:
            return {}
        names = set(folding.labels.values())
        self._more_labels = {name: before.get(name) or selection.label_cgroup(name) for name in names}
        return self._more_labels

    def _kept(self) -> int:
        """Number of series that stay whether or not anything is folded now."""
        return sum(len(counter.kept) for counter in self._counters.values())

    def _families(
        self, table: MetricTable[Snapshot, Any], items: Iterable[Any], cgroups: _CgroupLabels | None
    ) -> list[Family]:
        found: list[dict[Labels, float | Histogram]] = [{} for _ in table.fields]
        counters, gauges, histograms = self._by_kind(table, found)
        names = tuple(table.labels)
        getters = tuple(get for name, get in table.labels.items() if name != CGROUP_LABEL)
        at = names.index(CGROUP_LABEL) if cgroups else 0
        for item in items:
            labels = tuple([get(item) for get in getters])
            inside = False
            if cgroups:
                cgroup_id = _cgroup_id(item)
                path = cgroups.folding.labels.get(cgroup_id)
                if path is None:
                    continue
                labels = (*labels[:at], path, *labels[at:], *cgroups.labels.get(path, ()))
                inside = cgroup_id in cgroups.folding.inside
            identity = _identity(item, labels) if counters else None
            for get, counter in counters:
                if (value := get(item)) is not None:
                    counter.add(identity, labels, value)
            for get, series, unknown in gauges:
                if inside:
                    continue
                if (value := get(item)) is None:
                    unknown.add(labels)
                else:
                    series[labels] = series.get(labels, 0) + value
            for get, series, delays in histograms:
                if (value := get(item)) is not None:
                    series[labels] = delays.add(value)
        for _, series, unknown in gauges:
            for labels in unknown & series.keys():
                del series[labels]  # a part of this sum is unknown
        for f, series in zip(table.fields, found, strict=True):
            if f.kind == COUNTER:
                series.update(self._counters[str(f.metric)].finish())
        names += self._selection.cgroup_labels if cgroups else ()
        return [Family(f, names, series) for f, series in zip(table.fields, found, strict=True)]

    def _by_kind(
        self, table: MetricTable[Snapshot, Any], found: list[dict[Labels, float | Histogram]]
    ) -> tuple[
        list[tuple[Get, CounterSeries]], list[tuple[Get, Any, set[Labels]]], list[tuple[Get, Any, DelayHistogram]]
    ]:
        """(getter, where its values go) of the fields of `table`; for gauges also a set of labels without a sum."""
        counters, histograms = [], []
        gauges: list[tuple[Get, Any, set[Labels]]] = []
        for f, series in zip(table.fields, found, strict=True):
            metric = str(f.metric)
            if f.kind == COUNTER:
                counters.append((f.get, self._counters.setdefault(metric, CounterSeries())))
            elif f.kind == HISTOGRAM:
                histograms.append((f.get, series, self._delays.setdefault(metric, DelayHistogram())))
            else:
                gauges.append((f.get, series, set()))
        return counters, gauges, histograms


class _Answers(dict[str, bool]):
    """Keeps the answers of a function: there are many pairs, but few caches."""

    def __init__(self, ask: Callable[[str], bool]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, name: str) -> bool:
        self[name] = self._ask(name)
        return self[name]


def _pairs(items: Iterable[Iterable[Any]]) -> Iterable[tuple[int, str]]:
    """(cgroup id, cache label) of all items that have both."""
    for table, some in zip(METRICS, items, strict=True):
        if CGROUP_LABEL in table.labels and not _is_of_cgroup(table):
            get = table.labels["cache"]
            for item in some:
                yield _cgroup_id(item), get(item)


def _is_of_cgroup(table: MetricTable[Snapshot, Any]) -> bool:
    return tuple(table.labels) == (CGROUP_LABEL,)


def _cgroup_id(item: Any) -> int:
    """The id for an item of a table with a cgroup label: a Cgroup, or (Pair, path)."""
    return item.id if isinstance(item, Cgroup) else int(item[0].cgroup_id)


def _identity(item: Any, labels: Labels) -> Hashable:
    """What identifies an item from snapshot to snapshot: several items may have the same labels."""
    if isinstance(item, Cgroup):
        return item.id
    if isinstance(item, Cache):
        return item.name, item.id
    part = item[0] if isinstance(item, tuple) else None
    if isinstance(part, Pair):
        return part.cgroup_id, part.cache, part.cache_id
    return labels
