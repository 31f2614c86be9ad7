# SPDX-License-Identifier: GPL-2.0-only
"""Series -> prometheus_client's metric families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kmemwatch.exporter.series import BUCKETS_S, Family, Histogram
from kmemwatch.shape import COUNTER, HISTOGRAM, INFO


class FamiliesCollector(Collector):
    """Hands out families that are already there; never waits, never touches the kernel."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)

    def describe(self) -> Iterable[Metric]:
        """Nothing: without it, registering would call `collect`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family per metric that has a series; unknown figures are absent."""
        for family in self._families:
            yield to_metric(family)


def to_metric(family: Family) -> Metric:
    """One of our families as prometheus_client's."""
    name, help_, names = str(family.field.metric), family.field.help, family.label_names
    metric: Any
    if family.field.kind == HISTOGRAM:
        metric = HistogramMetricFamily(name, help_, labels=names)
        for labels, value in family.series.items():
            assert isinstance(value, Histogram)
            bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
            metric.add_metric(labels, list(zip(bounds, value.counts, strict=True)), value.sum)
        return metric  # type: ignore[no-any-return]
    if family.field.kind == INFO:
        metric = InfoMetricFamily(name.removesuffix("_info"), help_)
        for labels in family.series:
            metric.add_metric((), dict(zip(names, labels, strict=True)))
        return metric  # type: ignore[no-any-return]
    kind = CounterMetricFamily if family.field.kind == COUNTER else GaugeMetricFamily
    metric = kind(name, help_, labels=names)
    for labels, value in family.series.items():
        metric.add_metric(labels, value)
    return metric  # type: ignore[no-any-return]
