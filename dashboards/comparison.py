# SPDX-License-Identifier: GPL-2.0-only
"""Patched against unpatched: one host of each, side by side; the one with the patch set is on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import timeseries

from dashboards.parts import (
    BYTES,
    COUNT,
    HALF,
    PER_S,
    SECONDS,
    THIRD,
    Query,
    ages,
    dashboard,
    grid,
    host_variable,
    lines,
    row,
)

PATCHED, UNPATCHED = 'instance="$patched"', 'instance="$unpatched"'
QUANTILES = (0.5, 0.9, 0.99)
TOP = 10


def build() -> builders.Dashboard:
    """The dashboard that compares."""
    board = (
        dashboard(
            "kmemwatch-patched",
            "kmemwatch / Patched against unpatched",
            'What the patch set "memcg: reuse per cgroup kmem caches" changes. The host on the left has it.',
        )
        .with_variable(host_variable("patched", "Patched host", 'kmemwatch_kernel_info{patchset="true"}'))
        .with_variable(host_variable("unpatched", "Unpatched host", 'kmemwatch_kernel_info{patchset="false"}'))
    )
    columns = (("instance", "Host"), ("release", "Kernel"), ("era", "Era"), ("patchset", "Patch set"))
    for side, name in ((PATCHED, "Patched"), (UNPATCHED, "Unpatched")):
        board.with_panel(
            grid(name, "Release and kind of the kernel.", f"kmemwatch_kernel_info{{{side}}}", columns, HALF, 4)
        )
    for part in (_ids, _caches, _recharges, _dying, _memory):
        part(board)
    return board


def _both(
    board: builders.Dashboard,
    title: str,
    description: str,
    queries: Callable[[str], Sequence[Query]],
    unit: str,
    stacked: bool = False,
) -> None:
    """The same panel for each side."""
    for side, name in ((PATCHED, "patched"), (UNPATCHED, "unpatched")):
        board.with_panel(lines(f"{title}, {name}", description, queries(side), unit, stacked=stacked))


def _ids(board: builders.Dashboard) -> None:
    board.with_row(row("kmemcg_ids"))
    _both(
        board,
        "Ids in use",
        "With the patch set a cgroup gives its id back when it is removed, so no more ids are in use than cgroups were"
        " online at once. Without it, dying cgroups keep theirs. The kernel's root cgroup has no id.",
        lambda side: [
            Query(f"sum(kmemwatch_kmemcg_ids_in_use{{{side}}})", "ids in use"),
            Query(f"sum(kmemwatch_online_cgroups_peak{{{side}}})", "most cgroups online at once"),
            Query(f"sum(kmemwatch_online_cgroups{{{side}}})", "cgroups online"),
        ],
        COUNT,
    )
    _both(
        board,
        "Ids given, freed and reused",
        "With the patch set, a cgroup that gets a reused id also gets its child caches.",
        lambda side: [
            Query(f"sum(rate(kmemwatch_{metric}_total{{{side}}}[$__rate_interval]))", name)
            for metric, name in (
                ("kmemcg_ids_given", "given"),
                ("kmemcg_ids_freed", "freed"),
                ("kmemcg_id_reuses", "reused"),
            )
        ],
        PER_S,
    )


def _caches(board: builders.Dashboard) -> None:
    board.with_row(row("Child caches"))
    _both(
        board,
        "Child caches of a root cache",
        "A root cache has at most one child cache for each id in use.",
        lambda side: [
            Query(f"topk({TOP}, sum by (root) (kmemwatch_caches_per_root{{{side}}}))", "{{root}}"),
            Query(f"max(kmemwatch_caches_per_root_max{{{side}}})", "largest"),
        ],
        COUNT,
    )


def _recharges(board: builders.Dashboard) -> None:
    board.with_row(row("Recharges (only the patched host has them)"))
    for panel in (
        _moved("Slabs recharged", "recharges", PER_S),
        _moved("Bytes recharged", "recharged_bytes", "binBps"),
    ):
        board.with_panel(panel)
    board.with_panel(
        lines(
            "Checks, failures, lost races",
            "One check for each object from a child cache. Failures: the slab could not be charged to its new owner.",
            [
                Query(f"sum(rate(kmemwatch_recharge_{metric}_total{{{PATCHED}}}[$__rate_interval]))", name)
                for metric, name in (("checks", "checks"), ("failures", "failures"), ("lost_races", "lost races"))
            ],
            PER_S,
            THIRD,
        )
    )


def _moved(title: str, metric: str, unit: str) -> timeseries.Panel:
    return lines(
        title,
        "By the state of the former owner. What moves away from dying cgroups helps to release them.",
        [
            Query(
                f"sum by (from_state) (rate(kmemwatch_{metric}_total{{{PATCHED}}}[$__rate_interval]))",
                "from {{from_state}}",
            )
        ],
        unit,
        THIRD,
        stacked=True,
    )


def _dying(board: builders.Dashboard) -> None:
    board.with_row(row("Dying cgroups"))
    _both(
        board,
        "Dying cgroups",
        "By the time since their removal.",
        ages,
        COUNT,
        stacked=True,
    )
    _both(
        board,
        "Release delay",
        "Time from removal to release, of the cgroups that were released in the last hour.",
        lambda side: [
            Query(
                f"histogram_quantile({quantile},"
                f" sum by (le) (increase(kmemwatch_cgroup_release_delay_seconds_bucket{{{side}}}[1h])))",
                f"{quantile:.0%}",
            )
            for quantile in QUANTILES
        ],
        SECONDS,
    )
    _both(
        board,
        "Slabs of dying cgroups in child caches",
        "By root cache, as the last scan of memory saw them.",
        lambda side: [Query(f"sum by (cache) (kmemwatch_dying_cgroup_child_slab_bytes{{{side}}})", "{{cache}}")],
        BYTES,
        stacked=True,
    )


def _memory(board: builders.Dashboard) -> None:
    board.with_row(row("Memory"))
    _both(
        board,
        "Memory",
        "All slab caches; kernel memory charged to cgroups; memory that keeps dying cgroups.",
        lambda side: [
            Query(f"sum(kmemwatch_cache_slab_bytes{{{side}}})", "slab memory"),
            Query(f'sum(kmemwatch_cgroup_kernel_bytes{{{side}, cgroup="/"}})', "kernel memory of cgroups"),
            Query(f"sum(kmemwatch_dying_cgroup_bytes{{{side}}})", "memory of dying cgroups"),
        ],
        BYTES,
    )
