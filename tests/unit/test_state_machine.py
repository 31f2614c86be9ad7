# SPDX-License-Identifier: GPL-2.0-only
"""Whatever happens in whatever order, with events lost or late: no count is lost, none is counted twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kmemwatch.model import DYING, ONLINE, RELEASED, Snapshot
from kmemwatch.source.reading import Reading
from tests.unit.fake_source import CACHES, IDS, ROOT, SECOND, SLAB_ACCOUNT, Clock, FakeSource, Memcg, make_state

caches = st.sampled_from([cache.address for cache in CACHES])
ADDRESSES: dict[str | None, int] = {IDS[cache.address]: cache.address for cache in CACHES}
SIZES = {cache.address: cache.size_bytes for cache in CACHES}
CHARGED = {cache.address for cache in CACHES if cache.flags & SLAB_ACCOUNT}


class Kernel(RuleBasedStateMachine):
    """The invented kernel's own books against those of KernelState and Ledger."""

    memcgs = Bundle("memcgs")
    dying = Bundle("dying")

    def __init__(self) -> None:
        super().__init__()
        self.source = FakeSource()
        self.clock = Clock()
        self.state = make_state(self.source, self.clock)
        self.allocated: Counter[int] = Counter()
        self.freed: Counter[int] = Counter()
        self.live: Counter[tuple[int, int]] = Counter()
        """(cache, id of who allocated) -> charged objects."""
        self.everybody: dict[int, Memcg] = {ROOT: self.source.root}
        self.charged: Counter[int] = Counter()
        self.last: Snapshot | None = None
        self.state.update(self.source.read())  # from then on it knows who is young, also without events

    @rule(target=memcgs, name=st.sampled_from(["a", "b", "\udcff"]))
    def mkdir(self, name: str) -> Memcg:
        return self._born(self.source.mkdir(name))

    @rule(target=memcgs, parent=memcgs)
    def mkdir_below(self, parent: Memcg) -> Memcg:
        return self._born(self.source.mkdir("below", parent if parent.online else None))

    def _born(self, memcg: Memcg) -> Memcg:
        self.everybody[memcg.cgroup_id] = memcg
        return memcg

    @rule(target=dying, memcg=consumes(memcgs))
    def rmdir(self, memcg: Memcg) -> Memcg:
        for child in list(self.source.memcgs.values()):
            if child.parent is memcg and child.online:
                self.rmdir(child)
        if memcg.online:
            self.source.rmdir(memcg)
        return memcg

    @rule(memcg=consumes(dying), tell=st.booleans())
    def release(self, memcg: Memcg, tell: bool) -> None:
        if not memcg.released and not any(child.parent is memcg for child in self.source.memcgs.values()):
            self.source.release(memcg, tell)

    @rule(memcg=memcgs, cache=caches, objects=st.integers(1, 1000))
    def alloc(self, memcg: Memcg, cache: int, objects: int) -> None:
        if memcg.online:
            self.source.alloc(memcg, cache, objects)
            self.allocated[cache] += objects
            if cache in CHARGED:
                self.live[cache, memcg.cgroup_id] += objects

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """Anybody's objects, also those of the dead."""
        there = sorted(key for key, objects in self.live.items() if objects)
        if there:
            cache, cgroup_id = data.draw(st.sampled_from(there))
            objects = data.draw(st.integers(1, self.live[cache, cgroup_id]))
            self.source.free(self.everybody[cgroup_id], cache, objects)
            self.live[cache, cgroup_id] -= objects
            self.freed[cache] += objects

    @rule(memcg=memcgs | dying, pages=st.integers(-50, 50).filter(bool))
    def charge(self, memcg: Memcg, pages: int) -> None:
        if not memcg.released:
            self.source.charge(memcg, pages)
            self.charged[memcg.cgroup_id] += pages

    @rule()
    def lose_or_find_events(self) -> None:
        self.source.losing_events = not self.source.losing_events

    @rule(seconds=st.integers(1, 200))
    def time_passes(self, seconds: int) -> None:
        self.source.now_ns += seconds * SECOND

    @rule(seconds=st.integers(-100_000, 100_000))
    def somebody_sets_the_clock(self, seconds: int) -> None:
        self.clock.offset_ns += seconds * SECOND

    @rule()
    def poll(self) -> None:
        self.state.apply(self.source.poll(0))

    @rule()
    def look(self) -> None:
        # A memcg that counts, but that no event and no walk has shown, may be younger than the walk. When the next walk
        # does not show it either, it was released.
        self._read()
        self._check(self.state.snapshot(self._read()))

    def _read(self) -> Reading:
        self.poll()
        reading = self.source.read()
        self.poll()
        self.source.drop(self.state.update(reading))
        return reading

    def _check(self, now: Snapshot) -> None:
        by_id = {row.id: row for row in now.cgroups}
        there = self.source.memcgs
        assert {row.id for row in now.cgroups if row.state != RELEASED} == there.keys()
        assert now.totals.dying_cgroups == sum(not memcg.online for memcg in there.values())
        for memcg in there.values():
            row = by_id[memcg.cgroup_id]
            assert row.state == (ONLINE if memcg.online else DYING)
            assert row.path is not None
            assert (row.charged_bytes_total or 0) - (row.uncharged_bytes_total or 0) == (
                self.charged[memcg.cgroup_id] * 4096
            )
        for cache in now.caches:
            address = ADDRESSES[cache.id]
            assert cache.allocations_total == self.allocated[address]
            assert cache.frees_total == self.freed[address]
        self._check_live(now)
        self._check_growth(now)
        self.last = now

    def _check_live(self, now: Snapshot) -> None:
        expected: Counter[tuple[int, int]] = Counter()
        for (cache, cgroup_id), objects in self.live.items():
            owner = self.everybody[cgroup_id].owner.cgroup_id
            if owner != ROOT:  # which is older than kmemwatch
                expected[cache, owner] += objects * SIZES[cache]
        found = {(ADDRESSES[row.cache_id], row.cgroup_id): row.live_bytes for row in now.pairs if row.live_bytes}
        assert found == {key: size for key, size in expected.items() if size}
        assert all(row.live_bytes is None for row in now.pairs if row.cgroup_id == ROOT)
        assert {row.cgroup_id for row in now.pairs} <= {row.id for row in now.cgroups} | {0}

    def _check_growth(self, now: Snapshot) -> None:
        if self.last is None:
            return
        assert now.duration_s > self.last.duration_s
        before = {row.id: row for row in self.last.cgroups}
        for row in now.cgroups:
            if row.id in before:
                assert (row.charged_bytes_total or 0) >= (before[row.id].charged_bytes_total or 0)
                assert (row.uncharged_bytes_total or 0) >= (before[row.id].uncharged_bytes_total or 0)
        pairs = {(row.cache_id, row.cgroup_id): row for row in self.last.pairs}
        for pair in now.pairs:
            old = pairs.get((pair.cache_id, pair.cgroup_id))
            assert old is None or (pair.allocations_total or 0) >= (old.allocations_total or 0)

    @invariant()
    def delays_are_no_nonsense(self) -> None:
        assert all(0 <= delay < 1e6 for delay in self.state._memcgs.release_delays_s)


Kernel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestBooksAgree = Kernel.TestCase
