# SPDX-License-Identifier: GPL-2.0-only
"""Files that the user names on the command line: read with a bound, written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kmemwatch.errors import KmemwatchError, UsageError

DEADLINE_S = 10.0
_CHUNK = 1 << 16


def without_waiting(path: str, flags: int) -> int:
    """An `opener` for `open`: a pipe that nobody writes to is opened at once."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def read_bounded(path: str, most: int, name: str | None = None, deadline_s: float = DEADLINE_S) -> bytes:
    """All of a file, or of a pipe whose writer finishes before the deadline.

    Raises OSError, and UsageError if there are more than `most` bytes, or no end in time.
    """
    fd = without_waiting(path, os.O_RDONLY)
    poll, end_s, data = select.poll(), time.monotonic() + deadline_s, bytearray()
    poll.register(fd, select.POLLIN)
    try:
        while len(data) <= most:
            try:
                part = os.read(fd, min(_CHUNK, most + 1 - len(data)))
            except BlockingIOError:
                poll.poll(max(0.0, end_s - time.monotonic()) * 1000)
                part = None
            if part == b"":
                return bytes(data)
            data += part or b""
            if time.monotonic() > end_s:
                raise UsageError(f"{name or path}: no end of it within {deadline_s:g} s", "it is a pipe or a device")
    finally:
        os.close(fd)
    raise UsageError(f"{name or path}: larger than {most} bytes", "is it the right file?")


def check_place(path: str) -> None:
    """Raise the OSError that writing a file of this name would raise, as far as one can know without writing."""
    place = os.path.realpath(path)
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116
    except FileNotFoundError:
        pass
    else:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not stat.S_ISREG(mode):
            return
    directory = os.path.dirname(place)  # noqa: PTH120 - Path drops what has a meaning for the kernel
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        # These file systems have no files without a name; EISDIR comes from kernels that do not know the flag.
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from exc


@contextlib.contextmanager
def replaced(path: str) -> Iterator[BinaryIO]:
    """A file that replaces `path`, with its mode and owner, once it is complete; otherwise nothing changes.

    Raises OSError. If `path` exists and is no regular file, like /dev/stdout, it is written to directly.
    """
    place = os.path.realpath(path)
    try:
        before = os.stat(place)  # noqa: PTH116
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        with open(place, "wb") as file:
            yield file
        return
    if before is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    fd, new = tempfile.mkstemp(prefix=".kmemwatch-", dir=os.path.dirname(place))  # noqa: PTH120
    try:
        with open(fd, "wb") as file:
            _take_after(fd, before)
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(new, place)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            Path(new).unlink()
        raise


def _take_after(fd: int, before: os.stat_result | None) -> None:
    """Mode and owner. Only the owner may read a new file: it says much about a host, and root may have written it."""
    if before is None:
        os.fchmod(fd, 0o600)
        return
    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, before.st_uid, before.st_gid)
    os.fchmod(fd, stat.S_IMODE(before.st_mode))


def write_whole(path: str, data: bytes) -> None:
    """Write the whole file, or leave the old one unchanged. Raises KmemwatchError."""
    try:
        with replaced(path) as file:
            file.write(data)
    except OSError as exc:
        raise KmemwatchError(f"{path}: cannot write: {exc.strerror}") from exc
