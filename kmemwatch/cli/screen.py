# SPDX-License-Identifier: GPL-2.0-only
"""`top` on a terminal: the feed is opened first, and Textual imported while that takes its time."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from kmemwatch.cli.stopping import until_stopped
from kmemwatch.render.select import check_scope, scope_path, select
from kmemwatch.tui.poller import Poller

if TYPE_CHECKING:
    from kmemwatch.cli.top import TopOptions

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_screen(options: TopOptions) -> None:
    """Show the screen until a person, a signal, or the feed ends it. Raises KmemwatchError."""
    selection, scope = select(options.view, options.sort, options.filter_), scope_path(options.cgroup)
    poller = Poller(
        lambda: options.open(realtime=True), options.delay_s, scope, lambda snapshot: check_scope(snapshot, scope)
    )
    failure = None
    with until_stopped():
        try:
            poller.start()
            from kmemwatch.tui.app import TopApp

            if poller.failure is not None:  # no privileges, no such file: say so without drawing a screen first
                raise poller.failure
            app = TopApp(
                poller, selection, opening=_opening(options), refreshes=options.iterations, signals=END_SIGNALS
            )
            app.run()
            failure = app.failure
        finally:
            poller.stop()
    if failure is not None:
        raise failure


def _opening(options: TopOptions) -> str:
    if options.connect is not None:
        return f"connecting to {options.connect}…"
    if options.replay is not None:
        return f"reading {options.replay}…"
    return "attaching to the kernel…"
