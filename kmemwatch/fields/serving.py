# SPDX-License-Identifier: GPL-2.0-only
"""What the exporter says about itself, beside the metrics of a Snapshot; one Field each, like all others."""

from __future__ import annotations

from dataclasses import dataclass

from kmemwatch.fields.base import COUNT, COUNTER, GAUGE, SECONDS, Field


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


SERVING: tuple[Field[Serving], ...] = (
    Field(
        "scrapes_total",
        "SCRAPES",
        COUNT,
        "Scrapes answered before this one.",
        lambda s: s.scrapes_total,
        "kmemwatch_scrapes_total",
        COUNTER,
    ),
    Field(
        "scrape_duration_seconds_total",
        "SCRAPE TIME",
        SECONDS,
        "Time spent on answering these scrapes, without sending the answer.",
        lambda s: s.scrape_seconds_total,
        "kmemwatch_scrape_duration_seconds_total",
        COUNTER,
    ),
    Field(
        "snapshot_age_seconds",
        "AGE",
        SECONDS,
        "Age of the figures in this scrape; absent, as they are, when there is no recent snapshot.",
        lambda s: s.snapshot_age_seconds,
        "kmemwatch_snapshot_age_seconds",
        GAUGE,
    ),
    Field(
        "folded_cgroups",
        "FOLDED",
        COUNT,
        "Memory cgroups that have no series of their own and are part of cgroup=other, see --max-series.",
        lambda s: s.folded_cgroups,
        "kmemwatch_folded_cgroups",
        GAUGE,
    ),
    Field(
        "folded_series",
        "FOLDED SERIES",
        COUNT,
        "Series that these memory cgroups would have.",
        lambda s: s.folded_series,
        "kmemwatch_folded_series",
        GAUGE,
    ),
)
