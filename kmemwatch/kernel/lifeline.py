# SPDX-License-Identifier: GPL-2.0-only
"""Child processes that the kernel kills as soon as this process ends. See docs/adr/0018-lifelines.md.

The child has the read end of a pipe with O_ASYNC; this process has the only write end. When that is closed, the kernel
sends SIGKILL to the child. This works when the child is stopped or spins, when it has another user id that this process
may not signal, and however this process ends, as the kernel closes its descriptors in any case.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_F_SETSIG = 10
"""Python's `fcntl` lacks it; it is the same number on x86, Arm, POWER, RISC-V and s390."""
LOOK_S = 0.9
SILENT_LOOKS = 8
"""A process counts as hung after so many looks, at least LOOK_S apart, without a sign of life. Looks are counted and
not seconds: a host that slept, or a stop of both processes, does not mean that one hangs."""
_REAP_S = 5.0
"""The kernel may take this long to free the memory and the BPF programs of a process that was killed."""


def tie(fd: int, pid: int) -> None:
    """Have the kernel kill `pid` when the other end of the pipe at `fd` is closed.

    When the pipe is closed, the kernel checks whether the caller of this function may signal `pid`. So a process that
    changes its user calls it again afterwards, for itself. Raises OSError.
    """
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def tie_myself(fd: int) -> None:
    """As `tie`, in the child after it has changed its user. Ends this process if its parent has ended before."""
    tie(fd, os.getpid())
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)


class TiedProcess:
    """A process that does not outlive this one."""

    def __init__(
        self, command: Sequence[str], *, pass_fds: Sequence[int] = (), tell_fd: bool = False, **options: Any
    ) -> None:
        """`options`: of `subprocess.Popen`. `tell_fd`: the last argument is the descriptor, for `tie_myself`."""
        theirs, self._ours = os.pipe()
        try:
            arguments = [*command, str(theirs)] if tell_fd else command
            self._process = subprocess.Popen(arguments, pass_fds=[*pass_fds, theirs], **options)
            tie(theirs, self._process.pid)
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)
        self._is_tied = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def status(self) -> int | None:
        """As `Popen.poll`: None while it runs, a negative number for the signal that ended it."""
        return self._process.poll()

    def speaks(self, channel: socket.socket, event: int = select.POLLIN, limit_s: float = math.inf) -> bool:
        """Wait for that event of `select.poll` on a channel to it. False when it has been stopped for SILENT_LOOKS
        looks in a row, or when `limit_s` is over."""
        poll, stopped, deadline_s = select.poll(), 0, time.monotonic() + limit_s
        poll.register(channel, event)
        while not poll.poll(LOOK_S * 1000):
            stopped = stopped + 1 if self._is_stopped() else 0
            if stopped >= SILENT_LOOKS or time.monotonic() > deadline_s:
                return False
        return True

    def _is_stopped(self) -> bool:
        """Stopped by a signal such as SIGSTOP."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
        except OSError:  # it has ended
            return False
        return status.rpartition(")")[2].split()[:1] == ["T"]

    def wait(self, timeout_s: float) -> int | None:
        """Its status, when it has ended or `timeout_s` is over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode

    def end(self) -> int | None:
        """Kill it if it runs, whatever its user, and reap it. Returns its status; may be called twice.

        None: the kernel has not finished ending it, and will do so later.
        """
        if self._is_tied:
            self._is_tied = False
            os.close(self._ours)
        return self.wait(_REAP_S)
