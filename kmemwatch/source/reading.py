# SPDX-License-Identifier: GPL-2.0-only
"""What a source of the running kernel returns: readings, which are totals, and events. The state makes snapshots of
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.decode import PAIR_COUNTS, LifecycleEvent, MemcgRecord, SlabEvent
from kmemwatch.model import Latency, MapFill, Probe

PairKey = tuple[int, int]
"""Cache address, cgroup id; cgroup id 0 is nobody."""
MapCounts = tuple[int, ...]
"""What a map counts for one key since the start: a row of counters, summed over CPUs."""
PLAIN_OBJECTS, ACCOUNT_OBJECTS, FREED_OBJECTS = map(
    PAIR_COUNTS.index, ("plain_objects", "account_objects", "freed_objects")
)
"""Indices of the counters of a pair: objects allocated without __GFP_ACCOUNT, with it, and freed."""


@dataclass(frozen=True, slots=True)
class RechargeKey:
    """From which memcg to which one slabs moved."""

    cache: int
    """Address of the child cache."""
    from_id: int
    """cgroup id of the former owner; 0: nobody."""
    to_id: int
    from_state: str
    """State of the former owner when they moved, as in `model.RechargePair`."""


@dataclass(frozen=True, slots=True)
class RechargeCounts:
    """Everything about recharges since the start."""

    checks: int
    failures: int
    lost_races: int
    moves: Mapping[RechargeKey, MapCounts]
    """Key -> (recharges, pages)."""


@dataclass(frozen=True, slots=True)
class FinalCounts:
    """Counters that can never change again; the source may drop them."""

    pairs: Sequence[PairKey] = ()
    cgroup_ids: Sequence[int] = ()
    recharges: Sequence[RechargeKey] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that is read at one time. None: this kernel does not have it."""

    at_monotonic_ns: int
    """When the walk of memcgs began. An older memcg that it does not show was released before."""
    memcgs: Sequence[MemcgRecord] | None
    caches: Sequence[CacheRecord] | None
    pairs: Mapping[PairKey, MapCounts] | None
    """Counts in the order of `PAIR_COUNTS`."""
    charges: Mapping[int, MapCounts] | None
    """cgroup id -> (charged pages, uncharged pages)."""
    failed_allocations: Mapping[int, int] | None = None
    """Address of a root cache -> allocations from it that failed; missing: none."""
    recharges: RechargeCounts | None = None
    child_slabs: Mapping[int, Mapping[int, int]] | None = None
    """cgroup id -> address of a child cache -> pages of its slabs that are charged to that memcg: for every memcg that
    was dying when the last complete scan began, see `scan.SlabScan`. None: unknown, or not yet known."""
    latency: Latency | None = None
    host_bytes: int | None = None
    """Memory that the host has now."""
    lost: Mapping[str, int | None] = field(default_factory=dict)
    """Reason -> events; None: such losses are possible but not counted."""
    maps: tuple[MapFill, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What does not change while a source is attached."""

    facts: Facts
    probes: tuple[Probe, ...]
    stats_index: Mapping[str, int] | None
    slab_account: int | None
    attached_at_monotonic_ns: int

    def gives(self, signal: str) -> bool:
        """Something is attached for `signal`."""
        return any(probe.signal == signal and probe.attachment for probe in self.probes)


class KernelSource(Protocol):
    """Only one thread at a time may use it."""

    info: SourceInfo

    def poll(self, timeout_s: float) -> list[LifecycleEvent | SlabEvent]:
        """Events since the last call; waits up to `timeout_s` for the first."""

    def read(self) -> Reading:
        """Present totals."""

    def drop(self, final: FinalCounts) -> None:
        """Drop these counters, so that the maps do not fill with those of released memcgs."""

    def close(self) -> None:
        """Detach; harmless when called twice."""
