# SPDX-License-Identifier: GPL-2.0-only
"""What is excluded is in no answer: not by name, not by id, not as the owner of something else."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kmemwatch.exporter.published import PublishedSnapshot
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.exporter.snapshots import SnapshotFilter
from kmemwatch.model import (
    DYING,
    FROM_NONE,
    ONLINE,
    RELEASED,
    Cache,
    Cgroup,
    ChildSlabs,
    Ids,
    KmemcgId,
    RechargePair,
    Recharges,
    RechargeTotal,
    Snapshot,
)
from kmemwatch.serve import messages
from tests.unit import fakes
from tests.unit.fakes import IDS
from tests.unit.web import Sites, sites

PAGES = ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready")
FORMATS = ("text/plain", "application/openmetrics-text;version=1.0.0")
CGROUPS, ROOTS = 5, 3
PATHS = tuple(f"/cg{letter}cg" for letter in "abcde")
CGROUP_IDS = tuple(910_001 + number for number in range(CGROUPS))
KMEMCG_IDS = tuple(820_001 + number for number in range(CGROUPS))
CACHES = tuple(f"root{letter}root" for letter in "xyz")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as start:
        yield start


def child_name(root: int, owner: int, named: bool) -> str:
    """As kernels without the patch set name them, and with it."""
    return f"{CACHES[root]}({KMEMCG_IDS[owner]}{f':{PATHS[owner][1:]}' if named else ''})"


def _cgroup(number: int, state: str, slabs: tuple[ChildSlabs, ...] | None, parent: int | None) -> Cgroup:
    return fakes.row(
        Cgroup,
        id=CGROUP_IDS[number],
        path=PATHS[number],
        state=state,
        kmemcg_id=KMEMCG_IDS[number],
        memory_bytes=1,
        kernel_bytes=1,
        slab_bytes=1,
        charged_bytes_total=1,
        uncharged_bytes_total=1,
        child_slabs=slabs,
        parent_id=None if parent is None else CGROUP_IDS[parent],
    )


@st.composite
def hosts(draw: st.DrawFn) -> Snapshot:
    """Everything refers to everything."""
    numbers, roots = st.integers(0, CGROUPS - 1), st.integers(0, ROOTS - 1)
    named = draw(st.booleans())
    children = sorted(draw(st.sets(st.tuples(roots, numbers))))
    gone = draw(st.sets(st.tuples(roots, numbers), min_size=1))
    """Caches that rows speak of, and the list has not any more."""
    copies = {(r, o): IDS[0x10000 + 0x1000 * r + o] for r, o in (*children, *gone)}
    some = st.sampled_from(sorted(copies))
    slabs = st.lists(some, max_size=3).map(
        lambda keys: tuple(
            ChildSlabs(child_name(key[0], key[1], named), copies[key], KMEMCG_IDS[key[1]], 1) for key in keys
        )
    )
    states = st.sampled_from((ONLINE, DYING, RELEASED))
    moved = draw(st.lists(st.tuples(some, st.none() | numbers, numbers), max_size=5))
    owners = st.lists(numbers, max_size=3).map(lambda found: tuple(CGROUP_IDS[number] for number in found))
    present = draw(st.lists(st.tuples(st.none() | numbers, owners), max_size=CGROUPS)) if draw(st.booleans()) else None
    caches = [
        fakes.row(
            Cache,
            name=name,
            id=IDS[number],
            object_bytes=8,
            allocations_total=1,
            allocated_bytes_total=8,
            frees_total=1,
        )
        for number, name in enumerate(CACHES)
    ]
    caches += [
        fakes.row(
            Cache,
            name=child_name(r, o, named),
            id=copies[r, o],
            object_bytes=8,
            root=CACHES[r],
            kmemcg_id=KMEMCG_IDS[o],
        )
        for r, o in children
    ]
    return replace(
        fakes.patched(),
        caches=tuple(caches),
        cgroups=tuple(
            _cgroup(place, draw(states), draw(st.none() | slabs), draw(st.none() | numbers)) for place in range(CGROUPS)
        ),
        pairs=tuple(
            fakes.pair(CACHES[root], IDS[root], CGROUP_IDS[number], 1, 8, 1, 8)
            for number, root in sorted(draw(st.sets(st.tuples(numbers, roots))))
        ),
        recharges=Recharges(
            1, 1, 1, 1, 1,
            pairs=tuple(
                RechargePair(
                    child_name(key[0], key[1], named), None if from_ is None else CGROUP_IDS[from_],
                    FROM_NONE if from_ is None else DYING, CGROUP_IDS[to], 1, 1, KMEMCG_IDS[key[1]],
                )
                for key, from_, to in moved
            ),
            totals=tuple(RechargeTotal(name, DYING, 1, 1) for name in CACHES),
        ),
        ids=Ids(map=None if present is None else tuple(
            KmemcgId(KMEMCG_IDS[place], None if owner is None else CGROUP_IDS[owner], None, before, 1)
            for place, (owner, before) in enumerate(present)
        )),
    )  # fmt: skip


subsets = st.sets(st.integers(0, CGROUPS - 1)), st.sets(st.integers(0, ROOTS - 1))


def answers(site: object, snapshot: Snapshot) -> str:
    """Everything that is served."""
    site.service.handle(messages.pack(PublishedSnapshot(snapshot, time.monotonic())))  # type: ignore[attr-defined]
    ask = site.ask  # type: ignore[attr-defined]
    texts = [ask(page)[2].decode() for page in PAGES]
    return "\n".join([*texts, *(ask("/metrics", headers={"Accept": kind})[2].decode() for kind in FORMATS)])


def options(cgroups: set[int], caches: set[int], include: bool) -> SelectionOptions:
    """Leave these out, by either way to say so."""
    if include:
        return SelectionOptions(
            cgroup_include=[re.escape(path) for n, path in enumerate(PATHS) if n not in cgroups] or ["none"],
            cache_include=[re.escape(name) for n, name in enumerate(CACHES) if n not in caches] or ["none"],
        )
    return SelectionOptions(
        cgroup_exclude=[re.escape(PATHS[n]) for n in cgroups], cache_exclude=[re.escape(CACHES[n]) for n in caches]
    )


@given(hosts(), *subsets, st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_answer_names_what_is_excluded(
    start: Sites, host: Snapshot, cgroups: set[int], caches: set[int], include: bool
) -> None:
    site = start(selection=options(cgroups, caches, include))
    try:
        text = answers(site, host)
    finally:
        site.service.stop()
        site.listener.close()
    for number in cgroups:
        assert PATHS[number][1:] not in text
        assert not re.search(rf"(?<![\d.]){CGROUP_IDS[number]}(?![\d.])", text)
    for number in caches:
        assert CACHES[number] not in text
        assert IDS[number] not in text
    # And what is not excluded is there as before.
    shown = SnapshotFilter(options(cgroups, caches, include))(host)
    assert [c.path for c in shown.cgroups] == [path for n, path in enumerate(PATHS) if n not in cgroups]
    assert [c.name for c in shown.caches if c.root is None] == [n for i, n in enumerate(CACHES) if i not in caches]
    kept = {c.id for c in shown.cgroups}
    assert shown.pairs == tuple(p for p in host.pairs if p.cgroup_id in kept and CACHES.index(p.cache) not in caches)


def test_without_expressions_nothing_is_touched() -> None:
    host = fakes.patched()
    assert SnapshotFilter(SelectionOptions())(host) is host


def test_a_child_cache_goes_with_its_root_its_owner_or_its_own_name() -> None:
    host = fakes.patched()

    def children(**expressions: Any) -> list[str]:
        return [c.name for c in SnapshotFilter(SelectionOptions(**expressions))(host).caches if c.root is not None]

    every = [c.name for c in host.caches if c.root is not None]
    dentries = [name for name in every if name.startswith("dentry")]
    assert children(cache_exclude=["dentry"]) == [name for name in every if name not in dentries]
    assert children(cache_include=["dentry"]) == dentries
    assert children(cache_exclude=[r"dentry\(3\)"]) == [name for name in every if name != "dentry(3)"]
    owner = next(one.cgroup_id for one in host.ids.map or () if one.kmemcg_id == 3)
    path = next(c.path for c in host.cgroups if c.id == owner)
    assert children(cgroup_exclude=[re.escape(path or "")]) == [name for name in every if "(3)" not in name]


def test_figures_of_the_whole_host_stay() -> None:
    host = fakes.patched()
    shown = SnapshotFilter(SelectionOptions(cgroup_exclude=[".*"], cache_exclude=[".*"]))(host)
    assert (shown.cgroups, shown.caches, shown.pairs) == ((), (), ())
    assert (shown.totals, shown.lost, shown.probes) == (host.totals, host.lost, host.probes)
    assert shown.recharges.recharges_total == host.recharges.recharges_total
    assert shown.ids.in_use == host.ids.in_use
