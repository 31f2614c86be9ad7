# SPDX-License-Identifier: GPL-2.0-only
"""Hypothesis strategies for everything in `kmemwatch.model`, names that no sane person uses included."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

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

UNDECODABLE = "".join(map(chr, range(0xDC80, 0xDD00)))

names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], include_characters=UNDECODABLE), max_size=12),
    st.sampled_from(("dentry", "/", "/a/b", "/a\nb", 'q"u', "back\\slash", "\\x80", "\udc80", "NaN", "/é", "other")),
)
counts = st.integers(0, 2**64 - 1)
maybe_counts = st.none() | counts
numbers = st.integers(-(2**63), 2**64 - 1)
maybe_numbers = st.none() | numbers
maybe_gauges = st.none() | st.integers(0, 2**62 - 1)
times = st.integers(0, 253_402_300_799_999_999_999)
maybe_times = st.none() | times
maybe_names = st.none() | names
some_ids = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"), min_size=12, max_size=12)
cache_ids = st.none() | some_ids
seconds = st.floats(0, 1e12)
tallies = st.dictionaries(names, counts, max_size=3).map(MappingProxyType)


def tuples(of: st.SearchStrategy[Any], size: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=size).map(tuple)


hosts = st.builds(Host, names, names, names, maybe_names)
kernels = st.builds(Kernel, maybe_names, st.none() | st.booleans(), maybe_counts, maybe_names)
probes = st.builds(Probe, names, maybe_names, st.sampled_from((ATTACHED, FALLBACK, MISSING, ABSENT)), maybe_names)
caches = st.builds(Cache, names, cache_ids, maybe_counts, maybe_names, maybe_numbers, *[maybe_counts] * 4)
cgroups = st.builds(
    Cgroup,
    id=counts,
    path=maybe_names,
    state=st.sampled_from((ONLINE, DYING, RELEASED)),
    kmemcg_id=maybe_numbers,
    online_at_ns=maybe_times,
    offline_at_ns=maybe_times,
    memory_bytes=maybe_gauges,
    kernel_bytes=maybe_gauges,
    slab_bytes=maybe_gauges,
    charged_bytes_total=maybe_counts,
    uncharged_bytes_total=maybe_counts,
    pins=st.none() | st.dictionaries(names, st.integers(0, 2**62 - 1), max_size=3).map(MappingProxyType),
    references=maybe_gauges,
    released_at_ns=maybe_times,
    child_slabs=st.none() | tuples(st.builds(ChildSlabs, names, some_ids, numbers, counts)),
    parent_id=maybe_counts,
    dying_children=maybe_counts,
    own_kernel_bytes=maybe_gauges,
    own_slab_bytes=maybe_gauges,
    subtree_charged_bytes_total=maybe_counts,
    subtree_uncharged_bytes_total=maybe_counts,
    subtree_allocations_total=maybe_counts,
)
pairs = st.builds(Pair, names, cache_ids, counts, maybe_counts, maybe_counts, maybe_counts, maybe_gauges)
from_states = st.sampled_from(FROM_STATES)
recharge_pairs = st.builds(RechargePair, names, maybe_counts, from_states, counts, counts, counts, maybe_numbers)
recharges = st.builds(
    Recharges,
    *[maybe_counts] * 5,
    st.none() | tuples(recharge_pairs),
    st.none() | tuples(st.builds(RechargeTotal, names, from_states, counts, counts)),
)
kmemcg_ids = st.builds(KmemcgId, numbers, maybe_counts, maybe_times, tuples(counts), maybe_counts, maybe_counts)
ids = st.builds(Ids, *[maybe_counts] * 3, st.none() | tuples(kmemcg_ids), maybe_counts, maybe_counts, maybe_names)
losses = st.builds(Lost, maybe_counts, maybe_counts, maybe_counts, tallies)
totals = st.builds(Totals, *[maybe_counts] * 7)
map_fills = st.builds(MapFill, names, counts, counts)
histograms = st.builds(LatencyHistogram, st.sampled_from(LATENCY_KINDS), counts, counts, tuples(counts))
latencies = st.builds(Latency, st.integers(1, 1 << 20), tallies, tallies, tuples(histograms))

snapshots = st.builds(
    Snapshot,
    taken_at_ns=times,
    monotonic_ns=counts,
    duration_s=seconds,
    host=hosts,
    kernel=kernels,
    probes=tuples(probes),
    caches=tuples(caches),
    cgroups=tuples(cgroups),
    pairs=tuples(pairs),
    recharges=recharges,
    ids=ids,
    lost=losses,
    totals=totals,
    maps=tuples(map_fills),
    release_delays_s=tuples(seconds, 5),
    latency=st.none() | latencies,
)
events = st.builds(
    Event,
    times,
    st.sampled_from(EVENT_KINDS),
    maybe_counts,
    maybe_names,
    maybe_counts,
    maybe_names,
    maybe_names,
    maybe_numbers,
    maybe_counts,
    maybe_numbers,
)
