# SPDX-License-Identifier: GPL-2.0-only
"""What a command shares with its caller: the standard streams, which may be closed, and the signals that end it.

Signals become exceptions in the main thread, so that every `with` and `finally` on the way out runs: that detaches from
the kernel and restores the terminal.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from kmemwatch.units import one_line

_MODES = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
"""Descriptor -> how /dev/null takes its place. Writing to standard output still fails, so that no caller believes that
the text arrived; messages to a closed standard error are dropped."""


class OutputError(OSError):
    """Writing to standard output failed. A pipe that nobody reads raises BrokenPipeError instead."""

    @property
    def why(self) -> str:
        return "it is closed" if self.errno == errno.EBADF else self.strerror or str(self)


class _Output(io.FileIO):
    """Descriptor 1, which may be non-blocking. Raises `OutputError`, so that its errors differ from those of files."""

    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(error.errno, error.strerror) from error
            if written is not None:
                return written
            poll = select.poll()
            poll.register(self.fileno(), select.POLLOUT)
            poll.poll()


def prepare() -> None:
    """Replace closed descriptors, or the next socket or file would become standard output; write by `_Output`."""
    for fd, mode in _MODES:
        try:
            os.fstat(fd)
        except OSError:
            _devnull_at(fd, mode)
    # sys.stdin, stdout and stderr are None for descriptors that were closed when Python started.
    encoding = sys.stdout.encoding if sys.stdout else "utf-8"
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)), encoding, "backslashreplace", line_buffering=os.isatty(1)
    )
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


def _devnull_at(fd: int, mode: int) -> None:
    opened = os.open(os.devnull, mode)
    if opened != fd:
        os.dup2(opened, fd)
        os.close(opened)
    os.set_inheritable(fd, True)  # or it would be closed in the processes that we start


def say(*lines: str) -> None:
    """Write to standard error; errors are ignored, as the command itself can still succeed.

    Text that `lines` quote (names of files, answers of servers) can neither add lines nor move the cursor.
    """
    _to_stderr("".join(f"{one_line(line)}\n" for line in lines))


def say_over(text: str) -> None:
    """Write to standard error over the last such text."""
    _to_stderr(f"\r{one_line(text)}")


def _to_stderr(text: str) -> None:
    try:
        click.echo(text, err=True, nl=False)
    except (OSError, ValueError):
        pass


def finish() -> None:
    """Flush standard output now: at exit the interpreter would flush it, and fail with a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence()


def silence() -> None:
    """Write nothing more to standard output."""
    try:
        _devnull_at(sys.stdout.fileno(), os.O_WRONLY)
        sys.stdout.flush()
    except (OSError, ValueError):
        pass


def reader_is_gone() -> bool:
    """Whether nobody reads our standard output, as in `kmemwatch top --once | head -1`; if so, silence it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        gone = any(mask & (select.POLLERR | select.POLLHUP) for _, mask in poll.poll(0))
    except (OSError, ValueError):
        return True
    if gone:
        silence()
    return gone


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. A KeyboardInterrupt, so that code which ends on Ctrl-C ends on these, too."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _terminate(signum: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the cleaning up that the first one started.
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(signum)


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise `Terminated` in the main thread, as SIGINT raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    # nohup ignores SIGHUP; leave it so.
    wanted = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = [(s, signal.signal(s, _terminate)) for s in wanted]
    try:
        yield
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)


@contextmanager
def until_stopped() -> Iterator[None]:
    """For commands without an end of their own: SIGINT and SIGTERM end them normally, not as a failure.

    Put it outside of what must be closed: ``with until_stopped(), closing(open_feed(...)) as feed:``.
    """
    try:
        yield
    except KeyboardInterrupt:
        pass
