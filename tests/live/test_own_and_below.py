# SPDX-License-Identifier: GPL-2.0-only
"""Kernel memory of a cgroup itself, and what all below it did, against the kernel's files and what the workload did."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveFeed
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import cgroup_of, snapshot, workload
from tests.live.test_truth import kernel_file_bytes
from tests.waiting import settled

FILES = 1511


@pytest.mark.needs("kernel memory in the cgroups' files")
def test_own_bytes_and_totals_of_a_subtree(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    memory: MemoryMount,
    tmpfs: Path,
    patience: Callable[[float], float],
) -> None:
    top = own_cgroup()
    top.open_for_children()
    children = [top.child("a"), top.child("b")]
    for child in children:
        with workload(child) as work:
            work.do(f"files {FILES} {tmpfs}")
            work.do(f"unlink {FILES} {tmpfs}")

    def told() -> tuple[int | None, int | None]:
        """(own bytes by the kernel's files, ours)."""
        time.sleep(0.5)
        files = [kernel_file_bytes(memory, cgroup) for cgroup in (top, *children)]
        row = cgroup_of(snapshot(feed), top.id)
        return files[0] - sum(files[1:]), None if row is None else row.own_kernel_bytes

    assert settled(lambda: len(set(told())), 1, patience(20)) == 1
    for child in children:
        child.path.rmdir()
    row = cgroup_of(snapshot(feed), top.id)
    assert row is not None
    assert (row.subtree_allocations_total or 0) >= len(children) * 2 * FILES, (
        "two objects a file, of cgroups that are gone"
    )
    assert (row.subtree_charged_bytes_total or 0) > len(children) * FILES * 500
    # Its own are what the kernel takes to make the children.
    assert (row.charged_bytes_total or 0) < (row.subtree_charged_bytes_total or 0) / 10
