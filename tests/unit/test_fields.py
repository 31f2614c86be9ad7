# SPDX-License-Identifier: GPL-2.0-only
"""The field table: names that Prometheus, CSV and `--sort` can rely on, and unknown that stays unknown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kmemwatch.fields import COUNTER, METRICS, Field
from kmemwatch.fields.base import BYTES, SECONDS, rate_human
from kmemwatch.fields.derived import dying_for, losses, oldest_dying_s, pinned_bytes
from kmemwatch.fields.rows import Frame, frame
from kmemwatch.fields.views import VIEWS, View, caches_of, cgroups_of, pins_text, slabs_of
from kmemwatch.model import ChildSlabs, Ids, Lost, Snapshot, Totals
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


MORE = {"recharge_lost_races_total", "kmemcg_ids_given_total", "kmemcg_ids_freed_total", "cache_slab_bytes"}
"""What kmemwatch exports beyond its contract."""


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
    assert {name.removeprefix("kmemwatch_") for name in names if name} == DESIGN | MORE
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


@pytest.mark.parametrize("make", [fakes.sample, fakes.unknown, fakes.patched, fakes.odd, fakes.lossy])
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
             "oldest_dying_cgroup_seconds", "map_entries", "map_capacity"}  # fmt: skip
    told = {name.removeprefix("kmemwatch_") for name, _, value in samples(fakes.unknown()) if value is not None}
    assert told == known


def test_recharges_are_split_by_the_state_of_the_former_owner() -> None:
    found = {labels: value for name, labels, value in samples(fakes.patched()) if name == "kmemwatch_recharges_total"}
    assert found == {
        (("cache", "dentry"), ("from_state", "dying")): 31,
        (("cache", "filp"), ("from_state", "none")): 10,
    }


def test_losses_count_each_loss_once() -> None:
    assert losses(fakes.lossy().lost) == {"ringbuf_full": 1201, "recursion": 4, "pair_map_full": 0}
    assert losses(Lost(3, None, 1)) == {"events": 3, "unresolved": 1}
    assert losses(Lost(None, None, None)) == {}


def test_age_of_the_dying() -> None:
    shown = fakes.sample()
    by_id = {c.id: c for c in shown.cgroups}
    assert dying_for(by_id[4001], shown) == (500.0, True)
    assert dying_for(by_id[fakes.DIED_BEFORE], shown) == (600.0, False)
    assert oldest_dying_s(shown) == 600.0
    assert oldest_dying_s(fakes.empty()) is None


def test_pins_add_up_by_kind() -> None:
    shown = fakes.sample()
    found = pinned_bytes([c for c in shown.cgroups if c.state == "dying"])
    assert found is not None
    assert found["file"] == 2202009 + 310 * fakes.MB
    assert pinned_bytes([]) == {}
    assert pinned_bytes([replace(shown.cgroups[0], pins=None)]) is None


def test_pins_text() -> None:
    assert pins_text(None) == "?"
    assert pins_text({}) == "references only"
    assert pins_text({"file": 2202009, "shmem": 10 * fakes.MB}) == "shmem 10.0M, file 2.1M"


@pytest.mark.parametrize("view", [*VIEWS, caches_of(1), cgroups_of(("dentry", None))], ids=lambda v: v.name)
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


@pytest.mark.parametrize("make", [fakes.sample, fakes.unknown, fakes.patched, fakes.odd, fakes.empty])
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
    assert "no cache belongs to a kmemcg_id" in by_name["ids"].missing(fakes.sample())
    told = replace(fakes.sample(), ids=Ids(meaning="the number of the memcg itself"))
    assert by_name["ids"].missing(told) == "what a kmemcg_id is on this kernel: the number of the memcg itself"
    assert "patch set" in by_name["recharges"].missing(fakes.sample())
    assert by_name["recharges"].missing(fakes.unknown()) == "needs kprobes, which lockdown forbids"


def rows_of(view: str, shown: Frame) -> Sequence[Any]:
    return next(found for found in VIEWS if found.name == view).rows(shown) or ()


def test_a_root_cache_has_the_memory_of_its_children() -> None:
    shown = rows_of("caches", Frame(fakes.patched()))
    dentry = next(row for row in shown if row.cache.name == "dentry")
    alone = next(c for c in fakes.sample().caches if c.name == "dentry")
    assert dentry.cache.slab_bytes == (alone.slab_bytes or 0) + (31 << 12)
    assert (dentry.copies, {row.cache.root for row in shown}) == (1, {None})
    assert {row.copies for row in rows_of("caches", Frame(fakes.sample()))} == {None}


def test_ids_tell_who_has_them_and_who_had_them() -> None:
    shown = rows_of("ids", Frame(fakes.patched()))
    names = Frame(fakes.patched()).names
    assert [(row.cgroup, row.state, row.previous) for row in shown] == [
        (names[1101], "online", "-"),
        (names[2101], "online", names[4001]),
        ("-", None, "? (id 2900)"),
    ]
    note = next(view for view in VIEWS if view.name == "ids").note(Frame(fakes.patched()))
    assert note == (
        "3 ids in use, at most 12 memcgs online at once, 5 reuses, 1 child caches, at most 1 of one root (dentry)"
    )


def test_recharges_have_rates_and_a_summary() -> None:
    before, after = fakes.patched(), fakes.patched(3)
    moved = replace(after.recharges.pairs[0], recharges_total=37)  # type: ignore[index]
    more = replace(after.recharges, pairs=(moved, *after.recharges.pairs[1:]), checks_total=90_317)  # type: ignore[index]
    shown = frame(before, replace(after, recharges=more))
    first = next(row for row in rows_of("recharges", shown) if row.pair.from_cgroup_id == 4001)
    assert first.recharges_per_s == 2.0
    note = next(view for view in VIEWS if view.name == "recharges").note(shown) or ""
    assert "90.3k checks (100/s)" in note
    assert "2 failures, 1 lost races" in note


def test_the_slabs_that_keep_a_dying_cgroup() -> None:
    snapshot = fakes.patched()
    held = (
        ChildSlabs("dentry(3)", 0xFFFF_8880_0200_0000, 3, 8192),
        ChildSlabs("filp(9)", 0xFFFF_8880_0300_0000, 9, 4096),
    )
    cgroups = tuple(replace(c, child_slabs=held) if c.id == 4001 else c for c in snapshot.cgroups)
    shown = Frame(replace(snapshot, cgroups=cgroups))
    view = slabs_of(4001)
    assert [(view.label(row), row.slabs.slab_bytes, row.owner) for row in view.rows(shown) or ()] == [
        ("dentry(3)", 8192, shown.names[2101]),
        ("filp(9)", 4096, "-"),
    ]
    assert slabs_of(1101).rows(shown) is None


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
