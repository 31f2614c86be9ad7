# SPDX-License-Identifier: GPL-2.0-only
"""The cache that holds most of a cgroup's memory, beside the one that it allocates from most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.views.rows import CgroupRow, Frame, cgroup_row
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import cache_named, cgroup_of, pair_of, snapshot, workload

FILES = 1511


def row_of(feed: LiveFeed, cgroup: OwnCgroup) -> CgroupRow:
    shown = Frame(snapshot(feed))
    found = cgroup_of(shown.snapshot, cgroup.id)
    assert found is not None
    return cgroup_row(shown, found)


def test_what_is_there_is_told_of_a_cgroup_that_is_younger_than_kmemwatch(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], tmpfs: Path
) -> None:
    """Each look-up of a path takes a buffer of 4 KiB and gives it back; inodes stay."""
    cgroup = own_cgroup()
    with workload(cgroup) as work:
        work.do(f"files {FILES} {tmpfs}")
        row = row_of(feed, cgroup)
        if snapshot(feed).kernel.era == "recharge":  # objects go with their slab to another cgroup
            assert (row.top_live_cache, row.live_is_known) == (None, False)
            return
        inodes = cache_named(snapshot(feed), "shmem_inode_cache")
        assert row.top_live_cache == inodes.name
        pair = pair_of(snapshot(feed), "shmem_inode_cache", cgroup.id)
        assert pair is not None
        assert pair.live_bytes == FILES * (inodes.object_bytes or 0)


def test_of_a_cgroup_that_is_older_it_is_unknown(
    own_cgroup: Callable[..., OwnCgroup], open_feed: Callable[[], LiveFeed], tmpfs: Path
) -> None:
    cgroup = own_cgroup()
    with workload(cgroup) as work:
        work.do(f"files {FILES} {tmpfs}")
        feed = open_feed()
        work.do(f"unlink {FILES} {tmpfs}")
        shown = snapshot(feed)
        assert not row_of(feed, cgroup).live_is_known
        assert {pair.live_bytes for pair in shown.pairs if pair.cgroup_id == cgroup.id} == {None}
        assert all(pair.live_bytes is None or pair.live_bytes >= 0 for pair in shown.pairs)
