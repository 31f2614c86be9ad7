# SPDX-License-Identifier: GPL-2.0-only
"""System calls that our processes have no use for once they are at work, refused by the kernel; through libseccomp.

Capabilities already say no to most of them. This also holds where they are not asked: BPF programs of some kinds are
for everybody when kernel.unprivileged_bpf_disabled is 0.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

from kmemwatch import shortages

_SONAME = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQUAL, _GREATER = 4, 6
"""``enum scmp_compare``: SCMP_CMP_EQ, SCMP_CMP_GT."""
_CANNOT = "system calls cannot be filtered"
_UNKNOWN_CALL = -1
"""__NR_SCMP_ERROR."""

NEVER = (
    "acct", "add_key", "delete_module", "execve", "execveat", "finit_module", "fsconfig", "fsmount", "fsopen",
    "init_module", "io_uring_setup", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "mount", "mount_setattr",
    "move_mount", "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root", "process_madvise",
    "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "setns", "swapoff",
    "swapon", "umount2", "unshare", "userfaultfd",
)  # fmt: skip
"""Refused to both processes."""
HTTP_NEVER = ("bpf", "bind", "connect", "socket")
"""Refused to the one that serves HTTP as well: its sockets were made for it."""

_BPF_READS = {1, 2, 3, 4, 10, 15, 24}
"""``enum bpf_cmd``: MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, PROG_TEST_RUN,
OBJ_GET_INFO_BY_FD, MAP_LOOKUP_BATCH: what the process that reads the kernel does with descriptors that it has."""


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def for_http() -> str | None:
    """Refuse what an HTTP server never does; needs no_new_privs. Why it could not be done; None when it was.

    Raises ShortageError when it might be done another time.
    """
    return _refuse((*NEVER, *HTTP_NEVER), only_reads_bpf=False)


def for_reader() -> str | None:
    """Refuse what a reader of BPF maps never does: as `for_http`, but bpf() works as far as reading needs it."""
    return _refuse(NEVER, only_reads_bpf=True)


def _refuse(calls: Iterable[str], only_reads_bpf: bool) -> str | None:
    try:
        lib = ctypes.CDLL(_SONAME)
    except OSError as error:
        shortages.refuse(error, _CANNOT)  # to go on without a filter would be the wrong answer to that
        return f"{_SONAME} is not installed"
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(_ALLOW)))
    if context.value is None:
        return "seccomp_init failed"
    try:
        for call in calls:
            _add(lib, context, call, [])
        if only_reads_bpf:
            for command in range(max(_BPF_READS)):
                if command not in _BPF_READS:
                    _add(lib, context, "bpf", [_Comparison(0, _EQUAL, command, 0)])
            _add(lib, context, "bpf", [_Comparison(0, _GREATER, max(_BPF_READS), 0)])
        failed = lib.seccomp_load(context)
        if failed:
            shortages.refuse(OSError(-failed, os.strerror(-failed)), _CANNOT)
        return None if failed == 0 else f"seccomp_load: {errno.errorcode.get(-failed, failed)}"
    except OSError as error:
        shortages.refuse(error, _CANNOT)
        return str(error)
    finally:
        lib.seccomp_release(context)


def _add(lib: ctypes.CDLL, context: ctypes.c_void_p, call: str, comparisons: list[_Comparison]) -> None:
    number = lib.seccomp_syscall_resolve_name(call.encode())
    if number == _UNKNOWN_CALL:
        return  # this libseccomp, or this machine, does not have it
    array = (_Comparison * len(comparisons))(*comparisons)
    action = ctypes.c_uint32(_ERRNO | errno.EPERM)
    failed = lib.seccomp_rule_add_array(context, action, number, ctypes.c_uint(len(comparisons)), array)
    if failed:
        raise OSError(f"seccomp: no rule for {call}: {errno.errorcode.get(-failed, failed)}")
