# SPDX-License-Identifier: GPL-2.0-only
"""The views of `top`: which rows, which columns in which order, and what to say when there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from kmemwatch.model import ABSENT, MISSING, Cgroup, Snapshot
from kmemwatch.shape import BYTES, BYTES_PER_S, COUNT, COUNT_PER_S, SECONDS, TEXT
from kmemwatch.units import UNKNOWN, bytes_human, count_human, printable, seconds_human
from kmemwatch.views import rows
from kmemwatch.views.derived import PER_MEMCG_ERAS, caches_per_root, dying
from kmemwatch.views.fields import (
    ALLOC_RATES,
    CACHE,
    CGROUP,
    CGROUP_RATES,
    KMEMCG_ID,
    NOTHING,
    RECHARGE,
    SEPARATOR,
    Field,
    by_key,
    cgroup_name,
    rate_human,
)
from kmemwatch.views.rates import move_key
from kmemwatch.views.rows import CacheRow, CgroupRow, Frame, IdRow, RechargeRow, ZombieRow

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
    summary: Callable[[Frame], str | None] = lambda _: None
    """One printable line of totals."""

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
        if probe.signal in signals and probe.status in (MISSING, ABSENT):
            return probe.why
    return None


def _cgroup_text(cgroup: Cgroup) -> str:
    return cgroup_name(cgroup.id, cgroup.path)


_cgroup, _crate, _cache, _alloc = by_key(CGROUP), by_key(CGROUP_RATES), by_key(CACHE), by_key(ALLOC_RATES)
_id, _recharge = by_key(KMEMCG_ID), by_key(RECHARGE)


def _of_cgroup(row: CgroupRow | ZombieRow) -> Cgroup:
    return row.cgroup


def _no_cgroups(snapshot: Snapshot) -> str:
    return why_missing(snapshot, ("lifecycle",)) or "no memory cgroups were found"


def _top_live(row: CgroupRow) -> str:
    if row.top_live_cache is not None:
        return printable(row.top_live_cache)
    return NOTHING if row.live_is_known else UNKNOWN


_TOP_LIVE = Field[CgroupRow](
    "top_live_cache",
    "TOP CACHE",
    TEXT,
    "Slab cache with most of its own live bytes; - when it has none, ? when it may have objects that are older than"
    " kmemwatch.",
    lambda r: r.top_live_cache,
    show=_top_live,
    rank=5,
    min_width=16,
)


def _columns(own: bool) -> tuple[Field[CgroupRow], ...]:
    """Of the view of cgroups: figures with their children and `own` ones; where not all fit, those wanted stay."""
    first, second = (8, 0) if own else (0, 8)
    return (
        _cgroup["cgroup"].of(_of_cgroup),
        _cgroup["state"].of(_of_cgroup, rank=5 if own else 1),
        _cgroup["kernel_bytes"].of(_of_cgroup, rank=first),
        _cgroup["slab_bytes"].of(_of_cgroup, rank=first + 6),
        _cgroup["memory_bytes"].of(_of_cgroup, rank=4),
        _crate["subtree_charged_bytes_per_s"].of(lambda r: r.rates, rank=first + 2),
        _crate["subtree_uncharged_bytes_per_s"].of(lambda r: r.rates, rank=first + 7),
        _crate["subtree_allocations_per_s"].of(lambda r: r.rates, rank=first + 1),
        _cgroup["own_kernel_bytes"].of(_of_cgroup, rank=second),
        _cgroup["own_slab_bytes"].of(_of_cgroup, rank=second + 6),
        _crate["charged_bytes_per_s"].of(lambda r: r.rates, rank=second + 2),
        _crate["uncharged_bytes_per_s"].of(lambda r: r.rates, rank=second + 7),
        _alloc["allocations_per_s"].of(lambda r: r.rates.alloc, rank=second + 1, title="OWN ALLOC/s"),
        _crate["top_cache"].of(lambda r: r.rates, rank=3),
        _TOP_LIVE,
    )


CGROUPS: View[CgroupRow] = View(
    "cgroups",
    "g",
    "Which cgroups hold kernel memory, and how fast does it grow?",
    _columns(own=False),
    (
        _cgroup["cgroup_id"].of(_of_cgroup),
        _cgroup["parent_id"].of(_of_cgroup),
        _cgroup["dying_children"].of(_of_cgroup),
        _cgroup["kmemcg_id"].of(_of_cgroup),
        _cgroup["online_at"].of(_of_cgroup),
        _cgroup["offline_at"].of(_of_cgroup),
        _cgroup["charged_bytes_total"].of(_of_cgroup),
        _cgroup["uncharged_bytes_total"].of(_of_cgroup),
        _cgroup["subtree_charged_bytes_total"].of(_of_cgroup),
        _cgroup["subtree_uncharged_bytes_total"].of(_of_cgroup),
        _cgroup["subtree_allocations_total"].of(_of_cgroup),
        _crate["kernel_growth_bytes_per_s"].of(lambda r: r.rates),
        _alloc["frees_per_s"].of(lambda r: r.rates.alloc, title="OWN FREE/s"),
        _alloc["allocated_bytes_per_s"].of(lambda r: r.rates.alloc, title="OWN ALLOC B/s"),
    ),
    "kernel_bytes",
    rows.cgroup_rows,
    _no_cgroups,
    lambda r: _cgroup_text(r.cgroup),
    lambda r: r.cgroup.id,
    "no cgroups",
    summary=lambda _: "figures with child cgroups; without: OWN, ALLOCATED FROM, TOP CACHE",
)
CGROUPS_OWN = replace(
    CGROUPS,
    columns=_columns(own=True),
    sort="own_kernel_bytes",
    summary=lambda _: "OWN, ALLOCATED FROM, TOP CACHE: without child cgroups; others with them",
)
"""The same, for a narrow screen: figures of each cgroup itself come first."""


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
        Field(
            "copies",
            "COPIES",
            COUNT,
            "Child caches of memcgs, whose slabs are part of SIZE; - on kernels that have none.",
            lambda r: r.copies,
            show=lambda r: NOTHING if r.copies is None else str(r.copies),
            rank=3,
        ),
        _cache["object_bytes"].of(lambda r: r.cache, rank=5),
        Field(
            "top_cgroup",
            "ALLOCATED BY",
            TEXT,
            "Cgroup that allocated the most bytes in it in the last interval, even if they were freed at once; - when"
            " nobody did.",
            lambda r: r.top_cgroup,
            show=_top_cgroup,
            rank=4,
            min_width=20,
        ),
    ),
    (
        _cache["id"].of(lambda r: r.cache),
        _cache["allocations_total"].of(lambda r: r.cache),
        _cache["frees_total"].of(lambda r: r.cache),
        _cache["allocated_bytes_total"].of(lambda r: r.cache),
    ),
    "slab_bytes",
    rows.cache_rows,
    lambda s: why_missing(s, ("alloc",)) or "no slab cache was seen",
    lambda r: _cache["cache"].text(r.cache),
    lambda r: (r.cache.name, r.cache.id),
    "no allocation was seen yet",
)


def pinned_by(row: ZombieRow) -> str:
    """``shmem 10.0M, file 2.1M, 2 dying children: a, b``, largest memory first; says so when no memory and no child
    but only references are left."""
    pins, children = row.cgroup.pins, row.cgroup.dying_children
    found = sorted((pins or {}).items(), key=lambda item: (-item[1], item[0]))
    parts = [UNKNOWN] if pins is None else [f"{kind} {bytes_human(size)}" for kind, size in found]
    if children:
        parts.append(_children_text(children, row.children))
    if pins == {}:
        parts += _other_references(row.cgroup)
    return ", ".join(parts)


def _children_text(count: int, names: Sequence[str]) -> str:
    told = [printable(name) for name in names] + ["…"] * (count > len(names) > 0)
    return f"{count} dying child{'ren' * (count > 1)}" + (f": {', '.join(told)}" if told else "")


def _other_references(cgroup: Cgroup) -> list[str]:
    """What a memcg without memory of its own has besides its children, each of which holds one reference."""
    children = cgroup.dying_children or 0
    if not children:
        return ["references only"]
    others = (cgroup.references or 0) - children
    return [f"{count_human(others)} other reference{'s' * (others > 1)}"] if others > 0 else []


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
            "Kinds of memory that are still charged to it, in bytes, largest first, and its dying children by name;"
            " where there is no memory, other references as well.",
            lambda r: _pins_exact(r.cgroup.pins),
            show=pinned_by,
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
        _cgroup["parent_id"].of(_of_cgroup),
        _cgroup["dying_children"].of(_of_cgroup),
        _cgroup["kmemcg_id"].of(_of_cgroup),
        _cgroup["online_at"].of(_of_cgroup),
        _cgroup["offline_at"].of(_of_cgroup),
        _cgroup["kernel_bytes"].of(_of_cgroup),
        _cgroup["slab_bytes"].of(_of_cgroup),
        Field(
            "child_caches",
            "CHILD CACHES",
            COUNT,
            "Child caches that hold slabs of it; unknown on kernels that have none.",
            lambda r: None if r.cgroup.child_slabs is None else len(r.cgroup.child_slabs),
        ),
        Field(
            "child_slab_bytes",
            "CHILD SLABS",
            BYTES,
            "Bytes of these slabs.",
            lambda r: None if r.cgroup.child_slabs is None else sum(s.slab_bytes for s in r.cgroup.child_slabs),
        ),
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
        if snapshot.ids.meaning is not None:
            return f"what a kmemcg_id is on this kernel: {snapshot.ids.meaning}"
        return "all cgroups share each slab cache on this kernel: no cache belongs to a kmemcg_id"
    return why_missing(snapshot, ("pins", "ids")) or "the ids of this kernel could not be read"


def _no_recharges(snapshot: Snapshot) -> str:
    return why_missing(snapshot, ("recharge",)) or (
        "this kernel never recharges slabs: it does not have the patch set (no __memcg_kmem_recharge_slab)"
        if snapshot.kernel.patchset is False
        else "recharges of this kernel could not be measured"
    )


def _ids_summary(shown: Frame) -> str | None:
    ids, copies = shown.snapshot.ids, caches_per_root(shown.snapshot)
    if ids.map is None:
        return None
    children = count_human(None if copies is None else sum(copies.values()))
    if copies:
        most = max(copies, key=lambda root: (copies[root], root))
        children += f", max {count_human(copies[most])} ({printable(most)})"
    parts = (
        f"ids {count_human(ids.in_use)} in use, {count_human(ids.reuses_total)} reuses",
        f"peak {count_human(ids.peak_online_memcgs)} online",
        f"child caches {children}",
    )
    return SEPARATOR.join(parts)


def _recharges_summary(shown: Frame) -> str | None:
    found, rates = shown.snapshot.recharges, shown.rates
    if found.pairs is None:
        return None
    moved = f"{count_human(found.recharges_total)} ({rate_human(rates.recharges_per_s)}/s)"
    parts = (
        f"checks {count_human(found.checks_total)} ({rate_human(rates.checks_per_s)}/s)",
        f"recharges {moved}, {bytes_human(found.recharged_bytes_total)}",
        f"failures {count_human(found.failures_total)}",
        f"lost races {count_human(found.lost_races_total)}",
    )
    return SEPARATOR.join(parts)


def _state_text(row: IdRow) -> str:
    return NOTHING if row.id.cgroup_id is None else UNKNOWN if row.state is None else row.state


IDS: View[IdRow] = View(
    "ids",
    "i",
    "Which memcg has which kmemcg_id, who had it before, and how many caches belong to it?",
    (
        Field(
            "cgroup",
            "CGROUP",
            TEXT,
            "Memcg that has the id now; - when nobody has it.",
            lambda r: r.cgroup,
            min_width=20,
        ),
        Field("state", "STATE", TEXT, "State of that memcg.", lambda r: r.state, show=_state_text, min_width=6, rank=1),
        _id["kmemcg_id"].of(lambda r: r.id),
        Field(
            "age_s",
            "AGE",
            SECONDS,
            "Time since that memcg got it, or the last gave it back; ? when that was before kmemwatch was attached.",
            lambda r: r.age_s,
            rank=2,
        ),
        _id["child_caches"].of(lambda r: r.id),
        _id["slab_bytes"].of(lambda r: r.id, rank=1),
        _id["reuses"].of(lambda r: r.id, rank=4),
        Field(
            "previous",
            "PREVIOUS",
            TEXT,
            "Memcg that had it before; - when kmemwatch saw none.",
            lambda r: r.previous,
            min_width=20,
            rank=3,
        ),
    ),
    (
        _id["cgroup_id"].of(lambda r: r.id),
        _id["since"].of(lambda r: r.id),
        _id["previous_owners"].of(lambda r: r.id),
    ),
    "slab_bytes",
    rows.id_rows,
    _no_ids,
    lambda r: f"{printable(r.cgroup)} (kmemcg_id {r.id.kmemcg_id})",
    lambda r: r.id.kmemcg_id,
    "no ids are in use",
    summary=_ids_summary,
)

RECHARGES: View[RechargeRow] = View(
    "recharges",
    "r",
    "Which slabs moved from one memcg to another, and how often?",
    (
        _recharge["cache"].of(lambda r: r.pair),
        _recharge["kmemcg_id"].of(lambda r: r.pair, rank=4),
        Field(
            "from_cgroup",
            "FROM",
            TEXT,
            "Memcg that the slabs were charged to; (nobody) when they were charged to none.",
            lambda r: r.source,
            min_width=20,
        ),
        _recharge["from_state"].of(lambda r: r.pair, rank=2),
        Field(
            "to_cgroup",
            "TO",
            TEXT,
            "Memcg that took them over.",
            lambda r: r.target,
            min_width=20,
        ),
        _recharge["recharges_total"].of(lambda r: r.pair),
        Field(
            "recharges_per_s",
            "SLABS/s",
            COUNT_PER_S,
            "Slabs moved per second.",
            lambda r: r.recharges_per_s,
            rank=3,
        ),
        _recharge["recharged_bytes_total"].of(lambda r: r.pair, rank=1),
    ),
    (_recharge["from_cgroup_id"].of(lambda r: r.pair), _recharge["to_cgroup_id"].of(lambda r: r.pair)),
    "recharges_total",
    rows.recharge_rows,
    _no_recharges,
    lambda r: f"{_recharge['cache'].text(r.pair)} {printable(r.source)} {printable(r.target)}",
    lambda r: move_key(r.pair),
    "no slab was recharged yet",
    summary=_recharges_summary,
)


VIEWS: tuple[View[Any], ...] = (CGROUPS, CACHES, ZOMBIES, IDS, RECHARGES)
"""In the order of their tabs."""
