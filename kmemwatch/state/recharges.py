# SPDX-License-Identifier: GPL-2.0-only
"""Recharges over the lives of memcgs: rows while one can name both ends, totals for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.model import RechargePair, Recharges, RechargeTotal
from kmemwatch.source.reading import RechargeCounts, RechargeKey


class RechargeLedger:
    """Turns the kernel's counters of recharges into `model.Recharges`."""

    def __init__(self, page_bytes: int, ids: CacheIds) -> None:
        self._ids = ids
        self._page_bytes = page_bytes
        self._counts: RechargeCounts | None = None
        self._settled: dict[RechargeKey, tuple[int, int]] = {}
        """Moves that were forgotten in the map, while the memcgs are still shown."""
        self._retired: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        """(root cache, state) -> recharges, pages between memcgs that are not shown any more."""
        self._names: dict[int, tuple[str, str, int | None]] = {}
        """Child cache -> its name, that of its root, its kmemcg_id; kept as long as there are counts."""

    def update(
        self,
        counts: RechargeCounts | None,
        caches: Mapping[int, CacheRecord],
        ended: Collection[int],
        forgotten: Collection[int],
    ) -> list[RechargeKey]:
        """Take in a reading; what the map can forget.

        `ended`: ids of memcgs released before the reading began: nothing can move from them or to them any more.
        `forgotten`: those that are not shown any more.
        """
        if counts is None:
            return []
        final = [key for key in counts.moves if key.from_id in ended or key.to_id in ended]
        for key in counts.moves:
            self._learn(key.cache, caches)
        for key in final:
            before = self._settled.get(key, (0, 0))
            now = counts.moves[key]
            self._settled[key] = before[0] + now[0], before[1] + now[1]
        left = {key: value for key, value in counts.moves.items() if key not in set(final)}
        self._counts = RechargeCounts(counts.checks, counts.failures, counts.lost_races, left)
        for key in [key for key in self._settled if key.from_id in forgotten or key.to_id in forgotten]:
            self._add(self._retired, key, self._settled.pop(key))
        return final

    def _learn(self, address: int, caches: Mapping[int, CacheRecord]) -> None:
        cache = caches.get(address)
        if cache is not None:
            root = caches.get(cache.root) if cache.root is not None else None
            self._names[address] = cache.name, root.name if root is not None else cache.name, cache.kmemcg_id
        elif address not in self._names:
            self._names[address] = self._ids.name(address), self._ids.name(address), None

    def _add(self, totals: dict[tuple[str, str], list[int]], key: RechargeKey, value: tuple[int, int]) -> None:
        total = totals[self._names[key.cache][1], key.from_state]
        total[0] += value[0]
        total[1] += value[1]

    def rows(self) -> Recharges:
        """After `update`; all None without the signal."""
        if self._counts is None:
            return Recharges()
        moves = dict(self._settled)
        for key, (recharges, pages) in self._counts.moves.items():
            before = moves.get(key, (0, 0))
            moves[key] = before[0] + recharges, before[1] + pages
        totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for name, value in self._retired.items():
            totals[name] = list(value)
        for key, both in moves.items():
            self._add(totals, key, both)
        return Recharges(
            checks_total=self._counts.checks,
            recharges_total=sum(total[0] for total in totals.values()),
            recharged_bytes_total=sum(total[1] for total in totals.values()) * self._page_bytes,
            failures_total=self._counts.failures,
            lost_races_total=self._counts.lost_races,
            pairs=tuple(sorted((self._pair(*move) for move in moves.items()), key=_order)),
            totals=tuple(
                RechargeTotal(cache, state, recharges, pages * self._page_bytes)
                for (cache, state), (recharges, pages) in sorted(totals.items())
            ),
        )

    def _pair(self, key: RechargeKey, value: tuple[int, int]) -> RechargePair:
        name, _, kmemcg_id = self._names[key.cache]
        return RechargePair(
            cache=name,
            from_cgroup_id=key.from_id or None,
            from_state=key.from_state,
            to_cgroup_id=key.to_id,
            recharges_total=value[0],
            recharged_bytes_total=value[1] * self._page_bytes,
            kmemcg_id=kmemcg_id,
        )


def _order(pair: RechargePair) -> tuple[int, int, str, str]:
    return pair.to_cgroup_id, pair.from_cgroup_id or 0, pair.cache, pair.from_state
