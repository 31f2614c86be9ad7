# SPDX-License-Identifier: GPL-2.0-only
"""What one row of a view consists of, for its details: tables that belong to a cgroup, a cache or an id."""

from __future__ import annotations

from typing import Any

from kmemwatch.model import Cache, Snapshot
from kmemwatch.shape import BYTES, ID, TEXT
from kmemwatch.units import printable
from kmemwatch.views import rows
from kmemwatch.views.fields import ALLOC_RATES, CACHE, PAIR, Field, by_key
from kmemwatch.views.rows import Frame, PairRow, SlabsRow, ZombieRow
from kmemwatch.views.tables import ZOMBIES, View, why_missing

_cache, _alloc, _pair = by_key(CACHE), by_key(ALLOC_RATES), by_key(PAIR)

_pair_figures: tuple[Field[PairRow], ...] = (
    _alloc["allocations_per_s"].of(lambda r: r.rates),
    _alloc["frees_per_s"].of(lambda r: r.rates, rank=1),
    _alloc["allocated_bytes_per_s"].of(lambda r: r.rates, rank=3),
    _pair["live_bytes"].of(lambda r: r.pair),
    _pair["allocations_total"].of(lambda r: r.pair, rank=2),
    _pair["frees_total"].of(lambda r: r.pair, rank=4),
)


def _pair_rows(shown: Frame, **which: Any) -> list[PairRow] | None:
    """None: nobody counts; an empty list: nothing was counted yet."""
    counted = shown.snapshot.pairs or _why_no_pairs(shown.snapshot) is None
    return rows.pair_rows(shown, **which) if counted else None


def _why_no_pairs(snapshot: Snapshot) -> str | None:
    return why_missing(snapshot, ("alloc",))


def caches_of(cgroup_id: int) -> View[PairRow]:
    """What one cgroup does in each cache."""
    return View(
        "its caches",
        "",
        "",
        (_pair["cache"].of(lambda r: r.pair), *_pair_figures),
        (),
        "live_bytes",
        lambda f: _pair_rows(f, cgroup_id=cgroup_id),
        lambda s: _why_no_pairs(s) or "nothing is known",
        lambda r: _pair["cache"].text(r.pair),
        lambda r: (r.pair.cache, r.pair.cache_id),
        "its tasks allocated nothing since kmemwatch was attached",
    )


def cgroups_of(cache: tuple[str, str | None]) -> View[PairRow]:
    """Who allocates in one cache."""
    path = Field[PairRow]("cgroup", "CGROUP", TEXT, "", lambda r: r.cgroup, min_width=20)
    return View(
        "its cgroups",
        "",
        "",
        (path, *_pair_figures),
        (),
        "live_bytes",
        lambda f: _pair_rows(f, cache=cache),
        lambda s: _why_no_pairs(s) or "nothing is known",
        lambda r: printable(r.cgroup),
        lambda r: r.pair.cgroup_id,
        "no cgroup allocated in it since kmemwatch was attached",
    )


def dying_children_of(cgroup_id: int) -> View[ZombieRow]:
    """Dying cgroups right below a dying one, which keep it."""
    return View(
        "dying children that keep it",
        "",
        "",
        ZOMBIES.columns,
        (),
        ZOMBIES.sort,
        lambda f: [row for row in rows.zombie_rows(f) or () if row.cgroup.parent_id == cgroup_id],
        lambda _: "nothing is known",
        ZOMBIES.label,
        ZOMBIES.identity,
        "it has no dying children",
    )


def slabs_of(cgroup_id: int) -> View[SlabsRow]:
    """Child caches that still hold slabs of a dying cgroup."""
    return View(
        "child caches that hold its slabs",
        "",
        "",
        (
            Field("cache", "CACHE", TEXT, "", lambda r: r.slabs.cache, min_width=20),
            Field("kmemcg_id", "ID", ID, "", lambda r: r.slabs.kmemcg_id),
            Field("slab_bytes", "BYTES", BYTES, "", lambda r: r.slabs.slab_bytes),
            Field("owner", "ID IS NOW OF", TEXT, "", lambda r: r.owner, min_width=20),
        ),
        (),
        "slab_bytes",
        lambda f: rows.slabs_rows(f, cgroup_id),
        lambda s: why_missing(s, ("slabs",)) or "nothing is known",
        lambda r: printable(r.slabs.cache),
        lambda r: (r.slabs.cache, r.slabs.cache_id),
        "no child cache holds a slab of it",
    )


def caches_with(kmemcg_id: int) -> View[Cache]:
    """Child caches with one kmemcg_id."""
    return View(
        "child caches with this id",
        "",
        "",
        (_cache["cache"], _cache["root"], _cache["slab_bytes"], _cache["object_bytes"]),
        (),
        "slab_bytes",
        lambda f: rows.child_rows(f, kmemcg_id),
        lambda _: "nothing is known",
        _cache["cache"].text,
        lambda c: (c.name, c.id),
        "no cache has this id yet",
    )
