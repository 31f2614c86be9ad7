# SPDX-License-Identifier: GPL-2.0-only
"""Signals that end a run, as a flag and a descriptor to wait for.

An exception could come between making something and noting that it was made; then nobody would take it away again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Within it, the signals that would end the process are only noted. In other threads than the main one: nothing."""

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first one that came."""
        self.at_s: float | None = None
        """When it came, `time.monotonic`."""
        self.fd, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Readable as soon as one came."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for signum in ENDING:
                if signal.getsignal(signum) != signal.SIG_IGN:  # nohup's wish stays
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self.at_s = signum, time.monotonic()
        with contextlib.suppress(BlockingIOError):  # full: it is readable
            os.write(self._waker, b"!")

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        os.close(self.fd)
        os.close(self._waker)
