# SPDX-License-Identifier: GPL-2.0-only
"""Lines of the log that clients cause: some, so that somebody notices, and never so many that a disk fills up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmemwatch.units import printable
from kmemwatch.web.configmodel import RateLimit
from kmemwatch.web.front import TokenBucket

LIMIT = RateLimit(60.0, 10)
"""Lines: ten at once, and one more each minute."""
MAX_CHARS = 400


class ClientLog:
    """All such lines go through one of these, from any thread."""

    def __init__(self, log: Callable[[str], None], now_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._bucket = TokenBucket(LIMIT, now_s)
        self._lock = threading.Lock()
        self._left_out = 0
        self._last = ""

    def say(self, message: str) -> None:
        """Log `message`, or count it when there are too many."""
        message = printable(message)
        if len(message) > MAX_CHARS:
            message = message[:MAX_CHARS] + "..."
        with self._lock:
            if self._left_out or not self._bucket.take():
                self._left_out += 1
                self._last = message
                return
        self._log(message)

    def catch_up(self) -> None:
        """To be called now and then: log how many lines were left out, as soon as there is room for a line."""
        with self._lock:
            if not self._left_out or not self._bucket.take():
                return
            number, last = self._left_out, self._last
            self._left_out = 0
        self._log(f"http: {number} more such {'line' if number == 1 else 'lines'}, the last one: {last}")
