# SPDX-License-Identifier: GPL-2.0-only
"""Log lines that clients cause, limited in number so that no client can fill the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmemwatch.units import printable
from kmemwatch.web.access import TokenBucket
from kmemwatch.web.config import RateLimit

LIMIT = RateLimit(60.0, 10)
"""Ten lines at once, and one more each minute."""
MAX_CHARS = 400


class ClientLog:
    """A log with the limit; may be used from any thread."""

    def __init__(self, log: Callable[[str], None], now_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._bucket = TokenBucket(LIMIT, now_s)
        self._lock = threading.Lock()
        self._left_out = 0
        self._last = ""

    def say(self, message: str) -> None:
        """Log `message`, or only count it when there were too many."""
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
        """Log how many lines were left out, once the limit allows a line. To be called about once a second."""
        with self._lock:
            if not self._left_out or not self._bucket.take():
                return
            number, last = self._left_out, self._last
            self._left_out = 0
        self._log(f"http: {number} more such {'line' if number == 1 else 'lines'}, the last one: {last}")
