# SPDX-License-Identifier: GPL-2.0-only
"""Caches that come and go: as the events tell, and where nothing tells, as two readings of the list differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.maps.decode import SlabEvent
from kmemwatch.units import NS_PER_S

LATE_NS = 60 * NS_PER_S
"""A cache leaves the list before it is released, with SLAB_TYPESAFE_BY_RCU a grace period before."""


@dataclass(frozen=True, slots=True)
class CacheChange:
    kind: str
    """``cache_created`` or ``cache_destroyed``."""
    name: str
    kmemcg_id: int | None


class CacheWatch:
    """Knows which caches there are."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, int | None]] | None = None
        """address -> name, kmemcg_id; None before the first reading."""
        self._told: dict[int, int] = {}
        """address -> CLOCK_MONOTONIC of its latest event: a list that was read before knows less."""
        self._early: list[SlabEvent] = []
        """Before the first reading."""
        self._ahead: dict[tuple[int, str], int] = {}
        """(address, kind) -> CLOCK_MONOTONIC of what a list has shown before any event."""

        self._untold: list[CacheChange] = []
        """What an event has shown that none had told."""

    def tell(self, event: SlabEvent) -> bool:
        """An event of kind ``cache_created`` or ``cache_destroyed``; False when `compare` was first to tell that."""
        if event.cache is None:
            return True
        self._told[event.cache] = event.at_monotonic_ns
        if self._known is None:
            self._early.append(event)
            return True
        if self._ahead.pop((event.cache, event.kind), None) is not None:
            return False
        if event.kind == "cache_created":
            before = self._known.get(event.cache)
            if before is not None:  # the event of its end was lost
                self._untold.append(CacheChange("cache_destroyed", *before))
            self._known[event.cache] = event.cache_name or "", event.kmemcg_id if event.kmemcg_id >= 0 else None
        else:
            self._known.pop(event.cache, None)
        return True

    def compare(self, caches: Iterable[CacheRecord], began_monotonic_ns: int) -> Iterator[CacheChange]:
        """What changed since the last list and was not told; nothing for the first one."""
        now = {cache.address: (cache.name, cache.kmemcg_id) for cache in caches}
        if self._known is None:
            self._known = now
            for event in self._early:
                if event.at_monotonic_ns >= began_monotonic_ns:
                    self.tell(event)
            self._early.clear()
            return
        yield from self._untold
        self._untold.clear()
        self._told = {address: at for address, at in self._told.items() if at >= began_monotonic_ns}
        self._ahead = {change: at for change, at in self._ahead.items() if began_monotonic_ns - at < LATE_NS}
        for address, (name, kmemcg_id) in list(self._known.items()):
            if now.get(address) != (name, kmemcg_id) and address not in self._told:
                del self._known[address]
                self._ahead[address, "cache_destroyed"] = began_monotonic_ns
                yield CacheChange("cache_destroyed", name, kmemcg_id)
        for address, (name, kmemcg_id) in now.items():
            if address not in self._known and address not in self._told:
                self._known[address] = name, kmemcg_id
                self._ahead[address, "cache_created"] = began_monotonic_ns
                yield CacheChange("cache_created", name, kmemcg_id)
