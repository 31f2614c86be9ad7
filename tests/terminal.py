# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch top` on a terminal of its own, as a user starts it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.daemon import KMEMWATCH

ROWS, COLUMNS = 200, 200


class Terminal:
    """The other end of the terminal of a process."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._began = time.monotonic()

    def read(self, wait_s: float) -> bytes:
        """What the process writes within `wait_s`, up to the first pause."""
        return os.read(self._descriptor, 1 << 16) if select.select([self._descriptor], [], [], wait_s)[0] else b""

    def seconds_to(self, marker: bytes, limit_s: float) -> float:
        """Seconds from the start of the process until the terminal shows `marker`."""
        shown = b""
        while marker not in shown:
            assert time.monotonic() < self._began + limit_s, f"no {marker!r} within {limit_s} s: {shown[-2000:]!r}"
            shown += self.read(0.1)
        return time.monotonic() - self._began

    def drain(self) -> None:
        """Read until the process has closed the terminal: it restores the terminal when it ends."""
        try:
            while os.read(self._descriptor, 1 << 16):
                pass
        except OSError:  # EIO: nobody has it open any more
            pass


@contextmanager
def top(*args: str, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """A running ``kmemwatch top ARGS``; it gets SIGTERM at the end."""
    pid, descriptor = pty.fork()
    if pid == 0:
        # Not execv(): the debugger of pytest loads readline, which gives C programs LINES and COLUMNS of its own.
        os.execve(sys.executable, [*KMEMWATCH, "top", *args], {**environment, "TERM": "xterm-256color"})
    terminal = Terminal(pid, descriptor)
    try:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        yield terminal
    finally:
        os.kill(pid, signal.SIGTERM)
        terminal.drain()
        os.waitpid(pid, 0)
        os.close(descriptor)
