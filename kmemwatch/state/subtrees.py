# SPDX-License-Identifier: GPL-2.0-only
"""What memcgs did together with all below them, also with those that are gone: totals that only grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Counts(NamedTuple):
    """Of one memcg, or of a subtree, since the start."""

    charged_pages: int
    uncharged_pages: int
    objects: int
    """Allocated by its tasks, in all caches."""


NOTHING = Counts(0, 0, 0)


class Subtrees:
    """Adds what each memcg did since the last look to itself and all above it; mutable.

    A sum over those that are there would fall when one of them goes.
    """

    def __init__(self) -> None:
        self._own: Mapping[int, Counts] = {}
        self._totals: dict[int, Counts] = {}

    def update(self, own: Mapping[int, Counts], parents: Mapping[int, int | None]) -> None:
        """Take in what each memcg itself did since the start; who is not among them any more is forgotten."""
        totals = self._totals
        for cgroup_id, now in own.items():
            then = self._own.get(cgroup_id, NOTHING)
            if now == then:
                continue
            grown = [max(0, new - old) for new, old in zip(now, then, strict=True)]
            at: int | None = cgroup_id
            for _ in range(len(parents) + 1):  # an id may be used again, so that a circle is not impossible
                if at is None:
                    break
                so_far = totals.get(at, NOTHING)
                totals[at] = Counts(so_far[0] + grown[0], so_far[1] + grown[1], so_far[2] + grown[2])
                at = parents.get(at)
        self._own = own
        self._totals = {cgroup_id: total for cgroup_id, total in totals.items() if cgroup_id in own}

    def total(self, cgroup_id: int) -> Counts:
        """Of a memcg and all that are, or were, below it."""
        return self._totals.get(cgroup_id, NOTHING)
