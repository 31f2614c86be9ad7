# SPDX-License-Identifier: GPL-2.0-only
"""Ten seconds after a process ended, nothing that it started runs, listens or stays attached."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmemwatch.churn import workspace
from tests.bpf_objects import kprobe_events, loaded
from tests.cgroup_mounts import MemoryMount
from tests.daemon import KMEMWATCH, ON_A_FREE_PORT, Daemon
from tests.processes import ENDED, state
from tests.waiting import wait_for

LIMIT_S = 10.0
RUNS, STOPPED = "runs", "stopped"
ENDS = [(RUNS, signal.SIGKILL), (STOPPED, signal.SIGKILL), (STOPPED, signal.SIGTERM)]


@pytest.fixture
def limit_s(patience: Callable[[float], float]) -> float:
    return patience(LIMIT_S)


@pytest.fixture
def started(limit_s: float) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a kmemwatch; at the end none of its processes may run, and nothing may be attached."""
    programs, kprobes = loaded("prog"), kprobe_events()
    running: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen([*KMEMWATCH, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()
    wait_for(lambda: not loaded("prog") - programs, limit_s, every_s=0.02)
    assert kprobe_events() == kprobes


def below(pid: int) -> list[int]:
    """Its children, their children, and so on."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except ENDED:
            continue
        for child in map(int, children):
            found += [child, *(below(child) if state(child) != "Z" else [])]
    return found


def end(process: subprocess.Popen[str], doing: str, number: int, limit_s: float) -> None:
    """With all its children `doing` that, and see that nobody is left."""
    children = below(process.pid)
    assert children
    if doing == STOPPED:
        for child in children:
            os.kill(child, signal.SIGSTOP)
            wait_for(lambda child=child: state(child) in "TZ", limit_s, every_s=0.02)  # type: ignore[misc]
    process.send_signal(number)
    try:
        wait_for(lambda: all(state(pid) == "Z" for pid in (process.pid, *children)), limit_s, every_s=0.02)
    finally:
        for child in children:
            if state(child) != "Z":
                os.kill(child, signal.SIGKILL)


def serve(start: Callable[..., subprocess.Popen[str]]) -> Daemon:
    return Daemon(start("serve", *ON_A_FREE_PORT, "--interval", "0.5"))


def is_refused(daemon: Daemon) -> bool:
    try:
        socket.create_connection(daemon.address, timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize(("doing", "number"), ENDS)
def test_the_process_that_serves_http(
    started: Callable[..., subprocess.Popen[str]], limit_s: float, doing: str, number: int
) -> None:
    daemon = serve(started)
    end(daemon.process, doing, number, limit_s)
    # Its other threads may end a moment later than the first.
    wait_for(lambda: is_refused(daemon), limit_s)


def test_a_service_that_hangs_ends(started: Callable[..., subprocess.Popen[str]], limit_s: float) -> None:
    daemon = serve(started)
    child = daemon.http
    os.kill(child, signal.SIGSTOP)
    wait_for(lambda: state(child) == "Z", limit_s, every_s=0.02)
    assert daemon.process.wait(limit_s) == 1
    # Its other threads may end a moment later than the first.
    wait_for(lambda: is_refused(daemon), limit_s)


def test_without_the_reader_it_says_how_old_the_data_is(
    started: Callable[..., subprocess.Popen[str]], limit_s: float
) -> None:
    daemon = serve(started)
    process = daemon.process

    def ready() -> str:
        with socket.create_connection(daemon.address, timeout=limit_s) as client:
            client.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            return client.makefile().read()

    assert " 200 OK" in ready()
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: "the last snapshot is" in ready(), limit_s, every_s=0.02)
    assert " 503 " in ready()
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: " 200 OK" in ready(), limit_s, every_s=0.02)


@pytest.mark.parametrize(("doing", "number"), ENDS)
@pytest.mark.parametrize("command", ["snapshot", "serve", "doctor"])
def test_the_process_that_attaches(
    started: Callable[..., subprocess.Popen[str]], limit_s: float, command: str, doing: str, number: int
) -> None:
    more = ON_A_FREE_PORT if command == "serve" else ()
    process = started(command, *more)

    def attaches() -> bool:
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below(process.pid) if state(pid) != "Z"]
        return any(b"kmemwatch.attach.child" in command for command in commands)

    wait_for(attaches, limit_s, every_s=0.02)
    end(process, doing, number, limit_s)


@pytest.mark.parametrize(("doing", "number"), ENDS)
def test_workers_that_make_cgroups(
    started: Callable[..., subprocess.Popen[str]],
    limit_s: float,
    disk_path: Path,
    memory: MemoryMount,
    monkeypatch: pytest.MonkeyPatch,
    doing: str,
    number: int,
) -> None:
    args = ["--kind", "dentry,pipe,thread", "--cgroups", "50", "--objects", "20", "--parallel", "2", "--hold", "600"]
    process = started("churn", "--directory", str(disk_path), *args)
    assert process.stderr is not None
    while "holding" not in process.stderr.readline():
        assert process.poll() is None
    assert len(below(process.pid)) >= 4, "two workers, who have somebody that holds things open, and threads"
    end(process, doing, number, limit_s)
    # Cgroups stay when it is killed: the next run takes them away.
    monkeypatch.setattr(workspace, "STALE_S", -1.0)
    workspace.sweep(memory.path, str(disk_path))
    assert not list(memory.path.glob(f"{workspace.PREFIX}{process.pid}-*"))


def test_workers_that_stop_while_they_work(
    started: Callable[..., subprocess.Popen[str]], limit_s: float, disk_path: Path
) -> None:
    args = ["--kind", "dentry", "--cgroups", "1000000", "--dead", "10", "--objects", "2000"]
    process = started("churn", "--directory", str(disk_path), *args)
    wait_for(lambda: len(below(process.pid)) >= 2, limit_s, every_s=0.02)
    time.sleep(1)
    end(process, STOPPED, signal.SIGTERM, limit_s)
