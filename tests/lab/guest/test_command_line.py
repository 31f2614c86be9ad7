# SPDX-License-Identifier: GPL-2.0-only
"""Kernels with another command line: nobody is charged for objects, or some objects lie in pages of their own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import ABSENT
from tests.daemon import KMEMWATCH
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import cgroup_of, pair_of, snapshot, workload

KFENCE = Path("/sys/kernel/debug/kfence/stats")


@pytest.mark.needs("kernel memory of nobody")
def test_what_nobody_is_charged_for_is_not_said_to_be_alive(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], scale: Callable[[int], int]
) -> None:
    cgroup, number = own_cgroup(), scale(100_003)
    with workload(cgroup) as work:
        work.do(f"eventfd {number}")
        taken = snapshot(feed)
    row, memcg = pair_of(taken, "filp", cgroup.id), cgroup_of(taken, cgroup.id)
    assert row is not None
    assert memcg is not None
    assert row.allocations_total is not None
    assert row.allocations_total >= number, "they were allocated by its processes"
    assert (row.frees_total, row.live_bytes) == (None, None)
    assert (memcg.kernel_bytes, memcg.slab_bytes) == (None, None)
    assert (memcg.charged_bytes_total, memcg.uncharged_bytes_total) == (None, None)
    assert memcg.memory_bytes


@pytest.mark.needs("kernel memory of nobody")
def test_doctor_says_that_nobody_is_charged() -> None:
    found = json.loads(subprocess.check_output([*KMEMWATCH, "doctor", "--output", "json"]))
    told = {
        probe["signal"]: (probe["status"], "cgroup.memory=nokmem" in (probe["why"] or "")) for probe in found["probes"]
    }
    assert told["charge"] == (ABSENT, True)
    assert (told["free"][1], told["pins"][1], told["alloc"][1]) == (True, True, False)


def kfence_frees() -> int:
    """Objects that KFENCE allocated and freed, by its own count."""
    lines = dict(line.rsplit(":", 1) for line in KFENCE.read_text().splitlines() if ":" in line)
    return int(lines["total frees"])


@pytest.mark.needs("objects of KFENCE")
def test_the_owner_of_an_object_of_kfence_is_found(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], patience: Callable[[float], float]
) -> None:
    """As many of a cache as KFENCE takes one of, every millisecond, until it had some hundred."""
    cgroup, least = own_cgroup(), 100
    with workload(cgroup) as work:
        before, rounds = kfence_frees(), 0
        while kfence_frees() < before + least and rounds < 100:
            work.do("eventfd 503")
            rounds += 1
        assert kfence_frees() >= before + least

        def counted() -> tuple[int | None, int | None]:
            row = pair_of(snapshot(feed), "filp", cgroup.id)
            return (row.allocations_total, row.frees_total) if row is not None else (None, None)

        limit = time.monotonic() + patience(5)
        allocated, freed = counted()
        while allocated is None or freed is None or allocated - freed > ALIVE:
            assert time.monotonic() < limit, f"{freed} of {allocated} are counted as freed, after {rounds} rounds"
            time.sleep(0.3)
            allocated, freed = counted()
    assert snapshot(feed).lost.total == 0


ALIVE = 64
"""Open files of the workload itself, at most."""
