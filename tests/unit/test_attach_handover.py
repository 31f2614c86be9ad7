# SPDX-License-Identifier: GPL-2.0-only
"""The hand-over between two real processes: what arrives, and what is said when it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.attach.handover import Child
from kmemwatch.errors import KmemwatchError, UnsupportedError

TREE = Path(__file__).parents[2]

PREAMBLE = f"""
import os, socket, sys, time
sys.path.insert(0, {str(TREE)!r})
from kmemwatch.errors import KmemwatchError, UnsupportedError
from kmemwatch.attach import handover
from kmemwatch.attach.child import send, send_error
from kmemwatch.attach.handover import Manifest, ProbeResult
from kmemwatch.maps.handles import MapHandle
from tests.unit.fake_source import recorded_facts
channel = socket.socket(fileno=int(sys.argv[1]))
def pipes(number):
    for index in range(number):
        reader, writer = os.pipe()
        os.write(writer, str(index).encode())
        os.close(writer)
        yield reader
def manifest(programs, maps):
    return Manifest(
        recorded_facts(),
        (ProbeResult("alloc", "raw_tp:x", False, None), ProbeResult("free", None, True, "why")),
        tuple(f"p{{n}}" for n in range(programs)),
        tuple(MapHandle(f"m{{n}}", -1, 16, 24, 100 + n, True) for n in range(maps)),
        7,
        stats_index={{"NR_SHMEM": 3}},
        first_cache=2**63 + 8,
        page_base=2**64 - 4096,
    )
"""


@pytest.fixture
def run_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes `Child` run this code instead of the loader."""
    real = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def make(code: str) -> Child:
        def fake(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            assert command[1:3] == ["-m", "kmemwatch.attach.child"]
            started.append(real([sys.executable, "-c", PREAMBLE + code, *command[3:]], **options))
            return started[-1]

        monkeypatch.setattr("kmemwatch.attach.handover.subprocess.Popen", fake)
        return Child(("raw_tp",))

    yield make
    assert all(process.poll() is not None for process in started), "a child was left behind"


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names of what is open, the listing itself included


@pytest.mark.parametrize("links", [0, 1, 500])
def test_manifest_and_descriptors_come_through(run_child: Any, links: int) -> None:
    before = open_descriptors()
    child = run_child(f"send(channel, manifest(3, 2).to_raw(), list(pipes(3 + 2 + {links})))")
    handed = child.wait()
    manifest = handed.manifest
    assert [probe.signal for probe in manifest.probes] == ["alloc", "free"]
    assert manifest.probes[1].why == "why"
    assert (manifest.first_cache, manifest.page_base) == (2**63 + 8, 2**64 - 4096)
    assert manifest.stats_index == {"NR_SHMEM": 3}
    assert manifest.facts.release.startswith("6.18")
    # Each of them is what the child had at that place: programs, then maps, then links.
    order = [*handed.programs.values(), *(handle.fd for handle in handed.maps.values()), *handed.links]
    assert [os.read(fd, 10) for fd in order] == [str(index).encode() for index in range(5 + links)]
    assert handed.maps["m1"].max_entries == 101
    assert len(handed.links) == links
    handed.close()
    assert open_descriptors() == before


@pytest.mark.parametrize(("name", "code"), [("UnsupportedError", 3), ("KmemwatchError", 1), ("UsageError", 2)])
def test_an_error_keeps_its_kind_and_hint(run_child: Any, name: str, code: int) -> None:
    child = run_child(f"from kmemwatch.errors import *\nsend_error(channel, {name}('no BTF', hint='do x'))")
    with pytest.raises(KmemwatchError, match=r"^no BTF$") as caught:
        child.wait()
    assert type(caught.value).__name__ == name
    assert (caught.value.exit_code, caught.value.hint) == (code, "do x")


def test_a_child_that_dies_leaves_its_last_words(run_child: Any) -> None:
    with pytest.raises(KmemwatchError, match="that attaches the probes ended: RuntimeError: out of registers"):
        run_child("raise RuntimeError('out of registers')").wait()


def test_a_child_that_is_killed(run_child: Any) -> None:
    with pytest.raises(KmemwatchError, match="ended: SIGKILL"):
        run_child(f"os.kill(os.getpid(), {signal.SIGKILL.value})").wait()


def test_a_child_that_says_much_does_not_hang(run_child: Any) -> None:
    code = "sys.stderr.write('x' * 1_000_000)\nsend(channel, manifest(1, 0).to_raw(), list(pipes(1)))"
    run_child(code).wait().close()


@pytest.mark.parametrize("size", [0, 7, 8, 100])
def test_a_child_that_stops_in_the_middle_of_the_manifest(run_child: Any, size: int) -> None:
    code = f"channel.sendall(((1 << 20).to_bytes(8, 'little') + b'x' * 1000)[:{size}])"
    with pytest.raises(KmemwatchError, match="ended: exit status 0"):
        run_child(code).wait()


def test_a_child_that_stops_between_descriptors(run_child: Any) -> None:
    before = open_descriptors()
    code = """
real, sent = socket.send_fds, []
def one_message(*args):
    if sent:
        os._exit(0)
    sent.append(1)
    return real(*args)
socket.send_fds = one_message
send(channel, manifest(1, 0).to_raw(), list(pipes(450)))
"""
    with pytest.raises(KmemwatchError, match="ended while it handed them over"):
        run_child(code).wait()
    assert open_descriptors() == before, "descriptors stay, and with them what is attached"


STOP = "os.kill(os.getpid(), 19)"


@pytest.mark.parametrize(
    "code",
    [
        STOP,
        f"channel.sendall(bytes(4)); {STOP}",
        f"socket.send_fds = lambda *_: {STOP}\nsend(channel, manifest(1, 0).to_raw(), list(pipes(1)))",
    ],
    ids=["at once", "in the answer", "before the descriptors"],
)
def test_a_child_that_is_stopped(run_child: Any, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.kernel.lifeline.LOOK_S", 0.1)
    before, began = open_descriptors(), time.monotonic()
    with pytest.raises(KmemwatchError, match="does not answer"):
        run_child(code).wait()
    assert time.monotonic() - began < 10
    assert open_descriptors() == before


def test_a_child_that_is_slow_is_waited_for(run_child: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.kernel.lifeline.LOOK_S", 0.01)
    with pytest.raises(KmemwatchError, match="ended: exit status 0"):
        run_child("time.sleep(1)").wait()


def test_close_ends_a_child_that_is_busy(run_child: Any) -> None:
    child = run_child("time.sleep(60)")
    child.close()
    child.close()


def test_the_real_loader_answers_whatever_this_machine_lacks() -> None:
    child = Child(("raw_tp", "fentry", "kprobe"))
    try:
        child.wait().close()
    except UnsupportedError:
        pass  # root, bcc, BTF, or with all kinds of hooks left out, nothing to attach
