# SPDX-License-Identifier: GPL-2.0-only
"""What `kmemwatch top` shows: tables and rows, or the screen; imported once the process that attaches has started."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import closing

from kmemwatch.cli.options import TopOptions
from kmemwatch.cli.process import say, until_stopped
from kmemwatch.errors import KmemwatchError
from kmemwatch.feeds.feed import Feed
from kmemwatch.top.poller import Poller
from kmemwatch.views.batch import Printer
from kmemwatch.views.select import check_scope, select

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWITCH_S = 0.001
"""A key must not wait the usual 5 ms for the GIL again and again while the poller computes rates of 60,000 pairs."""


def run_batch(options: TopOptions) -> None:
    """Print a table, or its rows, at every refresh."""
    # Before the feed: a wrong name must not cost the time to attach.
    selection = select(options.view, options.sort, options.filter_)
    with closing(options.open()) as feed:
        before = feed.next_snapshot(0)
        if before is None:
            raise KmemwatchError(f"{feed.title}: it ended before there was anything to show")
        check_scope(before, options.cgroup)
        printer = Printer(selection, options.cgroup, options.output, feed.title, _cells())
        done, shown = 0, None
        while options.iterations is None or done < options.iterations:
            after = feed.next_snapshot(options.delay_s)
            if after is None and done:
                break
            sys.stdout.write(printer.text(before, after))
            sys.stdout.flush()
            if printer.missing not in (None, shown):
                say(f"kmemwatch: note: {printer.missing}")
            shown = printer.missing
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


def run_screen(options: TopOptions, open_feed: Callable[[], Feed]) -> None:
    """Show the screen until the user, a signal, or the feed ends it. Raises KmemwatchError."""
    poller = Poller(open_feed, options.delay_s, options.cgroup, lambda first: check_scope(first, options.cgroup))
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
