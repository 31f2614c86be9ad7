# SPDX-License-Identifier: GPL-2.0-only
"""The views of `top` for kernels with child caches: kmemcg_ids, and slabs that move from one memcg to another."""

from __future__ import annotations

from kmemwatch.model import Snapshot
from kmemwatch.units import UNKNOWN, bytes_human, count_human, printable
from kmemwatch.views import rows
from kmemwatch.views.derived import PER_MEMCG_ERAS, caches_per_root
from kmemwatch.views.field import COUNT_PER_S, SECONDS, SEPARATOR, TEXT, Field, rate_human
from kmemwatch.views.measures import KMEMCG_ID, NOTHING, RECHARGE, by_key
from kmemwatch.views.rates import move_key
from kmemwatch.views.rows import Frame, IdRow, RechargeRow
from kmemwatch.views.view import View, why_missing

_id, _recharge = by_key(KMEMCG_ID), by_key(RECHARGE)


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
