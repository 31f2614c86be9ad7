# SPDX-License-Identifier: GPL-2.0-only
"""A process that we started ends with us, whatever it is doing, whoever it is, and however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmemwatch.kernel import lifeline
from kmemwatch.kernel.lifeline import TiedProcess

ROOT = Path(__file__).parents[2]
NOBODY = "import os; os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3); "
ALIVE = "print('alive', flush=True); "
SLEEPS = ALIVE + "import time; time.sleep(100)"
STOPS = ALIVE + "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
IGNORES = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; " + SLEEPS
SPINS = ALIVE + "\nwhile True: pass"
SPINS_IN_C = ALIVE + "import re; re.match('(a+)+b', 'a' * 60)"
DOINGS = {"sleeps": SLEEPS, "stops": STOPS, "ignores": IGNORES, "spins": SPINS, "spins in C": SPINS_IN_C}

_PARENT = """
import subprocess, sys, time
from kmemwatch.kernel.lifeline import TiedProcess
child = TiedProcess([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child._process.stdout.readline()
{then}
print(child.pid, flush=True)
time.sleep(100)
"""
_NO_PRIVILEGES = """
import os
from kmemwatch.web import privileges
privileges.give_up()
try:
    os.kill(child.pid, 0)
except PermissionError:
    pass
else:
    sys.exit("it may signal its child, so this proves nothing")
"""


def start_parent(child: str, then: str = "") -> tuple[subprocess.Popen[str], int]:
    """A process that has started one which does `child`; and the pid of that."""
    command = [sys.executable, "-c", _PARENT.format(then=then), child]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def state(pid: int) -> str | None:
    """The letter of /proc/PID/stat; None when there is no such process, or only what its parent has to reap."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if letter in "ZX" else letter


def is_gone(pid: int, limit_s: float = 5.0) -> bool:
    deadline = time.monotonic() + limit_s
    while state(pid) is not None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("doing", DOINGS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_child_ends_with_its_parent(doing: str, number: int) -> None:
    parent, child = start_parent(DOINGS[doing])
    with parent:
        assert state(child) is not None
        parent.send_signal(number)
        assert is_gone(child)


@pytest.mark.needs("root")
@pytest.mark.parametrize("doing", DOINGS)
def test_a_child_that_the_parent_may_not_signal(doing: str) -> None:
    parent, child = start_parent(NOBODY + DOINGS[doing], _NO_PRIVILEGES)
    with parent:
        parent.kill()
        assert is_gone(child)


@pytest.mark.needs("root")
def test_a_parent_ends_a_child_that_it_may_not_signal() -> None:
    parent, child = start_parent(NOBODY + STOPS, _NO_PRIVILEGES + "assert child.end() == -9\nassert child.end() == -9")
    with parent:
        assert state(child) is None
        parent.kill()


def test_a_parent_that_ends_in_the_middle_of_it() -> None:
    """Nothing tells of the end of a pipe that was closed before."""
    reader, writer = os.pipe()
    os.close(writer)
    pid = os.fork()
    if pid == 0:
        lifeline.tie_myself(reader)
        os._exit(0)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_became_of_it() -> None:
    child = TiedProcess([sys.executable, "-c", "raise SystemExit(7)"])
    assert child.wait(20) == 7
    assert (child.status(), child.end(), child.end()) == (7, 7, 7)
    child = TiedProcess(["sleep", "100"])
    assert (child.status(), child.wait(0.1)) == (None, None)
    assert (child.end(), child.status()) == (-9, -9)


def test_a_command_that_is_not_there_leaves_nothing_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        TiedProcess(["/nowhere/nothing"])
    TiedProcess(["true"]).end()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_other_children_do_not_keep_it_alive() -> None:
    """They must not have a copy of the end that is ours."""
    first = TiedProcess(["sleep", "100"])
    second = TiedProcess(["sleep", "100"])
    try:
        assert first.end() == -signal.SIGKILL
        assert second.status() is None
    finally:
        second.end()
