# SPDX-License-Identifier: GPL-2.0-only
"""The field table: names that Prometheus, CSV and `--sort` can rely on, and unknown that stays unknown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from kmemwatch.exporter.metrics import METRICS
from kmemwatch.model import MAX_PREVIOUS_OWNERS, Ids, Lost, Pair, Snapshot, Totals
from kmemwatch.shape import BYTES, COUNTER, SECONDS
from kmemwatch.state import ids
from kmemwatch.views import rows
from kmemwatch.views.derived import (
    caches_per_root,
    dying_by_age,
    dying_for,
    dying_slab_bytes,
    losses,
    oldest_dying_s,
    pinned_bytes,
)
from kmemwatch.views.fields import Field, rate_human
from kmemwatch.views.rows import Frame, frame
from kmemwatch.views.subtables import caches_of, caches_with, cgroups_of, dying_children_of, slabs_of
from kmemwatch.views.tables import VIEWS, View, pinned_by
from tests.unit import fakes

DESIGN = {
    "build_info", "kernel_info", "probe_attached", "events_lost_total", "map_entries", "map_capacity",
    "cache_allocations_total", "cache_frees_total", "cache_allocated_bytes_total", "cgroup_kernel_bytes",
    "cgroup_slab_bytes", "cgroup_charged_bytes_total", "cgroup_uncharged_bytes_total",
    "cgroup_cache_allocations_total", "dying_cgroups", "dying_cgroup_bytes", "oldest_dying_cgroup_seconds",
    "cgroups_offlined_total", "cgroups_released_total", "cgroup_release_delay_seconds", "recharge_checks_total",
    "recharges_total", "recharged_bytes_total", "recharge_failures_total", "kmemcg_ids_in_use",
    "kmemcg_id_reuses_total", "online_cgroups", "online_cgroups_peak", "caches_per_root", "caches_per_root_max",
}  # fmt: skip
"""Metrics that may not go, nor get another name."""


def exported() -> list[Field[object]]:
    return [field for table in METRICS for field in table.fields]


def samples(snapshot: Snapshot) -> list[tuple[str, tuple[tuple[str, str], ...], object]]:
    return [
        (field.metric or "", tuple((name, get(item)) for name, get in table.labels.items()), field.get(item))
        for table in METRICS
        for item in table.items(snapshot)
        for field in table.fields
    ]


def test_metrics_are_those_of_the_contract() -> None:
    names = [field.metric for field in exported()]
    assert len(names) == len(set(names))
    assert {name.removeprefix("kmemwatch_") for name in names if name} >= DESIGN
    assert all(name is not None and name.startswith("kmemwatch_") for name in names)


@pytest.mark.parametrize("field", exported(), ids=lambda f: str(f.metric))
def test_metrics_follow_the_naming_rules(field: Field[object]) -> None:
    assert field.metric is not None
    assert re.fullmatch(r"kmemwatch_[a-z][a-z_]*[a-z]", field.metric)
    assert field.metric.endswith("_total") == (field.kind == COUNTER)
    base = field.metric.removesuffix("_total")
    if field.unit == BYTES:
        assert base.endswith("_bytes")
    if field.unit == SECONDS:
        assert base.endswith("_seconds")
    assert re.match(r"([A-Z0-9]|kmemcg).*\.$", field.help)


@pytest.mark.parametrize("make", [fakes.sample, fakes.unknown, fakes.patched, fakes.private, fakes.odd, fakes.lossy])
def test_samples_are_unique_or_can_be_added_and_never_negative(make: object) -> None:
    assert callable(make)
    for name, labels, value in samples(make()):
        assert value is None or isinstance(value, int | float | tuple), name
        assert not isinstance(value, int | float) or value >= 0, name
        for key, text in labels:
            assert re.fullmatch(r"[a-z_]+", key)
            assert text.isprintable()


def test_unknown_is_absent() -> None:
    known = {"build_info", "kernel_info", "probe_attached", "online_cgroups", "dying_cgroups",
             "oldest_dying_cgroup_seconds", "dying_cgroups_by_age", "map_entries", "map_capacity"}  # fmt: skip
    told = {name.removeprefix("kmemwatch_") for name, _, value in samples(fakes.unknown()) if value is not None}
    assert told == known


def test_recharges_are_split_by_the_state_of_the_former_owner() -> None:
    found = {labels: value for name, labels, value in samples(fakes.patched()) if name == "kmemwatch_recharges_total"}
    assert found == {
        (("cache", "dentry"), ("from_state", "dying")): 431,
        (("cache", "dentry"), ("from_state", "online")): 3,
        (("cache", "filp"), ("from_state", "none")): 10,
    }


def test_losses_count_each_loss_once() -> None:
    assert losses(fakes.lossy().lost) == {"ringbuf_full": 1201, "recursion": 4, "pair_map_full": 0}
    assert losses(Lost(3, None, 1, {})) == {"events": 3, "unresolved": 1}
    assert losses(Lost(None, None, None, {})) == {}


def test_age_of_the_dying() -> None:
    shown = fakes.sample()
    by_id = {c.id: c for c in shown.cgroups}
    assert dying_for(by_id[4001], shown) == (500.0, True)
    assert dying_for(by_id[fakes.DIED_BEFORE], shown) == (600.0, False)
    assert oldest_dying_s(shown) == 600.0
    assert oldest_dying_s(fakes.empty()) is None


def test_each_dying_cgroup_is_counted_once_by_age() -> None:
    # Removed 500, 400 and 200 s ago, and one before the probes were attached 600 s ago.
    assert dying_by_age(fakes.sample()) == {"0s": 0, "1m": 3, "10m": 1, "1h": 0, "6h": 0, "1d": 0}
    assert dying_by_age(fakes.sample(3600)) == {"0s": 0, "1m": 0, "10m": 0, "1h": 4, "6h": 0, "1d": 0}
    assert dying_by_age(fakes.empty()) == {"0s": 0, "1m": 0, "10m": 0, "1h": 0, "6h": 0, "1d": 0}
    assert dying_by_age(replace(fakes.empty(), totals=Totals())) is None


def test_pins_add_up_by_kind() -> None:
    shown = fakes.sample()
    found = pinned_bytes([c for c in shown.cgroups if c.state == "dying"])
    assert found is not None
    assert found["file"] == 312 * fakes.MB
    assert pinned_bytes([]) == {}
    assert pinned_bytes([replace(shown.cgroups[0], pins=None)]) is None


@pytest.mark.parametrize(
    ("pins", "references", "children", "said"),
    [
        (None, 7, 0, "?"),
        ({}, 7, None, "references only"),  # of a recording that does not tell of children
        ({}, 7, 0, "references only"),
        ({"file": 2202009, "shmem": 10 * fakes.MB}, 7000, 0, "shmem 10.0M, file 2.1M"),
        ({}, 2, 2, "2 dying children: b, a"),
        ({}, None, 2, "2 dying children: b, a"),
        ({}, 3, 2, "2 dying children: b, a, 1 other reference"),
        ({}, 9, 2, "2 dying children: b, a, 7 other references"),
        ({}, 1, 2, "2 dying children: b, a"),  # read while one of them went
        ({}, 3, 3, "3 dying children: b, a, …"),  # one of them is excluded, or came after the walk
        ({"shmem": 4096}, 9, 2, "shmem 4.0K, 2 dying children: b, a"),
        (None, 2, 2, "?, 2 dying children: b, a"),
    ],
)
def test_what_pins_a_cgroup_by_name(
    pins: dict[str, int] | None, references: int | None, children: int | None, said: str
) -> None:
    parent = replace(
        fakes.sample().cgroups[-2], id=10, pins=pins, references=references, dying_children=children, path="/p"
    )
    others = [
        replace(parent, id=id_, path=f"/p/{name}", parent_id=10, memory_bytes=size, dying_children=0)
        for id_, name, size in ((11, "a", 1), (12, "b", 2))
    ]
    row = rows.zombie_row(Frame(replace(fakes.sample(), cgroups=(parent, *(others if children else ())))), parent)
    assert pinned_by(row) == said


def test_the_cache_that_holds_most_is_not_the_one_that_is_allocated_from_most() -> None:
    """As with look-ups of paths that are not there: a buffer each that is freed at once, and a dentry that stays."""

    def pairs(seconds: int, live: int | None = 192) -> tuple[Pair, ...]:
        number = 1000 * seconds
        return (
            fakes.pair("dentry", "d", 2101, number, number * 192, 0, None if live is None else number * live),
            fakes.pair("names_cache", "n", 2101, number, number * 4096, None, None),  # charged to nobody
            fakes.pair("filp", "f", 2101, number, number * 256, number, 0),
        )  # fmt: skip

    def row(live: int | None = 192, **changes: Any) -> rows.CgroupRow:
        young = [replace(c, online_at_ns=1, **changes) for c in fakes.sample().cgroups if c.id == 2101]
        before, after = (replace(fakes.sample(s), cgroups=tuple(young), pairs=pairs(s, live)) for s in (1, 4))
        (found,) = rows.cgroup_rows(frame(before, after))
        return found

    def told(found: rows.CgroupRow) -> tuple[str, str]:
        fields = {f.title: f for f in VIEWS[0].columns}
        return fields["TOP CACHE"].text(found), fields["ALLOCATED FROM"].text(found)

    assert told(row()) == ("dentry", "names_cache")
    assert told(row(live=None)) == ("?", "names_cache"), "it may be older than kmemwatch"
    assert told(row(live=0)) == ("-", "names_cache")
    shown = fakes.sample()
    quiet = replace(shown, pairs=())
    young, old = (replace(shown.cgroups[7], online_at_ns=since) for since in (1, None))
    assert [told(rows.cgroup_row(Frame(quiet), one)) for one in (young, old)] == [("-", "?"), ("?", "?")]
    dead = next(c for c in shown.cgroups if c.state == "dying" and c.online_at_ns is not None)
    assert told(rows.cgroup_row(Frame(quiet), replace(dead, online_at_ns=None)))[0] == "-", "it is the parent's"
    recharging = replace(quiet, kernel=replace(shown.kernel, era="recharge"))
    assert told(rows.cgroup_row(Frame(recharging), young))[0] == "?"


def test_what_is_charged_to_nobody_does_not_prove_that_nothing_is_held() -> None:
    """The root allocates buffers that nobody is charged for, and has inherited what the dead below it left."""
    shown = fakes.sample()
    uncharged = fakes.pair("names_cache", "n", 1, 100, 100 * 4096, None, None)
    live = fakes.pair("dentry", "d", 1, 100, 100 * 192, 0, 0)
    fields = {f.title: f for f in VIEWS[0].columns}

    def told(*pairs: Pair) -> str:
        with_pairs = replace(shown, pairs=pairs)
        return fields["TOP CACHE"].text(rows.cgroup_row(Frame(with_pairs), with_pairs.cgroups[0]))

    assert (shown.cgroups[0].path, shown.cgroups[0].online_at_ns) == ("/", None)
    assert told(uncharged) == "?"
    assert told(uncharged, live) == "-", "live bytes are only told where all of them are known"


def test_no_more_children_are_named_than_there_is_room_for() -> None:
    parent = replace(fakes.sample().cgroups[-2], id=10, pins={}, references=5000, dying_children=5000)
    others = tuple(
        replace(parent, id=11 + n, path=f"/p/c\\x1b{n}", parent_id=10, dying_children=0) for n in range(5000)
    )
    row = rows.zombie_row(Frame(replace(fakes.sample(), cgroups=(parent, *others))), parent)
    assert pinned_by(row) == "5000 dying children: c\\x1b0, c\\x1b1, c\\x1b2, …"
    one = replace(parent, references=1, dying_children=1)
    unnamed = rows.zombie_row(Frame(replace(fakes.sample(), cgroups=(one, replace(others[0], path=None)))), one)
    assert pinned_by(unnamed) == "1 dying child: ? (id 11)"


@pytest.mark.parametrize(
    "view",
    [*VIEWS, caches_of(1), cgroups_of(("dentry", None)), slabs_of(1), caches_with(1), dying_children_of(1)],
    ids=lambda v: v.name,
)
def test_views_have_unique_keys_and_a_valid_sort(view: View[object]) -> None:
    keys = [field.key for field in view.fields]
    assert len(keys) == len(set(keys))
    assert all(re.fullmatch(r"[a-z][a-z_]*", key) for key in keys)
    assert view.field(view.sort) is not None
    assert view.columns[0].is_text
    assert view.columns[0].rank == 0
    assert all(field.title for field in view.fields)


def test_view_letters_are_in_their_names_and_unique() -> None:
    assert all(view.letter in view.name for view in VIEWS)
    assert len({view.letter for view in VIEWS}) == len(VIEWS)


@pytest.mark.parametrize("make", [fakes.sample, fakes.unknown, fakes.patched, fakes.private, fakes.odd, fakes.empty])
@pytest.mark.parametrize("view", VIEWS, ids=lambda v: v.name)
def test_every_cell_is_printable(view: View[object], make: object) -> None:
    assert callable(make)
    for shown in (frame(make(), make(3)), frame(None, make())):
        for row in view.rows(shown) or ():
            assert all(field.text(row).isprintable() for field in view.fields)
            assert view.label(row).isprintable()


def test_unknown_is_a_question_mark_and_never_0() -> None:
    shown = frame(None, fakes.unknown())
    for view in VIEWS[:2]:
        (row, *_) = view.rows(shown) or ()
        texts = {f.key: f.text(row) for f in view.fields}
        assert "0" not in texts.values()
        assert "0B" not in texts.values()
        assert texts.get("kernel_bytes", "?") == "?"
        assert texts["allocations_per_s"] == "?"


def test_missing_views_say_why() -> None:
    by_name = {view.name: view for view in VIEWS}
    told = "a kmemcg_id on this kernel: the number of the memcg itself (mem_cgroup.id); no cache belongs to it"
    assert by_name["ids"].missing(fakes.sample()) == told
    assert "no cache belongs to a kmemcg_id" in by_name["ids"].missing(replace(fakes.sample(), ids=Ids()))
    first_release = replace(fakes.sample(), probes=fakes.PROBES[:-1], ids=Ids())
    assert "does not have the patch set" in by_name["recharges"].missing(first_release)
    assert by_name["recharges"].missing(fakes.private()).startswith("no __memcg_kmem_recharge_slab")
    assert by_name["recharges"].missing(fakes.unknown()) == "needs kprobes, which lockdown forbids"


def view_of(name: str) -> View[Any]:
    return next(view for view in VIEWS if view.name == name)


def rows_of(view: str, shown: Frame) -> Sequence[Any]:
    return view_of(view).rows(shown) or ()


def cache_row(name: str, shown: Frame) -> Any:
    return next(row for row in rows_of("caches", shown) if row.cache.name == name)


def test_a_root_cache_has_the_memory_of_its_children() -> None:
    shown = Frame(fakes.patched())
    alone = next(c for c in fakes.sample().caches if c.name == "dentry")
    dentry = cache_row("dentry", shown)
    assert dentry.cache.slab_bytes == (alone.slab_bytes or 0) + (2000 + 700 + 384) * 4096
    assert dentry.copies == 3
    assert {row.cache.root for row in rows_of("caches", shown)} == {None}
    assert {row.copies for row in rows_of("caches", Frame(fakes.sample()))} == {None}


def test_memory_of_a_child_that_is_not_known_makes_that_of_its_root_unknown() -> None:
    known = fakes.patched()
    caches = tuple(replace(c, slab_bytes=None) if c.name == "dentry(3)" else c for c in known.caches)
    shown = Frame(replace(known, caches=caches))
    assert cache_row("dentry", shown).cache.slab_bytes is None
    assert cache_row("filp", shown).cache.slab_bytes is not None


def test_growth_counts_children_that_come_and_go() -> None:
    before, after = fakes.patched(), fakes.patched(3)
    without = replace(before, caches=tuple(c for c in before.caches if c.name != "dentry(3)"))
    root = cache_row("dentry", frame(before, after)).growth_bytes_per_s
    assert cache_row("dentry", frame(without, after)).growth_bytes_per_s == pytest.approx(root + 700 * 4096 / 3)
    later = replace(after, caches=tuple(c for c in after.caches if c.name != "dentry(3)"))
    assert cache_row("dentry", frame(before, later)).growth_bytes_per_s == pytest.approx(root - 700 * 4096 / 3)


def test_copies_below_a_cgroup_are_those_of_the_ids_there() -> None:
    inside = Frame(fakes.patched(), scope="/kubepods.slice")
    assert cache_row("dentry", inside).copies == 1
    everywhere = Frame(fakes.patched(), scope="/")
    assert cache_row("dentry", everywhere).copies == 2, "nobody has id 4"
    assert cache_row("dentry", Frame(fakes.sample(), scope="/")).copies is None


def test_child_caches_are_unknown_when_the_list_of_caches_could_not_be_read() -> None:
    known = fakes.patched()
    assert caches_per_root(known) == {"dentry": 3, "ext4_inode_cache": 1, "filp": 1, "inode_cache": 1}
    assert caches_per_root(replace(known, caches=())) is None
    blind = replace(known.caches[0], name="unnamed:k5mw2pcq7xg3", object_bytes=None, root=None)
    assert caches_per_root(replace(known, caches=(blind,))) is None


def test_slabs_of_the_dying_by_root_cache() -> None:
    known = fakes.patched()
    assert dying_slab_bytes(known) == {
        "dentry": (12 + 384) * 4096,
        "inode_cache": 8 * 4096,
        "filp": 0,
        "ext4_inode_cache": 0,
    }
    unknown = tuple(replace(c, child_slabs=None) for c in known.cgroups)
    assert dying_slab_bytes(replace(known, cgroups=unknown)) is None
    released = tuple(c for c in known.cgroups if c.state != "dying")
    none = dying_slab_bytes(replace(known, cgroups=released, totals=replace(known.totals, dying_cgroups=0)))
    assert none is not None
    assert set(none.values()) == {0}
    assert dying_slab_bytes(fakes.sample()) is None


def test_ids_tell_who_has_them_and_who_had_them() -> None:
    shown = Frame(fakes.patched())
    names, view = shown.names, view_of("ids")
    assert [(r.id.kmemcg_id, r.cgroup, r.state, r.previous, r.age_s) for r in rows_of("ids", shown)] == [
        (0, names[1101], "online", "-", None),
        (3, names[2101], "online", names[4001], 599.0),
        (4, "-", None, names[fakes.DIED_BEFORE], 200.0),
    ]
    assert view.summary(shown) == "ids 2 in use, 5 reuses · peak 239 online · child caches 6, max 3 (dentry)"
    assert view.summary(Frame(fakes.sample())) is None
    states = [view.field("state").text(row) for row in rows_of("ids", Frame(fakes.private()))]  # type: ignore[union-attr]
    assert states == ["online", "dying", "dying"]


def test_owners_that_the_snapshot_has_forgotten_are_shown_by_id() -> None:
    known = fakes.patched()
    (first, *_) = known.ids.map or ()
    gone = replace(first, cgroup_id=70, previous_owners=(71, 72))
    (row,) = rows_of("ids", Frame(replace(known, ids=replace(known.ids, map=(gone,)))))
    texts = {field.key: field.text(row) for field in view_of("ids").fields}
    assert (texts["cgroup"], texts["state"], texts["previous"]) == ("? (id 70)", "?", "? (id 72)")
    assert texts["previous_owners"] == "71 72"


def test_owners_that_nobody_remembers_are_not_counted_out() -> None:
    assert ids.MAX_PREVIOUS == MAX_PREVIOUS_OWNERS
    reuses = view_of("ids").field("reuses")
    assert reuses is not None
    (first, *_) = rows_of("ids", Frame(fakes.patched()))
    for count, text in ((0, "0"), (15, "15"), (16, "16+")):
        assert (
            reuses.text(dataclasses.replace(first, id=replace(first.id, previous_owners=tuple(range(count))))) == text
        )


def test_recharges_have_rates_and_a_summary() -> None:
    shown = frame(fakes.patched(), fakes.patched(3))
    rates = {row.pair.cache: row.recharges_per_s for row in rows_of("recharges", shown)}
    assert rates == {"dentry(0)": 0.0, "filp(3)": 0.0, "dentry(3)": 2.0}
    view = view_of("recharges")
    told = "checks 91.5k (500/s) · recharges 450 (2.0/s), 1.8M · failures 2 · lost races 1"
    assert view.summary(shown) == told
    assert (view.summary(Frame(fakes.patched())) or "").startswith("checks 90.0k (?/s) · recharges 444 (?/s)")
    assert view.summary(Frame(fakes.sample())) is None
    from_nobody = next(row for row in rows_of("recharges", shown) if row.pair.from_cgroup_id is None)
    texts = {field.key: field.text(from_nobody) for field in view.fields}
    assert (texts["from_cgroup"], texts["from_state"], texts["from_cgroup_id"]) == ("(nobody)", "none", "-")


def test_the_slabs_that_keep_a_dying_cgroup() -> None:
    shown = Frame(fakes.patched())
    view = slabs_of(4001)
    assert [(view.label(row), row.slabs.slab_bytes, row.owner) for row in view.rows(shown) or ()] == [
        ("dentry(3)", 12 * 4096, shown.names[2101]),
        ("inode_cache(3)", 8 * 4096, shown.names[2101]),
    ]
    assert [row.owner for row in slabs_of(fakes.DIED_BEFORE).rows(shown) or ()] == ["-"]
    assert slabs_of(4002).rows(shown) == []
    assert slabs_of(1101).rows(shown) is None
    zombies = {row.cgroup.id: row for row in rows_of("zombies", shown)}
    values = {f.key: f.get(zombies[4001]) for f in view_of("zombies").fields}
    assert (values["child_caches"], values["child_slab_bytes"]) == (2, 20 * 4096)
    (first, *_) = rows_of("zombies", Frame(fakes.sample()))
    assert [f.text(first) for f in view_of("zombies").fields if f.key.startswith("child")] == ["?", "?"]


def test_the_caches_of_an_id() -> None:
    view = caches_with(3)
    names = [view.label(row) for row in view.rows(Frame(fakes.patched())) or ()]
    assert names == ["dentry(3)", "filp(3)", "inode_cache(3)"]
    assert caches_with(77).rows(Frame(fakes.patched())) == []


def test_pairs_are_unknown_only_where_nobody_counts() -> None:
    assert caches_of(1).rows(Frame(fakes.empty())) == []
    assert cgroups_of(("dentry", None)).rows(Frame(fakes.empty())) == []
    assert caches_of(1).rows(Frame(fakes.unknown())) is None
    assert caches_of(1).missing(fakes.unknown()) == "needs kprobes, which lockdown forbids"


def test_scope_counts_only_the_cgroups_in_it() -> None:
    snapshot, later = fakes.sample(), fakes.sample(3)
    scoped = frame(snapshot, later, "/kubepods.slice")
    caches = next(view for view in VIEWS if view.name == "caches").rows(scoped) or ()
    inside = {c.id for c in later.cgroups if (c.path or "").startswith("/kubepods.slice")}
    wanted = sum(p.allocations_total or 0 for p in later.pairs if p.cgroup_id in inside)
    assert sum(row.cache.allocations_total for row in caches) == wanted
    rows = VIEWS[0].rows(scoped) or ()
    assert {row.cgroup.id for row in rows} == inside
    assert not Frame(later, scope="/kubepods").scope_ids  # a name that only begins the same is not below


def test_zombies_that_nobody_found_are_told() -> None:
    zombies = next(view for view in VIEWS if view.name == "zombies")
    snapshot = fakes.sample()
    assert zombies.note(Frame(snapshot)) is None
    more = replace(snapshot, totals=replace(snapshot.totals, dying_cgroups=9))
    assert zombies.note(Frame(more)) == "the kernel counts 9 dying, 4 could be found"


def test_small_rates_are_not_zero() -> None:
    assert [rate_human(v) for v in (None, 0.0, 0.3, 9.94, 9.96, 12345.0)] == ["?", "0", "0.3", "9.9", "10", "12.3k"]


def test_no_zombies_is_only_said_when_it_is_known() -> None:
    zombies = next(view for view in VIEWS if view.name == "zombies")
    assert zombies.rows(Frame(fakes.empty())) == []
    blind = replace(fakes.empty(), totals=Totals())
    assert zombies.rows(Frame(blind)) is None
    assert zombies.missing(blind) == "removed cgroups could not be listed on this kernel"
    assert zombies.missing(fakes.unknown()) == "needs kprobes, which lockdown forbids"
    counted = replace(fakes.empty(), totals=Totals(dying_cgroups=3))
    assert zombies.rows(Frame(counted)) is None
    assert zombies.note(Frame(counted)) == "the kernel counts 3 dying, 0 could be found"
