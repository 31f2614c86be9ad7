# SPDX-License-Identifier: GPL-2.0-only
"""Host: which caches and cgroups of one host hold kernel memory, and what keeps its dead cgroups."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.parts import (
    BAD,
    BYTES,
    BYTES_PER_S,
    COUNT,
    GOOD,
    PER_S,
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
            "Charged to memory cgroups.",
            f'sum(kmemwatch_cgroup_kernel_bytes{{{HOST}, cgroup="/"}})',
            BYTES,
        ),
        number(
            "Slab memory of the host",
            "All slab caches, charged to a cgroup or not.",
            f"sum(kmemwatch_cache_slab_bytes{{{HOST}}})",
            BYTES,
        ),
        number("Online cgroups", "Memory cgroups in use.", f"sum(kmemwatch_online_cgroups{{{HOST}}})", COUNT),
        number(
            "Dying cgroups",
            "Removed and not released.",
            f"sum(kmemwatch_dying_cgroups{{{HOST}}})",
            COUNT,
            ((None, GOOD), (1000, WARN), (10_000, BAD)),
        ),
        number(
            "They keep",
            "Bytes that keep dying memory cgroups.",
            f"sum(kmemwatch_dying_cgroup_bytes{{{HOST}}})",
            BYTES,
        ),
        number(
            "Oldest dying",
            "Since it was removed, at least.",
            f"max(kmemwatch_oldest_dying_cgroup_seconds{{{HOST}}})",
            SECONDS,
        ),
    ):
        board.with_panel(panel)


def _caches(board: builders.Dashboard) -> None:
    board.with_row(row("Caches"))
    slab = f"sum by (cache) (kmemwatch_cache_slab_bytes{{{HOST}}})"
    growth = f"sum by (cache) (deriv(kmemwatch_cache_slab_bytes{{{HOST}}}[$__rate_interval]))"
    for panel in (
        lines(
            "Largest caches", "Memory of their slabs, free objects included.", [Query(_top(slab), "{{cache}}")], BYTES
        ),
        lines(
            "Caches that grow most",
            "Change of the memory of their slabs.",
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
            THIRD,
        ),
        lines(
            "Objects freed",
            "By cache.",
            [Query(_rate("kmemwatch_cache_frees_total", "cache"), "{{cache}}")],
            PER_S,
            THIRD,
        ),
        lines(
            "Bytes allocated",
            "By cache; of objects, so without what slabs have room for.",
            [Query(_rate("kmemwatch_cache_allocated_bytes_total", "cache"), "{{cache}}")],
            BYTES_PER_S,
            THIRD,
        ),
    ):
        board.with_panel(panel)


def _cgroups(board: builders.Dashboard) -> None:
    board.with_row(row("Cgroups"))
    kernel = f"sum by (cgroup) (kmemwatch_cgroup_kernel_bytes{{{HOST}, {NOT_ROOT}}})"
    slab = f"sum by (cgroup) (kmemwatch_cgroup_slab_bytes{{{HOST}, {NOT_ROOT}}})"
    growth = f"sum by (cgroup) (deriv(kmemwatch_cgroup_kernel_bytes{{{HOST}, {NOT_ROOT}}}[$__rate_interval]))"
    below = "With all cgroups below it."
    for panel in (
        lines("Kernel memory by cgroup", below, [Query(_top(kernel), "{{cgroup}}")], BYTES),
        lines("Slab memory by cgroup", below, [Query(_top(slab), "{{cgroup}}")], BYTES),
        lines("Cgroups that grow most", below, [Query(_top(growth), "{{cgroup}}")], BYTES_PER_S, THIRD, minimum=None),
        lines(
            "Kernel memory charged",
            "To the cgroup itself.",
            [Query(_rate("kmemwatch_cgroup_charged_bytes_total", "cgroup"), "{{cgroup}}")],
            BYTES_PER_S,
            THIRD,
        ),
        lines(
            "Kernel memory uncharged",
            "From the cgroup itself.",
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
            "Objects that tasks of a cgroup allocate in a cache, a second.",
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
            "By the time since they were removed.",
            ages(HOST),
            COUNT,
            stacked=True,
        ),
        lines(
            "What keeps them",
            "Kinds of memory that are charged to them or refer to them.",
            [Query(f"sum by (kind) (kmemwatch_dying_cgroup_bytes{{{HOST}}})", "{{kind}}")],
            BYTES,
            stacked=True,
        ),
        lines("Removed and released", "Over hours, both must be equal.", moves, PER_S),
        heat("Time from removal to release", "Of cgroups that were released.", delays, SECONDS),
    ):
        board.with_panel(panel)


def _slabs_and_ids(board: builders.Dashboard) -> None:
    for panel in (
        lines(
            "Slabs of the dead in child caches",
            "By root cache; only kernels where each cgroup has caches of its own have them.",
            [Query(f"sum by (cache) (kmemwatch_dying_cgroup_child_slab_bytes{{{HOST}}})", "{{cache}}")],
            BYTES,
            stacked=True,
        ),
        lines(
            "Ids of memory cgroups",
            "Of 65,535: those online have one, dying ones only while they have memory in swap.",
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
            "What the kernel did and kmemwatch could not count, by reason.",
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
            "When a map is full, what would need a new entry is lost.",
            [Query(f"kmemwatch_map_entries{{{HOST}}} / kmemwatch_map_capacity{{{HOST}}}", "{{map}}")],
            SHARE,
            THIRD,
        ),
        grid(
            "Signals",
            "What each is measured by; 0: it could not be attached, and kmemwatch doctor says why.",
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
            "Of the processes of kmemwatch, in cores: reader reads the kernel, http serves Prometheus.",
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
            "Resident memory of these processes, each with the libraries that they share.",
            [Query(f"sum by (process) (kmemwatch_process_resident_memory_bytes{{{HOST}}})", "{{process}}")],
            BYTES,
            THIRD,
            stacked=True,
        ),
        lines(
            "Scrapes",
            "Time to answer one, and the age of its figures.",
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
            "In cores, spent by whoever allocates; the kernel counts it only with sysctl kernel.bpf_stats_enabled=1.",
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
            "Cgroups that have no series of their own, see --max-series, and the series that they would have.",
            [
                Query(f"sum(kmemwatch_folded_cgroups{{{HOST}}})", "cgroups"),
                Query(f"sum(kmemwatch_folded_series{{{HOST}}})", "series"),
            ],
            COUNT,
            THIRD,
        ),
        grid(
            "Kernel",
            "Era: objcg, all cgroups share the caches; per-memcg, each has its own; recharge, these are used again.",
            f"kmemwatch_kernel_info{{{HOST}}}",
            (("release", "Kernel"), ("era", "Era"), ("patchset", "Patch set")),
            THIRD,
            8,
        ),
    ):
        board.with_panel(panel)
