# SPDX-License-Identifier: GPL-2.0-only
"""JSON-able dicts -> model; anything malformed is a UsageError that names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kmemwatch.codec.reader import Reader
from kmemwatch.codec.room import check_room
from kmemwatch.errors import UsageError
from kmemwatch.model import (
    ABSENT,
    ATTACHED,
    DYING,
    EVENT_KINDS,
    FALLBACK,
    FROM_STATES,
    LATENCY_KINDS,
    MISSING,
    ONLINE,
    RELEASED,
    SCHEMA_VERSION,
    Cache,
    Cgroup,
    ChildSlabs,
    Event,
    Host,
    Ids,
    Kernel,
    KmemcgId,
    Latency,
    LatencyHistogram,
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

_UPDATE_HINT = "it was written by another release of kmemwatch; use the same release on both sides"


def parse_json(text: str | bytes, came_bytes: int | None = None) -> object:
    """`json.loads` with kmemwatch's errors: UsageError with line and column of what is not JSON.

    `came_bytes`: how long the text was when it came, compressed. A little that would take much memory is refused.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    check_room(raw, len(raw) if came_bytes is None else came_bytes)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        raise UsageError(f"not JSON: {exc.msg} at line {exc.lineno} column {exc.colno}") from exc
    except (ValueError, RecursionError) as exc:  # bytes that are not UTF-8, NaN, numbers of thousands of digits
        raise UsageError(f"not JSON: {exc}") from exc


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def snapshot_from_json(text: str | bytes, came_bytes: int | None = None) -> Snapshot:
    """The Snapshot in JSON text; UsageError when it is malformed. `came_bytes`: see `parse_json`."""
    return snapshot_from_dict(parse_json(text, came_bytes))


def snapshot_from_dict(data: object) -> Snapshot:
    """The Snapshot in parsed JSON; UsageError that names the field when it is malformed."""
    doc = Reader(data, "")
    schema = doc.whole("schema")
    if schema != SCHEMA_VERSION:
        raise UsageError(f"schema: expected {SCHEMA_VERSION}, got {schema}", _UPDATE_HINT)
    return Snapshot(
        taken_at_ns=doc.time("taken_at"),
        monotonic_ns=doc.whole("monotonic_ns"),
        duration_s=doc.number("duration_s"),
        host=_host(doc.object("host")),
        kernel=_kernel(doc.object("kernel")),
        probes=doc.each("probes", _probe),
        caches=doc.each("caches", _cache),
        cgroups=doc.each("cgroups", _cgroup),
        pairs=doc.each("pairs", _pair),
        recharges=_recharges(doc.object("recharges")),
        ids=_ids(doc.object("ids")),
        lost=_lost(doc.object("lost")),
        totals=_totals(doc.object("totals")),
        maps=doc.each("maps", _map_fill),
        release_delays_s=doc.numbers("release_delays_s"),
        latency=doc.later("latency", lambda key: doc.opt_object(key, _latency)),
    )


def _latency(latency: Reader) -> Latency:
    return Latency(
        one_in=latency.whole("one_in", 1),
        calls_total=latency.counts("calls_total"),
        dropped_total=latency.counts("dropped_total"),
        histograms=latency.each("histograms", _histogram),
    )


def _histogram(histogram: Reader) -> LatencyHistogram:
    return LatencyHistogram(
        kind=histogram.choice("kind", LATENCY_KINDS),
        samples_total=histogram.whole("samples_total"),
        sum_ns_total=histogram.whole("sum_ns_total"),
        buckets=histogram.wholes("buckets"),
    )


def event_from_dict(data: object) -> Event:
    """The Event in parsed JSON; UsageError that names the field when it is malformed."""
    event = Reader(data, "")
    return Event(
        at_ns=event.time("at"),
        kind=event.choice("kind", EVENT_KINDS),
        cgroup_id=event.opt_whole("cgroup_id"),
        path=event.opt_text("path"),
        pid=event.opt_whole("pid"),
        comm=event.opt_text("comm"),
        cache=event.opt_cache("cache"),
        kmemcg_id=event.opt_whole("kmemcg_id", minimum=None),
        other_cgroup_id=event.opt_whole("other_cgroup_id"),
        bytes=event.opt_whole("bytes", minimum=None),
    )


