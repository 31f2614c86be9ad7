# SPDX-License-Identifier: GPL-2.0-only
"""A snapshot without the cgroups and caches that must not be exported: nothing in it names one of them. Pure.

Figures of the whole host (`Snapshot.totals`, counts of ids, losses) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.model import Cache, Cgroup, Ids, KmemcgId, Recharges, Snapshot
from kmemwatch.views.fields import label


class Exclusion:
    """What ``--cgroup.include`` and the other three leave of snapshots."""

    def __init__(self, options: SelectionOptions) -> None:
        """Raises UsageError for an expression that is none."""
        selection = options.selection()
        self._filters_cgroups, self._filters_caches = selection.filters_cgroups, selection.filters_caches
        self._has_cgroup, self._has_cache = selection.has_cgroup, selection.has_cache
        # A child cache is in where its root is, as in the metrics; but who excludes one by its own name means it.
        self._has_child = SelectionOptions(cache_exclude=options.cache_exclude).selection().has_cache

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The same snapshot without them."""
        if not self._filters_cgroups and not self._filters_caches:
            return snapshot
        kept = self._kept(snapshot)
        has_cgroup, has_cache = kept.has_cgroup, kept.has_cache
        return replace(
            snapshot,
            caches=tuple(c for c in snapshot.caches if has_cache(c.name, c.id)),
            cgroups=tuple(_cgroup(c, kept) for c in snapshot.cgroups if has_cgroup(c.id)),
            pairs=tuple(p for p in snapshot.pairs if has_cgroup(p.cgroup_id) and has_cache(p.cache, p.cache_id)),
            recharges=_recharges(snapshot.recharges, kept),
            ids=_ids(snapshot.ids, kept),
        )

    def _kept(self, snapshot: Snapshot) -> _Kept:
        cgroups = None
        if self._filters_cgroups:
            cgroups = {c.id for c in snapshot.cgroups if self._has_cgroup(label(c.path))}
        owners = _owners(snapshot)
        caches, names = {}, dict[str, bool]()
        for cache in snapshot.caches:
            is_in = self._has(cache.name, cache.root)
            if is_in and cgroups is not None and cache.root is not None:
                is_in = _belongs_to(cache, owners.get(cache.kmemcg_id, ()), cgroups)
            caches[cache.name, cache.id] = is_in
            names[cache.name] = is_in and names.get(cache.name, True)
        return _Kept(cgroups, caches, names, self._has_unlisted)

    def _has(self, name: str, root: str | None) -> bool:
        return self._has_cache(label(root or name)) and (root is None or self._has_child(label(name)))

    def _has_unlisted(self, name: str) -> bool:
        """Of a cache that the list lacks; a child is named after its root, dentry(3) or dentry(3:cgroup)."""
        root, bracket, _ = name.partition("(")
        if self._filters_cgroups and bracket and ":" in name:
            return False
        return self._has(name, root if bracket and root else None)


@dataclass(frozen=True)
class _Kept:
    """Of one snapshot."""

    cgroups: set[int] | None
    """Ids; None: all."""
    caches: Mapping[tuple[str, str | None], bool]
    """(name, id) of each cache -> it is in."""
    names: Mapping[str, bool]
    """Name -> all caches of that name are in."""
    has_unlisted: Callable[[str], bool]

    def has_cgroup(self, cgroup_id: int | None) -> bool:
        """None is nobody, who is never left out."""
        return self.cgroups is None or cgroup_id is None or cgroup_id in self.cgroups

    def has_cache(self, name: str, cache_id: str | None) -> bool:
        """Of a row that refers to a cache."""
        is_in = self.caches.get((name, cache_id))
        return self.has_name(name) if is_in is None else is_in

    def has_name(self, name: str) -> bool:
        """Of a row that has only its name."""
        is_in = self.names.get(name)
        return self.has_unlisted(name) if is_in is None else is_in


def _owners(snapshot: Snapshot) -> Mapping[int | None, Sequence[Cgroup]]:
    """kmemcg_id -> the cgroup that has it, or where that is not known, those that say so."""
    owners: dict[int | None, list[Cgroup]] = {}
    for cgroup in snapshot.cgroups:
        if cgroup.kmemcg_id is not None:
            owners.setdefault(cgroup.kmemcg_id, []).append(cgroup)
    by_id = {cgroup.id: cgroup for cgroup in snapshot.cgroups}
    present = {one.kmemcg_id: by_id.get(one.cgroup_id or 0) for one in snapshot.ids.map or ()}
    return owners | {kmemcg_id: [cgroup] for kmemcg_id, cgroup in present.items() if cgroup is not None}


def _belongs_to(child: Cache, owners: Sequence[Cgroup], cgroups: set[int]) -> bool:
    """Whether a child cache of these owners may be named. dentry(3:name) has the name of a cgroup in it, which may have
    had the id before; dentry(3) names nobody."""
    _, colon, name = child.name.removesuffix(")").partition(":")
    names = {(cgroup.path or "").rpartition("/")[2] for cgroup in owners}
    return all(cgroup.id in cgroups for cgroup in owners) and (not colon or name in names)


def _cgroup(cgroup: Cgroup, kept: _Kept) -> Cgroup:
    if kept.has_cgroup(cgroup.parent_id) and not cgroup.child_slabs:
        return cgroup
    slabs = cgroup.child_slabs
    if slabs is not None:
        slabs = tuple(one for one in slabs if kept.has_cache(one.cache, one.cache_id))
    parent_id = cgroup.parent_id if kept.has_cgroup(cgroup.parent_id) else None
    return replace(cgroup, child_slabs=slabs, parent_id=parent_id)


def _recharges(recharges: Recharges, kept: _Kept) -> Recharges:
    pairs, totals = recharges.pairs, recharges.totals
    if pairs is not None:
        has = kept.has_cgroup
        pairs = tuple(p for p in pairs if has(p.from_cgroup_id) and has(p.to_cgroup_id) and kept.has_name(p.cache))
    if totals is not None:
        totals = tuple(total for total in totals if kept.has_name(total.cache))
    return replace(recharges, pairs=pairs, totals=totals)


def _ids(ids: Ids, kept: _Kept) -> Ids:
    if ids.map is None or kept.cgroups is None:
        return ids
    return replace(ids, map=tuple(_entry(one, kept.cgroups) for one in ids.map if kept.has_cgroup(one.cgroup_id)))


def _entry(entry: KmemcgId, cgroups: set[int]) -> KmemcgId:
    return replace(entry, previous_owners=tuple(owner for owner in entry.previous_owners if owner in cgroups))
