# SPDX-License-Identifier: GPL-2.0-only
"""How a command ends from outside: Ctrl-C, SIGTERM, a closed terminal.

Signals become exceptions in the main thread, so that every `with` and `finally` on the way out runs:
that is what detaches from the kernel and restores the terminal.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. A KeyboardInterrupt, so code that knows how to end on Ctrl-C knows this too."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _terminate(signum: int, frame: FrameType | None) -> None:
    # A second signal must not break off the cleaning up that the first one started.
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(signum)


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise `Terminated` in the main thread, as SIGINT raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; whoever runs us in another one handles them
        return
    # An ignored SIGHUP is nohup's wish and stays.
    wanted = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = [(s, signal.signal(s, _terminate)) for s in wanted]
    try:
        yield
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)


@contextmanager
def until_stopped() -> Iterator[None]:
    """For commands that run until told to stop: SIGINT and SIGTERM are their normal end, not a failure.

    Put it outside of what has to be cleaned up: ``with until_stopped(), closing(open_feed(...)) as feed:``.
    """
    try:
        yield
    except KeyboardInterrupt:
        pass