def host_from_dict(data: object) -> Host:
    """Inverse of the "host" in `snapshot_to_dict`. Raises UsageError that names the field."""
    return _host(Reader(data, "host"))


def _host(host: Reader) -> Host:
    return Host(
        hostname=host.text("hostname"),
        kernel=host.text("kernel"),
        arch=host.text("arch"),
        boot_id=host.opt_text("boot_id"),
    )


def _kernel(kernel: Reader) -> Kernel:
    return Kernel(
        era=kernel.opt_text("era"),
        patchset=kernel.opt_bool("patchset"),
        cgroup_version=kernel.opt_whole("cgroup_version"),
        lockdown=kernel.opt_text("lockdown"),
    )


def _probe(probe: Reader) -> Probe:
    return Probe(
        signal=probe.text("signal"),
        attachment=probe.opt_text("attachment"),
        status=probe.choice("status", (ATTACHED, FALLBACK, MISSING, ABSENT)),
        why=probe.opt_message("why"),
    )


def _cache(cache: Reader) -> Cache:
    return Cache(
        name=cache.cache("name"),
        id=cache.opt_cache_id("id", "address"),
        object_bytes=cache.opt_whole("object_bytes"),
        root=cache.opt_cache("root"),
        kmemcg_id=cache.opt_whole("kmemcg_id", minimum=None),
        allocations_total=cache.opt_whole("allocations_total"),
        allocated_bytes_total=cache.opt_whole("allocated_bytes_total"),
        frees_total=cache.opt_whole("frees_total"),
        slab_bytes=cache.opt_whole("slab_bytes"),
    )


_PAGES = ("file", "shmem", "anon", "swapcache")
"""Kinds of `Cgroup.pins` that are part of `Cgroup.memory_bytes`, whatever the kernel."""


def _pins(cgroup: Reader, memory_bytes: int | None) -> Mapping[str, int] | None:
    """None, too, when the pages are more than the memory that they are part of: older releases took statistics of the
    kernel for true that were two seconds old."""
    found = cgroup.opt_gauges("pins")
    if found is None or memory_bytes is None:
        return found
    return found if sum(found.get(kind, 0) for kind in _PAGES) <= memory_bytes else None


def _cgroup(cgroup: Reader) -> Cgroup:
    # Older releases recorded gauges that were below 0 for a moment; that must not make a recording unreadable.
    memory_bytes = cgroup.opt_gauge("memory_bytes")
    return Cgroup(
        id=cgroup.whole("id"),
        path=cgroup.opt_text("path"),
        state=cgroup.choice("state", (ONLINE, DYING, RELEASED)),
        kmemcg_id=cgroup.opt_whole("kmemcg_id", minimum=None),
        online_at_ns=cgroup.opt_time("online_at"),
        offline_at_ns=cgroup.opt_time("offline_at"),
        released_at_ns=cgroup.opt_time("released_at"),
        memory_bytes=memory_bytes,
        kernel_bytes=cgroup.opt_gauge("kernel_bytes"),
        slab_bytes=cgroup.opt_gauge("slab_bytes"),
        charged_bytes_total=cgroup.opt_whole("charged_bytes_total"),
        uncharged_bytes_total=cgroup.opt_whole("uncharged_bytes_total"),
        pins=_pins(cgroup, memory_bytes),
        references=cgroup.opt_gauge("references"),
        child_slabs=cgroup.later("child_slabs", lambda key: cgroup.opt_each(key, _child_slabs)),
        parent_id=cgroup.later("parent_id", cgroup.opt_whole),
        dying_children=cgroup.later("dying_children", cgroup.opt_whole),
        own_kernel_bytes=cgroup.later("own_kernel_bytes", cgroup.opt_gauge),
        own_slab_bytes=cgroup.later("own_slab_bytes", cgroup.opt_gauge),
        subtree_charged_bytes_total=cgroup.later("subtree_charged_bytes_total", cgroup.opt_whole),
        subtree_uncharged_bytes_total=cgroup.later("subtree_uncharged_bytes_total", cgroup.opt_whole),
        subtree_allocations_total=cgroup.later("subtree_allocations_total", cgroup.opt_whole),
    )


