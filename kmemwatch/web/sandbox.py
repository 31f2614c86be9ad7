# SPDX-License-Identifier: GPL-2.0-only
"""System calls that our processes have no use for once they are at work, refused by the kernel; through libseccomp.

The process that serves HTTP may do what is on a list. The one that reads the kernel, which nobody talks to, may do all
but what is on another: what bcc and libbpf do differs from version to version. Capabilities say no to most of it; this
also holds where they are not asked, such as BPF programs of some kinds when kernel.unprivileged_bpf_disabled is 0, new
user namespaces, and signals to processes of the same user.

Calls by another interface of the processor (32 bit, x32) end the process: their numbers mean other calls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import termios
from collections.abc import Iterable, Iterator, Sequence

from kmemwatch.errors import raise_if_shortage

_SONAME = "libseccomp.so.2"
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NOT_EQUAL, _EQUAL, _GREATER, _MASKED_EQUAL = 1, 4, 6, 7
"""``enum scmp_compare``: SCMP_CMP_NE, SCMP_CMP_EQ, SCMP_CMP_GT, SCMP_CMP_MASKED_EQ."""
_ACT_BADARCH = 2
"""SCMP_FLTATR_ACT_BADARCH."""
_CANNOT = "system calls cannot be filtered"
_UNKNOWN_CALL = -1
"""__NR_SCMP_ERROR."""
_INT = 0xFFFFFFFF
"""What the kernel looks at of an argument that is an int: the upper half of the register may be anything."""

NEVER = (
    "acct", "add_key", "adjtimex", "chroot", "clock_adjtime", "clock_settime", "delete_module", "execve", "execveat",
    "finit_module", "fork", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter",
    "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
    "lookup_dcookie", "migrate_pages", "mknod", "mknodat", "modify_ldt", "mount", "mount_setattr", "move_mount",
    "move_pages", "name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "personality",
    "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root", "process_madvise", "process_mrelease",
    "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key",
    "rt_sigqueueinfo", "rt_tgsigqueueinfo", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff",
    "swapon", "syslog", "tkill", "umount", "umount2", "unshare", "userfaultfd", "vfork", "vhangup",
)  # fmt: skip
"""Refused to both processes."""
HTTP_NEVER = ("bind", "bpf", "connect", "kill", "socket")
"""Refused to the one that serves HTTP as well, with the same error: its sockets were made for it."""
HTTP_MAY = (
    "_llseek", "accept", "accept4", "access", "brk", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "close", "close_range", "dup", "dup2", "dup3",
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "exit",
    "exit_group", "faccessat", "faccessat2", "fadvise64", "fstat", "fstat64", "fstatat64", "fstatfs", "ftruncate",
    "futex", "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "getcwd", "getdents64",
    "getegid", "geteuid", "getgid", "getgroups", "getpeername", "getpid", "getppid", "getrandom", "getrlimit",
    "getrusage", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "listen", "lseek", "lstat",
    "madvise", "map_shadow_stack", "membarrier", "memfd_create", "mmap", "mmap2", "mprotect", "mremap", "munmap",
    "nanosleep", "newfstatat", "pipe2", "poll", "ppoll", "ppoll_time64", "pread64", "pselect6", "pselect6_time64",
    "read", "readlink", "readlinkat", "readv", "recv", "recvfrom", "recvmsg", "restart_syscall", "riscv_flush_icache",
    "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "sched_getaffinity", "sched_yield", "select", "send", "set_robust_list", "setsockopt", "shutdown", "sigaltstack",
    "stat", "statfs", "statx", "sysinfo", "time", "uname", "write", "writev",
)  # fmt: skip
"""What Python's interpreter, its threads and asyncio, OpenSSL and the C library do in the one that serves HTTP, on all
their versions and processors that we know. It gets ENOSYS for what is on neither list, as from an older kernel."""

_OPEN_FOR_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_IOCTLS = (termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD, termios.TCGETS, termios.TIOCGWINSZ)
_FCNTLS = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL)
_SIGNALLING_FCNTLS = (fcntl.F_SETOWN, 10, 15)
"""With F_SETSIG and F_SETOWN_EX: they have the kernel send a signal, see `kmemwatch.kernel.lifeline`."""
_PRCTLS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory."""
_SOCKET_TYPES = 0xF
"""SOCK_TYPE_MASK: the rest are flags."""
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080
"""All of CLONE_NEW*: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME."""
_CLONE_FLAGS = 1 if platform.machine().startswith("s390") else 0
"""Which argument of clone(2) they are."""

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


_Rule = tuple[int, str, Sequence[_Comparison]]
"""(what to do, with which call, if these are true of its arguments)."""
_REFUSE = _ERRNO | errno.EPERM
_ABSENT = _ERRNO | errno.ENOSYS


def for_http() -> str | None:
    """Allow what an HTTP server does; needs no_new_privs. Why it could not be done; None when it was.

    Raises ShortageError when it might be done another time.
    """
    return _load(_ABSENT, _http_rules())


