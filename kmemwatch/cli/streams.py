# SPDX-License-Identifier: GPL-2.0-only
"""Standard input, output and error: whatever the caller has closed, filled, or stopped to read."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

import click

from kmemwatch.units import one_line

_MODES = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
"""Descriptor -> how /dev/null takes its place. Writing to the output fails as it would while it is closed, so that
nobody believes that it arrived; what is said on a closed standard error is lost, as was asked for."""


class OutputError(OSError):
    """Standard output does not take what is written to it; a pipe that nobody reads is a BrokenPipeError as ever."""

    @property
    def why(self) -> str:
        return "it is closed" if self.errno == errno.EBADF else self.strerror or str(self)


class _Output(io.FileIO):
    """Descriptor 1. Its errors can be told from those of files, and it may be one that does not block."""

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
    """Take the place of what is closed, else the next socket or file would become our standard output; and write to
    standard output by way of `_Output`."""
    for fd, mode in _MODES:
        try:
            os.fstat(fd)
        except OSError:
            _devnull_at(fd, mode)
    # Python has none of a descriptor that was closed when it started.
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
    os.set_inheritable(fd, True)  # else it would be closed again in the processes that we start


def say(*lines: str) -> None:
    """Write to standard error; that nobody can read it changes nothing of what was asked for.

    What they quote (names of files, answers of servers) cannot make more lines of it, or move the cursor.
    """
    _to_stderr("".join(f"{one_line(line)}\n" for line in lines))


def say_over(text: str) -> None:
    """Write to standard error where the last such text stands."""
    _to_stderr(f"\r{one_line(text)}")


def _to_stderr(text: str) -> None:
    try:
        click.echo(text, err=True, nl=False)
    except (OSError, ValueError):
        pass


def finish() -> None:
    """What standard output has not taken would be written, and fail, when the interpreter ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence()


def silence() -> None:
    """Nothing is written to standard output any more."""
    try:
        _devnull_at(sys.stdout.fileno(), os.O_WRONLY)
        sys.stdout.flush()
    except (OSError, ValueError):
        pass


def reader_is_gone() -> bool:
    """Whether it is our stdout that broke, as in `kmemwatch top --once | head -1`; silences it if so."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        gone = any(mask & (select.POLLERR | select.POLLHUP) for _, mask in poll.poll(0))
    except (OSError, ValueError):
        return True
    if gone:
        silence()
    return gone
