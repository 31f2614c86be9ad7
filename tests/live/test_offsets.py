# SPDX-License-Identifier: GPL-2.0-only
"""If the C side reads 8 bytes beside a member, a truth test fails: shown for each offset, one after the other.

A short form of the truth tests runs on a feed whose loader has one offset wrong. It must not pass.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmemwatch.attach.handover import Child
from kmemwatch.errors import KmemwatchError
from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import DYING, RELEASED
from kmemwatch.source.bpf_source import BpfSource
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import cgroup_of, near, pair_of, snapshot, workload
from tests.needs import NEEDS
from tests.waiting import rested, settled

SHIFTED = "tests.live.shifted_loader"

SHMEM_BYTES = 245 * 4096
"""Whole pages of 1,000,003 bytes."""
OFFSETS = (
    "task_struct__cgroups",
    "task_struct__active_memcg",
    "css_set__subsys",
    "cgroup__kn",
    "cgroup__subsys",
    "cgroup_subsys_state__cgroup",
    "cgroup_subsys_state__parent",
    "cgroup_subsys_state__serial_nr",
    "cgroup_subsys_state__children",
    "cgroup_subsys_state__sibling",
    "kernfs_node__id",
    "kernfs_node__name",
    "mem_cgroup__memory__usage",
    "mem_cgroup__vmstats",
    "memcg_vmstats__state",
    "kmem_cache__name",
    "kmem_cache__size",
    "kmem_cache__list",
    "kmem_cache__node",
    "page__compound_head",
    "slab__slab_cache",
    "slab__obj_exts",
    "obj_cgroup__memcg",
)
"""Every member that all kernels with shared caches have, and that a figure rests on."""


def check_everything(
    feed: LiveFeed, cgroup: OwnCgroup, memory: MemoryMount, tmpfs: Path, patience: Callable[[float], float]
) -> None:
    """AssertionError as soon as one figure is not what it must be."""
    taken = snapshot(feed)
    row = cgroup_of(taken, cgroup.id)
    assert row is not None, "the cgroup is not there"
    assert row.path == f"/{cgroup.path.name}", "its path is wrong"
    assert row.state == "online", "it is not online"
    roots = [other.path for other in taken.cgroups if other.id == memory.path.stat().st_ino]
    assert roots == ["/"], "the root is wrong"
    _check_walk(feed, memory, patience)
    with workload(cgroup) as work:
        _check_objects(feed, cgroup, work.do, patience)
        work.do(f"write {tmpfs}/x 1000003")
        _check_sizes(feed, cgroup, memory, patience)
    cgroup.path.rmdir()

    def zombie() -> tuple[object, ...]:
        row = cgroup_of(snapshot(feed), cgroup.id)
        return (row.state, near(row.pins or {}, {"shmem": SHMEM_BYTES}).get("shmem")) if row else ()

    expected: tuple[object, ...] = (DYING, SHMEM_BYTES) if NEEDS["pages that pin the dead"]() else (RELEASED, None)
    assert settled(zombie, expected, patience(4)) == expected


def _check_walk(feed: LiveFeed, memory: MemoryMount, patience: Callable[[float], float]) -> None:
    source = feed._source
    assert isinstance(source, BpfSource)
    assert source._peek is not None
    serials = [record.serial_nr for record in source._peek.memcgs()]
    assert len(set(serials)) == len(serials), "two memcgs have the same serial number"

    def missing() -> int | None:
        online = snapshot(feed).totals.online_cgroups
        return None if online is None else sum(1 for _ in os.walk(memory.path)) - online

    nobody: int | None = 0
    assert settled(missing, nobody, patience(3)) == nobody, "not all memcgs were found"


def _check_objects(
    feed: LiveFeed, cgroup: OwnCgroup, do: Callable[[str], None], patience: Callable[[float], float]
) -> None:
    def filp() -> tuple[int, int]:
        try:
            row = pair_of(snapshot(feed), "filp", cgroup.id)
        except AssertionError:
            return -1, -1
        return (row.allocations_total or 0, row.frees_total or 0) if row else (0, 0)

    before = rested(filp, patience(3), patience(0.1))
    do("eventfd 1009")
    expected = (before[0] + 1009, before[1] + 1009)
    assert settled(filp, expected, patience(3)) == expected


def _check_sizes(feed: LiveFeed, cgroup: OwnCgroup, memory: MemoryMount, patience: Callable[[float], float]) -> None:
    file = "memory.usage_in_bytes" if memory.version == 1 else "memory.current"

    def difference() -> int | None:
        row = cgroup_of(snapshot(feed), cgroup.id)
        return None if row is None or row.memory_bytes is None else row.memory_bytes - int(cgroup.read(file))

    # v1 shows statistics in that file, without what CPUs hold in stock: at most 64 pages each.
    last = difference()
    deadline = time.monotonic() + patience(3)
    while (last is None or abs(last) > 128 * 4096) and time.monotonic() < deadline:
        last = difference()
    assert last is not None
    assert abs(last) <= 128 * 4096


def _open_and_check(
    module: str, cgroup: OwnCgroup, memory: MemoryMount, tmpfs: Path, patience: Callable[[float], float]
) -> None:
    feed = LiveFeed(BpfSource(Child(module=module).wait()))
    try:
        check_everything(feed, cgroup, memory, tmpfs, patience)
    finally:
        feed.close()


@pytest.mark.needs("no lab")
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_shifted_offset_is_noticed(
    offset: str,
    own_cgroup: Callable[..., OwnCgroup],
    memory: MemoryMount,
    tmpfs: Path,
    patience: Callable[[float], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KMEMWATCH_TEST_SHIFT", offset)
    with pytest.raises((AssertionError, KmemwatchError)):
        _open_and_check(SHIFTED, own_cgroup(), memory, tmpfs, patience)


def test_without_a_shift_all_is_as_it_must_be(
    own_cgroup: Callable[..., OwnCgroup], memory: MemoryMount, tmpfs: Path, patience: Callable[[float], float]
) -> None:
    # Here the limits only matter when something is wrong; above, each of them is waited for.
    _open_and_check("kmemwatch.attach.child", own_cgroup(), memory, tmpfs, lambda seconds: patience(10 * seconds))
