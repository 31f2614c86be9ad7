# SPDX-License-Identifier: GPL-2.0-only
"""kmemcg_ids against an invented kernel that gives the lowest free one, with events lost and walks in between."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.maps.decode import MemcgRecord
from kmemwatch.model import KmemcgId
from kmemwatch.state.ids import MAX_PREVIOUS, IdMap, meaning
from tests.unit.fake_source import recorded_facts

DENTRY = 0xFFFF_8880_0000_1000


def record(cgroup_id: int, kmem_cache_id: int, held: bool = True, **values: object) -> MemcgRecord:
    blank = MemcgRecord(
        css=cgroup_id << 12,
        parent_css=1 << 12,
        serial_nr=cgroup_id,
        cgroup_id=cgroup_id,
        references=1,
        memory_pages=0,
        swap_pages=0,
        kmem_pages=0,
        tcpmem_pages=0,
        online=True,
        kmemcg_id=kmem_cache_id,
        stats=(),
        name=f"m{cgroup_id}",
        kmem_cache_id=kmem_cache_id,
        kmem_cache_id_held=held,
    )
    return blank._replace(**values)  # type: ignore[arg-type]


def child(kmemcg_id: int, number: int = 0, slab_bytes: int | None = 4096) -> CacheRecord:
    address = DENTRY + (1 + number) * 0x1000 + kmemcg_id * 0x100000
    return CacheRecord(address, f"dentry({kmemcg_id})", 192, 0, slab_bytes, DENTRY, kmemcg_id)


def rows(ids: IdMap, *caches: CacheRecord) -> dict[int, KmemcgId]:
    return {row.kmemcg_id: row for row in ids.rows(caches, 1000)}


def test_an_id_that_is_taken_over() -> None:
    ids = IdMap()
    assert ids.give(0, 101, 10) == (False, None)
    assert ids.free(0, 20) == 101
    assert (ids.owner(0), ids.in_use) == (None, 0)
    assert ids.give(0, 102, 30) == (True, 101)
    assert (ids.given_total, ids.freed_total, ids.reuses_total, ids.in_use) == (2, 1, 1, 1)
    assert rows(ids, child(0), child(0, 1)) == {0: KmemcgId(0, 102, 1030, (101,), 2, 8192)}


def test_an_id_that_has_only_caches() -> None:
    ids = IdMap()
    ids.update([], [child(7)], 10)
    assert rows(ids, child(7)) == {7: KmemcgId(7, None, None, (), 1, 4096)}
    assert ids.in_use == 0
    assert ids.give(7, 101, 20) == (True, None), "somebody had it, and we do not know who"


def test_lower_ids_were_given_before_higher_ones() -> None:
    ids = IdMap()
    ids.update([record(101, 5)], [], 10)
    assert ids.give(3, 102, 20) == (True, None)
    assert ids.give(6, 103, 30) == (False, None)


def test_memory_of_an_id_is_unknown_when_that_of_one_cache_is() -> None:
    ids = IdMap()
    ids.give(0, 101, 10)
    assert rows(ids, child(0), child(0, 1, None))[0].slab_bytes is None


def test_owners_of_before_the_start_have_no_since() -> None:
    ids = IdMap()
    ids.update([record(101, 0)], [], 10)
    assert rows(ids)[0] == KmemcgId(0, 101, None, (), 0, 0)


def test_a_walk_that_began_before_an_event_does_not_undo_it() -> None:
    ids = IdMap()
    ids.give(0, 101, 10)
    ids.free(0, 30)
    ids.give(0, 102, 40)
    ids.update([record(101, 0)], [], 20)
    assert ids.owner(0) == 102
    ids.update([record(101, 0, held=False), record(102, 0)], [], 50)
    assert rows(ids)[0].previous_owners == (101,)


def test_the_dead_of_a_kernel_with_the_series_have_none() -> None:
    ids = IdMap()
    ids.update([record(101, 0, held=False, online=False), record(102, 0)], [], 10)
    assert (ids.owner(0), ids.in_use) == (102, 1)


def test_events_that_were_lost_leave_who_had_it() -> None:
    ids = IdMap()
    ids.give(0, 101, 10)
    assert ids.give(0, 102, 20) == (True, 101)
    ids.update([record(103, 0)], [], 30)
    assert rows(ids)[0] == KmemcgId(0, 103, None, (101, 102), 0, 0)
    ids.update([], [], 40)
    assert rows(ids)[0] == KmemcgId(0, None, 1040, (101, 102, 103), 0, 0)


def test_previous_owners_are_bounded() -> None:
    ids = IdMap()
    for number in range(3 * MAX_PREVIOUS):
        ids.give(0, 100 + number, 2 * number)
        ids.free(0, 2 * number + 1)
    last = 100 + 3 * MAX_PREVIOUS
    assert rows(ids)[0].previous_owners == tuple(range(last - MAX_PREVIOUS, last))


@pytest.mark.parametrize(
    ("facts", "child_caches", "patchset", "told"),
    [
        ("lab-patched", True, True, "given back when the memcg goes offline, and its caches with it"),
        ("lab-baseline", True, False, "a dying memcg keeps it, and them, until it is released"),
        ("debian-6.12", False, False, "the number of the memcg itself"),
    ],
)
def test_meaning(facts: str, child_caches: bool, patchset: bool, told: str) -> None:
    seen = [record(101, -1, kmemcg_id=4, memcg_id=4)]
    assert told in meaning(recorded_facts(facts), child_caches, patchset, seen)


def test_meaning_where_only_list_lru_has_ids() -> None:
    facts = recorded_facts("debian-5.10")
    assert facts.symbols is not None
    facts = replace(facts, symbols={**facts.symbols, "memcg_get_cache_ids": 1})
    assert "index in the tables of list_lru only" in meaning(facts, False, False, [record(101, -1, kmemcg_id=4)])


def test_meaning_is_not_guessed() -> None:
    facts = recorded_facts("debian-6.12")
    assert meaning(facts, False, False, None) == "no cache belongs to it"
    assert meaning(facts, False, False, [record(101, -1, kmemcg_id=4, memcg_id=9)]) == "no cache belongs to it"


@dataclass
class Id:
    owner: int | None = None
    previous: list[int] = field(default_factory=list)


class Kernel(RuleBasedStateMachine):
    """Gives ids and takes them back; most of its events arrive, and walks show what did not."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: dict[int, Id] = {}
        self.now_ns = 1000
        self.next_cgroup = 100
        self.map = IdMap()
        self.losing = False
        self.lost = 0
        self.given = self.freed = self.reused = 0
        self.walk: tuple[int, dict[int, int]] | None = None
        """When it began, and id -> owner then; nothing has come of it yet."""

    @initialize(older=st.integers(0, 4))
    def births_before_the_start(self, older: int) -> None:
        for _ in range(older):
            self.next_cgroup += 1
            self.ids[len(self.ids)] = Id(self.next_cgroup)
        self.map.update(self._records(), [], self.now_ns)

    def _records(self) -> list[MemcgRecord]:
        return [record(entry.owner, number) for number, entry in self.ids.items() if entry.owner is not None]

    def _tick(self) -> int:
        self.now_ns += 1
        return self.now_ns

    @rule()
    def give(self) -> None:
        number = next(n for n in range(len(self.ids) + 1) if n not in self.ids or self.ids[n].owner is None)
        known = number in self.ids
        entry = self.ids.setdefault(number, Id())
        self.next_cgroup += 1
        entry.owner = self.next_cgroup
        at = self._tick()
        self.given += 1
        self.reused += known
        if self.losing:
            self.lost += 1
        else:
            reused, previous = self.map.give(number, entry.owner, at)
            if not self.lost:
                assert (reused, previous) == (known, entry.previous[-1] if entry.previous else None)

    @precondition(lambda self: any(entry.owner for entry in self.ids.values()))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, entry in self.ids.items() if entry.owner is not None]))
        entry = self.ids[number]
        assert entry.owner is not None
        owner, entry.owner = entry.owner, None
        entry.previous.append(owner)
        at = self._tick()
        self.freed += 1
        if self.losing:
            self.lost += 1
        else:
            told = self.map.free(number, at)
            if not self.lost:
                assert told == owner

    @rule()
    def lose_or_find_events(self) -> None:
        self.losing = not self.losing

    @precondition(lambda self: self.walk is None)
    @rule()
    def begin_a_walk(self) -> None:
        began = self._tick()
        self.walk = began, {number: entry.owner for number, entry in self.ids.items() if entry.owner is not None}

    @precondition(lambda self: self.walk is not None)
    @rule()
    def end_a_walk(self) -> None:
        """What happened since it began was told before, or lost."""
        assert self.walk is not None
        began, owners = self.walk
        self.walk = None
        self.map.update([record(owner, number) for number, owner in owners.items()], [], began)

    @rule()
    def a_walk_at_rest(self) -> None:
        self.walk = None
        self.map.update(self._records(), [], self._tick())
        self._same_owners()

    def _same_owners(self) -> None:
        owners = {number: entry.owner for number, entry in self.ids.items() if entry.owner is not None}
        shown = {row.kmemcg_id: row.cgroup_id for row in self.map.rows([], 0) if row.cgroup_id is not None}
        assert shown == owners
        assert self.map.in_use == len(owners)

    @invariant()
    def totals(self) -> None:
        assert self.map.given_total <= self.given
        assert self.map.freed_total <= self.freed
        assert self.map.reuses_total <= self.reused

    @invariant()
    def nothing_differs_until_events_are_lost(self) -> None:
        if self.lost:
            return
        assert (self.map.given_total, self.map.freed_total) == (self.given, self.freed)
        assert self.map.reuses_total == self.reused
        self._same_owners()
        for row in self.map.rows([], 0):
            assert list(row.previous_owners) == self.ids[row.kmemcg_id].previous[-MAX_PREVIOUS:]

    @invariant()
    def nobody_has_two(self) -> None:
        found = [row.cgroup_id for row in self.map.rows([], 0) if row.cgroup_id is not None]
        assert len(found) == len(set(found))


TestIdsAgree = Kernel.TestCase
