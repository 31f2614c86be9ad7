# SPDX-License-Identifier: GPL-2.0-only
"""Which cgroups get series of their own when there are more than ``--max-series`` allows. Pure.

The cgroups with the most kernel memory keep their series, the rest is added up as ``cgroup="other"``. Kernel memory of
a cgroup includes that of the cgroups below it, so ``other`` counts only the highest of each folded subtree. Released
cgroups have no series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kmemwatch.model import Cgroup

OTHER = "other"
"""No path looks like this: they start with a slash."""

_STAY = 1.25
"""A cgroup keeps its series until another one has this many times its memory: each swap costs Prometheus new series."""


@dataclass(frozen=True)
class Folding:
    """The label of each cgroup in one snapshot."""

    labels: Mapping[int, str]
    """cgroup id -> label value, OTHER for the folded; no entry for released cgroups."""
    inside: Collection[int]
    """Ids of folded cgroups below another folded one, whose memory is part of that one's."""
    own_series: frozenset[str]
    """Label values that have series of their own."""
    folded_series: int

    @property
    def folded_cgroups(self) -> int:
        """Cgroups under OTHER."""
        return sum(name == OTHER for name in self.labels.values())


def fold(
    cgroups: Mapping[str, Collection[Cgroup]],
    pairs: Iterable[tuple[int, str]],
    per_cgroup: int,
    room: int,
    before: Collection[str] = (),
) -> Folding:
    """Fit the series that have a cgroup label into `room`, including those of OTHER.

    `cgroups`: label value -> cgroups, of those to have series; `pairs`: (cgroup id, cache label); `per_cgroup`: number
    of series of each cgroup besides those of its pairs; `before`: label values that had series of their own last time.
    """
    labels = {c.id: name for name, same in cgroups.items() for c in same}
    series: Counter[str] = Counter(dict.fromkeys(cgroups, per_cgroup))
    caches: set[str] = set()
    for cgroup_id, cache in pairs:
        name = labels.get(cgroup_id)
        if name is not None:
            series[name] += 1
            caches.add(cache)
    if series.total() <= room:
        return Folding(labels, (), frozenset(series), 0)
    own_series = _largest(_weights(cgroups, before), series, room - per_cgroup - len(caches))
    folded = {c.id: c for name, same in cgroups.items() if name not in own_series for c in same}
    labels.update(dict.fromkeys(folded, OTHER))
    return Folding(
        labels, _inside(folded.values()), own_series, sum(n for name, n in series.items() if name not in own_series)
    )


def _weights(cgroups: Mapping[str, Collection[Cgroup]], before: Collection[str]) -> Counter[str]:
    weights = Counter({name: sum(map(_kernel_bytes, same)) for name, same in cgroups.items()})
    for name in before:
        if name in weights:
            weights[name] = int(weights[name] * _STAY)
    return weights


def _kernel_bytes(cgroup: Cgroup) -> int:
    """The best known figure for kernel memory, only for the ranking."""
    if cgroup.kernel_bytes is not None:
        return cgroup.kernel_bytes
    if cgroup.charged_bytes_total is not None and cgroup.uncharged_bytes_total is not None:
        return max(0, cgroup.charged_bytes_total - cgroup.uncharged_bytes_total)
    return cgroup.memory_bytes or 0


def _largest(weights: Mapping[str, int], series: Mapping[str, int], room: int) -> frozenset[str]:
    largest: list[str] = []
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        room -= series[name]
        if room < 0:
            break
        largest.append(name)
    return frozenset(largest)


def _inside(folded: Collection[Cgroup]) -> frozenset[int]:
    paths = {c.path for c in folded if c.path is not None}

    def has_ancestor(path: str) -> bool:
        while len(path) > 1:
            path = path.rpartition("/")[0] or "/"
            if path in paths:
                return True
        return False

    return frozenset(c.id for c in folded if c.path is not None and has_ancestor(c.path))
