# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong, as one narrow tree; `kmemwatch.cli` alone turns it into text and exit codes.

KmemwatchError          exit 1: it failed
├── ShortageError       exit 1: this machine lacks something just now, and may have it the next time
├── UsageError          exit 2: the command line or an input file is wrong
└── UnsupportedError    exit 3: this kernel or these privileges cannot do it

A shortage (of descriptors, memory, processes, room) says nothing about the kernel. Code that asks the kernel for
something calls `raise_if_shortage` before it takes an error for an answer: otherwise a start would record that a
feature is missing, and later starts would believe it until the next boot.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path
from typing import NamedTuple


class KmemwatchError(Exception):
    """Something failed; `str()` is one line that names the thing and the place."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        """One line that says what to do about it, or None."""


class ShortageError(KmemwatchError):
    """Descriptors, memory, room on a disk or the like ran out."""


class UsageError(KmemwatchError):
    """The user asked for something that does not exist or cannot be read: option value, file, URL."""

    exit_code = 2


class UnsupportedError(KmemwatchError):
    """This kernel, or these privileges, cannot do what was asked; the message has the reason."""

    exit_code = 3


_LOCKED_MEMORY = -1
"""Stands for EPERM where the kernel counts BPF maps as locked memory: there it means that the limit is reached."""
_BTF = Path("/sys/kernel/btf/vmlinux")
_CHARGES_MAPS = b"\0bpf_map_charge_"
"""Functions that count maps as locked memory begin with this. Linux kernel commit 5b0764b2d345 ("Merge branch 'bpf:
switch to memcg-based memory accounting'") (in v5.11) removed the last ones."""


class _Words(NamedTuple):
    what: str
    hint: str
    limit: int | None = None
    """``RLIMIT_*`` that may be the reason."""


_WORDS = {
    errno.EMFILE: _Words(
        "out of file descriptors", "raise the limit: ulimit -n 1024 (systemd: LimitNOFILE=1024)", resource.RLIMIT_NOFILE
    ),
    errno.ENFILE: _Words("this machine has too many files open", "raise the limit: sysctl fs.file-max"),
    errno.ENOMEM: _Words(
        "out of memory", "free memory, or raise the limit: ulimit -v and -d, or the cgroup's", resource.RLIMIT_AS
    ),
    errno.EAGAIN: _Words(
        "out of processes or threads", "raise the limit: pids.max of the cgroup, or ulimit -u"
    ),
    errno.EINTR: _Words("interrupted by a signal", "try again"),
    errno.ENOSPC: _Words("no space left on device", "make room, or write elsewhere"),
    errno.EDQUOT: _Words("disk quota exceeded", "make room, or write elsewhere"),
    errno.EFBIG: _Words("the file would be too large", "raise the limit: ulimit -f", resource.RLIMIT_FSIZE),
    errno.ETIMEDOUT: _Words("it took too long", "try again when the machine is less busy"),
    _LOCKED_MEMORY: _Words(
        "out of locked memory", "raise the limit: ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
        resource.RLIMIT_MEMLOCK,
    ),
}  # fmt: skip
_TEXTS = {
    **{os.strerror(number): number for number in _WORDS if number > 0},
    "can't start new thread": errno.EAGAIN,
    "failed to map segment from shared object": errno.ENOMEM,
    "Error 24": errno.EMFILE,
    "Error 12": errno.ENOMEM,
    "MemoryError": errno.ENOMEM,
    "out of memory": errno.ENOMEM,
    "std::bad_alloc": errno.ENOMEM,
}
"""Words of Python, the dynamic linker, LLVM and libbcc -> errno. The linker sometimes writes the number alone."""


def raise_if_shortage(error: BaseException | str, what: str | None = None, bpf: bool = False) -> None:
    """Raise ShortageError when `error` means a shortage; arguments as in `shortage_of`."""
    found = shortage_of(error, what, bpf)
    if found is not None:
        raise found from (error if isinstance(error, BaseException) else None)


def shortage_of(error: BaseException | str, what: str | None = None, bpf: bool = False) -> ShortageError | None:
    """The shortage that `error` means, in plain words; None when it means none.

    `what` could not be done. `bpf`: the error is about a BPF map or program.
    """
    if isinstance(error, ShortageError):
        return error
    number = shortage_number(error, bpf)
    return None if number is None else shortage_error(number, what)


def shortage_number(error: BaseException | str, bpf: bool = False) -> int | None:
    """The kind of shortage that an exception or a program's message means; None when it means none."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return _of_errno(error.errno, bpf)
    text = str(error)
    found = next((number for words, number in _TEXTS.items() if re.search(rf"{re.escape(words)}\b", text)), None)
    if found is None and bpf and os.strerror(errno.EPERM) in text:
        found = _of_errno(errno.EPERM, bpf)
    if found is None and isinstance(error, BaseException) and error.__cause__ is not None:
        return shortage_number(error.__cause__, bpf)
    return found


def shortage_error(number: int, what: str | None = None) -> ShortageError:
    """The error for a kind of shortage; `what` could not be done."""
    words = _WORDS[number]
    text = words.what
    if words.limit is not None and (most := resource.getrlimit(words.limit)[0]) != resource.RLIM_INFINITY:
        text += f" (the limit is {most})"
    return ShortageError(text if what is None else f"{what}: {text}", words.hint)


def _of_errno(number: int, bpf: bool) -> int | None:
    if bpf and number == errno.EPERM and _maps_are_locked_memory():
        return _LOCKED_MEMORY
    return number if number in _WORDS else None


def _maps_are_locked_memory() -> bool:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return False
    try:
        return _CHARGES_MAPS in _BTF.read_bytes()
    except OSError:
        return False
