# SPDX-License-Identifier: GPL-2.0-only
"""The real daemon on the running kernel: very many cgroups, very short-lived ones, and its own sudden end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bpf_objects import KINDS, loaded
from tests.daemon import Daemon
from tests.live.cgroups import OwnCgroup
from tests.load.clients import Client, Crowd, repeating
from tests.load.daemon import LIMIT_S, serving
from tests.processes import cpu_s, memory
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.needs("root", "bcc", "a memory controller", "no lab"),
    pytest.mark.usefixtures("runner_in_root_cgroup"),
]
LIVE = ("kmemwatch", "serve", "--max-series", "200000")
WATCHED_S = 30
Figure = Callable[[str], None]
OwnCgroups = Callable[..., OwnCgroup]

CHURN = """
import os, sys, time
parent, seconds, number = sys.argv[1], float(sys.argv[2]), 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    os.mkdir(f"{parent}/{number}")
    os.rmdir(f"{parent}/{number}")
    number += 1
print(number)
"""


def snapshot(daemon: Daemon) -> dict[str, Any]:
    client = Client(daemon.address, packed=False)
    try:
        found: dict[str, Any] = json.loads(client.get("/api/v1/snapshot", keep=True).body)
        return found
    finally:
        client.close()


def state_of(daemon: Daemon, ids: set[int]) -> dict[int, str]:
    """Of those cgroups that it tells of."""
    return {row["id"]: row["state"] for row in snapshot(daemon)["cgroups"] if row["id"] in ids}


def events_lost(daemon: Daemon) -> int:
    """For whatever reason."""
    client = Client(daemon.address, packed=False)
    try:
        text = client.get(keep=True).body.decode()
    finally:
        client.close()
    lines = (line for line in text.splitlines() if line.startswith("kmemwatch_events_lost_total{"))
    return sum(int(float(line.split()[-1])) for line in lines)


def of_bpf(pid: int) -> set[tuple[str, int]]:
    """(kind, id) of what the process has descriptors of."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir())
    return {(kind, int(number)) for kind, number in re.findall(r"^(prog|map|link)_id:\s+(\d+)", text, re.MULTILINE)}


def resident(daemon: Daemon) -> str:
    both = (daemon.reader, daemon.http)
    each = " + ".join(f"{memory(pid).resident:.0f}" for pid in both)
    return f"RSS {each} MB, PSS {memory(*both).share:.0f} MB"


@contextmanager
def scraped(daemon: Daemon, every_s: float) -> Iterator[Crowd]:
    """As by Prometheus."""
    crowd, client = Crowd(), Client(daemon.address)

    def scrape(index: int) -> None:
        crowd.ask(client, "/metrics")
        time.sleep(every_s)

    with repeating(1, scrape):
        yield crowd
    assert crowd.cut == []


def test_ten_thousand_cgroups(own_cgroup: OwnCgroups, is_long: bool, figure: Figure) -> None:
    parent, number = own_cgroup(), 10_000 if is_long else 1_000
    ids = {parent.child(str(serial)).id for serial in range(number)}
    with serving(*LIVE) as daemon, scraped(daemon, 5.0 if is_long else 0.5) as crowd:
        assert state_of(daemon, ids) == dict.fromkeys(ids, "online")
        before_s, seconds = cpu_s(daemon.reader, daemon.http), WATCHED_S if is_long else 1
        time.sleep(seconds)
        used = (cpu_s(daemon.reader, daemon.http) - before_s) / seconds
        figure(f"{number} cgroups: {resident(daemon)}, {100 * used:.1f} % of a processor; {crowd.figures}")
        for serial in range(number):
            (parent.path / str(serial)).rmdir()
        wait_for(lambda: not {"online", "dying"} & set(state_of(daemon, ids).values()), LIMIT_S)
        assert daemon.is_healthy()


def test_cgroups_that_come_and_go(own_cgroup: OwnCgroups, is_long: bool, figure: Figure) -> None:
    """As fast as two processes can make them: 5,000 a second on two processors with nothing else to do."""
    seconds = 60.0 if is_long else 3.0
    parents = [own_cgroup() for _ in range(2)]
    with serving(*LIVE, "--interval", "1") as daemon, scraped(daemon, 1.0) as crowd, ExitStack() as stack:
        offlined = daemon.metric("kmemwatch_cgroups_offlined_total")
        before_s = cpu_s(daemon.reader, daemon.http)
        commands = [[sys.executable, "-c", CHURN, str(parent.path), str(seconds)] for parent in parents]
        makers = [stack.enter_context(subprocess.Popen(one, stdout=subprocess.PIPE, text=True)) for one in commands]
        time.sleep(seconds / 2)
        halfway_mb = memory(daemon.reader).resident, memory(daemon.http).resident
        number = sum(int(maker.communicate()[0]) for maker in makers)
        used = (cpu_s(daemon.reader, daemon.http) - before_s) / seconds
        end_mb = memory(daemon.reader).resident, memory(daemon.http).resident
        lost = events_lost(daemon)
        wait_for(lambda: daemon.metric("kmemwatch_cgroups_offlined_total") - offlined + lost >= number, LIMIT_S)
        wait_for(lambda: not any(row["path"].startswith(f"/{parent.path.name}/") and row["state"] == "dying"
                                 for row in snapshot(daemon)["cgroups"] for parent in parents), LIMIT_S)  # fmt: skip
        assert daemon.is_healthy()
        if is_long:
            assert all(end < half + 10 for half, end in zip(halfway_mb, end_mb, strict=True)), "it grows"
        figure(
            f"{number / seconds:.0f} cgroups a second, {number} in {seconds:.0f} s, {lost} events lost;"
            f" {resident(daemon)}, {100 * used:.0f} % of a processor; {crowd.figures}"
        )


@pytest.mark.parametrize("victim", ["reader", "http"])
def test_what_is_there_after_it_was_killed(own_cgroup: OwnCgroups, victim: str, figure: Figure) -> None:
    """Nothing is left in the kernel; the next one listens at the same address at once, and knows the dead of before."""
    with serving(*LIVE) as daemon:
        ours = of_bpf(daemon.reader)
        assert {"prog", "map"} <= {kind for kind, _ in ours}
        dead = own_cgroup()
        kept = Path("/dev/shm") / f"kmemwatch-test-{os.getpid()}"
        try:
            # A page of tmpfs is charged to who wrote it first, and keeps it dying.
            dead.run(["sh", "-c", f"head -c 100000 /dev/zero > {kept}"])
            dead.path.rmdir()
            wait_for(lambda: state_of(daemon, {dead.id}) == {dead.id: "dying"}, LIMIT_S)
            os.kill(getattr(daemon, victim), signal.SIGKILL)
            assert daemon.process.wait(20) == (1 if victim == "http" else -signal.SIGKILL)
            wait_for(lambda: not ours & {(kind, number) for kind in KINDS for number in loaded(kind)}, LIMIT_S)
            began = time.monotonic()
            with serving(*LIVE, port=daemon.address[1]) as next_one:
                took = time.monotonic() - began
                assert state_of(next_one, {dead.id}) == {dead.id: "dying"}
                assert next_one.is_healthy()
        finally:
            kept.unlink(missing_ok=True)
    figure(f"serves again {took:.2f} s after it is started, with the dead cgroup that the one before knew")
