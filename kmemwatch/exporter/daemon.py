# SPDX-License-Identifier: GPL-2.0-only
"""The metrics of the daemon itself: described as the model is, and made anew for each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from kmemwatch.exporter.formats import to_metric
from kmemwatch.exporter.metrics import MetricTable, exported
from kmemwatch.exporter.published import ReaderCost, memory_bytes, processor_s
from kmemwatch.exporter.series import Family, Histogram
from kmemwatch.shape import BYTES, COUNT, SECONDS, TEXT, TIME, About
from kmemwatch.units import NS_PER_S
from kmemwatch.views.fields import Field, member_fields

READER, HTTP = "reader", "http"


class ProcessCost(Struct, frozen=True):
    """One of the two processes of the daemon."""

    name: Annotated[str, About("reader or http.", TEXT)]
    cpu_seconds_total: Annotated[
        float,
        About(
            "Processor time of the process that reads the kernel and of the one that serves HTTP;"
            " process_cpu_seconds_total is their sum.",
            SECONDS, metric="kmemwatch_process_cpu_seconds_total",
        ),
    ]  # fmt: skip
    resident_bytes: Annotated[
        int,
        About(
            "Resident memory of these processes, each with the libraries that they share;"
            " process_resident_memory_bytes is their sum.",
            BYTES, metric="kmemwatch_process_resident_memory_bytes",
        ),
    ]  # fmt: skip


class ProgramCost(Struct, frozen=True):
    """A BPF program whose runs the kernel counts (kernel.bpf_stats_enabled)."""

    name: Annotated[str, About("Name of the program.", TEXT)]
    runs_total: Annotated[
        int,
        About("Runs of a BPF program of kmemwatch, counted as its time is.", metric="kmemwatch_bpf_runs_total"),
    ]
    run_seconds_total: Annotated[
        float,
        About(
            "Processor time of a BPF program of kmemwatch, counted by the kernel while kernel.bpf_stats_enabled is"
            " set; absent when it never was.",
            SECONDS, metric="kmemwatch_bpf_run_seconds_total",
        ),
    ]  # fmt: skip


class DaemonState(Struct, frozen=True):
    """The daemon at the moment of a scrape."""

    scrapes_total: Annotated[int, About("Scrapes answered before this one.", metric="kmemwatch_scrapes_total")]
    scrape_seconds_total: Annotated[
        float,
        About(
            "Time spent on answering these scrapes, without sending the answer.",
            SECONDS, metric="kmemwatch_scrape_duration_seconds_total",
        ),
    ]  # fmt: skip
    snapshot_age_seconds: Annotated[
        float | None,
        About(
            "Age of the figures in this scrape; absent, as they are, when there is no recent snapshot.",
            SECONDS, metric="kmemwatch_snapshot_age_seconds",
        ),
    ]  # fmt: skip
    folded_cgroups: Annotated[
        int | None,
        About(
            "Memory cgroups that have no series of their own and are part of cgroup=other, see --max-series.",
            metric="kmemwatch_folded_cgroups",
        ),
    ]
    folded_series: Annotated[
        int | None, About("Series that these memory cgroups would have.", metric="kmemwatch_folded_series")
    ]
    excluded_cgroups: Annotated[
        int | None,
        About(
            "Memory cgroups without series because of --cgroup.include or --cgroup.exclude.",
            metric="kmemwatch_excluded_cgroups",
        ),
    ] = None
    excluded_caches: Annotated[
        int | None,
        About(
            "Root caches without series because of --cache.include or --cache.exclude.",
            metric="kmemwatch_excluded_caches",
        ),
    ] = None
    web_config_successful: Annotated[
        bool | None,
        About(
            "1 when --web.config.file is in use as it is now, 0 when it is broken and the last good one is in use.",
            metric="kmemwatch_web_config_last_reload_successful",
        ),
    ] = None
    web_config_loaded_at_s: Annotated[
        float | None,
        About(
            "When the --web.config.file in use was read.",
            TIME, metric="kmemwatch_web_config_last_reload_success_timestamp_seconds",
        ),
    ] = None  # fmt: skip
    processes: Annotated[tuple[ProcessCost, ...], About("What each process costs.", COUNT)] = ()
    programs: Annotated[tuple[ProgramCost, ...], About("What each BPF program costs.", COUNT)] = ()


DAEMON_METRICS: tuple[MetricTable[DaemonState, Any], ...] = (
    MetricTable(lambda s: (s,), {}, exported(member_fields(DaemonState))),
    MetricTable(lambda s: s.processes, {"process": lambda p: p.name}, exported(member_fields(ProcessCost))),
    MetricTable(lambda s: s.programs, {"program": lambda p: p.name}, exported(member_fields(ProgramCost))),
)


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


def daemon_metrics(state: DaemonState) -> Iterator[Metric]:
    """`state` as metrics; unknown figures are absent."""
    for table in DAEMON_METRICS:
        items = list(table.items(state))
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
