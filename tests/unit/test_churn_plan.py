# SPDX-License-Identifier: GPL-2.0-only
"""What churn plans: the mix, the share of each kind, what stays, and that a seed means the same work."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.churn.limits import Free, Needs, estimate, held_at_once, refuse_what_does_not_fit
from kmemwatch.churn.lives import (
    BY_LETTER,
    BY_NAME,
    KINDS,
    MAX_WEIGHT,
    ChurnOptions,
    LivesDigest,
    Mix,
    life,
    lives,
    mix_text,
    parse_mix,
)
from kmemwatch.churn.objects import LETTERS, runs
from kmemwatch.errors import UnsupportedError, UsageError

OPTIONS = ChurnOptions(
    mix=(("dentry", 3), ("pipe", 1)), cgroups=5, objects=41, leave_percent=100, dead=None, parallel=1, rate=None,
    seed=1, duration_s=None, hold_s=0, directory="/var/tmp",
)  # fmt: skip

MIXES = st.dictionaries(st.sampled_from(sorted(BY_NAME)), st.integers(1, MAX_WEIGHT), min_size=1).map(
    lambda weights: tuple((kind.name, weights[kind.name]) for kind in KINDS if kind.name in weights)
)


@st.composite
def options(draw: st.DrawFn) -> ChurnOptions:
    return replace(
        OPTIONS, mix=draw(MIXES), objects=draw(st.integers(1, 400)), leave_percent=draw(st.integers(0, 100)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )  # fmt: skip


def digest(options: ChurnOptions, number: int) -> str:
    summed = LivesDigest()
    for one in islice(lives(options), number):
        summed.add(one)
    return summed.text()


# Mix


def test_kinds_are_one_table_and_workers_know_them_all() -> None:
    assert {kind.letter: kind.name for kind in KINDS} == LETTERS
    assert len(BY_LETTER) == len(BY_NAME) == len(KINDS)


@given(MIXES)
def test_a_mix_is_read_as_it_is_written(mix: Mix) -> None:
    assert parse_mix(mix_text(mix)) == mix


def test_weights_are_one_when_not_given_and_order_does_not_matter() -> None:
    assert parse_mix(" pipe, dentry=3 ") == parse_mix("dentry=3,pipe=1") == (("dentry", 3), ("pipe", 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a kind"),
        ("dentry,", "'' is not a kind"),
        ("inode=x", "'inode=x' is not a kind"),
        ("inode=-1", "'inode=-1' is not a kind"),
        ("zombie", "there is no kind 'zombie'"),
        ("pipe,pipe=2", "pipe is there twice"),
        ("pipe=0", "weight 0 of pipe"),
        ("pipe=1001", "weight 1001 of pipe"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_mix(text)


# Lives


@given(options(), st.integers(0, 10_000))
def test_every_object_is_planned_and_each_kind_gets_its_share(options: ChurnOptions, serial: int) -> None:
    made = life(options, serial).made()
    assert sum(made.values()) == options.objects
    total = sum(weight for _, weight in options.mix)
    for name, weight in options.mix:
        share = options.objects * weight / total
        assert int(share) <= made.get(name, 0) <= int(share) + (share != int(share))


@given(options(), st.integers(0, 10_000))
def test_exactly_the_share_that_was_asked_for_is_left(options: ChurnOptions, serial: int) -> None:
    one = life(options, serial)
    left: dict[str, int] = {}
    for sign, number in runs(one.steps):
        if sign.isupper():
            name = LETTERS[sign.lower()]
            left[name] = left.get(name, 0) + number
    for name, made in one.made().items():
        assert abs(left.get(name, 0) - made * options.leave_percent / 100) <= 0.5


@given(options(), st.integers(0, 1000), st.integers(1, 64), st.floats(0.1, 1e5), st.integers(0, 100))
def test_a_life_depends_on_nothing_but_what_it_must(
    options: ChurnOptions, serial: int, parallel: int, rate: float, dead: int
) -> None:
    other = replace(options, parallel=parallel, rate=rate, dead=dead, cgroups=None, duration_s=1.0, hold_s=5.0)
    assert life(other, serial) == life(options, serial)


def test_seeds_and_cgroups_differ_in_what_they_do() -> None:
    mixed = replace(OPTIONS, leave_percent=30)
    assert len({life(mixed, serial).steps for serial in range(50)}) == 50
    assert len({digest(replace(mixed, seed=seed), 5) for seed in range(50)}) == 50


def test_the_same_seed_is_the_same_work_on_every_python() -> None:
    mixed = replace(OPTIONS, mix=parse_mix("dentry=3,shmem=2,pipe"), leave_percent=30, objects=7)
    assert life(mixed, 0).steps == "s1d1D1S1s1p1d1"
    assert digest(mixed, 5) == "edcfea43bb9039341b6b27f49229aeeebeb034c06b41f0b2e233dc5ba2853cf0"


def test_as_many_lives_as_asked_for_or_without_end() -> None:
    assert [one.name for one in lives(OPTIONS)] == ["c0", "c1", "c2", "c3", "c4"]
    assert len(list(islice(lives(replace(OPTIONS, cgroups=None)), 1000))) == 1000


def test_a_single_kind_is_a_single_run() -> None:
    assert life(replace(OPTIONS, mix=(("shmem", 1),), objects=1_000_000), 3).steps == "S1000000"
    assert life(replace(OPTIONS, mix=(("shmem", 1),), objects=7, leave_percent=0), 3).steps == "s7"


# What fits


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, 5),
        ({"dead": 3}, 3),
        ({"dead": 0}, 0),
        ({"dead": 30}, 5),
        ({"cgroups": None, "rate": 2.5, "duration_s": 10.0, "dead": 1000}, 26),
        ({"cgroups": None, "duration_s": 10.0, "dead": 1000}, 1000),
    ],
)
def test_so_many_dead_are_held_at_once(changes: dict[str, object], held: int) -> None:
    assert held_at_once(replace(OPTIONS, **changes)) == held  # type: ignore[arg-type]


@given(options(), st.integers(1, 64))
def test_more_of_anything_never_needs_less(options: ChurnOptions, cpus: int) -> None:
    least = estimate(options, cpus)
    for more in (
        replace(options, cgroups=(options.cgroups or 0) + 7),
        replace(options, objects=options.objects + 100),
        replace(options, leave_percent=100),
    ):
        most = estimate(more, cpus)
        assert most.memory_bytes >= least.memory_bytes
        assert most.disk_bytes >= least.disk_bytes
        assert most.descriptors >= least.descriptors


def test_an_estimate_counts_descriptors_threads_and_disk() -> None:
    assert estimate(replace(OPTIONS, mix=parse_mix("pipe")), 2).descriptors >= 2 * 5 * 41
    assert estimate(replace(OPTIONS, mix=parse_mix("thread")), 2).processes >= 5 * 41
    assert estimate(replace(OPTIONS, mix=parse_mix("file")), 2).disk_bytes >= 5 * 41 * 4096
    assert estimate(replace(OPTIONS, mix=parse_mix("shmem")), 2).memory_bytes >= 5 * 41 * 4096


def test_only_cgroups_that_are_online_need_an_id() -> None:
    """70,000 dying ones were made on 199 ids: the dead give theirs back."""
    assert estimate(replace(OPTIONS, cgroups=70_000, parallel=3), 2).memcg_ids == 4


ENOUGH = Free(memory_bytes=1 << 40, disk_bytes=1 << 40, processes=1 << 20, descriptors=1 << 20, memcg_ids=65_000)


@pytest.mark.parametrize("name", ["memory_bytes", "disk_bytes", "processes", "descriptors", "memcg_ids"])
def test_what_does_not_fit_is_refused_with_both_figures(name: str) -> None:
    needs = Needs(memory_bytes=1 << 30, disk_bytes=1 << 30, processes=1000, descriptors=1000, memcg_ids=1000)
    refuse_what_does_not_fit(needs, ENOUGH)
    with pytest.raises(UnsupportedError, match=r"may need .* to spare"):
        refuse_what_does_not_fit(needs, replace(ENOUGH, **{name: 999}))
    refuse_what_does_not_fit(needs, replace(ENOUGH, **{name: None}))
