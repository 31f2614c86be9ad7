# SPDX-License-Identifier: GPL-2.0-only
"""State stays bounded while memcgs come and go, durations survive a clock that is set, and pins are a memcg's own."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest

from kmemwatch.counters import GrowingTotals, Growth
from kmemwatch.model import RELEASED
from kmemwatch.state import memcgs as state_module
from kmemwatch.state.kernel_state import KernelState
from tests.unit.fake_source import MS, ROOT, SECOND, FakeSource, make_state
from tests.unit.state_host import Host, allocations, cgroup, pair


def test_20000_memcgs_come_and_go() -> None:
    host = Host()
    parent = host.source.mkdir("jobs")
    for number in range(20_000):
        memcg = host.source.mkdir(f"job{number}", parent)
        host.source.alloc(memcg, objects=2)
        host.source.free(memcg)
        host.source.charge(memcg, 1)
        host.source.rmdir(memcg)
        host.source.release(memcg)
        if number % 500 == 0:
            assert len(host.snapshot().cgroups) <= state_module.MAX_RELEASED + 2
            host.events.clear()
    snapshot = host.snapshot()
    assert snapshot.totals.cgroups_released_total == 20_000
    assert len(snapshot.cgroups) == state_module.MAX_RELEASED + 2
    assert len(snapshot.pairs) <= 1
    assert (host.source.pairs, host.source.charges) == ({}, {})
    assert allocations(snapshot) == 40_000
    assert pair(snapshot, parent) == (0, 0, 20_000 * 192)
    assert len(snapshot.release_delays_s) == state_module.MAX_DELAYS
    host.source.now_ns += state_module.KEEP_RELEASED_NS + SECOND
    snapshot = host.snapshot()
    assert [row.path for row in snapshot.cgroups] == ["/", "/jobs"]
    host.snapshot()
    assert not any(sizes(host.state).values()), "something is kept for each of the dead"


def sizes(state: KernelState) -> dict[str, bool]:
    """Which containers hold more than a few entries."""
    parts: dict[str, Any] = {
        **vars(state),
        **vars(state._memcgs),
        **vars(state._counts),
        **vars(state._counts._charged_below),
    }
    for name, value in parts.items():
        if isinstance(value, Growth | GrowingTotals):
            parts[name] = value.latest if isinstance(value, Growth) else value.keys()
    return {name: len(value) > 10 for name, value in parts.items() if isinstance(value, dict | Set)}


def test_the_newest_released_are_kept() -> None:
    host = Host()
    memcgs = [host.source.mkdir(str(number)) for number in range(state_module.MAX_RELEASED + 5)]
    for memcg in memcgs:
        host.source.rmdir(memcg)
        host.source.release(memcg)
    kept = {row.id for row in host.snapshot().cgroups}
    assert kept == {ROOT} | {memcg.cgroup_id for memcg in memcgs[5:]}


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_setting_the_clock_changes_no_duration(jump_s: int) -> None:
    host = Host()
    memcg = host.source.mkdir("a")
    host.source.rmdir(memcg)
    host.poll()
    host.clock.offset_ns += jump_s * SECOND
    host.source.now_ns += 3 * SECOND
    host.source.release(memcg)
    host.poll()
    host.clock.offset_ns -= 3 * jump_s * SECOND
    snapshot = host.snapshot()
    assert list(snapshot.release_delays_s) == pytest.approx([3], abs=0.01)
    assert snapshot.duration_s == pytest.approx(3, abs=0.1)
    assert cgroup(snapshot, memcg).state == RELEASED, "still shown"
    host.source.now_ns += state_module.KEEP_RELEASED_NS
    assert [row.id for row in host.snapshot().cgroups] == [ROOT]


def test_times_are_those_of_the_events() -> None:
    host = Host()
    memcg = host.source.mkdir("a")
    online_ns = host.source.now_ns
    host.source.rmdir(memcg)
    offline_ns = host.source.now_ns
    host.source.now_ns += SECOND
    row = cgroup(host.snapshot(), memcg)
    assert row.online_at_ns == online_ns + host.clock.offset_ns
    assert row.offline_at_ns == offline_ns + host.clock.offset_ns == online_ns + host.clock.offset_ns + MS
    assert [event.at_ns for event in host.events] == [row.online_at_ns, row.offline_at_ns]


def test_events_that_nobody_takes_are_bounded_and_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.state.kernel_state.MAX_PENDING_EVENTS", 10)
    source = FakeSource()
    state = make_state(source)
    for number in range(25):
        source.mkdir(str(number))
    state.apply(source.poll(0))
    reading = source.read()
    state.update(reading)
    assert state.snapshot(reading).lost.total == 0, "nobody wanted them"
    assert len(state.take_events()) == 10
    for number in range(25):
        source.mkdir(str(number))
    state.apply(source.poll(0))
    assert state.snapshot(reading).lost.reasons["event_queue_full"] == 15
    assert len(state.take_events()) == 10


# Pins


def test_pins_are_what_the_memcg_itself_holds() -> None:
    host = Host()
    parent = host.source.mkdir("parent")
    child = host.source.mkdir("child", parent)
    child.stats = {"NR_FILE_PAGES": 30, "NR_SHMEM": 10, "MEMCG_SWAP": 2}
    parent.stats = {"NR_ANON_MAPPED": 7, "MEMCG_KMEM": 3}
    assert cgroup(host.snapshot(), child).pins is None, "nothing keeps what is online"
    host.source.rmdir(child)
    host.source.rmdir(parent)
    snapshot = host.snapshot()
    page = 4096
    assert cgroup(snapshot, child).pins == {"file": 20 * page, "shmem": 10 * page, "swap": 2 * page}
    assert cgroup(snapshot, parent).pins == {"anon": 7 * page}
    assert cgroup(snapshot, parent).memory_bytes == 40 * page
    assert cgroup(snapshot, parent).kernel_bytes == 3 * page
    assert (cgroup(snapshot, child).references, cgroup(snapshot, parent).references) == (3, 4)
    host.source.release(child)
    assert cgroup(host.snapshot(), child).pins is None


def test_the_dying_children_of_a_memcg_are_counted_and_say_whose_they_are() -> None:
    host = Host()
    pod = host.source.mkdir("pod")
    first, second = host.source.mkdir("c1", pod), host.source.mkdir("c2", pod)
    alive = host.snapshot()
    assert [cgroup(alive, memcg).parent_id for memcg in (pod, first)] == [host.source.root.cgroup_id, pod.cgroup_id]
    assert cgroup(alive, host.source.root).parent_id is None
    assert cgroup(alive, pod).dying_children == 0
    host.source.rmdir(first)
    assert cgroup(host.snapshot(), pod).dying_children == 1, "also of a parent that is online"
    host.source.rmdir(second)
    host.source.rmdir(pod)
    dead = host.snapshot()
    assert (cgroup(dead, pod).dying_children, cgroup(dead, pod).references) == (2, 3 + 2)
    host.source.release(first)
    end = host.snapshot()
    assert (cgroup(end, pod).dying_children, cgroup(end, first).dying_children) == (1, None)
    assert cgroup(end, first).parent_id == pod.cgroup_id, "kept after death"


def test_a_dying_memcg_has_an_id_only_while_swap_speaks_of_it() -> None:
    host = Host()
    made = [host.source.mkdir(str(number)) for number in range(5)]
    assert host.snapshot().totals.memcg_ids_in_use == 6
    for memcg in made:
        host.source.rmdir(memcg)
    assert host.snapshot().totals.memcg_ids_in_use == 1
    made[0].in_swap = True
    assert host.snapshot().totals.memcg_ids_in_use == 2
    blind = Host(FakeSource(missing=["pins"]))
    assert blind.snapshot().totals.memcg_ids_in_use is None
