# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots without excluded cgroups and caches. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from kmemwatch.exporter.metrics import label
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.model import Cache, Cgroup, Ids, KmemcgId, Recharges, Snapshot


class SnapshotFilter:
    """Removes excluded cgroups and caches from snapshots, with everything that names one of them.

    Figures of the whole host (`Snapshot.totals`, counts of ids, losses) stay as they are.
    """

    def __init__(self, options: SelectionOptions) -> None:
        """Raises UsageError for an invalid expression."""
        selection = options.selection()
        self._filters_cgroups, self._filters_caches = selection.filters_cgroups, selection.filters_caches
        self._has_cgroup, self._has_cache = selection.has_cgroup, selection.has_cache
        # As in the metrics, a child cache follows its root. Excluding a child by its own name works, too.
        self._has_child = SelectionOptions(cache_exclude=options.cache_exclude).selection().has_cache

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot without them."""
        if not self._filters_cgroups and not self._filters_caches:
            return snapshot
        shown = self._shown(snapshot)
        has_cgroup, has_cache = shown.has_cgroup, shown.has_cache
        return replace(
            snapshot,
            caches=tuple(c for c in snapshot.caches if has_cache(c.name, c.id)),
            cgroups=tuple(_cgroup(c, shown) for c in snapshot.cgroups if has_cgroup(c.id)),
            pairs=tuple(p for p in snapshot.pairs if has_cgroup(p.cgroup_id) and has_cache(p.cache, p.cache_id)),
            recharges=_recharges(snapshot.recharges, shown),
            ids=_ids(snapshot.ids, shown),
        )

    def _shown(self, snapshot: Snapshot) -> _Shown:
        cgroups = None
        if self._filters_cgroups:
            cgroups = {c.id for c in snapshot.cgroups if self._has_cgroup(label(c.path))}
        owners = _owners(snapshot)
        caches, names = {}, dict[str, bool]()
        for cache in snapshot.caches:
            is_shown = self._has(cache.name, cache.root)
            if is_shown and cgroups is not None and cache.root is not None:
                is_shown = _belongs_to(cache, owners.get(cache.kmemcg_id, ()), cgroups)
            caches[cache.name, cache.id] = is_shown
            names[cache.name] = is_shown and names.get(cache.name, True)
        return _Shown(cgroups, caches, names, self._has_unlisted)

    def _has(self, name: str, root: str | None) -> bool:
        return self._has_cache(label(root or name)) and (root is None or self._has_child(label(name)))

    def _has_unlisted(self, name: str) -> bool:
        """For a cache that the list lacks. A child has its root in its name: dentry(3), dentry(3:cgroup)."""
        root, bracket, _ = name.partition("(")
        if self._filters_cgroups and bracket and ":" in name:
            return False
        return self._has(name, root if bracket and root else None)


@dataclass(frozen=True)
class _Shown:
    """What a snapshot shows."""

    cgroups: set[int] | None
    """Ids; None: all cgroups."""
    caches: Mapping[tuple[str, str | None], bool]
    """(name, id) of each cache -> it is shown."""
    names: Mapping[str, bool]
    """Name -> all caches of that name are shown."""
    has_unlisted: Callable[[str], bool]

    def has_cgroup(self, cgroup_id: int | None) -> bool:
        """None stands for no cgroup, and is always shown."""
        return self.cgroups is None or cgroup_id is None or cgroup_id in self.cgroups

    def has_cache(self, name: str, cache_id: str | None) -> bool:
        """For a row with the name and id of a cache."""
        is_shown = self.caches.get((name, cache_id))
        return self.has_name(name) if is_shown is None else is_shown

    def has_name(self, name: str) -> bool:
        """For a row with only the name of a cache."""
        is_shown = self.names.get(name)
        return self.has_unlisted(name) if is_shown is None else is_shown


def _owners(snapshot: Snapshot) -> Mapping[int | None, Sequence[Cgroup]]:
    """kmemcg_id -> the cgroup that owns it now; where that is unknown, all cgroups with that id."""
    owners: dict[int | None, list[Cgroup]] = {}
    for cgroup in snapshot.cgroups:
        if cgroup.kmemcg_id is not None:
            owners.setdefault(cgroup.kmemcg_id, []).append(cgroup)
    by_id = {cgroup.id: cgroup for cgroup in snapshot.cgroups}
    present = {one.kmemcg_id: by_id.get(one.cgroup_id or 0) for one in snapshot.ids.map or ()}
    return owners | {kmemcg_id: [cgroup] for kmemcg_id, cgroup in present.items() if cgroup is not None}


def _belongs_to(child: Cache, owners: Sequence[Cgroup], cgroups: set[int]) -> bool:
    """Whether a child cache of these owners may be shown.

    dentry(3:name) has the name of a cgroup in it, perhaps of an earlier owner of the id; dentry(3) names none.
    """
    _, colon, name = child.name.removesuffix(")").partition(":")
    names = {(cgroup.path or "").rpartition("/")[2] for cgroup in owners}
    return all(cgroup.id in cgroups for cgroup in owners) and (not colon or name in names)


def _cgroup(cgroup: Cgroup, shown: _Shown) -> Cgroup:
    if shown.has_cgroup(cgroup.parent_id) and not cgroup.child_slabs:
        return cgroup
    slabs = cgroup.child_slabs
    if slabs is not None:
        slabs = tuple(one for one in slabs if shown.has_cache(one.cache, one.cache_id))
    parent_id = cgroup.parent_id if shown.has_cgroup(cgroup.parent_id) else None
    return replace(cgroup, child_slabs=slabs, parent_id=parent_id)


def _recharges(recharges: Recharges, shown: _Shown) -> Recharges:
    pairs, totals = recharges.pairs, recharges.totals
    if pairs is not None:
        has = shown.has_cgroup
        pairs = tuple(p for p in pairs if has(p.from_cgroup_id) and has(p.to_cgroup_id) and shown.has_name(p.cache))
    if totals is not None:
        totals = tuple(total for total in totals if shown.has_name(total.cache))
    return replace(recharges, pairs=pairs, totals=totals)


def _ids(ids: Ids, shown: _Shown) -> Ids:
    if ids.map is None or shown.cgroups is None:
        return ids
    return replace(ids, map=tuple(_entry(one, shown.cgroups) for one in ids.map if shown.has_cgroup(one.cgroup_id)))


def _entry(entry: KmemcgId, cgroups: set[int]) -> KmemcgId:
    return replace(entry, previous_owners=tuple(owner for owner in entry.previous_owners if owner in cgroups))
