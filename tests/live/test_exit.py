# SPDX-License-Identifier: GPL-2.0-only
"""Nothing stays attached, however the end came about; and every end has its exit code."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.bpf_objects import kprobe_events, loaded, loaded_programs
from tests.daemon import KMEMWATCH, ON_A_FREE_PORT
from tests.live.cgroups import OwnCgroup
from tests.processes import children
from tests.waiting import settled, wait_for


@pytest.fixture
def nothing_left(patience: Callable[[float], float]) -> Iterator[None]:
    """The test ends with the programs and kprobes that it began with; the kernel frees programs a little later."""
    before, kprobes_before = loaded("prog"), kprobe_events()
    yield
    nothing: set[int] = set()
    more = settled(lambda: loaded("prog") - before, nothing, patience(30))
    assert {number: program.name for number, program in loaded_programs().items() if number in more} == {}
    assert kprobe_events() == kprobes_before


def start(*args: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*KMEMWATCH, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def wait_until_it_watches(running: subprocess.Popen[str], own_cgroup: Callable[..., OwnCgroup], limit_s: float) -> None:
    """Until it says something: a table, where it serves, or an event of a cgroup that is made for it."""

    said = [stream for stream in (running.stdout, running.stderr) if stream is not None]

    def says_something() -> bool:
        own_cgroup().remove()
        return bool(select.select(said, [], [], 0.1)[0])

    wait_for(says_something, limit_s, f"word of {running.args!r}")


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        (("events",), signal.SIGINT, 0),
        (("events",), signal.SIGTERM, 0),
        (("events",), signal.SIGKILL, -9),
        (("top", "--batch", "--delay", "1"), signal.SIGINT, 0),
        (("top", "--batch", "--delay", "1"), signal.SIGTERM, 0),
        (("top", "--batch", "--delay", "1"), signal.SIGKILL, -9),
        (("serve", *ON_A_FREE_PORT), signal.SIGTERM, 0),
        (("serve", *ON_A_FREE_PORT), signal.SIGKILL, -9),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(int(value)),
)
def test_a_signal_ends_it_and_detaches(
    nothing_left: None, own_cgroup: Callable[..., OwnCgroup], patience: Callable[[float], float],
    command: tuple[str, ...], number: int, code: int,
) -> None:  # fmt: skip
    running = start(*command)
    wait_until_it_watches(running, own_cgroup, patience(60))
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
    nothing_left: None, own_cgroup: Callable[..., OwnCgroup], patience: Callable[[float], float]
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
    (child,) = wait_for(lambda: children(running.pid), patience(30), every_s=0.002)
    os.kill(child, signal.SIGKILL)
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
