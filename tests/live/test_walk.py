# SPDX-License-Identifier: GPL-2.0-only
"""The walk of the tree of memcgs: wide, deep, and while the tree changes under it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.maps.structs import constant
from kmemwatch.model import ONLINE, Snapshot
from tests.live.cgroups import OwnCgroup

MakeCgroup = Callable[..., OwnCgroup]
WALK_BATCH, WALK_STEPS = constant("WALK_BATCH"), constant("WALK_STEPS")


def online_ids(snapshot: Snapshot | None) -> dict[int, str | None]:
    assert snapshot is not None
    return {row.id: row.path for row in snapshot.cgroups if row.state == ONLINE}


def test_more_memcgs_than_one_batch(feed: LiveFeed, own_cgroup: MakeCgroup, memory_root: Path) -> None:
    """The walk continues in another run of the program, at every edge of the tree."""
    top = own_cgroup()
    top.open_for_children()
    made = [top]
    for number in range(WALK_BATCH + 3):
        made.append(top.child(f"wide{number}"))
        if number % 3 == 0:
            made[-1].open_for_children()
            made += [made[-1].child("a"), made[-1].child("b")]
    found = online_ids(feed.next_snapshot(0))
    for cgroup in made:
        assert found[cgroup.id] == f"/{cgroup.path.relative_to(memory_root)}"


def test_deeper_than_one_batch(feed: LiveFeed, own_cgroup: MakeCgroup, memory_root: Path) -> None:
    """After the deepest one, a whole run of the program does nothing but climb."""
    made = [own_cgroup()]
    for _ in range(WALK_STEPS + 3):
        made[-1].open_for_children()
        made.append(made[-1].child("d"))
    found = online_ids(feed.next_snapshot(0))
    for cgroup in made:
        assert found[cgroup.id] == f"/{cgroup.path.relative_to(memory_root)}"


def test_nobody_is_missed_while_others_come_and_go(
    feed: LiveFeed, own_cgroup: MakeCgroup, scale: Callable[[int], int]
) -> None:
    top = own_cgroup()
    top.open_for_children()
    steady = {top.child(f"steady{number}").id for number in range(2 * WALK_BATCH)} | {top.id}
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            fleeting = [top.path / f"fleeting{number}" for number in range(20)]
            for path in fleeting:
                path.mkdir()
            for path in fleeting:
                path.rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(scale(100)):
            assert steady <= online_ids(feed.next_snapshot(0)).keys()
    finally:
        stop.set()
        thread.join()
