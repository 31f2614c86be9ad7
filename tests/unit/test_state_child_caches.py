# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of events and readings of child caches: names, owners, and what is told of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.maps.decode import SlabEvent
from kmemwatch.model import ChildSlabs, Event, Ids, Recharges
from kmemwatch.source.reading import Reading, RechargeCounts, RechargeKey
from kmemwatch.state.child_caches import ChildCaches
from tests.unit.fake_source import IDS, FakeSource, recorded_facts
from tests.unit.test_state_ids import record

DENTRY, DENTRY_0, FILP_0 = 0x1000, 0x2000, 0x3000
CACHES = [
    CacheRecord(DENTRY, "dentry", 192, 0),
    CacheRecord(DENTRY_0, "dentry(0)", 192, 0, 8192, DENTRY, 0),
    CacheRecord(FILP_0, "filp(0)", 256, 0, 4096, 0x4000, 0),
]


@pytest.fixture
def children() -> ChildCaches:
    """Of a kernel with the patch set, where everything is attached."""
    return make("lab-patched", True)


def make(facts: str, patchset: bool | None, missing: tuple[str, ...] = ()) -> ChildCaches:
    known = FakeSource(facts=recorded_facts(facts)).info
    signals = {"ids": "fexit:memcg_alloc_cache_id", "caches": "fexit:memcg_create_kmem_cache"}
    probes = tuple(
        structs.replace(known.probes[0], signal=signal, attachment=None if signal in missing else how)
        for signal, how in signals.items()
    )
    return ChildCaches(replace(known, probes=probes), patchset, IDS)


def event(kind: str, at_ns: int = 5, **values: object) -> SlabEvent:
    return replace(SlabEvent(kind, at_ns, None, 42, "sh", -1), **values)  # type: ignore[arg-type]


def reading(at_ns: int = 10, **values: object) -> Reading:
    return replace(Reading(at_ns, [record(1, -1, held=False, parent_css=0), record(101, 0)], CACHES, {}, {}), **values)  # type: ignore[arg-type]


def told(children: ChildCaches, happened: SlabEvent, newest: int | None = None) -> Event:
    event = children.apply(happened, newest)
    assert event is not None
    return event


def test_an_id_given_is_told_with_who_had_it(children: ChildCaches) -> None:
    first = told(children, event("id_given", cgroup_id=101, kmemcg_id=0))
    assert first == Event(5, "id_given", 101, pid=42, comm="sh", kmemcg_id=0)
    freed = told(children, event("id_freed", kmemcg_id=0))
    assert (freed.kind, freed.cgroup_id, freed.kmemcg_id) == ("id_freed", 101, 0)
    second = told(children, event("id_given", cgroup_id=102, kmemcg_id=0))
    assert (second.kind, second.cgroup_id, second.other_cgroup_id) == ("id_reused", 102, 101)


def test_who_got_an_id_when_the_hook_is_not_told(children: ChildCaches) -> None:
    assert told(children, event("id_given", kmemcg_id=0), newest=103).cgroup_id == 103


def test_a_cache_belongs_to_who_has_its_id(children: ChildCaches) -> None:
    told(children, event("id_given", cgroup_id=101, kmemcg_id=0))
    made = told(children, event("cache_created", cache=DENTRY_0, cache_name="dentry(0)", kmemcg_id=0))
    assert made == Event(5, "cache_created", 101, pid=42, comm="sh", cache="dentry(0)", kmemcg_id=0)


def test_a_root_cache_has_no_id(children: ChildCaches) -> None:
    made = told(children, event("cache_created", cache=DENTRY, cache_name="dentry"))
    assert (made.cgroup_id, made.kmemcg_id) == (None, None)


