# SPDX-License-Identifier: GPL-2.0-only
"""State and ledger against an invented kernel whose every event and counter the test decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.model import DYING, ONLINE, RELEASED
from kmemwatch.source.reading import FinalCounts
from tests.unit.fake_source import (
    DENTRY,
    FILP,
    IDS,
    KMALLOC,
    ROOT,
    SECOND,
    FakeSource,
    Memcg,
)
from tests.unit.state_host import Host, allocations, cgroup, pair

# Lives


def test_a_life_told_by_events() -> None:
    host = Host()
    host.snapshot()
    memcg = host.source.mkdir("a b")
    first = cgroup(host.snapshot(), memcg)
    assert (first.state, first.path, first.offline_at_ns) == (ONLINE, "/a b", None)
    assert first.online_at_ns is not None
    host.source.rmdir(memcg)
    dying = host.snapshot()
    assert (cgroup(dying, memcg).state, dying.totals.dying_cgroups, dying.totals.online_cgroups) == (DYING, 1, 1)
    host.source.now_ns += 7 * SECOND
    host.source.release(memcg)
    end = host.snapshot()
    assert (cgroup(end, memcg).state, cgroup(end, memcg).path) == (RELEASED, "/a b")
    assert host.told() == [("online", "/a b"), ("offline", "/a b"), ("released", "/a b")]
    totals = end.totals
    assert (totals.cgroups_onlined_total, totals.cgroups_offlined_total, totals.cgroups_released_total) == (1, 1, 1)
    assert list(end.release_delays_s) == pytest.approx([7], abs=0.1)


def test_a_life_seen_by_walks_only() -> None:
    host = Host(FakeSource(missing=["lifecycle"]))
    host.source.losing_events = True
    memcg = host.source.mkdir("quiet")
    assert cgroup(host.snapshot(), memcg).state == ONLINE
    host.source.rmdir(memcg)
    assert cgroup(host.snapshot(), memcg).state == DYING
    host.source.release(memcg)
    end = host.snapshot()
    assert (cgroup(end, memcg).state, cgroup(end, memcg).path) == (RELEASED, "/quiet")
    assert end.totals.cgroups_released_total is None, "unknown is not 0"
    assert cgroup(end, memcg).offline_at_ns is None
    assert end.release_delays_s == ()


def test_losses_that_nobody_counts_are_unknown() -> None:
    """As on kernels that do not tell what a kprobe has missed; what is known is still told."""
    host = Host()
    reading = replace(host.source.read(), lost={"skipped_free": None, "pair_map_full": 3, "ringbuf_full": 1})
    lost = host.state.snapshot(reading).lost
    assert (lost.events_total, lost.map_full_total, lost.unresolved_total) == (None, 3, 0)
    assert lost.reasons == {"pair_map_full": 3, "ringbuf_full": 1}
    assert lost.total is None


def test_events_lost_in_the_middle_of_a_life() -> None:
    host = Host()
    memcg = host.source.mkdir("a")
    host.snapshot()
    host.source.losing_events = True
    host.source.rmdir(memcg)
    assert cgroup(host.snapshot(), memcg).state == DYING
    host.source.losing_events = False
    host.source.release(memcg)
    end = host.snapshot()
    assert cgroup(end, memcg).state == RELEASED
    assert end.lost.reasons["ringbuf_full"] == 1
    assert end.lost.events_total == 1
    assert end.release_delays_s == (), "nobody knows when it went offline"


def test_the_dead_of_before_the_start_are_found_and_their_release_is_told() -> None:
    host = Host()
    source = host.source
    parent = source.mkdir("slice")
    memcg = source.mkdir("old", parent)
    source.rmdir(memcg)
    source.poll(0)  # nobody was attached then
    found = cgroup(host.snapshot(), memcg)
    assert (found.state, found.path, found.online_at_ns, found.offline_at_ns) == (DYING, "/slice/old", None, None)
    source.release(memcg)
    end = host.snapshot()
    assert cgroup(end, memcg).state == RELEASED
    assert host.told() == [("released", "/slice/old")]
    assert end.totals.cgroups_released_total == 1


@pytest.mark.parametrize("before_the_start", [False, True])
def test_a_release_that_the_walk_shows_before_its_event(before_the_start: bool) -> None:
    """As with the tracepoint cgroup_release, which comes a grace period after the memcg has left the tree."""
    host = Host()
    memcg = host.source.mkdir("a")
    host.source.rmdir(memcg)
    if before_the_start:
        host.source.poll(0)
    host.snapshot()
    host.source.release(memcg, tell=False)
    early = host.snapshot()
    assert cgroup(early, memcg).state == RELEASED
    assert early.totals.cgroups_released_total == 0
    host.source.tell_released(memcg)
    late = host.snapshot()
    assert late.totals.cgroups_released_total == 1
    assert host.told()[-1] == ("released", "/a")
    assert [kind for kind, _ in host.told()].count("released") == 1


def test_a_directory_whose_controller_was_switched_off_ends_once() -> None:
    """Its memcg is gone already when the tracepoints tell of the directory."""
    host = Host()
    host.snapshot()
    memcg = host.source.mkdir("a")
    host.snapshot()
    host.source.release(memcg, tell=False)  # echo -memory >cgroup.subtree_control
    assert cgroup(host.snapshot(), memcg).state == RELEASED
    host.source.rmdir(memcg)
    host.source.tell_released(memcg)
    end = host.snapshot()
    assert host.told() == [("online", "/a")]
    assert (end.totals.cgroups_offlined_total, end.totals.cgroups_released_total) == (0, 0)


def test_the_end_of_a_cgroup_without_the_controller_is_nothing() -> None:
    host = Host()
    host.snapshot()
    stranger = Memcg(77, "stranger", host.source.root)
    host.source.rmdir(stranger)
    host.source.tell_released(stranger)
    assert [row.id for row in host.snapshot().cgroups] == [ROOT]
    assert host.told() == []


def test_a_birth_that_the_walk_has_not_seen_stays() -> None:
    """The event came while the walk was on its way past that place."""
    host = Host()
    reading = host.source.read()
    memcg = host.source.mkdir("young")
    host.source.alloc(memcg, objects=3)
    host.poll()
    assert host.state.update(reading) == FinalCounts([], [], [])
    assert cgroup(host.state.snapshot(reading), memcg).state == ONLINE
    snapshot = host.snapshot()
    assert pair(snapshot, memcg) == (3, 0, 3 * 192)


# Names


def test_rename_and_deep_trees() -> None:
    host = Host()
    chain = [host.source.mkdir("0")]
    for depth in range(1, 60):
        chain.append(host.source.mkdir(str(depth), chain[-1]))
    deepest = "/" + "/".join(str(depth) for depth in range(60))
    assert cgroup(host.snapshot(), chain[-1]).path == deepest
    chain[0].name = "renamed"
    snapshot = host.snapshot()
    assert cgroup(snapshot, chain[0]).path == "/renamed"
    assert cgroup(snapshot, chain[-1]).path == "/renamed" + deepest[2:]
    # A tree is removed from below, so for a while everything is dying.
    for memcg in reversed(chain):
        host.source.rmdir(memcg)
    for memcg in reversed(chain):
        host.source.release(memcg)
    assert cgroup(host.snapshot(), chain[-1]).path == "/renamed" + deepest[2:]


def test_paths_of_events_before_the_first_walk_come_with_it() -> None:
    host = Host()
    parent = host.source.mkdir("p")
    child = host.source.mkdir("c", parent)
    host.poll()
    assert host.told() == [("online", None), ("online", None)], "nothing is known of the root yet"
    assert cgroup(host.snapshot(), child).path == "/p/c"


def test_a_path_is_used_again_by_another_cgroup() -> None:
    host = Host()
    old = host.source.mkdir("job")
    host.source.alloc(old, objects=5)
    host.source.rmdir(old)
    new = host.source.mkdir("job")
    host.source.alloc(new, objects=2)
    snapshot = host.snapshot()
    assert [(row.path, row.state) for row in snapshot.cgroups] == [("/", ONLINE), ("/job", DYING), ("/job", ONLINE)]
    assert pair(snapshot, new) == (2, 0, 2 * 192)
    host.source.release(old)
    snapshot = host.snapshot()
    assert pair(snapshot, new) == (2, 0, 2 * 192)
    assert cgroup(snapshot, new).state == ONLINE
    assert allocations(snapshot) == 7


# Counters


def test_what_a_dead_memcg_leaves_belongs_to_its_ancestors() -> None:
    host = Host()
    source = host.source
    top = source.mkdir("top")
    middle = source.mkdir("middle", top)
    low = source.mkdir("low", middle)
    source.alloc(low, objects=10)
    source.free(low, objects=1)
    assert pair(host.snapshot(), low) == (10, 1, 9 * 192)
    source.rmdir(low)
    source.free(low, objects=2)  # counted for middle by the kernel
    snapshot = host.snapshot()
    assert pair(snapshot, middle) == (0, 2, 7 * 192)
    assert pair(snapshot, low) == (10, 1, 0)
    source.release(low)
    snapshot = host.snapshot()
    assert pair(snapshot, low) is None
    assert pair(snapshot, middle) == (0, 2, 7 * 192)
    source.rmdir(middle)
    source.release(middle)
    snapshot = host.snapshot()
    assert pair(snapshot, middle) is None
    assert pair(snapshot, top) == (0, 0, 7 * 192)
    host.source.now_ns += 3600 * SECOND
    snapshot = host.snapshot()
    assert [row.id for row in snapshot.cgroups] == [ROOT, top.cgroup_id]
    source.free(low, objects=7)
    assert pair(host.snapshot(), top) == (0, 7, 0)
    assert {row.cgroup_id for row in host.snapshot().pairs} == {top.cgroup_id}


def test_an_heir_that_is_forgotten_leaves_no_row() -> None:
    host = Host()
    parent = host.source.mkdir("parent")
    child = host.source.mkdir("child", parent)
    host.source.alloc(child, objects=4)
    host.source.rmdir(child)
    host.source.release(child)
    host.snapshot()
    host.source.rmdir(parent)
    host.source.release(parent)
    host.snapshot()
    host.source.now_ns += 3600 * SECOND
    snapshot = host.snapshot()
    assert [row.id for row in snapshot.cgroups] == [ROOT]
    assert [(row.cgroup_id, row.live_bytes) for row in snapshot.pairs] == [(ROOT, None)], "the root may have older ones"


def test_what_a_memcg_that_is_older_than_kmemwatch_has_alive_is_unknown() -> None:
    """It may have objects that were never counted. Never a figure below 0, and never one that is too small."""
    host = Host()
    source = host.source
    old = source.mkdir("old")
    source.alloc(old, objects=1000)
    source.pairs.clear()
    source.poll(0)  # nobody was attached then
    source.info = replace(source.info, attached_at_monotonic_ns=source.now_ns)
    source.alloc(old, objects=7)
    assert pair(host.snapshot(), old) == (7, 0, None)
    source.free(old, objects=30)
    assert pair(host.snapshot(), old) == (7, 30, None)
    young = source.mkdir("young", old)
    source.alloc(young, objects=5)
    assert pair(host.snapshot(), young) == (5, 0, 5 * 192)
    source.rmdir(young)
    dead = host.snapshot()
    assert pair(dead, young) == (5, 0, 0), "its objects are the parent's now"
    assert pair(dead, old) == (7, 30, None)
    for row in dead.pairs:
        assert row.live_bytes is None or row.live_bytes >= 0


def test_a_memcg_whose_birth_nobody_told_is_known_to_be_young_by_its_number() -> None:
    host = Host()
    old = host.source.mkdir("old")
    host.source.poll(0)
    host.snapshot()
    host.source.losing_events = True
    young = host.source.mkdir("young")
    for memcg in (old, young):
        host.source.alloc(memcg, objects=2)
    snapshot = host.snapshot()
    assert (pair(snapshot, old), pair(snapshot, young)) == ((2, 0, None), (2, 0, 2 * 192))


def test_more_frees_than_allocations_make_no_figure() -> None:
    """As of objects that a task allocates for another cgroup than its own."""
    host = Host()
    memcg = host.source.mkdir("a")
    host.source.alloc(memcg, objects=2)
    host.source.free(memcg, objects=3)
    assert pair(host.snapshot(), memcg) == (2, 3, None)


def test_only_charged_objects_are_live() -> None:
    host = Host()
    memcg = host.source.mkdir("a")
    host.source.alloc(memcg, KMALLOC, 10)
    host.source.alloc(memcg, KMALLOC, 3, account=True)
    host.source.alloc(host.source.root, DENTRY, 50)
    snapshot = host.snapshot()
    assert pair(snapshot, memcg, KMALLOC) == (13, 0, 3 * 64)
    assert pair(snapshot, host.source.root) == (50, None, None), "the root is charged for nothing"


def test_nothing_is_live_or_charged_where_nobody_is_charged() -> None:
    """cgroup.memory=nokmem: caches have SLAB_ACCOUNT, no memcg a kmemcg_id, no object an owner."""
    host = Host()
    host.source.nokmem = True
    memcg = host.source.mkdir("a")
    memcg.stats = {"NR_SHMEM": 3, "NR_FILE_PAGES": 3}
    host.source.alloc(memcg, objects=10_007)
    host.source.pairs[DENTRY, 0] = [0, 0, 10_007]
    snapshot = host.snapshot()
    assert pair(snapshot, memcg) == (10_007, None, None)
    row = cgroup(snapshot, memcg)
    assert (row.kernel_bytes, row.slab_bytes, row.charged_bytes_total, row.uncharged_bytes_total) == (None,) * 4
    assert row.memory_bytes == 3 * 4096
    assert allocations(snapshot) == 10_007
    (dentry,) = [cache for cache in snapshot.caches if cache.name == "dentry"]
    assert dentry.frees_total == 10_007
    host.source.rmdir(memcg)
    host.source.release(memcg)
    assert all(row.live_bytes is None for row in host.snapshot().pairs), "and nobody inherits any"


def test_charges_of_the_released_stay() -> None:
    host = Host()
    memcg = host.source.mkdir("a")
    host.source.charge(memcg, 5)
    host.source.charge(memcg, -2)
    host.source.rmdir(memcg)
    host.snapshot()
    host.source.release(memcg)
    host.source.charge(memcg, -3)
    for _ in range(3):
        row = cgroup(host.snapshot(), memcg)
        assert (row.charged_bytes_total, row.uncharged_bytes_total) == (5 * 4096, 5 * 4096)
        assert memcg.cgroup_id not in host.source.charges, "the map must not fill with the dead"
    host.source.charge(memcg, -1)  # batched in the kernel, and late
    row = cgroup(host.snapshot(), memcg)
    assert (row.charged_bytes_total, row.uncharged_bytes_total) == (5 * 4096, 6 * 4096)


def test_ids_in_the_maps_that_the_walk_never_shows_end_up_in_the_totals() -> None:
    """Born, counted and released between two readings, with the events lost."""
    host = Host()
    host.snapshot()
    host.source.losing_events = True
    memcg = host.source.mkdir("short")
    host.source.alloc(memcg, objects=11)
    host.source.charge(memcg, 1)
    host.source.rmdir(memcg)
    host.source.release(memcg)
    first = host.snapshot()
    assert allocations(first) == 11
    assert (DENTRY, memcg.cgroup_id) in host.source.pairs, "it could have been born after the walk"
    second = host.snapshot()
    assert (allocations(second), host.source.pairs, host.source.charges) == (11, {}, {})
    assert allocations(host.snapshot()) == 11


def test_an_id_in_the_maps_before_the_walk_shows_it() -> None:
    host = Host()
    host.snapshot()
    host.source.losing_events = True
    memcg = host.source.mkdir("a")
    host.source.alloc(memcg, objects=2)
    hidden = host.source.memcgs.pop(memcg.cgroup_id)
    assert pair(host.snapshot(), memcg) == (2, 0, None), "it may be older than kmemwatch"
    host.source.memcgs[memcg.cgroup_id] = hidden
    assert pair(host.snapshot(), memcg) == (2, 0, 2 * 192)
    assert cgroup(host.snapshot(), memcg).path == "/a"


def test_a_cache_that_appears_later_and_one_without_a_name() -> None:
    host = Host()
    memcg = host.source.mkdir("a")
    host.source.alloc(memcg, 0xFFFF888000009000, 3)
    host.source.alloc(memcg, FILP, 2)
    snapshot = host.snapshot()
    row = next(row for row in snapshot.caches if row.id == IDS[0xFFFF888000009000])
    assert (row.name, row.object_bytes, row.allocations_total) == (IDS.name(0xFFFF888000009000), None, 3)
    assert row.allocated_bytes_total is None
    host.source.caches.append(CacheRecord(0xFFFF888000009000, "new", 8, 0))
    row = next(row for row in host.snapshot().caches if row.name == "new")
    assert (row.allocations_total, row.allocated_bytes_total) == (3, 24)


@pytest.mark.parametrize("signal", ["alloc", "charge", "pins"])
def test_a_missing_signal_is_unknown_not_0(signal: str) -> None:
    host = Host(FakeSource(missing=[signal]))
    memcg = host.source.mkdir("a")
    snapshot = host.snapshot()
    row = cgroup(snapshot, memcg)
    if signal == "charge":
        assert (row.charged_bytes_total, row.uncharged_bytes_total) == (None, None)
    if signal == "pins":
        assert (row.memory_bytes, row.slab_bytes, row.pins) == (None, None, None)
        assert (snapshot.totals.dying_cgroups, snapshot.totals.online_cgroups) == (None, None)
    if signal == "alloc":
        assert all(cache.allocations_total is None for cache in snapshot.caches)
        assert snapshot.pairs == ()
