# SPDX-License-Identifier: GPL-2.0-only
"""Giving up privileges, in processes of their own: none of it can be undone in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.errors import KmemwatchError
from kmemwatch.web import privileges

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.needs("root")
_BEGIN = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path
from kmemwatch.errors import KmemwatchError
from kmemwatch.web import privileges
def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
def refused(call):
    try:
        call()
    except OSError as error:
        return error.errno
def tell(**found):
    print(json.dumps(found))
"""


def run(code: str) -> Any:
    """What the code tells, run with our privileges."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _BEGIN + code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bits(mask: str) -> set[int]:
    return {bit for bit in range(64) if int(mask, 16) >> bit & 1}


@needs_root
def test_keep_one_capability() -> None:
    found = run("privileges.give_up({privileges.CAP_BPF}); tell(**status())")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert bits(found[name]) == {privileges.CAP_BPF}
    assert bits(found["CapInh"]) == bits(found["CapAmb"]) == set()
    assert found["NoNewPrivs"] == "1"


@needs_root
def test_what_is_given_up_does_not_come_back_with_a_new_program() -> None:
    code = "privileges.give_up(); print(json.dumps(subprocess.run(['grep', 'CapEff', '/proc/self/status'],"
    found = run(code + " capture_output=True, text=True).stdout))")
    assert bits(found.split()[1]) == set(), "root is given all capabilities by execve() otherwise"


@needs_root
def test_nobody() -> None:
    found = run("""
privileges.drop_from_bounding_set()
changed = privileges.become_nobody()
privileges.give_up()
shadow = refused(lambda: open("/etc/shadow"))
back = refused(lambda: os.setuid(0))
again = privileges.become_nobody()
tell(changed=changed, again=again, shadow=shadow, back=back, **status())
""")
    assert (found["changed"], found["again"]) == (True, False)
    assert (found["shadow"], found["back"]) == (13, 1)
    assert set(found["Uid"].split() + found["Gid"].split()) == {"65534"}
    assert found["Groups"] == ""
    assert bits(found["CapBnd"]) == bits(found["CapPrm"]) == set()


def test_somebody_without_privileges_can_give_up_what_he_has() -> None:
    """As where no one but root attaches, and with --replay."""
    found = run("""
if os.geteuid() == 0:
    privileges.become_nobody()
privileges.give_up({privileges.CAP_BPF})
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
missing = privileges.filter_http_calls()
tell(missing=missing, dumpable=dumpable, **status())
""")
    assert bits(found["CapPrm"]) == set()
    assert found["NoNewPrivs"] == "1"
    assert found["dumpable"] == 0
    assert found["missing"] is None
    assert found["Seccomp"] == "2"


@needs_root
@pytest.mark.parametrize("needed", [None, privileges.CAP_BPF, privileges.CAP_SYS_ADMIN])
def test_the_least_that_works_is_found_by_trying(needed: int | None) -> None:
    found = run(f"""
def attempt():
    mask = int(status()["CapEff"], 16)
    tried.append(sorted(bit for bit in range(64) if mask >> bit & 1))
    if {needed} is not None and not mask >> {needed or 0} & 1:
        raise KmemwatchError("reading the BPF maps") from PermissionError(1, "Operation not permitted")
    return "read"
tried, before = [], privileges.permitted()
result, kept = privileges.least_needed(attempt)
tell(result=result, kept=sorted(kept), tried=tried, restored=privileges.permitted() == before)
""")
    wanted = [] if needed is None else [needed]
    tried: list[list[int]] = [[], [privileges.CAP_BPF], [privileges.CAP_SYS_ADMIN]]
    assert found["kept"] == wanted
    assert found["tried"] == tried[: tried.index(wanted) + 1]
    assert found["result"] == "read"
    assert found["restored"]


@needs_root
def test_the_kernel_is_asked_for_real() -> None:
    """sethostname(2) is one of the calls that take CAP_SYS_ADMIN."""
    found = run("""
_, kept = privileges.least_needed(lambda: socket.sethostname(socket.gethostname()))
privileges.give_up(kept)
socket.sethostname(socket.gethostname())
tell(kept=sorted(kept), chown=refused(lambda: os.chown("/", 0, 1)))
""")
    assert found == {"kept": [privileges.CAP_SYS_ADMIN], "chown": 1}


@needs_root
def test_what_no_choice_helps_is_raised() -> None:
    with pytest.raises(PermissionError):
        privileges.least_needed(refuse)


def refuse() -> None:
    raise PermissionError(1, "never")


@needs_root
def test_other_errors_are_not_tried_again() -> None:
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise KmemwatchError("broken") from OSError(5, "Input/output error")

    with pytest.raises(KmemwatchError, match="broken"):
        privileges.least_needed(attempt)
    assert tried == [1]


_CALLS = """
libc = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[os.uname().machine]
def bpf(command):
    attributes = ctypes.create_string_buffer(128)
    attributes[0:4] = b"\\xff\\xff\\xff\\x7f"
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(BPF), ctypes.c_long(command), attributes, ctypes.c_long(128))
    return ctypes.get_errno()
"""
PERMITTED = {1, 2, 3, 4, 10, 15, 24}


@needs_root
def test_the_reader_may_read() -> None:
    found = run(
        _CALLS
        + """
privileges.give_up({privileges.CAP_BPF, privileges.CAP_SYS_ADMIN})
before = [bpf(command) for command in range(45)]
assert privileges.filter_reader_calls() is None
tell(before=before, after=[bpf(command) for command in range(45)], execve=refused(lambda: os.execv("/bin/true", ["x"])),
     socket=refused(socket.socket))
"""
    )
    for command, (before, after) in enumerate(zip(found["before"], found["after"], strict=True)):
        assert after == (before if command in PERMITTED else 1), f"bpf command {command}"
    assert all(found["before"][command] != 1 for command in PERMITTED), "none is refused without the filter"
    assert found["execve"] == 1
    assert found["socket"] is None


def test_the_http_process_may_serve_and_nothing_else() -> None:
    found = run(
        _CALLS
        + """
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
privileges.give_up()
assert privileges.filter_http_calls() is None
served, _ = listener.accept()
client.sendall(b"x")
assert served.recv(1) == b"x"
socket.socketpair()
import threading
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
tell(bpf=[bpf(command) for command in range(45)], socket=refused(socket.socket),
     execve=refused(lambda: os.execv("/bin/true", ["x"])), bind=refused(lambda: listener.bind(("127.0.0.1", 0))),
     unshare=libc.unshare(0x10000000))
"""
    )
    assert set(found["bpf"]) == {1}
    assert (found["socket"], found["execve"], found["bind"], found["unshare"]) == (1, 1, 1, -1)


def test_no_libseccomp_is_told() -> None:
    found = run('privileges._SONAME = "libnone.so.9"; tell(why=privileges.filter_http_calls())')
    assert found == {"why": "libnone.so.9 is not installed"}
