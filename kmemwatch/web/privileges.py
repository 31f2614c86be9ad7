# SPDX-License-Identifier: GPL-2.0-only
"""Giving up privileges: capabilities, identity, the way back. See docs/adr/0014-two-processes.md.

All of it is kept by the kernel for each thread, so it has to be done before the first one is started.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from kmemwatch.errors import KmemwatchError

T = TypeVar("T")

CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN, CAP_BPF = 6, 7, 8, 21, 39
NOBODY = 65534
"""Of every distribution; by number, as a container may have no /etc/passwd."""

ENOUGH_TO_READ: tuple[frozenset[int], ...] = (frozenset(), frozenset({CAP_BPF}), frozenset({CAP_SYS_ADMIN}))
"""What reading maps and running a loaded program may take, least first.

Where kernel.unprivileged_bpf_disabled is set, kernels before "bpf: refine kernel.unprivileged_bpf_disabled behaviour"
refuse every bpf() call without CAP_BPF, later ones only those that make maps and programs. The others are for kernels
that do not know CAP_BPF.
"""

_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 4, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """``struct __user_cap_data_struct``; there are two, for 32 capabilities each."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc().prctl(option, *padded), f"prctl({option})")


def permitted() -> frozenset[int]:
    """Capabilities that this thread may use."""
    sets = (_Sets * 2)()
    _check(_libc().capget(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capget")
    number = sets[0].permitted | sets[1].permitted << 32
    return frozenset(bit for bit in range(64) if number >> bit & 1)


def _set(effective: Iterable[int], permitted_: Iterable[int]) -> None:
    """Nothing is inheritable, and so nothing ambient."""
    sets = (_Sets * 2)()
    for name, wanted in (("effective", effective), ("permitted", permitted_)):
        number = sum(1 << bit for bit in wanted)
        setattr(sets[0], name, number & 0xFFFFFFFF)
        setattr(sets[1], name, number >> 32)
    _check(_libc().capset(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capset")


@contextmanager
def only(capabilities: Iterable[int]) -> Iterator[None]:
    """Within it this thread uses no others, and can have them back."""
    before = permitted()
    _set(before & frozenset(capabilities), before)
    try:
        yield
    finally:
        _set(before, before)


def least_for(attempt: Callable[[], T], choices: Iterable[frozenset[int]] = ENOUGH_TO_READ) -> tuple[T, frozenset[int]]:
    """(what `attempt` returns, the first of `choices` that it works with).

    Found out by trying, as rules differ from kernel to kernel. Raises what `attempt` raises with the last choice.
    """
    refusal: BaseException | None = None
    for choice in choices:
        if choice <= permitted():
            try:
                with only(choice):
                    return attempt(), choice
            except (OSError, KmemwatchError) as error:
                if not _is_refusal(error):
                    raise
                refusal = error
    assert refusal is not None
    raise refusal


def _is_refusal(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES):
            return True
        error = error.__cause__
    return False


def limit(keep: Iterable[int] = ()) -> None:
    """Take all but `keep` from what this process, and what it executes, could ever have. Raises OSError."""
    if CAP_SETPCAP in permitted():
        for bit in set(range(64)) - set(keep):
            if _libc().prctl(_PR_CAPBSET_READ, ctypes.c_ulong(bit), *[ctypes.c_ulong(0)] * 3) == 1:
                _prctl(_PR_CAPBSET_DROP, bit)


def give_up(keep: Iterable[int] = ()) -> None:
    """Have no capability but `keep`, for good. Raises OSError."""
    kept = permitted() & frozenset(keep)
    limit(kept)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set(kept, kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Others with the same user id can neither trace this process nor look into its descriptors.
    _prctl(_PR_SET_DUMPABLE, 0)


def become_nobody() -> bool:
    """Change the user, if this process may; False when it stays who it is. Raises OSError."""
    if os.geteuid() != 0 or not {CAP_SETUID, CAP_SETGID} <= permitted():
        return False
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a user namespace that has no such user
            return False
        raise
    return True
