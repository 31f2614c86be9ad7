# SPDX-License-Identifier: GPL-2.0-only
"""What one row of a view consists of, for its details: tables that belong to a cgroup, a cache or an id."""

from __future__ import annotations

from typing import Any

from kmemwatch.model import Cache, Snapshot
from kmemwatch.shape import TEXT, About
from kmemwatch.views import rows
from kmemwatch.views.fields import ALLOC_RATES, CACHE, CHILD_SLABS, PAIR, Field
from kmemwatch.views.rows import Frame, PairRow, SlabsRow, ZombieRow
from kmemwatch.views.tables import ZOMBIES, View, why_missing

_pair_figures: tuple[Field[PairRow], ...] = (
    ALLOC_RATES["allocations_per_s"].of(lambda r: r.rates),
    ALLOC_RATES["frees_per_s"].of(lambda r: r.rates, rank=1),
    ALLOC_RATES["allocated_bytes_per_s"].of(lambda r: r.rates, rank=3),
    PAIR["live_bytes"].of(lambda r: r.pair),
    PAIR["allocations_total"].of(lambda r: r.pair, rank=2),
    PAIR["frees_total"].of(lambda r: r.pair, rank=4),
)


def _pair_rows(shown: Frame, **which: Any) -> list[PairRow] | None:
    """None: allocations are not counted here; an empty list: none was counted yet."""
    counted = shown.snapshot.pairs or _why_no_pairs(shown.snapshot) is None
    return rows.pair_rows(shown, **which) if counted else None


def _why_no_pairs(snapshot: Snapshot) -> str | None:
    return why_missing(snapshot, ("alloc",))


def caches_of(cgroup_id: int) -> View[PairRow]:
    """What one cgroup does in each cache."""
    return View(
        "its caches",
        columns=(PAIR["cache"].of(lambda r: r.pair), *_pair_figures),
        sort="live_bytes",
        rows=lambda f: _pair_rows(f, cgroup_id=cgroup_id),
        missing=lambda s: _why_no_pairs(s) or "nothing is known",
        label=lambda r: PAIR["cache"].text(r.pair),
        identity=lambda r: (r.pair.cache, r.pair.cache_id),
        empty="its tasks allocated nothing since kmemwatch was attached",
    )


def cgroups_of(cache: tuple[str, str | None]) -> View[PairRow]:
    """Who allocates in one cache."""
    path = Field[PairRow]("cgroup", About("", TEXT, "CGROUP", min_width=20), lambda r: r.cgroup)
    return View(
        "its cgroups",
        columns=(path, *_pair_figures),
        sort="live_bytes",
        rows=lambda f: _pair_rows(f, cache=cache),
        missing=lambda s: _why_no_pairs(s) or "nothing is known",
        label=lambda r: r.cgroup,
        identity=lambda r: r.pair.cgroup_id,
        empty="no cgroup allocated in it since kmemwatch was attached",
    )


def dying_children_of(cgroup_id: int) -> View[ZombieRow]:
    """Dying cgroups right below a dying one, which keep it."""
    return View(
        "dying children that keep it",
        columns=ZOMBIES.columns,
        sort=ZOMBIES.sort,
        rows=lambda f: [row for row in rows.zombie_rows(f) or () if row.cgroup.parent_id == cgroup_id],
        missing=lambda _: "nothing is known",
        label=ZOMBIES.label,
        identity=ZOMBIES.identity,
        empty="it has no dying children",
    )


def slabs_of(cgroup_id: int) -> View[SlabsRow]:
    """Child caches that still hold slabs of a dying cgroup."""
    return View(
        "child caches that hold its slabs",
        columns=(
            *(field.of(lambda r: r.slabs) for field in CHILD_SLABS.values() if field.title),
            Field("owner", About("", TEXT, "ID IS NOW OF", min_width=20), lambda r: r.owner),
        ),
        sort="slab_bytes",
        rows=lambda f: rows.slabs_rows(f, cgroup_id),
        missing=lambda s: why_missing(s, ("slabs",)) or "nothing is known",
        label=lambda r: r.slabs.cache,
        identity=lambda r: (r.slabs.cache, r.slabs.cache_id),
        empty="no child cache holds a slab of it",
    )


def caches_with(kmemcg_id: int) -> View[Cache]:
    """Child caches with one kmemcg_id."""
    return View(
        "child caches with this id",
        columns=(CACHE["cache"], CACHE["root"], CACHE["slab_bytes"], CACHE["object_bytes"]),
        sort="slab_bytes",
        rows=lambda f: rows.child_rows(f, kmemcg_id),
        missing=lambda _: "nothing is known",
        label=CACHE["cache"].text,
        identity=lambda c: (c.name, c.id),
        empty="no cache has this id yet",
    )
