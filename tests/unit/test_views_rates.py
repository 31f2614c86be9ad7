# SPDX-License-Identifier: GPL-2.0-only
"""Rates: exact on known counts, unknown when they have to be, never negative where they count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from kmemwatch.model import Cache, Cgroup, Snapshot
from kmemwatch.views.rates import NO_RATES, AllocRates, per_second, rates, same_run
from tests.unit import fakes
from tests.unit.fakes import IDS

counts = st.none() | st.integers(0, 2**63)
seconds = st.integers(1, 10_000)


def after(before: Snapshot, interval_s: int) -> Snapshot:
    return replace(
        before,
        taken_at_ns=before.taken_at_ns + interval_s * 10**9,
        monotonic_ns=before.monotonic_ns + interval_s * 10**9,
        duration_s=before.duration_s + interval_s,
    )


def test_rates_of_the_sample_are_its_table() -> None:
    found = rates(fakes.sample(), fakes.sample(3))
    assert found.interval_s == 3.0
    name, size, allocs, frees = fakes.CACHES[0]
    assert found.caches[name, IDS[0xFFFF_8880_0100_0000]] == AllocRates(allocs, allocs * size, frees)
    root = found.cgroups[1]
    assert root.charged_bytes_per_s == int(9.4 * fakes.MB)
    assert root.kernel_growth_bytes_per_s == 0
    assert root.top_cache == "dentry"


def test_alloc_rate_of_a_cgroup_is_the_sum_of_its_pairs() -> None:
    found = rates(fakes.sample(), fakes.sample(7))
    for cgroup_id, rate in found.cgroups.items():
        own = [r for (id_, _, _), r in found.pairs.items() if id_ == cgroup_id]
        assert rate.alloc.allocations_per_s == sum(r.allocations_per_s or 0 for r in own)


@given(before=counts, later=counts, interval=seconds)
def test_a_counter_never_has_a_negative_rate(before: int | None, later: int | None, interval: int) -> None:
    rate = per_second(before, later, interval)
    if before is None or later is None or later < before:
        assert rate is None
    else:
        assert rate is not None
        assert rate >= 0
        assert rate == (later - before) / interval


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    cgroup_ids = st.integers(1, 4)
    names = st.sampled_from(["dentry", "filp", "odd name"])
    cgroups = {
        id_: fakes.row(
            Cgroup,
            id=id_,
            path=f"/{id_}",
            state="online",
            kernel_bytes=draw(counts),
            charged_bytes_total=draw(counts),
            uncharged_bytes_total=draw(counts),
        )
        for id_ in draw(st.sets(cgroup_ids))
    }
    caches = {
        n: fakes.row(
            Cache,
            name=n,
            object_bytes=8,
            allocations_total=draw(counts),
            allocated_bytes_total=draw(counts),
            frees_total=draw(counts),
        )
        for n in draw(st.sets(names))
    }
    pairs = {
        key: fakes.pair(key[1], None, key[0], draw(counts), draw(counts), draw(counts), None)
        for key in draw(st.sets(st.tuples(cgroup_ids, names)))
    }
    return replace(
        fakes.sample(),
        cgroups=tuple(cgroups[k] for k in sorted(cgroups)),
        caches=tuple(caches[k] for k in sorted(caches)),
        pairs=tuple(pairs[k] for k in sorted(pairs)),
    )


@given(before=snapshots(), later=snapshots(), interval=seconds)
def test_every_row_has_rates_and_counters_are_never_negative(before: Snapshot, later: Snapshot, interval: int) -> None:
    later = after(later, interval)
    found = rates(before, later)
    assert set(found.cgroups) == {c.id for c in later.cgroups}
    assert set(found.caches) == {(c.name, c.id) for c in later.caches}
    assert set(found.pairs) == {(p.cgroup_id, p.cache, p.cache_id) for p in later.pairs}
    every = [*found.caches.values(), *found.pairs.values(), *(c.alloc for c in found.cgroups.values())]
    for rate in every:
        assert all(value is None or value >= 0 for value in asdict(rate).values())
    for cgroup in found.cgroups.values():
        assert cgroup.charged_bytes_per_s is None or cgroup.charged_bytes_per_s >= 0


def test_a_new_row_had_done_nothing_before() -> None:
    before, later = fakes.sample(), fakes.sample(2)
    before = replace(before, pairs=(), caches=(), cgroups=())
    found = rates(before, later)
    cache = later.caches[0]
    assert cache.allocations_total is not None
    assert found.caches[cache.name, cache.id].allocations_per_s == cache.allocations_total / 2
    assert found.cgroups[1].kernel_growth_bytes_per_s is None  # not a counter: it may have held memory before


@pytest.mark.parametrize(
    "later",
    [
        replace(fakes.sample(3), duration_s=1.0),
        replace(fakes.sample(3), host=replace(fakes.HOST, boot_id="another")),
        replace(fakes.sample(3), host=replace(fakes.HOST, hostname="another")),
    ],
    ids=["restarted", "rebooted", "another host"],
)
def test_another_run_cannot_be_compared(later: Snapshot) -> None:
    assert not same_run(fakes.sample(), later)
    assert rates(fakes.sample(), later) is NO_RATES


def test_nothing_to_compare_with() -> None:
    assert rates(None, fakes.sample()) is NO_RATES
    assert rates(fakes.sample(3), fakes.sample(3)) is NO_RATES
    assert rates(fakes.sample(3), fakes.sample()) is NO_RATES


def test_a_cgroup_without_pairs_is_idle_only_where_allocations_are_measured() -> None:
    idle = fakes.sample().cgroups[1].id
    assert rates(fakes.sample(), fakes.sample(3)).cgroups[idle].alloc == AllocRates(0.0, 0.0, 0.0)
    blind = rates(fakes.unknown(), fakes.unknown(3))
    assert blind.cgroups[7].alloc == AllocRates()
