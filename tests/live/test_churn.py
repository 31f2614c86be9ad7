# SPDX-License-Identifier: GPL-2.0-only
"""Cgroups that come and go as fast as one process can make them: each has its events, and memory is bounded."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import RELEASED, Event
from kmemwatch.units import printable
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import lost_lifecycle, snapshot
from tests.waiting import settled


def churn(parent: Path, number: int) -> set[int]:
    """Make and remove `number` cgroups one after the other; their ids."""
    ids = set()
    for serial in range(number):
        path = parent / f"churn-{serial}"
        path.mkdir()
        ids.add(path.stat().st_ino)
        path.rmdir()
    return ids


def rss_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError("VmRSS")


def test_every_birth_and_death_is_told_exactly_once(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    scale: Callable[[int], int],
    patience: Callable[[float], float],
) -> None:
    parent, number = own_cgroup(), scale(2_003)
    parent.open_for_children()
    snapshot(feed)
    feed.take_events()
    ids = churn(parent.path, number)
    assert len(ids) == number
    told: list[Event] = []

    def counted() -> dict[str, int]:
        snapshot(feed)
        told.extend(event for event in feed.take_events() if event.cgroup_id in ids and event.kind in expected)
        return dict(Counter(event.kind for event in told))

    expected = {"online": number, "offline": number, "released": number}
    assert settled(counted, expected, patience(30)) == expected
    assert lost_lifecycle(feed) == 0
    for kind in expected:
        assert {event.cgroup_id for event in told if event.kind == kind} == ids
    assert {event.path for event in told} == {f"/{parent.path.name}/churn-{serial}" for serial in range(number)}
    assert {event.comm for event in told if event.kind == "online"} == {Path("/proc/self/comm").read_text().strip()}
    assert {event.pid for event in told if event.kind == "online"} == {os.getpid()}
    by_time = sorted(told, key=lambda event: event.at_ns)
    for cgroup_id in sorted(ids)[:7]:
        assert [event.kind for event in by_time if event.cgroup_id == cgroup_id] == ["online", "offline", "released"]
    taken = snapshot(feed)
    assert taken.totals.cgroups_onlined_total is not None
    assert taken.totals.cgroups_onlined_total >= number


def test_memory_stays_bounded_under_churn(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], scale: Callable[[int], int]
) -> None:
    parent, number = own_cgroup(), scale(2_003)
    parent.open_for_children()
    for _ in range(1_500 // number + 1):  # some of the released are kept for a while, at most 1,000
        churn(parent.path, number)
        snapshot(feed)
        feed.take_events()
    before = rss_kib()
    for _ in range(3):
        churn(parent.path, number)
        snapshot(feed)
        feed.take_events()
    taken = snapshot(feed)
    assert rss_kib() - before < 8 * 1024, resource.getrusage(resource.RUSAGE_SELF)
    assert sum(cgroup.state == RELEASED for cgroup in taken.cgroups) <= 1_000
    assert lost_lifecycle(feed) == 0


ODD_NAMES = [
    b"with space",
    b"new\nline",
    b'quote"back\\slash',
    b"not\xffutf8",
    b"\xe2\x98\x83 \xcc\x81 wide \xe6\xbc\xa2",
    b"x" * 255,
    b"esc\x1b[31m",
    b"\xe2\x80\xaertl",
]


def test_odd_names_are_escaped_and_none_is_taken_for_another(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], patience: Callable[[float], float]
) -> None:
    parent = own_cgroup()
    parent.open_for_children()
    snapshot(feed)
    feed.take_events()
    expected = {}
    for name in ODD_NAMES:
        path = parent.path / os.fsdecode(name)
        if b"\n" in name:
            # It would make the files that list cgroups ambiguous, so the kernel refuses it.
            with pytest.raises(OSError, match="Invalid argument"):
                path.mkdir()
            continue
        path.mkdir()
        expected[path.stat().st_ino] = printable(f"/{parent.path.name}/{os.fsdecode(name)}")
    taken = snapshot(feed)
    assert {row.id: row.path for row in taken.cgroups if row.id in expected} == expected
    told = {event.cgroup_id: event.path for event in feed.take_events() if event.cgroup_id in expected}
    assert told == expected
    assert len(set(expected.values())) == len(expected)
    assert all(path.isprintable() for path in expected.values())
