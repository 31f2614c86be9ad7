# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch top`: the live view on a terminal; tables and rows elsewhere.

Attaching to the kernel takes most of the time to the first screen, and another process does it. So the feed starts
before Textual is imported.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import closing
from dataclasses import dataclass

import click

from kmemwatch.cli.options import Seconds, cgroup_option, check_source, filter_option, open_feed, source_options
from kmemwatch.cli.process import say, until_stopped
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.feed import Feed
from kmemwatch.top.poller import Poller
from kmemwatch.views.batch import Printer
from kmemwatch.views.select import check_scope, select

VIEW_NAMES = ("cgroups", "caches", "zombies", "ids", "recharges")
OUTPUTS = ("table", "json", "csv", "ndjson")
DELAY_S, ONCE_DELAY_S = 3.0, 1.0
MIN_DELAY_S, MAX_DELAY_S = 0.1, 3600.0
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWITCH_S = 0.001
"""A key must not wait the usual 5 ms for the GIL again and again while the poller computes rates of 60,000 pairs."""


@dataclass(frozen=True, slots=True)
class TopOptions:
    """The command line of `top`."""

    delay_s: float
    iterations: int | None
    batch: bool
    output: str
    view: str
    sort: str | None
    filter_: str | None
    cgroup: str | None
    connect: str | None
    replay: str | None
    without: tuple[str, ...]
    latency: bool = False

    def open(self, *, realtime: bool) -> Feed:
        """The feed that the command line asks for. Raises KmemwatchError."""
        return open_feed(self.connect, self.replay, self.without, latency=self.latency, realtime=realtime)


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
    if options.batch:
        with until_stopped():
            run_batch(options)
    else:
        run_screen(options)


def _has_screen() -> bool:
    """Whether there is a terminal to draw on and read keys from; Textual draws on standard error."""
    on_terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    return on_terminal and os.environ.get("TERM", "dumb") != "dumb"


def run_batch(options: TopOptions) -> None:
    """Print a table, or its rows, at every refresh."""
    # Before the feed: a wrong name must not cost the time to attach.
    selection = select(options.view, options.sort, options.filter_)
    with closing(options.open(realtime=False)) as feed:
        before = feed.next_snapshot(0)
        if before is None:
            raise KmemwatchError(f"{feed.title}: it ended before there was anything to show")
        check_scope(before, options.cgroup)
        printer = Printer(selection, options.cgroup, options.output, feed.title, _cells())
        done, noted = 0, None
        while options.iterations is None or done < options.iterations:
            after = feed.next_snapshot(options.delay_s)
            if after is None and done:
                break
            sys.stdout.write(printer.text(before, after))
            sys.stdout.flush()
            if printer.missing not in (None, noted):
                say(f"kmemwatch: note: {printer.missing}")
            noted = printer.missing
            if after is None:  # a recording of one snapshot: show it, without rates
                break
            before, done = after, done + 1
        if feed.notice is not None:
            say(f"kmemwatch: note: {feed.notice}")


def _cells() -> int | None:
    """Width to cut lines at; None for files and pipes, where nothing may be cut."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return max(shutil.get_terminal_size().columns, 1)
    return None


def run_screen(options: TopOptions) -> None:
    """Show the screen until the user, a signal, or the feed ends it. Raises KmemwatchError."""
    poller = Poller(
        lambda: options.open(realtime=True),
        options.delay_s,
        options.cgroup,
        lambda first: check_scope(first, options.cgroup),
    )
    sys.setswitchinterval(SWITCH_S)
    failure = None
    with until_stopped():
        try:
            poller.start()
            failure = _draw(options, poller)
        finally:
            poller.stop()
    if failure is not None:
        raise failure


def _draw(options: TopOptions, poller: Poller) -> Exception | None:
    selection = select(options.view, options.sort, options.filter_)
    from kmemwatch.top.topapp import TopApp  # Textual takes 0.3 s; meanwhile the poller opens the feed

    if poller.failure is not None:  # no privileges, no such file: report it without drawing a screen first
        return poller.failure
    app = TopApp(poller, selection, opening=_opening(options), refreshes=options.iterations, signals=END_SIGNALS)
    app.run()
    return app.failure


def _opening(options: TopOptions) -> str:
    if options.connect is not None:
        return f"connecting to {options.connect}…"
    if options.replay is not None:
        return f"reading {options.replay}…"
    return "attaching to the kernel…"
