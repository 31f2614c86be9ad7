# SPDX-License-Identifier: GPL-2.0-only
"""Errors that tell of a shortage: of descriptors, memory, processes, room. Told apart from those that tell of a kernel.

What could not be looked up for want of a descriptor is not known; that it is not there would be a wrong answer, which a
start would then remember until the next boot.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path
from typing import NamedTuple

from kmemwatch.errors import ShortageError

_LOCKED_MEMORY = -1
"""Stands for EPERM where the kernel counts BPF maps as locked memory: there it means that the limit is reached."""
_BTF = Path("/sys/kernel/btf/vmlinux")
_CHARGES_MAPS = b"\0bpf_map_charge_"
"""Functions that count maps as locked memory begin so. Linux kernel commit 5b0764b2d345 ("Merge branch 'bpf: switch
to memcg-based memory accounting'") (in v5.11) took the last ones away."""


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
"""What Python, the dynamic linker, LLVM and libbcc write -> errno. The linker does not always know more than its
number."""


def number_of(error: BaseException | str, bpf: bool = False) -> int | None:
    """The kind of shortage that an error, or what a program wrote about one, tells of; None when it tells of none.

    `bpf`: it was said of a BPF map or program.
    """
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return _of_errno(error.errno, bpf)
    text = str(error)
    found = next((number for words, number in _TEXTS.items() if re.search(rf"{re.escape(words)}\b", text)), None)
    if found is None and bpf and os.strerror(errno.EPERM) in text:
        found = _of_errno(errno.EPERM, bpf)
    if found is None and isinstance(error, BaseException) and error.__cause__ is not None:
        return number_of(error.__cause__, bpf)
    return found


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


def shortage(number: int, what: str | None = None) -> ShortageError:
    """The error that says so; `what` was to be done and could not."""
    words = _WORDS[number]
    text = words.what
    if words.limit is not None and (most := resource.getrlimit(words.limit)[0]) != resource.RLIM_INFINITY:
        text += f" (the limit is {most})"
    return ShortageError(text if what is None else f"{what}: {text}", words.hint)


def of(error: BaseException | str, what: str | None = None, bpf: bool = False) -> ShortageError | None:
    """The same error in plain words; None when it tells of no shortage."""
    if isinstance(error, ShortageError):
        return error
    number = number_of(error, bpf)
    return None if number is None else shortage(number, what)


def refuse(error: BaseException | str, what: str | None = None, bpf: bool = False) -> None:
    """Raises ShortageError when `error` tells of one: call it before any other meaning is given to an error."""
    found = of(error, what, bpf)
    if found is not None:
        raise found from (error if isinstance(error, BaseException) else None)
