# SPDX-License-Identifier: GPL-2.0-only
"""Recharges: a row for each pair of memcgs while both are shown, and totals that stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.counters import GrowingTotals, Growth
from kmemwatch.model import RechargePair, Recharges, RechargeTotal
from kmemwatch.source.reading import RechargeCounts, RechargeKey


class _ChildCache(NamedTuple):
    name: str
    root_name: str
    kmemcg_id: int | None


class RechargeHistory:
    """Turns the kernel's counters of recharges into `model.Recharges`."""

    def __init__(self, page_bytes: int, ids: CacheIds) -> None:
        self._ids = ids
        self._page_bytes = page_bytes
        self._counts: RechargeCounts | None = None
        self._growth: Growth[RechargeKey, int] = Growth(2)
        self._moves: GrowingTotals[RechargeKey, int] = GrowingTotals(2)
        """Recharges and pages between memcgs that are shown."""
        self._past: GrowingTotals[tuple[str, str], int] = GrowingTotals(2)
        """(root cache, state) -> recharges and pages between memcgs that are no longer shown."""
        self._caches: dict[int, _ChildCache] = {}
        """By address; kept for as long as `_moves` needs it."""

    def update(
        self,
        counts: RechargeCounts | None,
        caches: Mapping[int, CacheRecord],
        ended: Collection[int],
        gone: Collection[int],
    ) -> list[RechargeKey]:
        """Add a reading; return the keys that the source can drop.

        `ended`: ids of memcgs released before the reading began; nothing can move from or to them any more. `gone`:
        those of them that are no longer shown.
        """
        if counts is None:
            return []
        self._counts = counts
        grown = self._growth.look(counts.moves)
        self._moves.add(grown.items, grown.columns)
        for key in counts.moves:
            self._learn(key.cache, caches)
        final = [key for key in counts.moves if key.from_id in ended or key.to_id in ended]
        self._growth.end(final)
        for key in [key for key in self._moves if key.from_id in gone or key.to_id in gone]:
            self._past.add_to_all([self._total_key(key)], self._moves.pop(key))
        used = {key.cache for key in self._moves}
        self._caches = {address: cache for address, cache in self._caches.items() if address in used}
        return final

    def _learn(self, address: int, caches: Mapping[int, CacheRecord]) -> None:
        cache = caches.get(address)
        if cache is not None:
            root = caches.get(cache.root) if cache.root is not None else None
            root_name = root.name if root is not None else cache.name
            self._caches[address] = _ChildCache(cache.name, root_name, cache.kmemcg_id)
        elif address not in self._caches:
            self._caches[address] = _ChildCache(self._ids.name(address), self._ids.name(address), None)

    def _total_key(self, key: RechargeKey) -> tuple[str, str]:
        return self._caches[key.cache].root_name, key.from_state

    def rows(self) -> Recharges:
        """After `update`; all None without the signal."""
        if self._counts is None:
            return Recharges()
        totals = {key: self._past[key] for key in self._past}
        for key in self._moves:
            total_key, (recharges, pages) = self._total_key(key), self._moves[key]
            before = totals.get(total_key, (0, 0))
            totals[total_key] = before[0] + recharges, before[1] + pages
        return Recharges(
            checks_total=self._counts.checks,
            recharges_total=sum(total[0] for total in totals.values()),
            recharged_bytes_total=sum(total[1] for total in totals.values()) * self._page_bytes,
            failures_total=self._counts.failures,
            lost_races_total=self._counts.lost_races,
            pairs=tuple(sorted(map(self._pair, self._moves.keys()), key=_order)),
            totals=tuple(
                RechargeTotal(cache, state, recharges, pages * self._page_bytes)
                for (cache, state), (recharges, pages) in sorted(totals.items())
            ),
        )

    def _pair(self, key: RechargeKey) -> RechargePair:
        recharges, pages = self._moves[key]
        cache = self._caches[key.cache]
        return RechargePair(
            cache=cache.name,
            from_cgroup_id=key.from_id or None,
            from_state=key.from_state,
            to_cgroup_id=key.to_id,
            recharges_total=recharges,
            recharged_bytes_total=pages * self._page_bytes,
            kmemcg_id=cache.kmemcg_id,
        )


def _order(pair: RechargePair) -> tuple[int, int, str, str]:
    return pair.to_cgroup_id, pair.from_cgroup_id or 0, pair.cache, pair.from_state
