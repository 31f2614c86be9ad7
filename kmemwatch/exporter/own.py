# SPDX-License-Identifier: GPL-2.0-only
"""Metrics of the exporter itself: fresh in every scrape, and few."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from kmemwatch.exporter.collector import to_metric
from kmemwatch.exporter.frames import ReaderState
from kmemwatch.exporter.series import Family, Histogram
from kmemwatch.exporter.serving import SERVING, SERVING_TABLES, Process, Program, Serving
from kmemwatch.units import NS_PER_S
from kmemwatch.views.fields import Field

READER, HTTP = "reader", "http"


@dataclass
class WebConfigStatus:
    """Whether the web configuration in use is the one in the file. One thread writes it, others read it."""

    successful: bool
    loaded_at_s: float
    """Since the epoch, of the configuration in use."""


class OwnProcess:
    """What this process costs, as /proc says."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    def metrics(self, reader: ReaderState | None) -> list[Metric]:
        """``process_*`` of the whole daemon: what the reading process told last is added."""
        found = list(self._registry.collect())
        for metric in found:
            for index, sample in enumerate(metric.samples):
                metric.samples[index] = sample._replace(value=_with(sample.name, float(sample.value), reader))
        return found


def _with(name: str, value: float, reader: ReaderState | None) -> float:
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


def processes(reader: ReaderState | None) -> tuple[Process, ...]:
    """This one, which serves HTTP, and the one that reads the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    own = Process(HTTP, usage.ru_utime + usage.ru_stime, resident)
    return (own,) if reader is None else (own, Process(READER, reader.cpu_s, reader.resident_bytes))


def programs(reader: ReaderState | None) -> tuple[Program, ...]:
    """BPF programs that the kernel counts runs of."""
    counted = {} if reader is None else reader.programs
    return tuple(Program(name, runs.runs, runs.run_ns / NS_PER_S) for name, runs in sorted(counted.items()))


def serving_metrics(serving: Serving) -> Iterator[Metric]:
    """`serving` as metrics; what is not known is absent."""
    for field in SERVING:
        value = field.get(serving)
        if isinstance(value, (int, float)):
            yield to_metric(Family(field, (), {(): value}))
    for table in SERVING_TABLES:
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
