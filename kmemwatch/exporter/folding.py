# SPDX-License-Identifier: GPL-2.0-only
"""Which cgroups get series of their own when there are more than a Prometheus should store; pure.

The cgroups with the most kernel memory keep theirs, the rest is added up under ``cgroup="other"``. Kernel memory
of a cgroup includes that of the cgroups below it, so in ``other`` only the highest of each folded subtree counts.
Cgroups that are released have no series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kmemwatch.model import Cgroup

OTHER = "other"
"""No path looks like this: they start with a slash."""

_STAY = 1.25
"""A cgroup keeps its series until another one has this much more; each swap costs Prometheus new series."""


@dataclass(frozen=True)
class Folding:
    """Label of each cgroup in one snapshot."""

    labels: Mapping[int, str]
    """cgroup id -> label value, OTHER for the folded; no entry for released cgroups."""
    inside: Collection[int]
    """Ids of folded cgroups below another folded one, whose memory is part of that one's."""
    own: frozenset[str]
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
    """Fit the series that have a cgroup label into `room`, OTHER's own included.

    `cgroups` are those that are to have series, by label value; `pairs` are (cgroup id, cache label); `per_cgroup` is
    how many series each cgroup has besides those of its pairs; `before` are the labels that had series of their own
    last time.
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
    own = _largest(_weights(cgroups, before), series, room - per_cgroup - len(caches))
    folded = {c.id: c for name, same in cgroups.items() if name not in own for c in same}
    labels.update(dict.fromkeys(folded, OTHER))
    return Folding(labels, _inside(folded.values()), own, sum(n for name, n in series.items() if name not in own))


def _weights(cgroups: Mapping[str, Collection[Cgroup]], before: Collection[str]) -> Counter[str]:
    weights = Counter({name: sum(map(_kernel_bytes, same)) for name, same in cgroups.items()})
    for name in before:
        if name in weights:
            weights[name] = int(weights[name] * _STAY)
    return weights


def _kernel_bytes(cgroup: Cgroup) -> int:
    """Best known stand-in for kernel memory, only to rank by."""
    if cgroup.kernel_bytes is not None:
        return cgroup.kernel_bytes
    if cgroup.charged_bytes_total is not None and cgroup.uncharged_bytes_total is not None:
        return max(0, cgroup.charged_bytes_total - cgroup.uncharged_bytes_total)
    return cgroup.memory_bytes or 0


def _largest(weights: Mapping[str, int], series: Mapping[str, int], room: int) -> frozenset[str]:
    own: list[str] = []
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        room -= series[name]
        if room < 0:
            break
        own.append(name)
    return frozenset(own)


def _inside(folded: Collection[Cgroup]) -> frozenset[int]:
    paths = {c.path for c in folded if c.path is not None}

    def has_ancestor(path: str) -> bool:
        while len(path) > 1:
            path = path.rpartition("/")[0] or "/"
            if path in paths:
                return True
        return False

    return frozenset(c.id for c in folded if c.path is not None and has_ancestor(c.path))
