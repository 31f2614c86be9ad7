# SPDX-License-Identifier: GPL-2.0-only
"""Reads a feed in a thread and passes frozen frames on; starts before the screen exists."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from kmemwatch.feeds.feed import Feed
from kmemwatch.model import Snapshot
from kmemwatch.views.rows import Frame, frame

FIRST_DELAY_S = 1.0
"""The first rates come soon, however long the delay: nobody wants to see only `?` for a minute."""
_STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A new state."""

    frame: Frame
    title: str
    notice: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The feed has no more: end of a recording, or closed."""

    notice: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The feed could not be opened, or failed."""

    error: Exception


Update = Refreshed | Ended | Failed


class Poller:
    """Opens the feed, reads it until `stop`, and closes it, all in one daemon thread.

    `check` gets the first snapshot and may raise. Updates that come before `listen` wait for it.
    """

    def __init__(
        self,
        open_feed: Callable[[], Feed],
        delay_s: float,
        scope: str | None = None,
        check: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self.delay_s = delay_s
        """May be changed at any time; holds from the next refresh on."""
        self._open, self._scope, self._check = open_feed, scope, check
        self._lock = threading.Lock()
        self._tell: Callable[[Update], None] | None = None
        self._waiting: list[Update] = []
        self._feed: Feed | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """Begin to open the feed."""
        self._thread.start()

    def listen(self, tell: Callable[[Update], None]) -> None:
        """Call `tell` for all updates so far, and then for each new one; in the feed's thread."""
        with self._lock:
            self._tell = tell
            for update in self._waiting:
                tell(update)
            self._waiting.clear()

    @property
    def failure(self) -> Exception | None:
        """What failed before `listen`."""
        with self._lock:
            return next((u.error for u in self._waiting if isinstance(u, Failed)), None)

    def stop(self) -> None:
        """Close the feed and wait a moment for the thread; harmless when called twice.

        Does not wait for a feed that is still being opened: the thread closes it, or the end of the process does.
        """
        self._stopped.set()
        feed = self._feed
        if feed is not None:
            feed.close()
            self._thread.join(_STOP_TIMEOUT_S)

    def _say(self, update: Update) -> None:
        with self._lock:
            if self._tell is None:
                self._waiting.append(update)
            elif not self._stopped.is_set():
                self._tell(update)

    def _run(self) -> None:
        try:
            feed = self._open()
        except Exception as exc:  # noqa: BLE001 - the screen's thread raises it again, see Failed
            self._say(Failed(exc))
            return
        self._feed = feed
        with contextlib.closing(feed):
            try:
                self._read(feed)
            except Exception as exc:  # noqa: BLE001 - as above
                self._say(Failed(exc))

    def _read(self, feed: Feed) -> None:
        before: Snapshot | None = None
        delay_s, refreshes = 0.0, 0
        while not self._stopped.is_set():
            after = feed.next_snapshot(delay_s)
            if after is None:
                self._say(Ended(feed.notice))
                return
            if before is None:
                self._check(after)
            self._say(Refreshed(frame(before, after, self._scope), feed.title, feed.notice))
            before = after
            refreshes += 1
            delay_s = min(self.delay_s, FIRST_DELAY_S) if refreshes == 1 else self.delay_s
