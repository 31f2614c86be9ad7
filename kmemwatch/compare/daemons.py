# SPDX-License-Identifier: GPL-2.0-only
"""Daemons as Sides: both are measured at the same time, for as long as was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from kmemwatch.compare.side import DAEMON, Side
from kmemwatch.compare.watching import Watching
from kmemwatch.errors import KmemwatchError
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.http_client import Access
from kmemwatch.feeds.remote import RemoteFeed

_TICK_S = 0.2
"""How soon an exception (Ctrl-C) stops waiting."""


@dataclass
class DaemonWatch:
    """One daemon that is being asked."""

    label: str
    feed: Feed
    duration_s: float
    interval_s: float
    watching: Watching = field(default_factory=Watching)
    error: KmemwatchError | None = None
    notices: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Ask until the time is over; what goes wrong is kept in `error`."""
        end_s = time.monotonic() + self.duration_s
        try:
            delay_s = 0.0
            while (snapshot := self.feed.next_snapshot(delay_s)) is not None:
                latest = self.watching.latest
                if latest is None or snapshot != latest:
                    self.watching.add(snapshot)
                if self.feed.notice is not None and self.feed.notice not in self.notices:
                    self.notices.append(self.feed.notice)
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    return
                delay_s = min(self.interval_s, left_s)
        except KmemwatchError as exc:
            self.error = exc

    def side(self) -> Side:
        """What was measured. Raises the error that ended it before there was anything."""
        if self.watching.latest is None:
            raise self.error or KmemwatchError(f"{self.feed.title}: it ended before there was anything to compare")
        notes = [*self.notices, *([str(self.error)] if self.error is not None else [])]
        return self.watching.side(self.label, DAEMON, self.feed.title, notes=tuple(notes))


def watch(label: str, url: str, access: Access, duration_s: float, interval_s: float) -> DaemonWatch:
    """Prepare for a daemon; nothing is sent yet. Raises UsageError for a URL that is none."""
    return DaemonWatch(label, RemoteFeed(url, access=access), duration_s, interval_s)


def run_all(watches: list[DaemonWatch], progress: Callable[[float], None] = lambda s: None) -> None:
    """Run them at once; `progress` is called with the seconds that have passed. An exception ends all of them."""
    threads = [threading.Thread(target=one.run, daemon=True) for one in watches]
    began_s = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_TICK_S)
            progress(time.monotonic() - began_s)
            if any(one.error is not None and one.watching.latest is None for one in watches):
                return  # nothing can come of it, so nobody has to wait
    finally:
        for one in watches:
            with closing(one.feed):
                pass
