# SPDX-License-Identifier: GPL-2.0-only
"""Host: which caches and cgroups of one host hold kernel memory, and what keeps its dying cgroups."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.parts import (
    BAD,
    BYTES,
    BYTES_PER_S,
    COUNT,
    GOOD,
    PER_S,
    QUARTER,
    SECONDS,
    SHARE,
    THIRD,
    WARN,
    WIDE,
    Query,
    ages,
    bars,
    dashboard,
    grid,
    heat,
    host_variable,
    lines,
    number,
    row,
)

HOST = 'instance="$host"'
NOT_ROOT = 'cgroup!="/"'
TOP = 10


def build() -> builders.Dashboard:
    """The dashboard of one host."""
    board = dashboard(
        "kmemwatch-host",
        "kmemwatch / Host",
        "Slab caches, memory cgroups, dying cgroups and kmemwatch itself on one host.",
        "now-1h",
    ).with_variable(host_variable("host", "Host"))
    for part in (_numbers, _caches, _rates_of_caches, _cgroups, _pairs, _dying, _slabs_and_ids, _self, _costs, _rest):
        part(board)
    return board


def _top(expr: str) -> str:
    return f"topk({TOP}, {expr})"


def _rate(metric: str, by: str, more: str = "") -> str:
    return _top(f"sum by ({by}) (rate({metric}{{{HOST}{more}}}[$__rate_interval]))")


def _numbers(board: builders.Dashboard) -> None:
    for panel in (
        number(
            "Kernel memory of cgroups",
            "Kernel memory that is charged to memory cgroups.",
            f'sum(kmemwatch_cgroup_kernel_bytes{{{HOST}, cgroup="/"}})',
            BYTES,
        ),
        number(
            "Slab memory of the host",
            "All slab caches, charged to a cgroup or not.",
            f"sum(kmemwatch_cache_slab_bytes{{{HOST}}})",
            BYTES,
        ),
        number(
            "Online cgroups",
            "Memory cgroups that exist and are not removed.",
            f"sum(kmemwatch_online_cgroups{{{HOST}}})",
            COUNT,
        ),
        number(
            "Dying cgroups",
            "Memory cgroups that are removed and that the kernel has not released.",
            f"sum(kmemwatch_dying_cgroups{{{HOST}}})",
            COUNT,
            ((None, GOOD), (1000, WARN), (10_000, BAD)),
        ),
        number(
            "Memory they keep", "Memory that keeps dying memory cgroups.",
            f"sum(kmemwatch_dying_cgroup_bytes{{{HOST}}})", BYTES,
        ),
        number(
            "Oldest dying",
            "Time since it was removed. A lower bound if that was before kmemwatch started.",
            f"max(kmemwatch_oldest_dying_cgroup_seconds{{{HOST}}})",
            SECONDS,
        ),
    ):  # fmt: skip
        board.with_panel(panel)


def _caches(board: builders.Dashboard) -> None:
    board.with_row(row("Caches"))
    slab = f"sum by (cache) (kmemwatch_cache_slab_bytes{{{HOST}}})"
    growth = f"sum by (cache) (deriv(kmemwatch_cache_slab_bytes{{{HOST}}}[$__rate_interval]))"
    for panel in (
        lines(
            "Largest caches", "Memory of their slabs, including free objects.", [Query(_top(slab), "{{cache}}")], BYTES
        ),
        lines(
            "Caches that grow most",
            "Growth of the memory of their slabs.",
            [Query(_top(growth), "{{cache}}")],
            BYTES_PER_S,
            minimum=None,
        ),
    ):
        board.with_panel(panel)


def _rates_of_caches(board: builders.Dashboard) -> None:
    for panel in (
        lines(
            "Objects allocated",
            "By cache.",
            [Query(_rate("kmemwatch_cache_allocations_total", "cache"), "{{cache}}")],
            PER_S,
            QUARTER,
        ),
        lines(
            "Objects freed",
            "By cache.",
            [Query(_rate("kmemwatch_cache_frees_total", "cache"), "{{cache}}")],
            PER_S,
            QUARTER,
        ),
        lines(
            "Bytes allocated",
            "By cache. Only allocated objects, without the free room in slabs.",
            [Query(_rate("kmemwatch_cache_allocated_bytes_total", "cache"), "{{cache}}")],
            BYTES_PER_S,
            QUARTER,
        ),
        lines(
            "Allocations that fail",
            "By cache. The task that asked got no memory, often because its cgroup is at its limit.",
            [Query(_rate("kmemwatch_cache_failed_allocations_total", "cache"), "{{cache}}")],
            PER_S,
            QUARTER,
        ),
    ):
        board.with_panel(panel)


def _cgroups(board: builders.Dashboard) -> None:
    board.with_row(row("Cgroups"))
    kernel = f"sum by (cgroup) (kmemwatch_cgroup_kernel_bytes{{{HOST}, {NOT_ROOT}}})"
    slab = f"sum by (cgroup) (kmemwatch_cgroup_slab_bytes{{{HOST}, {NOT_ROOT}}})"
    growth = f"sum by (cgroup) (deriv(kmemwatch_cgroup_kernel_bytes{{{HOST}, {NOT_ROOT}}}[$__rate_interval]))"
    below = "Including all cgroups below it."
    for panel in (
        lines("Kernel memory by cgroup", below, [Query(_top(kernel), "{{cgroup}}")], BYTES),
        lines("Slab memory by cgroup", below, [Query(_top(slab), "{{cgroup}}")], BYTES),
        lines("Cgroups that grow most", below, [Query(_top(growth), "{{cgroup}}")], BYTES_PER_S, THIRD, minimum=None),
        lines(
            "Kernel memory charged",
            "To the cgroup itself, without those below it.",
            [Query(_rate("kmemwatch_cgroup_charged_bytes_total", "cgroup"), "{{cgroup}}")],
            BYTES_PER_S,
            THIRD,
        ),
        lines(
            "Kernel memory uncharged",
            "From the cgroup itself, without those below it.",
            [Query(_rate("kmemwatch_cgroup_uncharged_bytes_total", "cgroup"), "{{cgroup}}")],
            BYTES_PER_S,
            THIRD,
        ),
    ):
        board.with_panel(panel)


def _pairs(board: builders.Dashboard) -> None:
    board.with_panel(
        bars(
            "Who allocates what",
            "Objects that tasks of a cgroup allocate from a cache, per second.",
            _rate("kmemwatch_cgroup_cache_allocations_total", "cgroup, cache"),
            "{{cgroup}} {{cache}}",
            PER_S,
            WIDE,
        )
    )


def _dying(board: builders.Dashboard) -> None:
    board.with_row(row("Dying cgroups"))
    moves = [
        Query(f"sum(rate(kmemwatch_cgroups_{what}_total{{{HOST}}}[$__rate_interval]))", name)
        for what, name in (("offlined", "removed"), ("released", "released"))
    ]
    delays = f"sum by (le) (increase(kmemwatch_cgroup_release_delay_seconds_bucket{{{HOST}}}[$__rate_interval]))"
    for panel in (
        lines(
            "Dying cgroups by age",
            "By the time since their removal.",
            ages(HOST),
            COUNT,
            stacked=True,
        ),
        lines(
            "What keeps them",
            "Memory that is charged to them or refers to them, by kind.",
            [Query(f"sum by (kind) (kmemwatch_dying_cgroup_bytes{{{HOST}}})", "{{kind}}")],
            BYTES,
            stacked=True,
        ),
        lines("Removed and released", "Over hours, as many must be released as are removed.", moves, PER_S),
        heat("Time from removal to release", "Of the cgroups that were released.", delays, SECONDS),
    ):
        board.with_panel(panel)


def _slabs_and_ids(board: builders.Dashboard) -> None:
    for panel in (
        lines(
            "Slabs of dying cgroups in child caches",
            "By root cache. Only kernels on which each cgroup has its own caches have this.",
            [Query(f"sum by (cache) (kmemwatch_dying_cgroup_child_slab_bytes{{{HOST}}})", "{{cache}}")],
            BYTES,
            stacked=True,
        ),
        lines(
            "Ids of memory cgroups",
            "Of 65,535. Each online cgroup has one; a dying cgroup only while it has memory in swap.",
            [
                Query(f"sum(kmemwatch_memcg_ids_in_use{{{HOST}}})", "ids in use"),
                Query(f"sum(kmemwatch_online_cgroups{{{HOST}}})", "online cgroups"),
            ],
            COUNT,
        ),
    ):
        board.with_panel(panel)


def _self(board: builders.Dashboard) -> None:
    board.with_row(row("kmemwatch"))
    for panel in (
        lines(
            "Events lost",
            "What happened in the kernel and kmemwatch could not count, by reason.",
            [
                Query(
                    f"sum by (reason) (increase(kmemwatch_events_lost_total{{{HOST}}}[$__rate_interval]))", "{{reason}}"
                )
            ],
            COUNT,
            THIRD,
        ),
        lines(
            "Fill of the BPF maps",
            "When a map is full, kmemwatch cannot count what needs a new entry.",
            [Query(f"kmemwatch_map_entries{{{HOST}}} / kmemwatch_map_capacity{{{HOST}}}", "{{map}}")],
            SHARE,
            THIRD,
        ),
        grid(
            "Signals",
            "The hooks of each signal. 0: none could be attached; kmemwatch doctor says why.",
            f"kmemwatch_probe_attached{{{HOST}}}",
            (("signal", "Signal"), ("attachment", "Measured by"), ("Value", "Attached")),
            THIRD,
            8,
        ),
    ):
        board.with_panel(panel)


def _costs(board: builders.Dashboard) -> None:
    scrape = [
        f"rate(kmemwatch_{name}_total{{{HOST}}}[$__rate_interval])" for name in ("scrape_duration_seconds", "scrapes")
    ]
    for panel in (
        lines(
            "Processor time",
            "Of the processes of kmemwatch, in CPUs: reader reads the kernel, http serves Prometheus.",
            [
                Query(
                    f"sum by (process) (rate(kmemwatch_process_cpu_seconds_total{{{HOST}}}[$__rate_interval]))",
                    "{{process}}",
                )
            ],
            SHARE,
            THIRD,
            stacked=True,
        ),
        lines(
            "Memory",
            "Resident memory of these processes. Each includes the libraries that both share.",
            [Query(f"sum by (process) (kmemwatch_process_resident_memory_bytes{{{HOST}}})", "{{process}}")],
            BYTES,
            THIRD,
            stacked=True,
        ),
        lines(
            "Scrapes",
            "Time to answer a scrape, and the age of the figures in it.",
            [
                Query(f"sum({scrape[0]}) / sum({scrape[1]})", "time to answer"),
                Query(f"max(kmemwatch_snapshot_age_seconds{{{HOST}}})", "age of the figures"),
            ],
            SECONDS,
            THIRD,
        ),
    ):
        board.with_panel(panel)


def _rest(board: builders.Dashboard) -> None:
    for panel in (
        lines(
            "Time in BPF programs",
            "In CPUs; the allocating tasks spend it. The kernel counts it only with sysctl kernel.bpf_stats_enabled=1.",
            [
                Query(
                    f"sum by (program) (rate(kmemwatch_bpf_run_seconds_total{{{HOST}}}[$__rate_interval]))",
                    "{{program}}",
                )
            ],
            SHARE,
            THIRD,
            stacked=True,
        ),
        lines(
            "Folded cgroups",
            "Cgroups that have no series of their own because of --max-series, and the series that they would have.",
            [
                Query(f"sum(kmemwatch_folded_cgroups{{{HOST}}})", "cgroups"),
                Query(f"sum(kmemwatch_folded_series{{{HOST}}})", "series"),
            ],
            COUNT,
            THIRD,
        ),
        grid(
            "Kernel",
            "Era: objcg, all cgroups share the caches; per-memcg, each has its own; recharge, they are reused.",
            f"kmemwatch_kernel_info{{{HOST}}}",
            (("release", "Kernel"), ("era", "Era"), ("patchset", "Patch set")),
            THIRD,
            8,
        ),
    ):
        board.with_panel(panel)
