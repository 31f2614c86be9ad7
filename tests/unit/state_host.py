# SPDX-License-Identifier: GPL-2.0-only
"""A state that follows an invented kernel as the live feed does, and look-ups in its snapshots."""

from __future__ import annotations

from kmemwatch.model import Cgroup, Event, Snapshot
from kmemwatch.state.kernel_state import KernelState
from tests.unit.fake_source import DENTRY, IDS, Clock, FakeSource, Memcg, make_state


class Host:
    """A source, its state, and what the live feed does with them."""

    def __init__(self, source: FakeSource | None = None) -> None:
        self.source = source or FakeSource()
        self.clock = Clock()
        self.state: KernelState = make_state(self.source, self.clock)
        self.events: list[Event] = []

    def poll(self) -> None:
        self.state.apply(self.source.poll(0))
        self.events += self.state.take_events()

    def snapshot(self) -> Snapshot:
        self.poll()
        reading = self.source.read()
        self.poll()
        self.source.drop(self.state.update(reading))
        return self.state.snapshot(reading)

    def told(self) -> list[tuple[str, str | None]]:
        return [(event.kind, event.path) for event in self.events]


def cgroup(snapshot: Snapshot, memcg: Memcg) -> Cgroup:
    (found,) = [cgroup for cgroup in snapshot.cgroups if cgroup.id == memcg.cgroup_id]
    return found


def pair(snapshot: Snapshot, memcg: Memcg, cache: int = DENTRY) -> tuple[int | None, int | None, int | None] | None:
    """(allocated, freed, live bytes), or None when there is no such row."""
    rows = [row for row in snapshot.pairs if (row.cgroup_id, row.cache_id) == (memcg.cgroup_id, IDS[cache])]
    return (rows[0].allocations_total, rows[0].frees_total, rows[0].live_bytes) if rows else None


def allocations(snapshot: Snapshot, cache: int = DENTRY) -> int | None:
    (row,) = [row for row in snapshot.caches if row.id == IDS[cache]]
    return row.allocations_total
