# SPDX-License-Identifier: GPL-2.0-only
"""Nothing stays attached, however the end came about; and every end has its exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.live.bpf_objects import kprobe_events, loaded_programs

KMEMWATCH = [sys.executable, "-m", "kmemwatch"]


@pytest.fixture
def nothing_left(patience: Callable[[float], float]) -> Iterator[None]:
    """The test ends with the programs and kprobes that it began with; the kernel frees programs a little later."""
    before, kprobes_before = set(loaded_programs()), kprobe_events()
    yield
    deadline = time.monotonic() + patience(10)
    while (more := set(loaded_programs()) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = loaded_programs()
    assert not {names[number] for number in more if number in names}
    assert kprobe_events() == kprobes_before


def start(*args: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*KMEMWATCH, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def wait_attached(before: set[int], limit_s: float) -> None:
    """Until new programs are there, and then some: the child has handed them over."""
    deadline = time.monotonic() + limit_s
    while len(set(loaded_programs()) - before) < 3:
        assert time.monotonic() < deadline, "nothing was attached"
        time.sleep(0.05)
    time.sleep(1)


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        (("events",), signal.SIGINT, 0),
        (("events",), signal.SIGTERM, 0),
        (("events",), signal.SIGKILL, -9),
        (("top", "--batch", "--delay", "1"), signal.SIGINT, 0),
        (("top", "--batch", "--delay", "1"), signal.SIGTERM, 0),
        (("top", "--batch", "--delay", "1"), signal.SIGKILL, -9),
        (("serve", "--web.listen-address", "127.0.0.1:0"), signal.SIGTERM, 0),
        (("serve", "--web.listen-address", "127.0.0.1:0"), signal.SIGKILL, -9),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(int(value)),
)
def test_a_signal_ends_it_and_detaches(
    nothing_left: None, patience: Callable[[float], float], command: tuple[str, ...], number: int, code: int
) -> None:
    before = set(loaded_programs())
    running = start(*command)
    wait_attached(before, patience(20))
    running.send_signal(number)
    _, told = running.communicate(timeout=patience(20))
    assert running.returncode == code, told
    assert "Traceback" not in told


def test_a_normal_end_detaches(nothing_left: None, patience: Callable[[float], float]) -> None:
    running = start("snapshot", "--duration", "0")
    told, errors = running.communicate(timeout=patience(30))
    assert running.returncode == 0, errors
    assert told.startswith("{")


def test_an_exception_while_it_watches_detaches(nothing_left: None, patience: Callable[[float], float]) -> None:
    """An exception in the middle of the loop: the same process goes on, and nothing may be left in it."""
    program = """
import sys
import kmemwatch.source.bpf_source as source
from kmemwatch.cli.main import main

def broken(self):
    raise RuntimeError("made by the test")

source.BpfSource.read = broken
sys.argv = ["kmemwatch", "snapshot"]
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=patience(30))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == "kmemwatch: internal error: RuntimeError: made by the test"
    assert "Traceback" not in ended.stderr


def test_an_exception_in_the_ring_buffers_callback_is_counted(
    nothing_left: None, own_cgroup: Callable[..., object], patience: Callable[[float], float]
) -> None:
    from kmemwatch.feeds.live import open_live
    from kmemwatch.source.bpf_source import BpfSource

    feed = open_live()
    try:
        source = feed._source
        assert isinstance(source, BpfSource)
        assert source._ring is not None

        def broken(raw: bytes) -> None:
            raise RuntimeError("made by the test")

        source._ring._sink = broken
        own_cgroup()
        taken = feed.next_snapshot(0.5)
        assert taken is not None
        assert taken.lost.reasons["undecodable"] >= 1
    finally:
        feed.close()


def test_killing_the_child_that_attaches_is_an_error_of_one_line(
    nothing_left: None, patience: Callable[[float], float]
) -> None:
    running = start("snapshot")
    deadline = time.monotonic() + patience(10)
    child = ""
    while not child:
        assert time.monotonic() < deadline
        child = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True).stdout.strip()
    os.kill(int(child), signal.SIGKILL)
    _, told = running.communicate(timeout=patience(20))
    assert running.returncode == 1
    assert told.startswith("kmemwatch: ")
    assert len(told.splitlines()) <= 2


def test_a_port_in_use_is_an_error_of_one_line(nothing_left: None, patience: Callable[[float], float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        running = start("serve", "--web.listen-address", f"127.0.0.1:{port}")
        _, told = running.communicate(timeout=patience(30))
    assert running.returncode == 1
    assert told.startswith("kmemwatch: ")
    assert str(port) in told.splitlines()[0]
