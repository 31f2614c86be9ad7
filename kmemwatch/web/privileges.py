# SPDX-License-Identifier: GPL-2.0-only
"""Giving up privileges for good: capabilities, the user, and system calls. See docs/adr/0014-two-processes.md.

The kernel keeps capabilities and user for each thread, so a process gives them up before it starts a second one.

libseccomp filters the system calls. The process that serves HTTP may use only those on a list. The one that reads the
kernel, which no client reaches, may use all but those on another list, because bcc and libbpf make different ones in
each version. Missing capabilities already prevent most of these calls. The filters also prevent what needs none: BPF
programs of some kinds when kernel.unprivileged_bpf_disabled is 0, new user namespaces, and signals to processes of the
same user. A call by another interface of the processor (32 bit, x32), where numbers mean other calls, ends the process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import termios
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from kmemwatch.errors import KmemwatchError, raise_if_shortage

T = TypeVar("T")

CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN, CAP_BPF = 6, 7, 8, 21, 39
NOBODY = 65534
"""The same in every distribution; a number, because a container may have no /etc/passwd."""

ENOUGH_TO_READ: tuple[frozenset[int], ...] = (frozenset(), frozenset({CAP_BPF}), frozenset({CAP_SYS_ADMIN}))
"""What reading maps and running a loaded program may need, least first.

Where kernel.unprivileged_bpf_disabled is set, kernels before "bpf: refine kernel.unprivileged_bpf_disabled behaviour"
refuse every bpf() call without CAP_BPF, later ones only those that make maps and programs. CAP_SYS_ADMIN is for kernels
without CAP_BPF.
"""

_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 4, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4

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
"""For arguments of type int the kernel reads the lower half of the register; the upper half may be anything."""

REFUSED_CALLS = (
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
"""Both processes get EPERM for these."""
HTTP_REFUSED_CALLS = ("bind", "bpf", "connect", "kill", "socket")
"""The process that serves HTTP gets EPERM for these as well: the other one made its sockets."""
HTTP_ALLOWED_CALLS = (
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
"""What Python with threads and asyncio, OpenSSL and the C library call in the process that serves HTTP, in all versions
and on all processors that we know. For calls on neither list it gets ENOSYS, as from an older kernel."""

_OPEN_FOR_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_IOCTLS = (termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD, termios.TCGETS, termios.TIOCGWINSZ)
_FCNTLS = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL)
_SIGNALLING_FCNTLS = (fcntl.F_SETOWN, 10, 15)
"""F_SETOWN, F_SETSIG and F_SETOWN_EX make the kernel send a signal, see `kmemwatch.kernel.lifeline`."""
_PRCTLS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory."""
_SOCKET_TYPES = 0xF
"""SOCK_TYPE_MASK: the other bits are flags."""
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080
"""All of CLONE_NEW*: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME."""
_CLONE_FLAGS = 1 if platform.machine().startswith("s390") else 0
"""Index of that argument of clone(2)."""

