# SPDX-License-Identifier: GPL-2.0-only
"""Model -> JSON-able dicts; the order of the keys is the order of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kmemwatch.model import (
    SCHEMA_VERSION,
    Cache,
    Cgroup,
    ChildSlabs,
    Event,
    Ids,
    KmemcgId,
    Latency,
    Lost,
    MapFill,
    Pair,
    Probe,
    RechargePair,
    Recharges,
    RechargeTotal,
    Snapshot,
    Totals,
)
from kmemwatch.units import printable, rfc3339

Json = dict[str, Any]


def dump_json(value: Json, indent: int | None = None) -> str:
    """JSON text on one line unless `indent` is given; ValueError for NaN and infinity, which JSON has not."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)


def snapshot_to_json(snapshot: Snapshot, indent: int | None = None) -> str:
    """The Snapshot as JSON text, without a newline at the end."""
    return dump_json(snapshot_to_dict(snapshot), indent)


def snapshot_to_dict(snapshot: Snapshot) -> Json:
    """The Snapshot as a dict that `json` can write."""
    host, kernel = snapshot.host, snapshot.kernel
    return {
        "schema": SCHEMA_VERSION,
        "taken_at": _time(snapshot.taken_at_ns),
        "monotonic_ns": snapshot.monotonic_ns,
        "duration_s": snapshot.duration_s,
        "host": {
            "hostname": printable(host.hostname),
            "kernel": printable(host.kernel),
            "arch": printable(host.arch),
            "boot_id": _text(host.boot_id),
        },
        "kernel": {
            "era": _text(kernel.era),
            "patchset": kernel.patchset,
            "cgroup_version": kernel.cgroup_version,
            "lockdown": _text(kernel.lockdown),
        },
        "probes": [_probe(probe) for probe in snapshot.probes],
        "caches": [_cache(cache) for cache in snapshot.caches],
        "cgroups": [_cgroup(cgroup) for cgroup in snapshot.cgroups],
        "pairs": [_pair(pair) for pair in snapshot.pairs],
        "recharges": _recharges(snapshot.recharges),
        "ids": _ids(snapshot.ids),
        "lost": _lost(snapshot.lost),
        "totals": _totals(snapshot.totals),
        "maps": [_map_fill(fill) for fill in snapshot.maps],
        "release_delays_s": list(snapshot.release_delays_s),
        "latency": None if snapshot.latency is None else _latency(snapshot.latency),
    }


def event_to_dict(event: Event) -> Json:
    """The Event as a dict that `json` can write."""
    return {
        "at": _time(event.at_ns),
        "kind": event.kind,
        "cgroup_id": event.cgroup_id,
        "path": _text(event.path),
        "pid": event.pid,
        "comm": _text(event.comm),
        "cache": _text(event.cache),
        "kmemcg_id": event.kmemcg_id,
        "other_cgroup_id": event.other_cgroup_id,
        "bytes": event.bytes,
    }


def _time(at_ns: int | None) -> str | None:
    return rfc3339(at_ns, digits=9)


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value)


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {printable(name): count for name, count in counts.items()}


def _probe(probe: Probe) -> Json:
    return {
        "signal": printable(probe.signal),
        "attachment": _text(probe.attachment),
        "status": probe.status,
        "why": _text(probe.why),
    }


def _cache(cache: Cache) -> Json:
    return {
        "name": printable(cache.name),
        "id": cache.id,
        "object_bytes": cache.object_bytes,
        "root": _text(cache.root),
        "kmemcg_id": cache.kmemcg_id,
        "allocations_total": cache.allocations_total,
        "allocated_bytes_total": cache.allocated_bytes_total,
        "frees_total": cache.frees_total,
        "slab_bytes": cache.slab_bytes,
    }


def _cgroup(cgroup: Cgroup) -> Json:
    return {
        "id": cgroup.id,
        "path": _text(cgroup.path),
        "state": cgroup.state,
        "kmemcg_id": cgroup.kmemcg_id,
        "online_at": _time(cgroup.online_at_ns),
        "offline_at": _time(cgroup.offline_at_ns),
        "released_at": _time(cgroup.released_at_ns),
        "memory_bytes": cgroup.memory_bytes,
        "kernel_bytes": cgroup.kernel_bytes,
        "slab_bytes": cgroup.slab_bytes,
        "charged_bytes_total": cgroup.charged_bytes_total,
        "uncharged_bytes_total": cgroup.uncharged_bytes_total,
        "pins": None if cgroup.pins is None else _counts(cgroup.pins),
        "references": cgroup.references,
        "child_slabs": None if cgroup.child_slabs is None else [_child_slabs(slabs) for slabs in cgroup.child_slabs],
        "parent_id": cgroup.parent_id,
        "dying_children": cgroup.dying_children,
        "own_kernel_bytes": cgroup.own_kernel_bytes,
        "own_slab_bytes": cgroup.own_slab_bytes,
        "subtree_charged_bytes_total": cgroup.subtree_charged_bytes_total,
        "subtree_uncharged_bytes_total": cgroup.subtree_uncharged_bytes_total,
        "subtree_allocations_total": cgroup.subtree_allocations_total,
    }


