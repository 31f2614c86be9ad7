# SPDX-License-Identifier: GPL-2.0-only
"""The views of `top`: which rows, which columns in which order, and what to say when there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kmemwatch.fields import rows
from kmemwatch.fields.base import BYTES_PER_S, SECONDS, TEXT, Field
from kmemwatch.fields.derived import PER_MEMCG_ERAS, dying
from kmemwatch.fields.measures import (
    ALLOC_RATES,
    CACHE,
    CGROUP,
    CGROUP_RATES,
    KMEMCG_ID,
    NOTHING,
    PAIR,
    RECHARGE,
    by_key,
    cgroup_name,
)
from kmemwatch.fields.rows import CacheRow, CgroupRow, Frame, IdRow, PairRow, RechargeRow, ZombieRow
from kmemwatch.model import MISSING, Cgroup, Snapshot
from kmemwatch.units import UNKNOWN, bytes_human, printable, seconds_human

R = TypeVar("R")


@dataclass(frozen=True)
class View(Generic[R]):
    name: str
    """``--view NAME``."""
    letter: str
    """Key that opens it."""
    help: str
    """One sentence: what question it answers."""
    columns: tuple[Field[R], ...]
    """On the screen, from left to right; the first is the name and takes the room that is left."""
    extra: tuple[Field[R], ...]
    """Only in files and details."""
    sort: str
    """Key of the field it is sorted by unless told otherwise."""
    rows: Callable[[Frame], Sequence[R] | None]
    """None: this kernel, or this source, does not have them; `missing` says why."""
    missing: Callable[[Snapshot], str]
    label: Callable[[R], str]
    """Printable name, what a filter is matched against."""
    identity: Callable[[R], Hashable]
    """Keeps the cursor on the same thing over refreshes."""
    empty: str
    """What an empty list means, in words."""
    note: Callable[[Frame], str | None] = lambda _: None
    """One line that qualifies what is shown."""

    @property
    def fields(self) -> tuple[Field[R], ...]:
        """All of them: on the screen and in files."""
        return self.columns + self.extra

    def field(self, key: str) -> Field[R] | None:
        """The field of that key, or of that column title, whatever its case."""
        wanted = key.strip().casefold()
        for field in self.fields:
            if wanted in (field.key.casefold(), field.title.casefold()):
                return field
        return None


def why_missing(snapshot: Snapshot, signals: Sequence[str]) -> str | None:
    """Reason that the probes give for a signal that is not measured."""
    for probe in snapshot.probes:
        if probe.signal in signals and probe.status == MISSING:
            return probe.why
    return None


def _cgroup_text(cgroup: Cgroup) -> str:
    return cgroup_name(cgroup.id, cgroup.path)


_cgroup, _crate, _cache, _alloc = by_key(CGROUP), by_key(CGROUP_RATES), by_key(CACHE), by_key(ALLOC_RATES)
_pair, _id, _recharge = by_key(PAIR), by_key(KMEMCG_ID), by_key(RECHARGE)
_NO_SUCH_CACHES = (
    "this kernel has no per-memcg caches: all cgroups share each slab cache, so there are no ids to follow"
)
_NO_RECHARGE = "this kernel never recharges slabs: it does not have the patch set (no __memcg_kmem_recharge_slab)"


def _of_cgroup(row: CgroupRow | ZombieRow) -> Cgroup:
    return row.cgroup


def _no_cgroups(snapshot: Snapshot) -> str:
    return why_missing(snapshot, ("lifecycle",)) or "no memory cgroups were found"


CGROUPS: View[CgroupRow] = View(
    "cgroups",
    "g",
    "Which cgroups hold kernel memory, and how fast does it grow?",
    (
        _cgroup["cgroup"].of(_of_cgroup),
        _cgroup["state"].of(_of_cgroup, rank=1),
        _cgroup["kernel_bytes"].of(_of_cgroup),
        _cgroup["slab_bytes"].of(_of_cgroup, rank=5),
        _cgroup["memory_bytes"].of(_of_cgroup, rank=4),
        _crate["charged_bytes_per_s"].of(lambda r: r.rates, rank=2),
        _crate["uncharged_bytes_per_s"].of(lambda r: r.rates, rank=6),
        _alloc["allocations_per_s"].of(lambda r: r.rates.alloc, rank=1),
        _crate["top_cache"].of(lambda r: r.rates, rank=3),
    ),
    (
        _cgroup["cgroup_id"].of(_of_cgroup),
        _cgroup["kmemcg_id"].of(_of_cgroup),
        _cgroup["online_at"].of(_of_cgroup),
        _cgroup["offline_at"].of(_of_cgroup),
        _cgroup["charged_bytes_total"].of(_of_cgroup),
        _cgroup["uncharged_bytes_total"].of(_of_cgroup),
        _crate["kernel_growth_bytes_per_s"].of(lambda r: r.rates),
        _alloc["frees_per_s"].of(lambda r: r.rates.alloc),
        _alloc["allocated_bytes_per_s"].of(lambda r: r.rates.alloc),
    ),
    "kernel_bytes",
    rows.cgroup_rows,
    _no_cgroups,
    lambda r: _cgroup_text(r.cgroup),
    lambda r: r.cgroup.id,
    "no cgroups",
)


def _top_cgroup(row: CacheRow) -> str:
    if row.top_cgroup is not None:
        return printable(row.top_cgroup)
    return UNKNOWN if row.rates.allocations_per_s is None else NOTHING


CACHES: View[CacheRow] = View(
    "caches",
    "c",
    "Which slab caches hold memory, which are allocated from, how fast, and by whom?",
    (
        _cache["cache"].of(lambda r: r.cache),
        _cache["slab_bytes"].of(lambda r: r.cache),
        _alloc["allocations_per_s"].of(lambda r: r.rates),
        _alloc["frees_per_s"].of(lambda r: r.rates, rank=1),
        _alloc["allocated_bytes_per_s"].of(lambda r: r.rates),
        Field(
            "growth_bytes_per_s",
            "GROWTH/s",
            BYTES_PER_S,
            "Change of SIZE in bytes per second; below a cgroup, bytes of objects allocated less objects freed.",
            lambda r: r.growth_bytes_per_s,
            rank=2,
        ),
        _cache["object_bytes"].of(lambda r: r.cache, rank=5),
        Field(
            "top_cgroup",
            "TOP CGROUP",
            TEXT,
            "Cgroup that allocated the most bytes in it in the last interval; - when nobody did.",
            lambda r: r.top_cgroup,
            show=_top_cgroup,
            rank=4,
            min_width=20,
        ),
    ),
    (
        _cache["address"].of(lambda r: r.cache),
        _cache["root"].of(lambda r: r.cache),
        _cache["kmemcg_id"].of(lambda r: r.cache),
        _cache["allocations_total"].of(lambda r: r.cache),
        _cache["frees_total"].of(lambda r: r.cache),
        _cache["allocated_bytes_total"].of(lambda r: r.cache),
    ),
    "slab_bytes",
    rows.cache_rows,
    lambda s: why_missing(s, ("alloc",)) or "no slab cache was seen",
    lambda r: _cache["cache"].text(r.cache),
    lambda r: (r.cache.name, r.cache.address),
    "no allocation was seen yet",
)


def pins_text(pins: Mapping[str, int] | None) -> str:
    """``shmem 10.0M, file 2.1M``, largest first; says so when no memory but only references are left."""
    if pins is None:
        return UNKNOWN
    found = sorted(pins.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {bytes_human(size)}" for kind, size in found) or "references only"


def _pins_exact(pins: Mapping[str, int] | None) -> str | None:
    if pins is None:
        return None
    return " ".join(f"{kind}={size}" for kind, size in sorted(pins.items())) or "none"


def _age_text(row: ZombieRow) -> str:
    return seconds_human(row.age_s) if row.age_is_exact else ">" + seconds_human(row.age_s)


def _zombie_note(shown: Frame) -> str | None:
    counted, found = shown.snapshot.totals.dying_cgroups, len(dying(shown.snapshot))
    if counted is None or counted <= found:
        return None
    why = why_missing(shown.snapshot, ("pins", "lifecycle"))
    return f"the kernel counts {counted} dying, {found} could be found" + (f": {why}" if why else "")


def _no_zombies(snapshot: Snapshot) -> str:
    return why_missing(snapshot, ("pins", "lifecycle")) or "removed cgroups could not be listed on this kernel"


ZOMBIES: View[ZombieRow] = View(
    "zombies",
    "z",
    "Which removed cgroups does the kernel still keep, for how long, and what pins them?",
    (
        _cgroup["cgroup"].of(_of_cgroup),
        Field(
            "age_at_least_s",
            "AGE",
            SECONDS,
            "Time since it was removed; with > it died before kmemwatch was attached, and is older than this.",
            lambda r: r.age_s,
            show=_age_text,
            min_width=7,
        ),
        _cgroup["memory_bytes"].of(_of_cgroup, rank=1),
        _cgroup["references"].of(_of_cgroup, rank=2),
        Field(
            "pins",
            "PINNED BY",
            TEXT,
            "Kinds of memory that are still charged to it, in bytes, largest first.",
            lambda r: _pins_exact(r.cgroup.pins),
            show=lambda r: pins_text(r.cgroup.pins),
            min_width=30,
        ),
    ),
    (
        Field(
            "age_s",
            "EXACT AGE",
            SECONDS,
            "Time since it was removed; unknown when it died before kmemwatch was attached.",
            lambda r: r.age_s if r.age_is_exact else None,
        ),
        _cgroup["cgroup_id"].of(_of_cgroup),
        _cgroup["kmemcg_id"].of(_of_cgroup),
        _cgroup["online_at"].of(_of_cgroup),
        _cgroup["offline_at"].of(_of_cgroup),
        _cgroup["kernel_bytes"].of(_of_cgroup),
        _cgroup["slab_bytes"].of(_of_cgroup),
    ),
    "memory_bytes",
    rows.zombie_rows,
    _no_zombies,
    lambda r: _cgroup_text(r.cgroup),
    lambda r: r.cgroup.id,
    "no dying cgroups: nothing pins a removed one",
    _zombie_note,
)


def _no_ids(snapshot: Snapshot) -> str:
    if snapshot.kernel.era is not None and snapshot.kernel.era not in PER_MEMCG_ERAS:
        return _NO_SUCH_CACHES
    return why_missing(snapshot, ("ids", "id")) or "the ids of this kernel could not be read"


def _no_recharges(snapshot: Snapshot) -> str:
    if snapshot.kernel.patchset is False:
        return _NO_RECHARGE
    return why_missing(snapshot, ("recharge", "recharges")) or "recharges of this kernel could not be measured"


IDS: View[IdRow] = View(
    "ids",
    "i",
    "Which memcg has which kmemcg_id, and how often was an id reused?",
    (
        Field(
            "cgroup",
            "CGROUP",
            TEXT,
            "Memcg that has the id now; - when nobody has it.",
            lambda r: r.cgroup,
            min_width=20,
        ),
        _id["kmemcg_id"].of(lambda r: r.id),
        _id["since"].of(lambda r: r.id, rank=2),
        _id["child_caches"].of(lambda r: r.id),
        _id["reuses"].of(lambda r: r.id),
    ),
    (_id["cgroup_id"].of(lambda r: r.id),),
    "reuses",
    rows.id_rows,
    _no_ids,
    lambda r: printable(r.cgroup),
    lambda r: r.id.kmemcg_id,
    "no ids are in use",
)

RECHARGES: View[RechargeRow] = View(
    "recharges",
    "r",
    "Which slabs moved from one memcg to another?",
    (
        _recharge["cache"].of(lambda r: r.pair),
        Field(
            "from_cgroup",
            "FROM",
            TEXT,
            "Memcg that the slab was charged to.",
            lambda r: r.source,
            min_width=20,
        ),
        Field("from_state", "STATE", TEXT, "State of that memcg now.", lambda r: r.source_state, min_width=8, rank=2),
        Field(
            "to_cgroup",
            "TO",
            TEXT,
            "Memcg that took it over.",
            lambda r: r.target,
            min_width=20,
        ),
        _recharge["recharges_total"].of(lambda r: r.pair),
        _recharge["recharged_bytes_total"].of(lambda r: r.pair, rank=1),
    ),
    (),
    "recharges_total",
    rows.recharge_rows,
    _no_recharges,
    lambda r: f"{_recharge['cache'].text(r.pair)} {printable(r.source)} {printable(r.target)}",
    lambda r: (r.pair.cache, r.pair.from_cgroup_id, r.pair.to_cgroup_id),
    "no slab was recharged yet",
)

VIEWS: tuple[View[Any], ...] = (CGROUPS, CACHES, ZOMBIES, IDS, RECHARGES)
"""In the order of their tabs."""

_pair_figures: tuple[Field[PairRow], ...] = (
    _alloc["allocations_per_s"].of(lambda r: r.rates),
    _alloc["frees_per_s"].of(lambda r: r.rates, rank=1),
    _alloc["allocated_bytes_per_s"].of(lambda r: r.rates, rank=3),
    _pair["live_bytes"].of(lambda r: r.pair),
    _pair["allocations_total"].of(lambda r: r.pair, rank=2),
    _pair["frees_total"].of(lambda r: r.pair, rank=4),
)


def caches_of(cgroup_id: int) -> View[PairRow]:
    """What one cgroup does in each cache."""
    return View(
        "its caches",
        "",
        "",
        (_pair["cache"].of(lambda r: r.pair), *_pair_figures),
        (),
        "live_bytes",
        lambda f: rows.pair_rows(f, cgroup_id=cgroup_id),
        lambda s: why_missing(s, ("alloc",)) or "nothing is known",
        lambda r: _pair["cache"].text(r.pair),
        lambda r: (r.pair.cache, r.pair.cache_address),
        "its tasks allocated nothing since kmemwatch was attached",
    )


def cgroups_of(cache: tuple[str, int | None]) -> View[PairRow]:
    """Who allocates in one cache."""
    path = Field[PairRow]("cgroup", "CGROUP", TEXT, "", lambda r: r.cgroup, min_width=20)
    return View(
        "its cgroups",
        "",
        "",
        (path, *_pair_figures),
        (),
        "live_bytes",
        lambda f: rows.pair_rows(f, cache=cache),
        lambda s: why_missing(s, ("alloc",)) or "nothing is known",
        lambda r: printable(r.cgroup),
        lambda r: r.pair.cgroup_id,
        "no cgroup allocated in it since kmemwatch was attached",
    )
