# SPDX-License-Identifier: GPL-2.0-only
"""System calls from inside the real filters, in processes of their own."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.web import privileges

ROOT = Path(__file__).parents[2]
SIDES = ["http", "reader"]
EPERM, ENOSYS = errno.EPERM, errno.ENOSYS
CLONE_NEWUSER, CLONE_THREAD = 0x10000000, 0x10000
GARBAGE = 1 << 32
"""In the half of a register that the kernel does not look at."""

_BEGIN = """
import ctypes, errno, json, mmap, os, signal, subprocess, sys, threading
from kmemwatch.web import privileges
libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2")
def number(name):
    return seccomp.seccomp_syscall_resolve_name(name.encode())
def call(name, *arguments):
    "The errno; 0: it was done; None: this machine has no such call."
    if (found := name if isinstance(name, int) else number(name)) < 0:
        return None
    ctypes.set_errno(0)
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    result = libc.syscall(ctypes.c_long(found), *padded)
    if result == 0 and name in ("fork", "vfork", "clone"):
        os._exit(0)  # the child that must not be
    return ctypes.get_errno() if result < 0 else 0
def tell(found):
    print(json.dumps(found), flush=True)
other = subprocess.Popen(["sleep", "100"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(other.pid, flush=True)
me = os.getpid()
"""


def inside(side: str, code: str, code_before: str = "") -> tuple[int, Any]:
    """(exit status, what the code tells) in a process that has the filter of that side."""
    script = f"{_BEGIN}{code_before}\nprivileges.give_up()\nassert privileges.filter_{side}_calls() is None\n{code}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        other = int(process.stdout.readline())
        try:
            told = process.stdout.readline()
            return process.wait(20), json.loads(told or "null")
        finally:
            os.kill(other, signal.SIGKILL)


def told(side: str, code: str, code_before: str = "") -> Any:
    status, found = inside(side, code, code_before)
    assert status == 0
    return found


@pytest.mark.parametrize("side", SIDES)
def test_every_call_that_is_never_made_is_refused(side: str) -> None:
    names = [*privileges.REFUSED_CALLS, *(privileges.HTTP_REFUSED_CALLS if side == "http" else ())]
    found = told(side, f"tell({{name: call(name, *[2**64 - 1] * 6) for name in {names!r}}})")
    assert {name for name, code in found.items() if code not in (EPERM, None)} == set()
    assert sum(code is None for code in found.values()) < 12, "most of them are there on any machine"


@pytest.mark.parametrize("side", SIDES)
def test_no_new_processes_and_no_new_namespaces(side: str) -> None:
    found = told(
        side,
        f"""
tell([
    call("clone", signal.SIGCHLD), call("clone", signal.SIGCHLD | {CLONE_NEWUSER}), call("clone", {CLONE_NEWUSER}),
    call("clone", 0x80 | {CLONE_NEWUSER}), call("clone3", 0, 0), call("clone3", 1, 88),
    call("unshare", {CLONE_NEWUSER}), call("unshare", 0x20000), call("setns", 0, 0),
])""",
    )
    refused = ENOSYS if side == "http" else EPERM
    assert found == [refused] * 4 + [ENOSYS] * 2 + [EPERM] * 3


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("what", ["os.fork()", "subprocess.run(['true'])", "os.posix_spawn('/bin/true', ['true'], {})"])
def test_python_cannot_start_processes(side: str, what: str) -> None:
    assert told(side, f"try:\n    {what}\nexcept OSError as error:\n    tell(error.errno)") in (EPERM, ENOSYS)


@pytest.mark.parametrize("side", SIDES)
def test_threads_are_started_all_the_same(side: str) -> None:
    code = "done = []\nthreads = [threading.Thread(target=done.append, args=(n,)) for n in range(20)]\n"
    code += "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\ntell(sorted(done))"
    assert told(side, code) == list(range(20))


@pytest.mark.parametrize("side", SIDES)
def test_no_signals_to_others(side: str) -> None:
    found = told(
        side,
        f"""
pid, all_ = other.pid, 2**64 - 1
tell([
    call("kill", pid, 9), call("kill", pid, 0), call("kill", all_, 0), call("kill", 0, 0),
    call("kill", pid | {GARBAGE}, 9),
    call("tkill", pid, 9), call("tgkill", pid, pid, 9), call("tgkill", pid | {GARBAGE}, pid, 9),
    call("rt_sigqueueinfo", pid, 9, 0), call("rt_tgsigqueueinfo", pid, pid, 9, 0), call("pidfd_open", pid, 0),
    call("pidfd_send_signal", 0, 9, 0, 0), other.poll(),
])""",
    )
    assert found[-1] is None, "it lives"
    assert set(found[:-1]) <= {EPERM, ENOSYS}
    if side == "http":
        return
    code = "signal.signal(signal.SIGUSR1, lambda *_: tell('came')); os.kill(me, signal.SIGUSR1)"
    assert told(side, code) == "came", "the reader may signal itself"


@pytest.mark.parametrize("side", SIDES)
def test_nobody_else_is_signalled_by_way_of_a_descriptor(side: str) -> None:
    """As `kmemwatch.kernel.lifeline` does it."""
    found = told(
        side,
        f"""
reader, writer = os.pipe()
tell([call(name, reader, command | garbage, other.pid) for name in ("fcntl",) for garbage in (0, {GARBAGE})
      for command in (8, 10, 15)] + [call("fcntl", reader, 3)])""",
    )
    assert set(found[:-1]) <= {EPERM, ENOSYS}
    assert found[-1] == 0


@pytest.mark.parametrize("side", SIDES)
def test_it_can_still_abort(side: str) -> None:
    assert inside(side, "os.abort()") == (-signal.SIGABRT, None)


def test_the_http_process_writes_no_files(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("text")
    found = told(
        "http",
        f"""
def opened(flags, path={str(target)!r}):
    try:
        os.close(os.open(path, flags))
        return 0
    except OSError as error:
        return error.errno
O = os
tell([opened(O.O_RDONLY), opened(O.O_WRONLY), opened(O.O_RDWR), opened(O.O_RDONLY | O.O_TRUNC),
      opened(O.O_RDONLY | O.O_CREAT, {str(tmp_path / "new")!r}), call("unlink", 0), call("unlinkat", 0, 0),
      call("chmod", 0),
      call("fchmodat", 0), call("renameat2", 0), call("mkdirat", 0), call("linkat", 0), call("openat2", 0)])""",
    )
    assert found[0] == 0
    assert set(found[1:]) <= {ENOSYS, None}
    assert target.read_text() == "text"
    assert not (tmp_path / "new").exists()


def test_the_http_process_sends_to_nobody_that_has_not_asked(tmp_path: Path) -> None:
    """Its sockets are connected by whoever asks; there are ways to connect them without connect(2)."""
    path, outside = str(tmp_path / "socket"), socket.create_server(("127.0.0.1", 0))
    with outside, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(path)
        unix.setblocking(False)
        outside.settimeout(0.2)
        found = told(
            "http",
            f"""
to = ("127.0.0.1", {outside.getsockname()[1]})
def attempt(do):
    try:
        do()
        return 0
    except OSError as error:
        return error.errno
for one in listeners:
    one.shutdown(socket.SHUT_RD)
def datagram(kind):
    one, _ = socket.socketpair(socket.AF_UNIX, kind)
    one.sendto(b"forged", {path!r})
one, other_end = socket.socketpair()
one.send(b"a"), one.sendmsg([b"b"]), one.sendall(b"c")
tell([
    attempt(lambda: listeners[0].sendto(b"out", socket.MSG_FASTOPEN, to)),
    attempt(lambda: listeners[1].sendmsg([b"out"], [], socket.MSG_FASTOPEN, to)),
    attempt(lambda: datagram(socket.SOCK_DGRAM)), attempt(lambda: datagram(socket.SOCK_SEQPACKET)),
    other_end.recv(3).decode(),
])""",
            "import socket\nlisteners = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]",
        )
        assert found == [ENOSYS] * 4 + ["abc"]
        with pytest.raises(TimeoutError):
            outside.accept()
        with pytest.raises(BlockingIOError):
            unix.recv(100)


def test_what_is_on_no_list_is_not_there_for_the_http_process() -> None:
    names = "setuid setresuid capset timer_create mq_open shmget inotify_init1 fanotify_init prctl setrlimit"
    names += " sched_setaffinity setpriority msgget landlock_create_ruleset seccomp"
    found = told("http", f"tell([call(name, 4, 1) for name in {names.split()!r}] + [call('ioctl', 2, 0x5412, 0)])")
    assert set(found) <= {ENOSYS, None}, "TIOCSTI too, which types into a terminal"
    assert told("http", "tell([call('prlimit64', other.pid, 7, 0, 0), call('prlimit64', 0, 7, 0, 0)])") == [ENOSYS, 0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 and 32-bit calls are of x86-64")
@pytest.mark.parametrize("side", SIDES)
def test_other_interfaces_of_the_processor_are_no_way_around(side: str) -> None:
    x32_getpid = 0x40000000 + 39
    assert inside(side, f"call({x32_getpid}); tell('went on')") == (-signal.SIGSYS, None)
    # mov eax, 20 (getpid); int 0x80; ret
    before = r"""
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")
getpid = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
"""
    status, _ = inside("reader", "pass", before + "assert getpid() == me")
    if status != 0:
        pytest.skip("this kernel has no 32-bit calls")
    assert inside(side, "getpid(); tell('went on')", before) == (-signal.SIGSYS, None)


def test_lists_do_not_contradict_each_other() -> None:
    assert not {*privileges.HTTP_ALLOWED_CALLS} & {*privileges.REFUSED_CALLS, *privileges.HTTP_REFUSED_CALLS}
    for names in (privileges.HTTP_ALLOWED_CALLS, privileges.REFUSED_CALLS, privileges.HTTP_REFUSED_CALLS):
        assert list(names) == sorted(set(names))
