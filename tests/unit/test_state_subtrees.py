# SPDX-License-Identifier: GPL-2.0-only
"""Figures of a cgroup itself, and with all that are or were below it: neither is taken for the other."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from kmemwatch.state.counts import Counts
from kmemwatch.state.memcgs import KEEP_RELEASED_NS, MemcgTree
from kmemwatch.views.rates import rates
from kmemwatch.views.rows import cgroup_rows, frame
from kmemwatch.views.tables import CGROUPS, CGROUPS_OWN
from kmemwatch.views.texttable import layout
from tests.unit import fakes
from tests.unit.fake_source import CACHES, IDS, SECOND, FakeSource, Memcg
from tests.unit.state_host import Host, cgroup

PAGE = 4096


def totals(host: Host, memcg: Memcg) -> tuple[int | None, int | None]:
    """(bytes charged, objects allocated) of the subtree."""
    row = cgroup(host.snapshot(), memcg)
    return row.subtree_charged_bytes_total, row.subtree_allocations_total


def test_what_those_below_did_counts_above_them_also_when_they_are_gone() -> None:
    host = Host()
    source = host.source
    top = source.mkdir("slice")
    source.alloc(top, objects=3)
    for number in range(5):
        job = source.mkdir(str(number), top)
        source.alloc(job, objects=10)
        source.charge(job, 2)
        if number % 2:
            host.snapshot()  # else born, counted and released between two readings
        source.rmdir(job)
        source.release(job)
    assert totals(host, top) == totals(host, source.root) == (10 * PAGE, 53)
    own = cgroup(host.snapshot(), top)
    assert (own.charged_bytes_total, own.subtree_uncharged_bytes_total) == (0, 0)
    source.now_ns += KEEP_RELEASED_NS + SECOND
    assert totals(host, top) == (10 * PAGE, 53), "they are forgotten, what they did is not"
    assert totals(host, source.root) == (10 * PAGE, 53)
    assert {memcg.cgroup_id for memcg in (top, source.root)} == {row.id for row in host.snapshot().cgroups}


def test_more_that_are_released_at_once_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.state.memcgs.MAX_RELEASED", 3)
    host = Host()
    host.snapshot()
    top = host.source.mkdir("slice")
    for number in range(20):
        job = host.source.mkdir(str(number), top)
        host.source.alloc(job, objects=7)
        host.source.charge(job, 1)
        host.source.rmdir(job)
        host.source.release(job)
    assert totals(host, top) == (20 * PAGE, 140)
    assert totals(host, top) == (20 * PAGE, 140)


def test_without_the_signals_nothing_is_known() -> None:
    host = Host(FakeSource(missing=["charge", "alloc"]))
    row = cgroup(host.snapshot(), host.source.root)
    assert (row.subtree_charged_bytes_total, row.subtree_allocations_total) == (None, None)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lost", [False, True])
def test_a_total_is_the_sum_of_all_that_ever_were_below(seed: int, lost: bool) -> None:
    """`lost`: no event comes, only walks show who is there."""
    chance, host = random.Random(seed), Host()
    source = host.source
    host.snapshot()
    source.losing_events = lost
    there, done = [source.root], Counter[tuple[str, int]]()
    for number in range(40):
        there.append(source.mkdir(str(number), chance.choice(there)))
        if lost:
            host.snapshot()  # who counts and is released before any walk shows it cannot be placed in the tree
        for memcg in chance.sample(there, len(there) // 2):
            objects, pages = chance.randrange(4), chance.randrange(4)
            source.alloc(memcg, chance.choice(CACHES).address, objects)
            source.charge(memcg, pages)
            at: Memcg | None = memcg
            while at is not None:
                done["objects", at.cgroup_id] += objects
                done["bytes", at.cgroup_id] += pages * PAGE
                at = at.parent
        leaves = [one for one in there[1:] if not any(other.parent is one for other in there)]
        if chance.random() < 0.4:
            gone = chance.choice(leaves)
            there.remove(gone)
            source.rmdir(gone)
            source.release(gone)
        if chance.random() < 0.5:
            host.snapshot()
        if chance.random() < 0.2:
            source.now_ns += KEEP_RELEASED_NS + SECOND
    for memcg in there:
        expected = done["bytes", memcg.cgroup_id], done["objects", memcg.cgroup_id]
        assert totals(host, memcg) == expected


def test_ids_that_go_in_a_circle_end() -> None:
    source = FakeSource()
    counts = Counts(source.info, None, IDS)
    reading = replace(source.read(), charges={1: (5, 1), 2: (0, 0)})
    counts.update(reading, MemcgTree({1, 2}, set(), {1: 2, 2: 1}, {1: 1, 2: 2}, frozenset()), accounted=True)
    assert (counts.charges_below(2)[0] or 0) >= 5 * PAGE


def test_own_bytes_are_those_less_the_childrens() -> None:
    host = Host()
    parent = host.source.mkdir("parent")
    first, second = host.source.mkdir("a", parent), host.source.mkdir("b", parent)
    parent.stats = {"MEMCG_KMEM": 5, "NR_SLAB_RECLAIMABLE_B": 3}
    first.stats = {"MEMCG_KMEM": 70, "NR_SLAB_RECLAIMABLE_B": 1000}
    second.stats = {"MEMCG_KMEM": 200, "NR_SLAB_UNRECLAIMABLE_B": 4000}
    shown = host.snapshot()
    assert (cgroup(shown, parent).kernel_bytes, cgroup(shown, parent).own_kernel_bytes) == (275 * PAGE, 5 * PAGE)
    assert (cgroup(shown, parent).slab_bytes, cgroup(shown, parent).own_slab_bytes) == (5003, 3)
    assert cgroup(shown, first).own_kernel_bytes == 70 * PAGE
    host.source.rmdir(second)
    dead = host.snapshot()
    assert cgroup(dead, parent).own_kernel_bytes == 205 * PAGE, "it has what the dead one left"
    assert cgroup(dead, second).own_kernel_bytes is None, "its counter stays as it was, and nothing of it is its own"
    first.stats["MEMCG_KMEM"] = 70
    parent.stats["MEMCG_KMEM"] = -250  # the kernel adds up one after the other
    late = cgroup(host.snapshot(), parent)
    assert (late.kernel_bytes, late.own_kernel_bytes) == (20 * PAGE, None)


def test_rates_of_both() -> None:
    found = rates(fakes.sample(), fakes.sample(3)).cgroups
    root, slice_ = found[1], found[1021]
    assert root.charged_bytes_per_s == int(9.4 * fakes.MB)
    charged = [int(row[-1] * fakes.MB) for row in fakes.CGROUPS if row[1].startswith("/system.slice")]
    assert slice_.charged_bytes_per_s == charged[0]
    assert slice_.subtree_charged_bytes_per_s == sum(charged)


@pytest.mark.parametrize("cells", [60, 80, 110, 210])
def test_each_screen_says_which_is_which(cells: int) -> None:
    whole, own = ([c.field for c in layout(view, cells).columns] for view in (CGROUPS, CGROUPS_OWN))
    shown = frame(fakes.sample(), fakes.sample(3))
    assert {"KERNEL", "CHARGED/s", "ALLOC/s"} <= {f.title for f in whole}
    assert {"OWN KERNEL", "OWN ALLOC/s"} <= {f.title for f in own}
    for field in (*whole, *own):
        if field.title.startswith("OWN"):
            assert field.key.startswith("own_") or not field.key.startswith("subtree_")
    assert ("top_cache" in {f.key for f in own}) == (cells >= 80)
    if cells == 210:
        assert {f.key for f in whole} == {f.key for f in own}
    for view in (CGROUPS, CGROUPS_OWN):
        said = view.summary(shown)
        assert said is not None
        assert len(said) <= 80
        assert "include child cgroups, except" in said
    assert {f.key for f in CGROUPS.fields} == {f.key for f in CGROUPS_OWN.fields}
    assert len(cgroup_rows(shown)) == len(CGROUPS_OWN.rows(shown) or ())
