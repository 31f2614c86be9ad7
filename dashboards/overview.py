# SPDX-License-Identifier: GPL-2.0-only
"""Overview: every host at a glance, and which one to look at."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.parts import (
    BAD,
    BYTES,
    COUNT,
    GOOD,
    HALF,
    PER_S,
    SECONDS,
    SHARE,
    THIRD,
    WARN,
    Query,
    dashboard,
    grid,
    host_variable,
    lines,
    number,
    row,
)

HOSTS = 'instance=~"$host"'


def build() -> builders.Dashboard:
    """The dashboard of the fleet."""
    board = dashboard(
        "kmemwatch-overview",
        "kmemwatch / Overview",
        "Kernel memory, dying cgroups and the health of kmemwatch itself, by host.",
    ).with_variable(host_variable("host", "Host", several=True))
    for part in (_numbers, _numbers_of_health, _memory, _dying, _online, _health, _hosts):
        part(board)
    return board


def _numbers(board: builders.Dashboard) -> None:
    for panel in (
        number("Hosts", "Hosts that kmemwatch runs on.", f"count(kmemwatch_build_info{{{HOSTS}}})", COUNT),
        number(
            "Kernel memory of cgroups",
            "Kernel memory charged to memory cgroups, on all hosts.",
            f'sum(kmemwatch_cgroup_kernel_bytes{{{HOSTS}, cgroup="/"}})',
            BYTES,
        ),
        number(
            "Slab memory of hosts",
            "Memory of all slab caches on all hosts, whether charged to a cgroup or not.",
            f"sum(kmemwatch_cache_slab_bytes{{{HOSTS}}})",
            BYTES,
        ),
        number(
            "Dying cgroups",
            "Memory cgroups that are removed and that the kernel has not released.",
            f"sum(kmemwatch_dying_cgroups{{{HOSTS}}})",
            COUNT,
            ((None, GOOD), (1000, WARN), (10_000, BAD)),
        ),
    ):
        board.with_panel(panel)


def _numbers_of_health(board: builders.Dashboard) -> None:
    for panel in (
        number(
            "Signals not measured",
            "Hooks that kmemwatch wanted and could not attach to; kmemwatch doctor says why, on the host.",
            f"sum(1 - kmemwatch_probe_attached{{{HOSTS}}})",
            COUNT,
            ((None, GOOD), (1, WARN)),
        ),
        number(
            "Events lost",
            "What happened in the kernels and kmemwatch could not count, in the time shown.",
            f"sum(increase(kmemwatch_events_lost_total{{{HOSTS}}}[$__range]))",
            COUNT,
            ((None, GOOD), (1, WARN)),
        ),
    ):
        board.with_panel(panel)


def _memory(board: builders.Dashboard) -> None:
    board.with_row(row("Kernel memory"))
    board.with_panel(
        lines(
            "Kernel memory of cgroups, by host",
            "Kernel memory that is charged to memory cgroups: slabs, stacks, page tables, percpu memory.",
            [Query(f'sum by (instance) (kmemwatch_cgroup_kernel_bytes{{{HOSTS}, cgroup="/"}})', "{{instance}}")],
            BYTES,
        )
    )
    board.with_panel(
        lines(
            "All slab memory, by host",
            "All slab caches, as in /proc/slabinfo, whether charged to a cgroup or not.",
            [Query(f"sum by (instance) (kmemwatch_cache_slab_bytes{{{HOSTS}}})", "{{instance}}")],
            BYTES,
        )
    )


def _dying(board: builders.Dashboard) -> None:
    board.with_row(row("Dying cgroups"))
    for panel in (
        lines(
            "Dying cgroups by host",
            "A line that only rises is a leak. The dashboard Host shows what keeps them.",
            [Query(f"sum by (instance) (kmemwatch_dying_cgroups{{{HOSTS}}})", "{{instance}}")],
            COUNT,
            THIRD,
        ),
        lines(
            "What keeps them, by host",
            "Page cache, shmem, slabs and other memory that keeps dying memory cgroups.",
            [Query(f"sum by (instance) (kmemwatch_dying_cgroup_bytes{{{HOSTS}}})", "{{instance}}")],
            BYTES,
            THIRD,
        ),
        lines(
            "Oldest dying cgroup by host",
            "Time since it was removed. A lower bound if that was before kmemwatch started.",
            [Query(f"max by (instance) (kmemwatch_oldest_dying_cgroup_seconds{{{HOSTS}}})", "{{instance}}")],
            SECONDS,
            THIRD,
        ),
    ):
        board.with_panel(panel)


def _online(board: builders.Dashboard) -> None:
    for panel in (
        lines(
            "Online cgroups by host",
            "Memory cgroups that exist and are not removed.",
            [Query(f"sum by (instance) (kmemwatch_online_cgroups{{{HOSTS}}})", "{{instance}}")],
            COUNT,
        ),
        lines(
            "Cgroups removed and released, by host",
            "Over hours, as many must be released as are removed.",
            [
                Query(
                    f"sum by (instance) (rate(kmemwatch_cgroups_offlined_total{{{HOSTS}}}[$__rate_interval]))",
                    "{{instance}} removed",
                ),
                Query(
                    f"sum by (instance) (rate(kmemwatch_cgroups_released_total{{{HOSTS}}}[$__rate_interval]))",
                    "{{instance}} released",
                ),
            ],
            PER_S,
        ),
    ):
        board.with_panel(panel)


def _health(board: builders.Dashboard) -> None:
    board.with_row(row("kmemwatch"))
    for panel in (
        lines(
            "Events lost by host",
            "Figures of a host that loses events are too small.",
            [
                Query(
                    f"sum by (instance) (increase(kmemwatch_events_lost_total{{{HOSTS}}}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            COUNT,
            THIRD,
        ),
        lines(
            "Fullest map by host",
            "Entries in use. When a BPF map is full, new pairs of cgroup and cache are lost.",
            [
                Query(
                    f"max by (instance) (kmemwatch_map_entries{{{HOSTS}}} / kmemwatch_map_capacity{{{HOSTS}}})",
                    "{{instance}}",
                )
            ],
            SHARE,
            THIRD,
        ),
        lines(
            "Age of the figures by host",
            "Time between the last snapshot and the scrape.",
            [Query(f"max by (instance) (kmemwatch_snapshot_age_seconds{{{HOSTS}}})", "{{instance}}")],
            SECONDS,
            THIRD,
        ),
    ):
        board.with_panel(panel)


def _hosts(board: builders.Dashboard) -> None:
    board.with_panel(
        grid(
            "Kernels",
            "Era: objcg, all cgroups share the caches (since Linux 5.9); per-memcg, each cgroup has its own; recharge,"
            " they are reused (the patch set).",
            f"kmemwatch_kernel_info{{{HOSTS}}}"
            f" * on (job, instance) group_left (version) kmemwatch_build_info{{{HOSTS}}}",
            (
                ("instance", "Host"),
                ("release", "Kernel"),
                ("era", "Era"),
                ("patchset", "Patch set"),
                ("version", "kmemwatch"),
            ),
            HALF,
        )
    )
    board.with_panel(
        grid(
            "Signals",
            "0: no hook could be attached, and the figures of the signal are missing. These come first.",
            f"sort(sum by (instance, signal) (kmemwatch_probe_attached{{{HOSTS}}}))",
            (("instance", "Host"), ("signal", "Signal"), ("Value", "Attached")),
            HALF,
        )
    )
