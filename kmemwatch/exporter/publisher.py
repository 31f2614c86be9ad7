# SPDX-License-Identifier: GPL-2.0-only
"""The thread that owns the feed and publishes its latest snapshot; nobody who reads it ever waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

from kmemwatch.errors import KmemwatchError
from kmemwatch.feed import Feed
from kmemwatch.model import Snapshot

T = TypeVar("T")

STALE_INTERVALS = 3
_STOP_S = 1.0


class Frame:
    """One published snapshot, and what was made of it: each thing is made once, however many ask at a time."""

    def __init__(self, snapshot: Snapshot, published_s: float) -> None:
        self.snapshot = snapshot
        self.published_s = published_s
        """`time.monotonic`."""
        self._lock = threading.Lock()
        self._made: dict[Hashable, object] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, or what it returned the first time for `key`."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]  # type: ignore[return-value]


class Publisher:
    """Asks `feed` for a snapshot every `interval_s` and keeps the latest. `feed` is closed by `stop`."""

    def __init__(self, feed: Feed, interval_s: float, log: Callable[[str], None], can_go_stale: bool = True) -> None:
        """`can_go_stale` False: a snapshot stays valid, as for a recording, which ends."""
        self._feed = feed
        self._interval_s = interval_s
        self._log = log
        self._stale_s = STALE_INTERVALS * interval_s if can_go_stale else float("inf")
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._died = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def start(self) -> None:
        """Begin; `frame` is None until the first snapshot is there."""
        self._thread.start()

    def stop(self) -> None:
        """Close the feed and wait a moment for the thread; harmless when called twice."""
        self._stopping = True
        self._feed.close()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def wait(self, timeout_s: float) -> None:
        """Block for `timeout_s`; when the thread dies, raise at once what it died of."""
        if self._died.wait(timeout_s) and self._error is not None:
            raise self._error

    def frame(self) -> Frame | None:
        """The latest snapshot; None when there is none that may pass for the present state, see `problem`."""
        return None if self.problem() else self._frame

    def problem(self) -> str | None:
        """Why there is no valid snapshot, in one line; None when there is."""
        frame, error = self._frame, self._error
        if error is not None:
            return f"the snapshot thread died: {error}"
        if frame is None:
            return "no snapshot yet"
        age_s = time.monotonic() - frame.published_s
        if age_s > self._stale_s:
            return f"the last snapshot is {age_s:.0f} s old, more than {STALE_INTERVALS} intervals"
        return None

    def _run(self) -> None:
        try:
            self._publish()
        except BaseException as exc:  # noqa: BLE001 - `wait` raises it in the thread that can report it
            self._error = exc
            self._died.set()

    def _publish(self) -> None:
        said: str | None = None
        delay_s = 0.0
        while (snapshot := self._feed.next_snapshot(delay_s)) is not None:
            # One assignment: readers see the old frame or the new one.
            self._frame = Frame(snapshot, time.monotonic())
            # A daemon hands out states; unread events would only pile up.
            self._feed.take_events()
            if (notice := self._feed.notice) != said and notice:
                self._log(notice)
            said = notice
            delay_s = self._interval_s
        if not self._stopping:
            self._log(self._feed.notice or f"{self._feed.title}: no more snapshots, serving the last one")
            if self._stale_s != float("inf"):
                raise KmemwatchError(f"{self._feed.title}: ended")
