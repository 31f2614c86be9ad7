# SPDX-License-Identifier: GPL-2.0-only
"""What the exporter says about itself, beside the metrics of a Snapshot; one Field each, like all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kmemwatch.shape import BYTES, COUNT, COUNTER, GAUGE, SECONDS, TIME
from kmemwatch.views.fields import Field

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of the processes that `serve` consists of."""

    name: str
    """``reader`` or ``http``."""
    cpu_seconds_total: float
    resident_bytes: int


@dataclass(frozen=True)
class Program:
    """A BPF program that the kernel counts runs of (kernel.bpf_stats_enabled)."""

    name: str
    runs_total: int
    run_seconds_total: float


@dataclass(frozen=True)
class Serving:
    """State of the exporter at the moment of a scrape."""

    scrapes_total: int
    """Answered before this one."""
    scrape_seconds_total: float
    """Time spent on them, from the request to the whole answer in memory."""
    snapshot_age_seconds: float | None
    """None while there is no snapshot."""
    folded_cgroups: int | None
    folded_series: int | None
    excluded_cgroups: int | None = None
    """None unless some are excluded on purpose, as below."""
    excluded_caches: int | None = None
    web_config_successful: bool | None = None
    """None without --web.config.file."""
    web_config_loaded_at_s: float | None = None
    """Since the epoch."""
    processes: tuple[Process, ...] = ()
    programs: tuple[Program, ...] = ()


@dataclass(frozen=True)
class ServingTable(Generic[T]):
    """As `views.fields.MetricTable`, of a Serving."""

    items: Callable[[Serving], Iterable[T]]
    labels: Mapping[str, Callable[[T], str]]
    fields: tuple[Field[T], ...]


def _field(metric: str, title: str, unit: str, kind: str, help_: str, get: Callable[[T], Any]) -> Field[T]:
    return Field(metric, title, unit, help_, get, f"kmemwatch_{metric}", kind)


SERVING: tuple[Field[Serving], ...] = (
    _field("scrapes_total", "SCRAPES", COUNT, COUNTER, "Scrapes answered before this one.", lambda s: s.scrapes_total),
    _field(
        "scrape_duration_seconds_total",
        "SCRAPE TIME",
        SECONDS,
        COUNTER,
        "Time spent on answering these scrapes, without sending the answer.",
        lambda s: s.scrape_seconds_total,
    ),
    _field(
        "snapshot_age_seconds",
        "AGE",
        SECONDS,
        GAUGE,
        "Age of the figures in this scrape; absent, as they are, when there is no recent snapshot.",
        lambda s: s.snapshot_age_seconds,
    ),
    _field(
        "folded_cgroups",
        "FOLDED",
        COUNT,
        GAUGE,
        "Memory cgroups that have no series of their own and are part of cgroup=other, see --max-series.",
        lambda s: s.folded_cgroups,
    ),
    _field(
        "folded_series",
        "FOLDED SERIES",
        COUNT,
        GAUGE,
        "Series that these memory cgroups would have.",
        lambda s: s.folded_series,
    ),
    _field(
        "excluded_cgroups",
        "EXCLUDED",
        COUNT,
        GAUGE,
        "Memory cgroups without series because of --cgroup.include or --cgroup.exclude.",
        lambda s: s.excluded_cgroups,
    ),
    _field(
        "excluded_caches",
        "EXCLUDED CACHES",
        COUNT,
        GAUGE,
        "Root caches without series because of --cache.include or --cache.exclude.",
        lambda s: s.excluded_caches,
    ),
    _field(
        "web_config_last_reload_successful",
        "WEB CONFIG",
        COUNT,
        GAUGE,
        "1 when --web.config.file is in use as it is now, 0 when it is broken and the last good one is in use.",
        lambda s: None if s.web_config_successful is None else int(s.web_config_successful),
    ),
    _field(
        "web_config_last_reload_success_timestamp_seconds",
        "WEB CONFIG AT",
        TIME,
        GAUGE,
        "When the --web.config.file in use was read.",
        lambda s: s.web_config_loaded_at_s,
    ),
)

SERVING_TABLES: tuple[ServingTable[Any], ...] = (
    ServingTable(
        lambda s: s.processes,
        {"process": lambda p: p.name},
        (
            _field(
                "process_cpu_seconds_total",
                "CPU",
                SECONDS,
                COUNTER,
                "Processor time of the process that reads the kernel and of the one that serves HTTP;"
                " process_cpu_seconds_total is their sum.",
                lambda p: p.cpu_seconds_total,
            ),
            _field(
                "process_resident_memory_bytes",
                "RSS",
                BYTES,
                GAUGE,
                "Resident memory of these processes, each with the libraries that they share;"
                " process_resident_memory_bytes is their sum.",
                lambda p: p.resident_bytes,
            ),
        ),
    ),
    ServingTable(
        lambda s: s.programs,
        {"program": lambda p: p.name},
        (
            _field(
                "bpf_run_seconds_total",
                "BPF TIME",
                SECONDS,
                COUNTER,
                "Processor time of a BPF program of kmemwatch, counted by the kernel while kernel.bpf_stats_enabled is"
                " set; absent when it never was.",
                lambda p: p.run_seconds_total,
            ),
            _field(
                "bpf_runs_total",
                "BPF RUNS",
                COUNT,
                COUNTER,
                "Runs of a BPF program of kmemwatch, counted as its time is.",
                lambda p: p.runs_total,
            ),
        ),
    ),
)
