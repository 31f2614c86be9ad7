# SPDX-License-Identifier: GPL-2.0-only
"""Rows of pairs that are kept between snapshots are those that would be made anew."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from kmemwatch.cacheids import CacheIds
from kmemwatch.model import Pair
from kmemwatch.source.reading import MapCounts
from kmemwatch.source.reading import PairKey as Key
from kmemwatch.state.counts import NOBODY, CacheOfPairs, PairRows, Reparented
from tests.unit import fakes

IDS = CacheIds(b"test")
DENTRY, FILP, KMALLOC, UNKNOWN = 0x1000, 0x2000, 0x3000, 0x4000
COLUMNS = {
    DENTRY: CacheOfPairs("dentry", IDS[DENTRY], 192, True),
    FILP: CacheOfPairs("filp", IDS[FILP], 256, True),
    KMALLOC: CacheOfPairs("kmalloc-64", IDS[KMALLOC], 64, False),
    UNKNOWN: CacheOfPairs("an unnamed one", IDS[UNKNOWN], None, None),
}
ROOT, YOUNG = 1, frozenset({7, 8, 9})
OWN = Reparented({}, frozenset(), ROOT, YOUNG)


def counted(objects: int, account: int, freed: int) -> MapCounts:
    """`objects`: all of them; `account`: those of them with __GFP_ACCOUNT."""
    return objects - account, account, freed


def fresh(counts: Mapping[Key, MapCounts], caches: Mapping[int, CacheOfPairs], owners: Reparented) -> tuple[Pair, ...]:
    return PairRows(True, True, True).rows(counts, set(counts), caches, owners)


def test_rows() -> None:
    counts = {
        (KMALLOC, 7): counted(10, 4, 1),
        (FILP, 7): counted(5, 0, 2),
        (DENTRY, 8): counted(3, 0, 5),
        (DENTRY, 7): counted(2, 0, 0),
        (UNKNOWN, 7): counted(9, 9, 9),
        (KMALLOC, 9): counted(6, 0, 0),
        (FILP, NOBODY): counted(100, 0, 50),
        (FILP, ROOT): counted(4, 0, 1),
    }
    assert fresh(counts, COLUMNS, OWN) == (
        fakes.pair("filp", IDS[FILP], ROOT, 4, 4 * 256, 1, None),
        fakes.pair("an unnamed one", IDS[UNKNOWN], 7, 9, None, None, None),
        fakes.pair("dentry", IDS[DENTRY], 7, 2, 2 * 192, 0, 2 * 192),
        fakes.pair("filp", IDS[FILP], 7, 5, 5 * 256, 2, 3 * 256),
        fakes.pair("kmalloc-64", IDS[KMALLOC], 7, 10, 640, 1, 3 * 64),
        fakes.pair("dentry", IDS[DENTRY], 8, 3, 3 * 192, 5, None),
        fakes.pair("kmalloc-64", IDS[KMALLOC], 9, 6, 6 * 64, None, None),
    )


@pytest.mark.parametrize("seed", range(30))
def test_kept_rows_are_those_made_anew(seed: int) -> None:
    chance = random.Random(seed)
    kept = PairRows(True, True, True)
    counts: dict[Key, MapCounts] = {}
    columns, moved, young, given = dict(COLUMNS), set[int](), set[int](), dict[Key, int]()
    for _ in range(40):
        changed = set()
        for _ in range(chance.randrange(6)):
            key = chance.choice(list(COLUMNS)), chance.choice((NOBODY, ROOT, 7, 8, 9, 10))
            changed.add(key)
            then = counts.pop(key, (0, 0, 0)) if chance.random() < 0.5 else counts.get(key, (0, 0, 0))
            if chance.random() < 0.8:
                counts[key] = tuple(count + chance.randrange(3) for count in then)
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
                UNKNOWN: CacheOfPairs(
                    chance.choice(("an unnamed one", "aaa", "zzz")), IDS[UNKNOWN], chance.choice((None, 8)), True
                ),
            }
        if chance.random() < 0.2:
            young ^= {chance.choice((7, 8, 9, 10))}
        owners = Reparented(given, frozenset(moved), chance.choice((ROOT, ROOT, ROOT, None)), frozenset(young))
        if chance.random() < 0.05:
            kept.make_all_anew()
        assert kept.rows(counts, changed, columns, owners) == fresh(counts, columns, owners)


def test_what_has_not_changed_is_not_made_anew() -> None:
    counts = {(DENTRY, cgroup_id): counted(1, 0, 0) for cgroup_id in range(7, 11)}
    pairs = PairRows(True, True, True)
    before = pairs.rows(counts, set(counts), COLUMNS, OWN)
    after = pairs.rows({**counts, (DENTRY, 8): counted(2, 0, 0)}, {(DENTRY, 8)}, COLUMNS, OWN)
    assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True, True]


def test_signals_that_are_missing_are_unknown() -> None:
    pairs = PairRows(allocs=False, frees=False, knows_live=False)
    counts = {(DENTRY, 7): counted(1, 0, 1)}
    assert pairs.rows(counts, set(counts), COLUMNS, OWN) == (
        fakes.pair("dentry", IDS[DENTRY], 7, None, None, None, None),
    )
