# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is read, no figure of a snapshot is negative, and no memory larger than that of the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct, structs

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.maps.decode import PAIR_COUNTS, REFERENCES_COUNTED, LruPages, MemcgRecord
from kmemwatch.model import Snapshot
from kmemwatch.source.reading import Reading, RechargeCounts, RechargeKey
from tests.unit.fake_source import DENTRY, FILP, ROOT, SECOND, STATS, Clock, FakeSource, make_state, recorded_facts

HOST_BYTES = 1 << 30
PAST_THE_HOST = {"pins.swap"}
"""Swap is elsewhere."""
SIGNED = {"kmemcg_id"}
"""-1: none."""

words = st.integers(0, 2**64 - 1) | st.integers(0, 1 << 18)
numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-(1 << 18), 1 << 18)
totals = st.integers(0, 1 << 40)
ids = st.sampled_from((ROOT, 2, 3, 4))
caches = st.sampled_from((DENTRY, FILP))


@st.composite
def records(draw: st.DrawFn) -> list[MemcgRecord]:
    found = []
    for cgroup_id, parent in ((ROOT, 0), (2, ROOT), (3, 2), (4, 3)):
        references, lru = draw(words), draw(st.none() | st.builds(LruPages, numbers, numbers, numbers))
        record = MemcgRecord(
            cgroup_id, parent, cgroup_id, cgroup_id, references if references < REFERENCES_COUNTED else None,
            *draw(st.tuples(words, words, words, words)), draw(st.booleans()) or cgroup_id == ROOT,
            draw(st.sampled_from((-1, 5))), tuple(draw(st.lists(numbers, min_size=len(STATS), max_size=len(STATS)))),
            str(cgroup_id), lru=lru,
        )  # fmt: skip
        found.append(record)
    return found


cache_records = st.builds(
    CacheRecord, caches, st.just("dentry"), st.just(192), st.sampled_from((0, 0x2000)), st.none() | numbers
)
recharges = st.builds(
    RechargeCounts,
    totals,
    totals,
    totals,
    st.dictionaries(
        st.builds(RechargeKey, caches, ids, ids, st.sampled_from(("online", "dying"))),
        st.tuples(totals, totals),
        max_size=2,
    ),
)
readings = st.builds(
    Reading,
    at_monotonic_ns=st.just(0),
    memcgs=st.none() | records(),
    caches=st.none() | st.lists(cache_records, max_size=2, unique_by=lambda cache: cache.address),
    pairs=st.none() | st.dictionaries(st.tuples(caches, st.just(0) | ids), st.tuples(*[totals] * len(PAIR_COUNTS))),
    charges=st.none() | st.dictionaries(ids, st.tuples(totals, totals)),
    recharges=st.none() | recharges,
    child_slabs=st.none() | st.dictionaries(ids, st.dictionaries(caches, words)),
    host_bytes=st.just(HOST_BYTES),
)


def figures(item: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a snapshot, with the name of its field."""
    if isinstance(item, (int, float)):
        yield name, item
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield from figures(value, f"{name}.{key}")
    elif isinstance(item, Struct):
        for field in item.__struct_fields__:
            yield from figures(getattr(item, field), field)
    elif isinstance(item, tuple):
        for value in item:
            yield from figures(value, name)


def impossible(snapshot: Snapshot) -> list[tuple[str, float]]:
    found = list(figures(snapshot))
    negative = [(name, value) for name, value in found if value < 0 and name not in SIGNED]
    memory = [(n, v) for n, v in found if n.startswith("pins.") or (n.endswith("_bytes") and n != "object_bytes")]
    return negative + [(name, value) for name, value in memory if name not in PAST_THE_HOST and value > HOST_BYTES]


@given(
    st.lists(readings, min_size=1, max_size=3),
    st.sampled_from((1, 2)),
    st.sampled_from(("6.18-lockdown", "lab-patched")),
)
@settings(max_examples=150, deadline=None)
def test_no_figure_is_negative_or_larger_than_the_host(sequence: list[Reading], version: int, facts: str) -> None:
    source = FakeSource(facts=recorded_facts(facts))
    hierarchy = {"version": version, "hierarchy_id": 0, "mount": "/sys/fs/cgroup"}
    source.info = replace(source.info, facts=replace(source.info.facts, hierarchy=hierarchy))
    state = make_state(source, Clock())
    state.update(source.read())  # with the root only: all others are younger
    for number, drawn in enumerate(sequence, 1):
        reading = replace(drawn, at_monotonic_ns=source.now_ns + number * SECOND)
        state.update(reading)
        assert impossible(state.snapshot(reading)) == []


def test_what_is_impossible_is_found() -> None:
    """The check itself: `figures` sees every place."""
    source = FakeSource()
    state = make_state(source, Clock())
    reading = source.read()
    state.update(reading)
    snapshot = state.snapshot(reading)
    (first, *others) = snapshot.cgroups
    wrong = structs.replace(first, memory_bytes=HOST_BYTES + 1, pins={"file": -69_632}, references=-1)
    cache = structs.replace(snapshot.caches[0], slab_bytes=-4096)
    found = impossible(structs.replace(snapshot, cgroups=(wrong, *others), caches=(cache,)))
    expected = {"memory_bytes": HOST_BYTES + 1, "pins.file": -69_632, "references": -1, "slab_bytes": -4096}
    assert dict(found) == expected
