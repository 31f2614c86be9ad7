# SPDX-License-Identifier: GPL-2.0-only
"""The views of `top`: which rows, which columns in which order, and what to say when there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Generic, TypeVar

from kmemwatch.model import ABSENT, MISSING, Cgroup, Snapshot
from kmemwatch.shape import BYTES, BYTES_PER_S, COUNT, COUNT_PER_S, SECONDS, TEXT, About
from kmemwatch.units import UNKNOWN, bytes_human, count_human, seconds_human
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
    cgroup_name,
    rate_human,
)
from kmemwatch.views.rates import move_key
from kmemwatch.views.rows import CacheRow, CgroupRow, Frame, IdRow, RechargeRow, ZombieRow

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class View(Generic[R]):
    name: str
    """``--view NAME``."""
    _: KW_ONLY
    letter: str = ""
    """Key that opens it."""
    help: str = ""
    """One sentence: what question it answers."""
    columns: tuple[Field[R], ...]
    """On the screen, from left to right; the first is the name and takes the room that is left."""
    extra: tuple[Field[R], ...] = ()
    """Only in files and details."""
    sort: str
    """Key of the field that it is sorted by at first."""
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

    def with_others(self, members: Mapping[str, Field[T]], part: Callable[[R], T], but: Collection[str]) -> View[R]:
        """The same with all other `members` that have a title, without `but`: a new one needs no line in its view."""
        known = {field.key for field in self.fields} | set(but)
        return replace(
            self, extra=self.extra + tuple(f.of(part) for f in members.values() if f.title and f.key not in known)
        )


def why_missing(snapshot: Snapshot, signals: Sequence[str]) -> str | None:
    """Reason that the probes give for a signal that is not measured."""
    for probe in snapshot.probes:
        if probe.signal in signals and probe.status in (MISSING, ABSENT):
            return probe.why
    return None


def _cgroup_text(cgroup: Cgroup) -> str:
    return cgroup_name(cgroup.id, cgroup.path)


def _of_cgroup(row: CgroupRow | ZombieRow) -> Cgroup:
    return row.cgroup


def _no_cgroups(snapshot: Snapshot) -> str:
    return why_missing(snapshot, ("lifecycle",)) or "no memory cgroups were found"


def _top_live(row: CgroupRow) -> str:
    if row.top_live_cache is not None:
        return row.top_live_cache
    return NOTHING if row.live_is_known else UNKNOWN


_TOP_LIVE = Field[CgroupRow](
    "top_live_cache",
    About(
        "Slab cache with most of its own live bytes; - when it has none, ? when it may have objects that are older than"
        " kmemwatch.",
        TEXT,
        "TOP CACHE",
        min_width=16,
    ),
    lambda r: r.top_live_cache,
    _top_live,
    rank=5,
)


def _columns(own: bool) -> tuple[Field[CgroupRow], ...]:
    """Of the view of cgroups: figures with their children and `own` ones; where not all fit, those wanted stay."""
    first, second = (8, 0) if own else (0, 8)
    return (
        CGROUP["cgroup"].of(_of_cgroup),
        CGROUP["state"].of(_of_cgroup, rank=5 if own else 1),
        CGROUP["kernel_bytes"].of(_of_cgroup, rank=first),
        CGROUP["slab_bytes"].of(_of_cgroup, rank=first + 6),
        CGROUP["memory_bytes"].of(_of_cgroup, rank=4),
        CGROUP_RATES["subtree_charged_bytes_per_s"].of(lambda r: r.rates, rank=first + 2),
        CGROUP_RATES["subtree_uncharged_bytes_per_s"].of(lambda r: r.rates, rank=first + 7),
        CGROUP_RATES["subtree_allocations_per_s"].of(lambda r: r.rates, rank=first + 1),
        CGROUP["own_kernel_bytes"].of(_of_cgroup, rank=second),
        CGROUP["own_slab_bytes"].of(_of_cgroup, rank=second + 6),
        CGROUP_RATES["charged_bytes_per_s"].of(lambda r: r.rates, rank=second + 2),
        CGROUP_RATES["uncharged_bytes_per_s"].of(lambda r: r.rates, rank=second + 7),
        ALLOC_RATES["allocations_per_s"].of(lambda r: r.rates.alloc, rank=second + 1, title="OWN ALLOC/s"),
        CGROUP_RATES["top_cache"].of(lambda r: r.rates, rank=3),
        _TOP_LIVE,
    )


CGROUPS = View[CgroupRow](
    "cgroups",
    letter="g",
    help="Which cgroups hold kernel memory, and how fast does it grow?",
    columns=_columns(own=False),
    extra=(
        CGROUP["cgroup_id"].of(_of_cgroup),
        CGROUP["parent_id"].of(_of_cgroup),
        CGROUP["dying_children"].of(_of_cgroup),
        CGROUP["kmemcg_id"].of(_of_cgroup),
        CGROUP["online_at"].of(_of_cgroup),
        CGROUP["offline_at"].of(_of_cgroup),
        CGROUP["charged_bytes_total"].of(_of_cgroup),
        CGROUP["uncharged_bytes_total"].of(_of_cgroup),
        CGROUP["subtree_charged_bytes_total"].of(_of_cgroup),
        CGROUP["subtree_uncharged_bytes_total"].of(_of_cgroup),
        CGROUP["subtree_allocations_total"].of(_of_cgroup),
        CGROUP_RATES["kernel_growth_bytes_per_s"].of(lambda r: r.rates),
        ALLOC_RATES["frees_per_s"].of(lambda r: r.rates.alloc, title="OWN FREE/s"),
        ALLOC_RATES["allocated_bytes_per_s"].of(lambda r: r.rates.alloc, title="OWN ALLOC B/s"),
    ),
    sort="kernel_bytes",
    rows=rows.cgroup_rows,
    missing=_no_cgroups,
    label=lambda r: _cgroup_text(r.cgroup),
    identity=lambda r: r.cgroup.id,
    empty="no cgroups",
    summary=lambda _: "figures include child cgroups, except OWN ..., ALLOCATED FROM and TOP CACHE",
).with_others(CGROUP, _of_cgroup, but=("references",))
CGROUPS_OWN = replace(CGROUPS, columns=_columns(own=True), sort="own_kernel_bytes")
"""The same, for a narrow screen: figures of each cgroup itself come first."""


def _top_cgroup(row: CacheRow) -> str:
    if row.top_cgroup is not None:
        return row.top_cgroup
    return UNKNOWN if row.rates.allocations_per_s is None else NOTHING


CACHES = View[CacheRow](
    "caches",
    letter="c",
    help="Which slab caches hold memory, which are allocated from, how fast, and by whom?",
    columns=(
        CACHE["cache"].of(lambda r: r.cache),
        CACHE["slab_bytes"].of(lambda r: r.cache),
        ALLOC_RATES["allocations_per_s"].of(lambda r: r.rates),
        ALLOC_RATES["frees_per_s"].of(lambda r: r.rates, rank=1),
        ALLOC_RATES["allocated_bytes_per_s"].of(lambda r: r.rates),
        Field(
            "growth_bytes_per_s",
            About(
                "Change of SIZE in bytes per second; below a cgroup, bytes of objects allocated less objects freed.",
                BYTES_PER_S,
                "GROWTH/s",
            ),
            lambda r: r.growth_bytes_per_s,
            rank=2,
        ),
        Field(
            "copies",
            About(
                "Child caches of memcgs, whose slabs are part of SIZE; - on kernels that have none.", COUNT, "COPIES"
            ),
            lambda r: r.copies,
            lambda r: NOTHING if r.copies is None else str(r.copies),
            rank=3,
        ),
        CACHE["object_bytes"].of(lambda r: r.cache, rank=5),
        Field(
            "top_cgroup",
            About(
                "Cgroup that allocated the most bytes in it in the last interval, even if they were freed at once; -"
                " when nobody did.",
                TEXT,
                "ALLOCATED BY",
                min_width=20,
            ),
            lambda r: r.top_cgroup,
            _top_cgroup,
            rank=4,
        ),
    ),
    extra=(
        CACHE["id"].of(lambda r: r.cache),
        CACHE["allocations_total"].of(lambda r: r.cache),
        CACHE["frees_total"].of(lambda r: r.cache),
        CACHE["allocated_bytes_total"].of(lambda r: r.cache),
    ),
    sort="slab_bytes",
    rows=rows.cache_rows,
    missing=lambda s: why_missing(s, ("alloc",)) or "no slab cache was seen",
    label=lambda r: CACHE["cache"].text(r.cache),
    identity=lambda r: (r.cache.name, r.cache.id),
    empty="no allocation was seen yet",
).with_others(CACHE, lambda r: r.cache, but=("root", "kmemcg_id"))


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
    shown = [*names] + ["…"] * (count > len(names) > 0)
    return f"{count} dying child{'ren' * (count > 1)}" + (f": {', '.join(shown)}" if shown else "")


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
    letter="z",
    help="Which removed cgroups does the kernel still keep, for how long, and what pins them?",
    columns=(
        CGROUP["cgroup"].of(_of_cgroup),
        Field(
            "age_at_least_s",
            About(
                "Time since it was removed; with > it died before kmemwatch was attached, and is older than this.",
                SECONDS,
                "AGE",
                min_width=7,
            ),
            lambda r: r.age_s,
            _age_text,
        ),
        CGROUP["memory_bytes"].of(_of_cgroup, rank=1),
        CGROUP["references"].of(_of_cgroup, rank=2),
        Field(
            "pins",
            About(
                "Kinds of memory that are still charged to it, in bytes, largest first, and its dying children by name;"
                " where there is no memory, other references as well.",
                TEXT,
                "PINNED BY",
                min_width=30,
            ),
            lambda r: _pins_exact(r.cgroup.pins),
            pinned_by,
        ),
    ),
    extra=(
        Field(
            "age_s",
            About(
                "Time since it was removed; unknown when it died before kmemwatch was attached.", SECONDS, "EXACT AGE"
            ),
            lambda r: r.age_s if r.age_is_exact else None,
        ),
        CGROUP["cgroup_id"].of(_of_cgroup),
        CGROUP["parent_id"].of(_of_cgroup),
        CGROUP["dying_children"].of(_of_cgroup),
        CGROUP["kmemcg_id"].of(_of_cgroup),
        CGROUP["online_at"].of(_of_cgroup),
        CGROUP["offline_at"].of(_of_cgroup),
        CGROUP["kernel_bytes"].of(_of_cgroup),
        CGROUP["slab_bytes"].of(_of_cgroup),
        Field(
            "child_caches",
            About("Child caches that hold slabs of it; unknown on kernels that have none.", COUNT, "CHILD CACHES"),
            lambda r: None if r.cgroup.child_slabs is None else len(r.cgroup.child_slabs),
        ),
        Field(
            "child_slab_bytes",
            About("Bytes of these slabs.", BYTES, "CHILD SLABS"),
            lambda r: None if r.cgroup.child_slabs is None else sum(s.slab_bytes for s in r.cgroup.child_slabs),
        ),
    ),
    sort="memory_bytes",
    rows=rows.zombie_rows,
    missing=_no_zombies,
    label=lambda r: _cgroup_text(r.cgroup),
    identity=lambda r: r.cgroup.id,
    empty="no dying cgroups: nothing pins a removed one",
    note=_zombie_note,
)


def _no_ids(snapshot: Snapshot) -> str:
    if snapshot.kernel.era is not None and snapshot.kernel.era not in PER_MEMCG_ERAS:
        if snapshot.ids.meaning is not None:
            return f"a kmemcg_id on this kernel: {snapshot.ids.meaning}"
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
        children += f", max {count_human(copies[most])} ({most})"
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
    letter="i",
    help="Which memcg has which kmemcg_id, who had it before, and how many caches belong to it?",
    columns=(
        Field(
            "cgroup",
            About("Memcg that has the id now; - when nobody has it.", TEXT, "CGROUP", min_width=20),
            lambda r: r.cgroup,
        ),
        Field(
            "state", About("State of that memcg.", TEXT, "STATE", min_width=6), lambda r: r.state, _state_text, rank=1
        ),
        KMEMCG_ID["kmemcg_id"].of(lambda r: r.id),
        Field(
            "age_s",
            About(
                "Time since that memcg got it, or the last gave it back; ? when that was before kmemwatch was"
                " attached.",
                SECONDS,
                "AGE",
            ),
            lambda r: r.age_s,
            rank=2,
        ),
        KMEMCG_ID["child_caches"].of(lambda r: r.id),
        KMEMCG_ID["slab_bytes"].of(lambda r: r.id, rank=1),
        KMEMCG_ID["reuses"].of(lambda r: r.id, rank=4),
        Field(
            "previous",
            About("Memcg that had it before; - when kmemwatch saw none.", TEXT, "PREVIOUS", min_width=20),
            lambda r: r.previous,
            rank=3,
        ),
    ),
    extra=(
        KMEMCG_ID["cgroup_id"].of(lambda r: r.id),
        KMEMCG_ID["since"].of(lambda r: r.id),
        KMEMCG_ID["previous_owners"].of(lambda r: r.id),
    ),
    sort="slab_bytes",
    rows=rows.id_rows,
    missing=_no_ids,
    label=lambda r: f"{r.cgroup} (kmemcg_id {r.id.kmemcg_id})",
    identity=lambda r: r.id.kmemcg_id,
    empty="no ids are in use",
    summary=_ids_summary,
)

RECHARGES: View[RechargeRow] = View(
    "recharges",
    letter="r",
    help="Which slabs moved from one memcg to another, and how often?",
    columns=(
        RECHARGE["cache"].of(lambda r: r.pair),
        RECHARGE["kmemcg_id"].of(lambda r: r.pair, rank=4),
        Field(
            "from_cgroup",
            About(
                "Memcg that the slabs were charged to; (nobody) when they were charged to none.",
                TEXT,
                "FROM",
                min_width=20,
            ),
            lambda r: r.source,
        ),
        RECHARGE["from_state"].of(lambda r: r.pair, rank=2),
        Field("to_cgroup", About("Memcg that took them over.", TEXT, "TO", min_width=20), lambda r: r.target),
        RECHARGE["recharges_total"].of(lambda r: r.pair),
        Field(
            "recharges_per_s",
            About("Slabs moved per second.", COUNT_PER_S, "SLABS/s"),
            lambda r: r.recharges_per_s,
            rank=3,
        ),
        RECHARGE["recharged_bytes_total"].of(lambda r: r.pair, rank=1),
    ),
    extra=(RECHARGE["from_cgroup_id"].of(lambda r: r.pair), RECHARGE["to_cgroup_id"].of(lambda r: r.pair)),
    sort="recharges_total",
    rows=rows.recharge_rows,
    missing=_no_recharges,
    label=lambda r: f"{RECHARGE['cache'].text(r.pair)} {r.source} {r.target}",
    identity=lambda r: move_key(r.pair),
    empty="no slab was recharged yet",
    summary=_recharges_summary,
)


VIEWS: tuple[View[Any], ...] = (CGROUPS, CACHES, ZOMBIES, IDS, RECHARGES)
"""In the order of their tabs."""
