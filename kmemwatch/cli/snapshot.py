# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch snapshot`: measure for a while, print one Snapshot."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from kmemwatch.cli.options import Seconds, open_feed, source_options
from kmemwatch.cli.process import say
from kmemwatch.cli.top import VIEW_NAMES
from kmemwatch.codec import snapshot_to_json
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.views.batch import Printer
from kmemwatch.views.select import select

OUTPUTS = ("json", "csv", "table")
DURATION_S = 1.0
INDENT = 2


@click.command(short_help="Print one snapshot.")
@click.option("--duration", metavar="S", type=Seconds(0, 86400), default=DURATION_S,
              help=f"Seconds to measure for: {DURATION_S:g}.")  # fmt: skip
@click.option("--output", metavar="FORMAT", default=OUTPUTS[0], type=click.Choice(OUTPUTS),
              help="json (default), or csv or table of one view.")  # fmt: skip
@click.option("--indent", metavar="N", type=click.IntRange(0, 16),
              help=f"Spaces for each level of JSON: {INDENT}; 0 prints one line.")  # fmt: skip
@click.option("--view", metavar="NAME", type=click.Choice(VIEW_NAMES), help="For csv and table: cgroups, caches, ...")
@source_options
def command(
    duration: float, output: str, indent: int | None, view: str | None,
    connect: str | None, replay: str | None, without: tuple[str, ...], latency: bool,
) -> None:  # fmt: skip
    """Measure for a while, then print one snapshot: all of it as JSON, or one view as CSV or table."""
    if output == "json" and view is not None:
        raise UsageError("--view has no meaning with --output json", "JSON has everything")
    if output != "json" and indent is not None:
        raise UsageError(f"--indent has no meaning with --output {output}", "it is for --output json")
    with closing(open_feed(connect, replay, without, latency=latency)) as feed:
        before = feed.next_snapshot(0)
        after = feed.next_snapshot(duration) if before is not None and duration else None
        if before is None:
            raise KmemwatchError(f"{feed.title}: it ended before there was anything to show")
        title, notice = feed.title, feed.notice
    if output == "json":
        text = snapshot_to_json(after or before, INDENT if indent is None else indent or None).decode() + "\n"
    else:
        printer = Printer(select(view or VIEW_NAMES[0]), None, output, title, None)
        text = printer.text(before, after)
        if printer.missing is not None:
            say(f"kmemwatch: note: {printer.missing}")
    sys.stdout.write(text)
    if notice is not None:
        say(f"kmemwatch: note: {notice}")
