# SPDX-License-Identifier: GPL-2.0-only
"""Rows of pairs that are kept between snapshots are those that would be made anew."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from kmemwatch.cacheids import CacheIds
from kmemwatch.model import Pair
from kmemwatch.source.reading import PairCounts
from kmemwatch.state.pairs import ACCOUNT_OBJECTS, NOBODY, OBJECTS, Column, Key, Owners, PairRows

IDS = CacheIds(b"test")
DENTRY, FILP, KMALLOC, UNKNOWN = 0x1000, 0x2000, 0x3000, 0x4000
COLUMNS = {
    DENTRY: Column("dentry", IDS[DENTRY], 192, OBJECTS),
    FILP: Column("filp", IDS[FILP], 256, OBJECTS),
    KMALLOC: Column("kmalloc-64", IDS[KMALLOC], 64, ACCOUNT_OBJECTS),
    UNKNOWN: Column("an unnamed one", IDS[UNKNOWN], None, None),
}
ROOT, YOUNG = 1, frozenset({7, 8, 9})
OWN = Owners({}, frozenset(), ROOT, YOUNG)


def fresh(counts: Mapping[Key, PairCounts], columns: Mapping[int, Column], owners: Owners) -> PairRows:
    made = PairRows(True, True, True)
    made.take(counts)
    made.rows(columns, owners)
    return made


def test_rows() -> None:
    counts = {
        (KMALLOC, 7): PairCounts(10, 4, 1),
        (FILP, 7): PairCounts(5, 0, 2),
        (DENTRY, 8): PairCounts(3, 0, 5),
        (DENTRY, 7): PairCounts(2, 0, 0),
        (UNKNOWN, 7): PairCounts(9, 9, 9),
        (KMALLOC, 9): PairCounts(6, 0, 0),
        (FILP, NOBODY): PairCounts(100, 0, 50),
        (FILP, ROOT): PairCounts(4, 0, 1),
    }
    pairs = PairRows(True, True, True)
    assert pairs.take(counts) == {DENTRY, FILP, KMALLOC, UNKNOWN}
    assert pairs.rows(COLUMNS, OWN) == (
        Pair("filp", IDS[FILP], ROOT, 4, 4 * 256, 1, None),
        Pair("an unnamed one", IDS[UNKNOWN], 7, 9, None, None, None),
        Pair("dentry", IDS[DENTRY], 7, 2, 2 * 192, 0, 2 * 192),
        Pair("filp", IDS[FILP], 7, 5, 5 * 256, 2, 3 * 256),
        Pair("kmalloc-64", IDS[KMALLOC], 7, 10, 640, 1, 3 * 64),
        Pair("dentry", IDS[DENTRY], 8, 3, 3 * 192, 5, None),
        Pair("kmalloc-64", IDS[KMALLOC], 9, 6, 6 * 64, None, None),
    )
    assert pairs.totals == {DENTRY: [5, 5], FILP: [109, 53], KMALLOC: [16, 1], UNKNOWN: [9, 9]}


@pytest.mark.parametrize("seed", range(30))
def test_kept_rows_are_those_made_anew(seed: int) -> None:
    chance = random.Random(seed)
    kept = PairRows(True, True, True)
    counts: dict[Key, PairCounts] = {}
    columns, moved, young, given = dict(COLUMNS), set[int](), set[int](), dict[Key, int]()
    for _ in range(40):
        for _ in range(chance.randrange(6)):
            key = chance.choice(list(COLUMNS)), chance.choice((NOBODY, ROOT, 7, 8, 9, 10))
            then = counts.pop(key, PairCounts(0, 0, 0)) if chance.random() < 0.5 else counts.get(key, (0, 0, 0))
            if chance.random() < 0.8:
                counts[key] = PairCounts(*(count + chance.randrange(3) for count in then))
            else:
                counts.pop(key, None)
        if chance.random() < 0.2:
            moved ^= {chance.choice((7, 8, 9))}
        if chance.random() < 0.3:
            given = {
                (DENTRY, chance.choice((ROOT, 7, 10))): chance.randrange(-3, 4) for _ in range(chance.randrange(3))
            }
        if chance.random() < 0.1:
            columns = {
                **columns,
                UNKNOWN: Column(
                    chance.choice(("an unnamed one", "aaa", "zzz")), IDS[UNKNOWN], chance.choice((None, 8)), OBJECTS
                ),
            }
        if chance.random() < 0.2:
            young ^= {chance.choice((7, 8, 9, 10))}
        owners = Owners(given, frozenset(moved), chance.choice((ROOT, ROOT, ROOT, None)), frozenset(young))
        kept.take(counts)
        again = fresh(counts, columns, owners)
        assert kept.rows(columns, owners) == again.rows(columns, owners)
        assert {cache: total for cache, total in kept.totals.items() if any(total)} == {
            cache: total for cache, total in again.totals.items() if any(total)
        }


def test_what_has_not_changed_is_not_made_anew() -> None:
    counts = {(DENTRY, cgroup_id): PairCounts(1, 0, 0) for cgroup_id in range(7, 11)}
    pairs = PairRows(True, True, True)
    pairs.take(counts)
    before = pairs.rows(COLUMNS, OWN)
    pairs.take({**counts, (DENTRY, 8): PairCounts(2, 0, 0)})
    after = pairs.rows(COLUMNS, OWN)
    assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True, True]


def test_signals_that_are_missing_are_unknown() -> None:
    pairs = PairRows(allocs=False, frees=False, knows_live=False)
    pairs.take({(DENTRY, 7): PairCounts(1, 0, 1)})
    assert pairs.rows(COLUMNS, OWN) == (Pair("dentry", IDS[DENTRY], 7, None, None, None, None),)
