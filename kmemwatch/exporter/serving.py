# SPDX-License-Identifier: GPL-2.0-only
"""What the exporter says about itself, beside the metrics of a Snapshot; described as the model is."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from kmemwatch.exporter.metrics import MetricTable, exported
from kmemwatch.shape import BYTES, COUNT, SECONDS, TEXT, TIME, About
from kmemwatch.views.fields import member_fields


class ProcessCost(Struct, frozen=True):
    """One of the processes that `serve` consists of."""

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
    """A BPF program that the kernel counts runs of (kernel.bpf_stats_enabled)."""

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


class Serving(Struct, frozen=True):
    """State of the exporter at the moment of a scrape."""

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


SERVING: tuple[MetricTable[Serving, Any], ...] = (
    MetricTable(lambda s: (s,), {}, exported(member_fields(Serving))),
    MetricTable(lambda s: s.processes, {"process": lambda p: p.name}, exported(member_fields(ProcessCost))),
    MetricTable(lambda s: s.programs, {"program": lambda p: p.name}, exported(member_fields(ProgramCost))),
)
