# SPDX-License-Identifier: GPL-2.0-only
"""The thread that takes snapshots from the feed and publishes them; its readers never wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmemwatch.cacheids import without_addresses
from kmemwatch.errors import KmemwatchError
from kmemwatch.exporter.published import STALE_INTERVALS, LatestSnapshot, PublishedSnapshot, ReaderCost
from kmemwatch.feeds.feed import Feed

_STOP_S = 1.0


def _nothing(published: PublishedSnapshot) -> None:
    pass


class Publisher:
    """Takes a snapshot from `feed` every `interval_s` and keeps the latest. `stop` closes `feed`."""

    def __init__(
        self,
        feed: Feed,
        interval_s: float,
        log: Callable[[str], None],
        can_go_stale: bool = True,
        *,
        forward: Callable[[PublishedSnapshot], None] = _nothing,
        reader: Callable[[], ReaderCost | None] = lambda: None,
    ) -> None:
        """`can_go_stale`: False for a recording, which ends; its last snapshot stays current.

        The thread calls `forward` with each snapshot, which must not block. `reader`: returns what reading costs.
        """
        self._feed = feed
        self._interval_s = interval_s
        self._log = log
        self._ends = not can_go_stale
        self.latest = LatestSnapshot(STALE_INTERVALS * interval_s if can_go_stale else float("inf"))
        self._forward = forward
        self._reader = reader
        self._error: BaseException | None = None
        self._died = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Close the feed and wait a moment for the thread; harmless when called twice."""
        self._stopping = True
        self._feed.close()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def wait(self, timeout_s: float) -> None:
        """Block for `timeout_s`; if the thread dies, raise its exception at once."""
        if self._died.wait(timeout_s) and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._publish()
        except BaseException as exc:  # noqa: BLE001 - `wait` raises it in the thread that can report it
            self._error = exc
            self.latest.fail(f"the snapshot thread died: {without_addresses(str(exc))}")
            self._died.set()

    def _publish(self) -> None:
        said: str | None = None
        delay_s = 0.0
        while (snapshot := self._feed.next_snapshot(delay_s)) is not None:
            published = PublishedSnapshot(snapshot, time.monotonic(), self._reader())
            self.latest.publish(published)
            self._forward(published)
            # The daemon serves no events; unread ones would only pile up.
            self._feed.take_events()
            if (notice := self._feed.notice) != said and notice:
                self._log(notice)
            said = notice
            delay_s = self._interval_s
        if not self._stopping:
            self._log(self._feed.notice or f"{self._feed.title}: no more snapshots, serving the last one")
            if not self._ends:
                raise KmemwatchError(f"{self._feed.title}: ended")