def _child_slabs(slabs: Reader) -> ChildSlabs:
    return ChildSlabs(
        cache=slabs.cache("cache"),
        cache_id=slabs.cache_id("cache_id", "cache_address"),
        kmemcg_id=slabs.whole("kmemcg_id", minimum=None),
        slab_bytes=slabs.whole("slab_bytes"),
    )


def _pair(pair: Reader) -> Pair:
    return Pair(
        cache=pair.cache("cache"),
        cache_id=pair.opt_cache_id("cache_id", "cache_address"),
        cgroup_id=pair.whole("cgroup_id"),
        allocations_total=pair.opt_whole("allocations_total"),
        allocated_bytes_total=pair.opt_whole("allocated_bytes_total"),
        frees_total=pair.opt_whole("frees_total"),
        live_bytes=pair.opt_gauge("live_bytes"),
    )


def _recharges(recharges: Reader) -> Recharges:
    return Recharges(
        checks_total=recharges.opt_whole("checks_total"),
        recharges_total=recharges.opt_whole("recharges_total"),
        recharged_bytes_total=recharges.opt_whole("recharged_bytes_total"),
        failures_total=recharges.opt_whole("failures_total"),
        lost_races_total=recharges.later("lost_races_total", recharges.opt_whole),
        pairs=recharges.opt_each("pairs", _recharge_pair),
        totals=recharges.later("totals", lambda key: recharges.opt_each(key, _recharge_total)),
    )


def _recharge_pair(pair: Reader) -> RechargePair:
    return RechargePair(
        cache=pair.cache("cache"),
        from_cgroup_id=pair.opt_whole("from_cgroup_id"),
        from_state=pair.choice("from_state", FROM_STATES),
        to_cgroup_id=pair.whole("to_cgroup_id"),
        recharges_total=pair.whole("recharges_total"),
        recharged_bytes_total=pair.whole("recharged_bytes_total"),
        kmemcg_id=pair.opt_whole("kmemcg_id", minimum=None),
    )


def _recharge_total(total: Reader) -> RechargeTotal:
    return RechargeTotal(
        cache=total.cache("cache"),
        from_state=total.choice("from_state", FROM_STATES),
        recharges_total=total.whole("recharges_total"),
        recharged_bytes_total=total.whole("recharged_bytes_total"),
    )


def _ids(ids: Reader) -> Ids:
    return Ids(
        in_use=ids.opt_whole("in_use"),
        peak_online_memcgs=ids.opt_whole("peak_online_memcgs"),
        reuses_total=ids.opt_whole("reuses_total"),
        map=ids.opt_each("map", _kmemcg_id),
        given_total=ids.later("given_total", ids.opt_whole),
        freed_total=ids.later("freed_total", ids.opt_whole),
        meaning=ids.later("meaning", ids.opt_text),
    )


def _kmemcg_id(entry: Reader) -> KmemcgId:
    return KmemcgId(
        kmemcg_id=entry.whole("kmemcg_id", minimum=None),
        cgroup_id=entry.opt_whole("cgroup_id"),
        since_ns=entry.opt_time("since"),
        previous_owners=entry.wholes("previous_owners"),
        caches=entry.opt_whole("caches"),
        slab_bytes=entry.later("slab_bytes", entry.opt_whole),
    )


def _lost(lost: Reader) -> Lost:
    return Lost(
        events_total=lost.opt_whole("events_total"),
        map_full_total=lost.opt_whole("map_full_total"),
        unresolved_total=lost.opt_whole("unresolved_total"),
        reasons=lost.counts("reasons"),
    )


def _totals(totals: Reader) -> Totals:
    return Totals(
        online_cgroups=totals.opt_whole("online_cgroups"),
        online_cgroups_peak=totals.opt_whole("online_cgroups_peak"),
        dying_cgroups=totals.opt_whole("dying_cgroups"),
        cgroups_onlined_total=totals.opt_whole("cgroups_onlined_total"),
        cgroups_offlined_total=totals.opt_whole("cgroups_offlined_total"),
        cgroups_released_total=totals.opt_whole("cgroups_released_total"),
        memcg_ids_in_use=totals.later("memcg_ids_in_use", totals.opt_whole),
    )


def _map_fill(fill: Reader) -> MapFill:
    return MapFill(name=fill.text("name"), entries=fill.whole("entries"), capacity=fill.whole("capacity"))
