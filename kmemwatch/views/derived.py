# SPDX-License-Identifier: GPL-2.0-only
"""Figures that follow from a Snapshot and that more than one view shows; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from kmemwatch.model import DYING, MISSING, ONLINE, Cgroup, Lost, Snapshot
from kmemwatch.units import NS_PER_S, UNKNOWN

DYING_AGES_S = {"0s": 0, "1m": 60, "10m": 600, "1h": 3600, "6h": 21_600, "1d": 86_400}
"""Classes of age for dying memcgs: each memcg is in the last class that it has reached."""

PER_MEMCG_ERAS = ("recharge", "per-memcg")
"""Kernels where each memcg has child caches, so that a kmemcg_id -> cache map exists."""


def dying_for(cgroup: Cgroup, snapshot: Snapshot) -> tuple[float, bool]:
    """(seconds since the memcg went offline, exact): not exact when it died before kmemwatch looked.

    The time is then a lower bound: how long kmemwatch has been attached.
    """
    if cgroup.offline_at_ns is None:
        return snapshot.duration_s, False
    return max(0.0, (snapshot.taken_at_ns - cgroup.offline_at_ns) / NS_PER_S), True


def dying(snapshot: Snapshot) -> list[Cgroup]:
    """Memcgs that are removed and not released."""
    return [c for c in snapshot.cgroups if c.state == DYING]


def oldest_dying_s(snapshot: Snapshot) -> float | None:
    """Age of the oldest dying memcg, at least; None when there is none."""
    return max((dying_for(c, snapshot)[0] for c in dying(snapshot)), default=None)


def dying_by_age(snapshot: Snapshot) -> dict[str, int] | None:
    """Key of DYING_AGES_S -> dying memcgs of that age; None when it is unknown which memcgs are dying."""
    if dying_count(snapshot) is None:
        return None
    found = dict.fromkeys(DYING_AGES_S, 0)
    for cgroup in dying(snapshot):
        age_s, _ = dying_for(cgroup, snapshot)
        found[max((name for name, least in DYING_AGES_S.items() if age_s >= least), key=DYING_AGES_S.__getitem__)] += 1
    return found


def pinned_bytes(cgroups: Iterable[Cgroup]) -> dict[str, int] | None:
    """Kind -> bytes, over all memcgs whose pins are known; None when the pins of all of them are unknown."""
    found: Counter[str] = Counter()
    known, seen = False, False
    for cgroup in cgroups:
        seen = True
        if cgroup.pins is not None:
            known = True
            found.update(cgroup.pins)
    return None if seen and not known else dict(found)


def online_count(snapshot: Snapshot) -> int | None:
    """The count that came with the snapshot, else the number of online rows; None without any rows."""
    return _count(snapshot, snapshot.totals.online_cgroups, ONLINE)


def dying_count(snapshot: Snapshot) -> int | None:
    """As `online_count`, of dying memcgs."""
    return _count(snapshot, snapshot.totals.dying_cgroups, DYING)


def _count(snapshot: Snapshot, known: int | None, state: str) -> int | None:
    if known is not None or not snapshot.cgroups:
        return known
    return sum(c.state == state for c in snapshot.cgroups)


def losses(lost: Lost) -> dict[str, int]:
    """Reason -> count, each loss once; without reasons, the totals that are known."""
    if lost.reasons:
        return dict(lost.reasons)
    totals = {"events": lost.events_total, "map_full": lost.map_full_total, "unresolved": lost.unresolved_total}
    return {reason: count for reason, count in totals.items() if count is not None}


def caches_per_root(snapshot: Snapshot) -> dict[str, int] | None:
    """Root cache -> number of its child caches; None on kernels without child caches.

    Also None when the kernel's list of caches could not be read, because then no cache has a name.
    """
    if snapshot.kernel.era not in PER_MEMCG_ERAS or all(c.object_bytes is None for c in snapshot.caches):
        return None
    return dict(Counter(c.root for c in snapshot.caches if c.root is not None))


def dying_slab_bytes(snapshot: Snapshot) -> dict[str, int] | None:
    """Root cache -> bytes of dying memcgs in its child caches, as far as they are known.

    None on kernels without child caches, and when they are unknown for all dying memcgs.
    """
    copies, known = caches_per_root(snapshot), [c.child_slabs for c in dying(snapshot) if c.child_slabs is not None]
    if copies is None or (not known and dying_count(snapshot) != 0):
        return None
    roots = {c.id: c.root for c in snapshot.caches if c.root is not None}
    found = dict.fromkeys(copies, 0)
    for one in (one for slabs in known for one in slabs):
        root = roots.get(one.cache_id, UNKNOWN)
        found[root] = found.get(root, 0) + one.slab_bytes
    return found


def has_no_older_objects(cgroup: Cgroup, snapshot: Snapshot) -> bool:
    """Whether a memcg without pairs has no objects that are older than the counts: it was made after the start, or has
    nothing left."""
    if not _knows_live(snapshot):
        return False
    return cgroup.online_at_ns is not None or (cgroup.state == DYING and snapshot.kernel.era == "objcg")


def top_live_caches(snapshot: Snapshot) -> dict[int, tuple[str | None, bool]]:
    """cgroup id -> (cache with most of its live bytes, known), for memcgs with pairs; the cache is None when no object
    is alive.

    Unknown when the live bytes of one of its caches are unknown, and when the memcg may have objects that are older
    than the counts and no cache of it is known.
    """
    knows, found = _knows_live(snapshot), dict[int, tuple[str | None, bool]]()
    most: dict[int, int] = {}
    counted = {c.id for c in snapshot.cgroups if has_no_older_objects(c, snapshot)}
    for pair in snapshot.pairs:
        id_, live = pair.cgroup_id, pair.live_bytes
        name, known = found.get(id_, (None, knows))
        if live is None:
            found[id_] = (None, False) if pair.frees_total is not None else (name, known)
            continue
        counted.add(id_)
        if known and live > most.get(id_, 0):
            found[id_], most[id_] = (pair.cache, True), live
        else:
            found[id_] = name, known
    return {id_: (name, known and id_ in counted) for id_, (name, known) in found.items()}


def _knows_live(snapshot: Snapshot) -> bool:
    measured = {p.signal for p in snapshot.probes if p.status != MISSING}
    return {"alloc", "free"} <= measured and snapshot.kernel.era != "recharge"


def mean_latency_ns(snapshot: Snapshot) -> dict[str, float | None] | None:
    """Kind of `LatencyHistogram` -> mean in nanoseconds, None without samples; None when nothing is timed."""
    if snapshot.latency is None:
        return None
    return {
        one.kind: one.sum_ns_total / one.samples_total if one.samples_total else None
        for one in snapshot.latency.histograms
    }


def states(snapshot: Snapshot) -> Mapping[int, str]:
    """cgroup id -> state."""
    return {c.id: c.state for c in snapshot.cgroups}