def test_a_cache_that_the_list_has_told_of(children: ChildCaches) -> None:
    children.begin(reading(caches=[]))
    assert list(children.changes(reading(caches=[]))) == []
    later = reading(20)
    children.begin(later)
    kinds = [(one.kind, one.cache, one.kmemcg_id) for one in children.changes(later)]
    assert kinds == [
        ("cache_created", "dentry", None),
        ("cache_created", "dentry(0)", 0),
        ("cache_created", "filp(0)", 0),
    ]
    late = event("cache_created", 25, cache=DENTRY_0, cache_name="dentry(0)", kmemcg_id=0)
    assert children.apply(late, None) is None


def test_the_first_recharge_of_a_pair(children: ChildCaches) -> None:
    moved = told(children, event("recharge", cgroup_id=102, from_id=101, pages=2, cache_name="dentry(0)", kmemcg_id=0))
    assert moved == Event(
        5, "recharge", 102, pid=42, comm="sh", cache="dentry(0)", kmemcg_id=0, other_cgroup_id=101, bytes=8192
    )
    failed = told(children, event("recharge_failed", cgroup_id=102, from_id=101, cache_name="dentry(0)", kmemcg_id=0))
    assert (failed.other_cgroup_id, failed.bytes) == (101, None)


def test_slabs_of_the_dead_largest_first(children: ChildCaches) -> None:
    now = reading(child_slabs={201: {FILP_0: 1, DENTRY_0: 7}, 202: {}})
    children.begin(now)
    assert children.slabs(now) == {
        201: (ChildSlabs("dentry(0)", IDS[DENTRY_0], 0, 7 * 4096), ChildSlabs("filp(0)", IDS[FILP_0], 0, 4096)),
        202: (),
    }
    assert children.slabs(reading()) is None, "not known is not nothing"


def test_ids(children: ChildCaches) -> None:
    told(children, event("id_given", cgroup_id=101, kmemcg_id=0))
    now = reading()
    children.begin(now)
    ids = children.ids(now, 7, 1000)
    assert (ids.in_use, ids.given_total, ids.freed_total, ids.reuses_total, ids.peak_online_memcgs) == (1, 1, 0, 0, 7)
    assert [(row.kmemcg_id, row.cgroup_id, row.since_ns, row.caches, row.slab_bytes) for row in ids.map or ()] == [
        (0, 101, 1005, 2, 12288)
    ]


def test_without_its_events_nobody_knows_how_often_an_id_was_given() -> None:
    children = make("lab-baseline", False, missing=("ids",))
    now = reading()
    children.begin(now)
    ids = children.ids(now, 7, 1000)
    assert (ids.in_use, ids.given_total, ids.freed_total, ids.reuses_total) == (1, None, None, None)
    assert "a dying memcg keeps it" in (ids.meaning or "")


def test_without_a_walk_nobody_knows_who_has_which(children: ChildCaches) -> None:
    now = reading(memcgs=None)
    children.begin(now)
    ids = children.ids(now, None, 1000)
    assert ids == Ids(meaning=ids.meaning)


def test_shared_caches_have_no_ids_and_nothing_moves() -> None:
    children = make("debian-6.12", False)
    now = reading(
        memcgs=[record(1, -1, held=False, parent_css=0), record(101, -1, held=False, kmemcg_id=4, memcg_id=4)],
        caches=CACHES[:1],
    )
    children.begin(now)
    assert children.finish(now, [], []) == []
    assert children.recharges() == Recharges()
    ids = children.ids(now, 7, 1000)
    assert ids == Ids(peak_online_memcgs=7, meaning=ids.meaning)
    assert "no cache belongs to it" in (ids.meaning or "")


def test_recharges_are_named_after_the_caches_of_the_reading(children: ChildCaches) -> None:
    counted = RechargeCounts(9, 0, 0, {RechargeKey(DENTRY_0, 201, 101, "dying"): (3, 3)})
    now = reading(recharges=counted)
    children.begin(now)
    assert children.finish(now, [], []) == []
    (total,) = children.recharges().totals or ()
    (pair,) = children.recharges().pairs or ()
    assert (total.cache, pair.cache, pair.kmemcg_id) == ("dentry", "dentry(0)", 0)
