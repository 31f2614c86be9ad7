# SPDX-License-Identifier: GPL-2.0-only
"""Caches that come and go: as the events tell, and where nothing tells, as two readings of the list differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kmemwatch.sources.decode import SlabEvent
from kmemwatch.sources.discover import CacheRecord


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

    def tell(self, event: SlabEvent) -> None:
        """An event of kind ``cache_created`` or ``cache_destroyed``."""
        if event.cache is None:
            return
        self._told[event.cache] = event.at_monotonic_ns
        if self._known is None:
            return
        if event.kind == "cache_created":
            self._known[event.cache] = event.cache_name or "", event.kmemcg_id if event.kmemcg_id >= 0 else None
        else:
            self._known.pop(event.cache, None)

    def compare(self, caches: Iterable[CacheRecord], began_monotonic_ns: int) -> Iterator[CacheChange]:
        """What changed since the last list and was not told; nothing for the first one."""
        now = {cache.address: (cache.name, cache.kmemcg_id) for cache in caches}
        if self._known is None:
            self._known = now
            return
        self._told = {address: at for address, at in self._told.items() if at >= began_monotonic_ns}
        for address, (name, kmemcg_id) in list(self._known.items()):
            if now.get(address) != (name, kmemcg_id) and address not in self._told:
                del self._known[address]
                yield CacheChange("cache_destroyed", name, kmemcg_id)
        for address, (name, kmemcg_id) in now.items():
            if address not in self._known and address not in self._told:
                self._known[address] = name, kmemcg_id
                yield CacheChange("cache_created", name, kmemcg_id)