_BPF_READS = {1, 2, 3, 4, 10, 15, 24}
"""``enum bpf_cmd``: MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, PROG_TEST_RUN,
OBJ_GET_INFO_BY_FD, MAP_LOOKUP_BATCH: what the process that reads the kernel does with the descriptors it has."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """``struct __user_cap_data_struct``; the kernel takes two, for 32 capabilities each."""

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
    """No capability is inheritable, so none is ambient."""
    sets = (_Sets * 2)()
    for name, wanted in (("effective", effective), ("permitted", permitted_)):
        number = sum(1 << bit for bit in wanted)
        setattr(sets[0], name, number & 0xFFFFFFFF)
        setattr(sets[1], name, number >> 32)
    _check(_libc().capset(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capset")


@contextmanager
def using_only(capabilities: Iterable[int]) -> Iterator[None]:
    """Inside the context, this thread uses no other capabilities; afterwards it has them back."""
    before = permitted()
    _set(before & frozenset(capabilities), before)
    try:
        yield
    finally:
        _set(before, before)


def least_needed(
    attempt: Callable[[], T], choices: Iterable[frozenset[int]] = ENOUGH_TO_READ
) -> tuple[T, frozenset[int]]:
    """(what `attempt` returns, the first of `choices` with which it works).

    It tries them, because rules differ between kernels. Raises what `attempt` raises with the last choice.
    """
    refusal: BaseException | None = None
    for choice in choices:
        if choice <= permitted():
            try:
                with using_only(choice):
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


def drop_from_bounding_set(keep: Iterable[int] = ()) -> None:
    """Drop all capabilities but `keep` from what this process and programs it executes can gain. Raises OSError."""
    if CAP_SETPCAP in permitted():
        for bit in set(range(64)) - set(keep):
            if _libc().prctl(_PR_CAPBSET_READ, ctypes.c_ulong(bit), *[ctypes.c_ulong(0)] * 3) == 1:
                _prctl(_PR_CAPBSET_DROP, bit)


def give_up(keep: Iterable[int] = ()) -> None:
    """Give up all capabilities but `keep`, for good. Raises OSError."""
    kept = permitted() & frozenset(keep)
    drop_from_bounding_set(kept)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set(kept, kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Other processes of the same user can then neither trace this one nor open its descriptors.
    _prctl(_PR_SET_DUMPABLE, 0)


def become_nobody() -> bool:
    """Change to the user nobody if this process may; False when it keeps its user. Raises OSError."""
    if os.geteuid() != 0 or not {CAP_SETUID, CAP_SETGID} <= permitted():
        return False
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a user namespace without that user
            return False
        raise
    return True


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


_Rule = tuple[int, str, Sequence[_Comparison]]
"""(action, system call, conditions on its arguments that must all hold)."""
_REFUSE = _ERRNO | errno.EPERM
_ABSENT = _ERRNO | errno.ENOSYS


def filter_http_calls() -> str | None:
    """Allow only what an HTTP server calls; needs no_new_privs. Returns why that is impossible, None when it worked.

    Raises ShortageError when it may work another time.
    """
    return _load(_ABSENT, _http_rules())


def filter_reader_calls() -> str | None:
    """Refuse what a reader of BPF maps never calls; of bpf(), reading stays. Otherwise as `filter_http_calls`."""
    return _load(_ALLOW, _reader_rules())


def _http_rules() -> Iterator[_Rule]:
    for call in HTTP_ALLOWED_CALLS:
        yield _ALLOW, call, ()
    for call in (*REFUSED_CALLS, *HTTP_REFUSED_CALLS):
        yield _REFUSE, call, ()
    yield _ALLOW, "clone", [_masked(_CLONE_FLAGS, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)]
    # To this process only: abort() and raise() end it so.
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
    """A socket may send only to its peer. MSG_FASTOPEN would connect a listener that was shut down to any address, and
    a datagram socket pair reaches every Unix socket that has a name."""
    yield _ALLOW, "sendto", [_masked(3, socket.MSG_FASTOPEN, 0), _Comparison(4, _EQUAL, 0, 0)]
    yield _ALLOW, "sendmsg", [_masked(2, socket.MSG_FASTOPEN, 0)]
    yield _ALLOW, "socketpair", [_masked(0, _INT, socket.AF_UNIX), _masked(1, _SOCKET_TYPES, socket.SOCK_STREAM)]


def _reader_rules() -> Iterator[_Rule]:
    for call in REFUSED_CALLS:
        yield _REFUSE, call, ()
    # Its flags are in memory, which a filter cannot read. Without clone3() the C library uses clone().
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
        raise_if_shortage(error, _CANNOT)  # a shortage is no reason to go on without a filter
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
        return  # unknown to this libseccomp
    array = (_Comparison * len(comparisons))(*comparisons)
    failed = lib.seccomp_rule_add_array(
        context, ctypes.c_uint32(action), number, ctypes.c_uint(len(comparisons)), array
    )
    if failed:
        raise OSError(f"seccomp: no rule for {call}: {errno.errorcode.get(-failed, failed)}")