def _child_slabs(slabs: ChildSlabs) -> Json:
    return {
        "cache": printable(slabs.cache),
        "cache_id": slabs.cache_id,
        "kmemcg_id": slabs.kmemcg_id,
        "slab_bytes": slabs.slab_bytes,
    }


def _pair(pair: Pair) -> Json:
    return {
        "cache": printable(pair.cache),
        "cache_id": pair.cache_id,
        "cgroup_id": pair.cgroup_id,
        "allocations_total": pair.allocations_total,
        "allocated_bytes_total": pair.allocated_bytes_total,
        "frees_total": pair.frees_total,
        "live_bytes": pair.live_bytes,
    }


def _recharges(recharges: Recharges) -> Json:
    return {
        "checks_total": recharges.checks_total,
        "recharges_total": recharges.recharges_total,
        "recharged_bytes_total": recharges.recharged_bytes_total,
        "failures_total": recharges.failures_total,
        "lost_races_total": recharges.lost_races_total,
        "pairs": None if recharges.pairs is None else [_recharge_pair(pair) for pair in recharges.pairs],
        "totals": None if recharges.totals is None else [_recharge_total(total) for total in recharges.totals],
    }


def _recharge_pair(pair: RechargePair) -> Json:
    return {
        "cache": printable(pair.cache),
        "from_cgroup_id": pair.from_cgroup_id,
        "from_state": pair.from_state,
        "to_cgroup_id": pair.to_cgroup_id,
        "recharges_total": pair.recharges_total,
        "recharged_bytes_total": pair.recharged_bytes_total,
        "kmemcg_id": pair.kmemcg_id,
    }


def _recharge_total(total: RechargeTotal) -> Json:
    return {
        "cache": printable(total.cache),
        "from_state": total.from_state,
        "recharges_total": total.recharges_total,
        "recharged_bytes_total": total.recharged_bytes_total,
    }


def _ids(ids: Ids) -> Json:
    return {
        "in_use": ids.in_use,
        "peak_online_memcgs": ids.peak_online_memcgs,
        "reuses_total": ids.reuses_total,
        "map": None if ids.map is None else [_kmemcg_id(entry) for entry in ids.map],
        "given_total": ids.given_total,
        "freed_total": ids.freed_total,
        "meaning": _text(ids.meaning),
    }


def _kmemcg_id(entry: KmemcgId) -> Json:
    return {
        "kmemcg_id": entry.kmemcg_id,
        "cgroup_id": entry.cgroup_id,
        "since": _time(entry.since_ns),
        "previous_owners": list(entry.previous_owners),
        "caches": entry.caches,
        "slab_bytes": entry.slab_bytes,
    }


def _lost(lost: Lost) -> Json:
    return {
        "events_total": lost.events_total,
        "map_full_total": lost.map_full_total,
        "unresolved_total": lost.unresolved_total,
        "reasons": _counts(lost.reasons),
    }


def _totals(totals: Totals) -> Json:
    return {
        "online_cgroups": totals.online_cgroups,
        "online_cgroups_peak": totals.online_cgroups_peak,
        "dying_cgroups": totals.dying_cgroups,
        "cgroups_onlined_total": totals.cgroups_onlined_total,
        "cgroups_offlined_total": totals.cgroups_offlined_total,
        "cgroups_released_total": totals.cgroups_released_total,
        "memcg_ids_in_use": totals.memcg_ids_in_use,
    }


def _latency(latency: Latency) -> Json:
    return {
        "one_in": latency.one_in,
        "calls_total": _counts(latency.calls_total),
        "dropped_total": _counts(latency.dropped_total),
        "histograms": [
            {
                "kind": one.kind,
                "samples_total": one.samples_total,
                "sum_ns_total": one.sum_ns_total,
                "buckets": list(one.buckets),
            }
            for one in latency.histograms
        ],
    }


def _map_fill(fill: MapFill) -> Json:
    return {"name": printable(fill.name), "entries": fill.entries, "capacity": fill.capacity}
