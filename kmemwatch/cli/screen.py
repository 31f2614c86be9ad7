# SPDX-License-Identifier: GPL-2.0-only
"""`top` on a terminal: the feed is opened first, and everything else imported while that takes its time.

Attaching to the kernel is most of the time to the first screen, and another process does it.
So this module imports next to nothing, and `run_screen` starts the feed before it looks at anything.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from kmemwatch.cli.stopping import until_stopped
from kmemwatch.top.poller import Poller

if TYPE_CHECKING:
    from kmemwatch.cli.options import TopOptions
    from kmemwatch.model import Snapshot

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SWITCH_S = 0.001
"""While the poller computes rates of 60,000 pairs, a key must not wait the usual 5 ms for every step it takes."""


def run_screen(options: TopOptions) -> None:
    """Show the screen until a person, a signal, or the feed ends it. Raises KmemwatchError."""
    poller = Poller(
        lambda: options.open(realtime=True), options.delay_s, options.cgroup, lambda first: _check(first, options)
    )
    sys.setswitchinterval(SWITCH_S)
    failure = None
    with until_stopped():
        try:
            poller.start()
            if options.connect is None and options.replay is None:
                # The thread imports this right now and then starts the process that attaches: let it go first.
                import kmemwatch.feeds.live  # noqa: F401
            failure = _run(options, poller)
        finally:
            poller.stop()
    if failure is not None:
        raise failure


def _run(options: TopOptions, poller: Poller) -> Exception | None:
    from kmemwatch.views.select import select

    selection = select(options.view, options.sort, options.filter_)
    from kmemwatch.top.topapp import TopApp

    if poller.failure is not None:  # no privileges, no such file: say so without drawing a screen first
        return poller.failure
    app = TopApp(poller, selection, opening=_opening(options), refreshes=options.iterations, signals=END_SIGNALS)
    app.run()
    return app.failure


def _check(first: Snapshot, options: TopOptions) -> None:
    from kmemwatch.views.select import check_scope

    check_scope(first, options.cgroup)


def _opening(options: TopOptions) -> str:
    if options.connect is not None:
        return f"connecting to {options.connect}…"
    if options.replay is not None:
        return f"reading {options.replay}…"
    return "attaching to the kernel…"
