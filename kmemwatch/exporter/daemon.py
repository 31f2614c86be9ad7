# SPDX-License-Identifier: GPL-2.0-only
"""The metrics of the daemon itself, made anew for each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from kmemwatch.exporter.formats import to_metric
from kmemwatch.exporter.published import ReaderCost, memory_bytes, processor_s
from kmemwatch.exporter.series import Family, Histogram
from kmemwatch.exporter.serving import SERVING, ProcessCost, ProgramCost, Serving
from kmemwatch.units import NS_PER_S
from kmemwatch.views.fields import Field

READER, HTTP = "reader", "http"


@dataclass
class WebConfigStatus:
    """Whether the web configuration in use is the one in the file. One thread writes it, others read it."""

    successful: bool
    loaded_at_s: float
    """Since the epoch, of the configuration in use."""


class ProcessMetrics:
    """Prometheus' usual ``process_*`` metrics, summed over both processes of the daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    def metrics(self, reader: ReaderCost | None) -> list[Metric]:
        """Those of this process, with the last known cost of the reading process added."""
        found = list(self._registry.collect())
        for metric in found:
            for index, sample in enumerate(metric.samples):
                metric.samples[index] = sample._replace(value=_with(sample.name, float(sample.value), reader))
        return found


def _with(name: str, value: float, reader: ReaderCost | None) -> float:
    if reader is None:
        return value
    if name == "process_start_time_seconds":
        return min(value, reader.start_time_s)
    more = {
        "process_cpu_seconds_total": reader.cpu_s,
        "process_resident_memory_bytes": reader.resident_bytes,
        "process_virtual_memory_bytes": reader.virtual_bytes,
        "process_open_fds": reader.open_fds,
    }
    return value + more.get(name, 0)


def processes(reader: ReaderCost | None) -> tuple[ProcessCost, ...]:
    """This process, which serves HTTP, and the one that reads the kernel."""
    http = ProcessCost(HTTP, processor_s(), memory_bytes()[1])
    return (http,) if reader is None else (http, ProcessCost(READER, reader.cpu_s, reader.resident_bytes))


def programs(reader: ReaderCost | None) -> tuple[ProgramCost, ...]:
    """BPF programs of which the kernel counts runs."""
    counted = {} if reader is None else reader.programs
    return tuple(ProgramCost(name, runs.runs, runs.run_ns / NS_PER_S) for name, runs in sorted(counted.items()))


def serving_metrics(serving: Serving) -> Iterator[Metric]:
    """`serving` as metrics; unknown figures are absent."""
    for table in SERVING:
        items = list(table.items(serving))
        for field in table.fields:
            yield from _labelled(field, table.labels, items)


def _labelled(field: Field[Any], labels: Mapping[str, Callable[[Any], str]], items: list[Any]) -> Iterator[Metric]:
    series: dict[tuple[str, ...], float | Histogram] = {}
    for item in items:
        value = field.get(item)
        if isinstance(value, (int, float)):
            series[tuple(get(item) for get in labels.values())] = value
    if series:
        yield to_metric(Family(field, tuple(labels), series))
