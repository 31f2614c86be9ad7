# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch top`: the live view on a terminal; tables and rows elsewhere.

Attaching to the kernel takes most of the time to the first screen, and another process does it. That process starts
before anything is imported that only the views need.
"""

from __future__ import annotations

import os
import sys

import click

from kmemwatch.cli.options import (
    Seconds,
    TopOptions,
    cgroup_option,
    check_source,
    filter_option,
    source_options,
)
from kmemwatch.cli.process import until_stopped
from kmemwatch.errors import UsageError

VIEW_NAMES = ("cgroups", "caches", "zombies", "ids", "recharges")
OUTPUTS = ("table", "json", "csv", "ndjson")
DELAY_S, ONCE_DELAY_S = 3.0, 1.0
MIN_DELAY_S, MAX_DELAY_S = 0.1, 3600.0


@click.command(short_help="Live view.")
@click.option("-d", "--delay", metavar="S", type=Seconds(MIN_DELAY_S, MAX_DELAY_S),
              help="Seconds between refreshes: 3, or 1 with --once.")  # fmt: skip
@click.option("-n", "--iterations", metavar="N", type=click.IntRange(min=1), help="End after N refreshes.")
@click.option("-b", "--batch", is_flag=True, help="Print tables instead of the live view.")
@click.option("--once", is_flag=True, help="Print one table and end: like -b -n 1.")
@click.option("--view", metavar="NAME", default=VIEW_NAMES[0], type=click.Choice(VIEW_NAMES),
              help="One of cgroups, caches, zombies, ids, recharges.")  # fmt: skip
@click.option("--sort", metavar="FIELD", help="Sort by this field; -FIELD reverses the order.")
@filter_option
@cgroup_option
@click.option("--output", metavar="FORMAT", default=OUTPUTS[0], type=click.Choice(OUTPUTS),
              help="table, csv or ndjson for rows; json for snapshots.")  # fmt: skip
@source_options
def command(
    delay: float | None, iterations: int | None, batch: bool, once: bool, output: str, view: str, sort: str | None,
    filter_: str | None, cgroup: str | None, connect: str | None, replay: str | None, without: tuple[str, ...],
    latency: bool,
) -> None:  # fmt: skip
    """Show which cgroups hold kernel memory, in which caches, and what pins dying cgroups."""
    check_source(connect, replay, without, latency)
    if once and iterations not in (None, 1):
        raise UsageError("--once and --iterations cannot be used together", "--once is the same as -b -n 1")
    if output == "json" and (sort or filter_ or cgroup):
        raise UsageError(
            "--output json prints whole snapshots: --sort, --filter and --cgroup have no meaning",
            "--output ndjson prints the rows of a view, filtered and sorted",
        )
    options = TopOptions(
        delay if delay is not None else ONCE_DELAY_S if once else DELAY_S,
        1 if once else iterations,
        batch or once or output != "table" or not _has_screen(),
        output, view, sort, filter_, cgroup, connect, replay, without, latency,
    )  # fmt: skip
    opening = None if options.batch else options.begin()
    from kmemwatch.cli.topviews import run_batch, run_screen  # while the other process attaches

    if opening is not None:
        run_screen(options, opening)
        return
    with until_stopped():
        run_batch(options)


def _has_screen() -> bool:
    """Whether there is a terminal to draw on and read keys from; Textual draws on standard error."""
    on_terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    return on_terminal and os.environ.get("TERM", "dumb") != "dumb"