def for_reader() -> str | None:
    """Refuse what a reader of BPF maps never does; bpf() works as far as reading needs it. Else as `for_http`."""
    return _load(_ALLOW, _reader_rules())


def _http_rules() -> Iterator[_Rule]:
    for call in HTTP_MAY:
        yield _ALLOW, call, ()
    for call in (*NEVER, *HTTP_NEVER):
        yield _REFUSE, call, ()
    yield _ALLOW, "clone", [_masked(_CLONE_FLAGS, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)]
    # To itself, which is how abort() and raise() end it.
    yield _ALLOW, "tgkill", [_Comparison(0, _EQUAL, os.getpid(), 0)]
    yield _ALLOW, "open", [_masked(1, _OPEN_FOR_WRITING, os.O_RDONLY)]
    yield _ALLOW, "openat", [_masked(2, _OPEN_FOR_WRITING, os.O_RDONLY)]
    yield _ALLOW, "prlimit64", [_Comparison(0, _EQUAL, 0, 0)]
    yield from _rules_of_sockets()
    for allowed, call, argument in ((_IOCTLS, "ioctl", 1), (_FCNTLS, "fcntl", 1), (_FCNTLS, "fcntl64", 1)):
        for number in allowed:
            yield _ALLOW, call, [_masked(argument, _INT, number)]
    for number in _PRCTLS:
        yield _ALLOW, "prctl", [_masked(0, _INT, number)]


def _rules_of_sockets() -> Iterator[_Rule]:
    """What is sent goes to whom the socket is connected with. MSG_FASTOPEN could else connect a listener that was shut
    down to anybody, and a socket of a pair for datagrams reaches any Unix socket that has a name."""
    yield _ALLOW, "sendto", [_masked(3, socket.MSG_FASTOPEN, 0), _Comparison(4, _EQUAL, 0, 0)]
    yield _ALLOW, "sendmsg", [_masked(2, socket.MSG_FASTOPEN, 0)]
    yield _ALLOW, "socketpair", [_masked(0, _INT, socket.AF_UNIX), _masked(1, _SOCKET_TYPES, socket.SOCK_STREAM)]


def _reader_rules() -> Iterator[_Rule]:
    for call in NEVER:
        yield _REFUSE, call, ()
    # Its flags are in memory, where a filter cannot look. The C library takes clone() where there is none.
    yield _ABSENT, "clone3", ()
    yield _REFUSE, "clone", [_masked(_CLONE_FLAGS, _CLONE_THREAD, 0)]
    for call in ("kill", "tgkill"):
        yield _REFUSE, call, [_Comparison(0, _NOT_EQUAL, os.getpid(), 0)]
    for number in _SIGNALLING_FCNTLS:
        for call in ("fcntl", "fcntl64"):
            yield _REFUSE, call, [_masked(1, _INT, number)]
    for command in set(range(max(_BPF_READS))) - _BPF_READS:
        yield _REFUSE, "bpf", [_Comparison(0, _EQUAL, command, 0)]
    yield _REFUSE, "bpf", [_Comparison(0, _GREATER, max(_BPF_READS), 0)]


def _masked(argument: int, mask: int, value: int) -> _Comparison:
    return _Comparison(argument, _MASKED_EQUAL, mask, value)


def _load(otherwise: int, rules: Iterable[_Rule]) -> str | None:
    try:
        lib = ctypes.CDLL(_SONAME)
    except OSError as error:
        raise_if_shortage(error, _CANNOT)  # to go on without a filter would be the wrong answer to that
        return f"{_SONAME} is not installed"
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(otherwise)))
    if context.value is None:
        return "seccomp_init failed"
    try:
        lib.seccomp_attr_set(context, _ACT_BADARCH, ctypes.c_uint32(_KILL_PROCESS))
        for action, call, comparisons in rules:
            _add(lib, context, action, call, comparisons)
        failed = lib.seccomp_load(context)
        if failed:
            raise_if_shortage(OSError(-failed, os.strerror(-failed)), _CANNOT)
        return None if failed == 0 else f"seccomp_load: {errno.errorcode.get(-failed, failed)}"
    except OSError as error:
        raise_if_shortage(error, _CANNOT)
        return str(error)
    finally:
        lib.seccomp_release(context)


def _add(
    lib: ctypes.CDLL, context: ctypes.c_void_p, action: int, call: str, comparisons: Sequence[_Comparison]
) -> None:
    number = lib.seccomp_syscall_resolve_name(call.encode())
    if number == _UNKNOWN_CALL:
        return  # this libseccomp does not have it
    array = (_Comparison * len(comparisons))(*comparisons)
    failed = lib.seccomp_rule_add_array(
        context, ctypes.c_uint32(action), number, ctypes.c_uint(len(comparisons)), array
    )
    if failed:
        raise OSError(f"seccomp: no rule for {call}: {errno.errorcode.get(-failed, failed)}")
