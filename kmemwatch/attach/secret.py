# SPDX-License-Identifier: GPL-2.0-only
"""The secret behind the ids of caches, see `kmemwatch.cacheids`: one for each boot, beside the kept starts.

Only the process that reads the kernel has it. Only root can read its file and the directory; the process that serves
HTTP has another user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from kmemwatch.attach import warm_start
from kmemwatch.cacheids import SECRET_BYTES

NAME = "cache-ids"
_NEW = NAME + ".new"
_MAGIC = b"kmemwatch cache ids 1"
_MAX_BYTES = 4096
_LOCK_S = 1.0


def of_boot(boot_id: str | None, directory: Path = warm_start.DIRECTORY) -> bytes:
    """The secret of this boot. The first call makes it; where it cannot be kept safely, it lasts as long as this
    process.

    Raises OSError when it could not be read because descriptors or memory ran out.
    """
    if boot_id:
        try:
            return _kept(boot_id.encode(), directory)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # the next start would give other ids
                raise
    return os.urandom(SECRET_BYTES)


def _kept(boot_id: bytes, directory: Path) -> bytes:
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    top = warm_start.open_directory(directory)
    try:
        _lock(top)  # one of several processes that start at once makes it
        return _read(top, directory, boot_id) or _make(top, boot_id)
    finally:
        os.close(top)


def _lock(fd: int) -> None:
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _read(top: int, directory: Path, boot_id: bytes) -> bytes | None:
    """None: no file, or one of another boot, or a damaged one. Raises OSError for a file that kmemwatch did not
    write."""
    try:
        fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise PermissionError(f"{directory}: the file is not one that kmemwatch wrote")
        warm_start.check_ours(directory, status, 0o600)
        parts = file.read(_MAX_BYTES).split(b"\n")
    if parts[:2] != [_MAGIC, boot_id] or len(parts) != 4:
        return None
    try:
        secret = bytes.fromhex(parts[2].decode("ascii"))
    except ValueError:
        return None
    return secret if len(secret) == SECRET_BYTES else None


def _make(top: int, boot_id: bytes) -> bytes:
    secret = os.urandom(SECRET_BYTES)
    try:
        os.unlink(_NEW, dir_fd=top)  # of a process that ended while it was writing
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(_NEW, flags, 0o600, dir_fd=top), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask is
        file.write(b"%s\n%s\n%s\n" % (_MAGIC, boot_id, secret.hex().encode()))
    os.rename(_NEW, NAME, src_dir_fd=top, dst_dir_fd=top)
    return secret
