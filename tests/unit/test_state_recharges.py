# SPDX-License-Identifier: GPL-2.0-only
"""Recharges over the lives of memcgs: rows that name both ends while they are shown, totals that only grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.cacheids import CacheIds
from kmemwatch.model import DYING, FROM_NONE, ONLINE, RechargePair, Recharges, RechargeTotal
from kmemwatch.source.reading import RechargeCounts, RechargeKey
from kmemwatch.state.recharges import RechargeHistory

PAGE = 4096
DENTRY, FILP = 0xFFFF_8880_0000_1000, 0xFFFF_8880_0000_2000
CHILDREN = {DENTRY: (0x10_1000, 0x20_1000), FILP: (0x10_2000, 0x20_2000)}
"""Root cache -> its children, of ids 0 and 1."""
NAMES = {DENTRY: "dentry", FILP: "filp"}


def cache_records() -> dict[int, CacheRecord]:
    found = {root: CacheRecord(root, name, 192, 0) for root, name in NAMES.items()}
    for root, children in CHILDREN.items():
        for kmemcg_id, address in enumerate(children):
            found[address] = CacheRecord(address, f"{NAMES[root]}({kmemcg_id})", 192, 0, PAGE, root, kmemcg_id)
    return found


CACHES = cache_records()
DENTRY_0, DENTRY_1 = CHILDREN[DENTRY]
FILP_0 = CHILDREN[FILP][0]


def counts(*moves: tuple[RechargeKey, int, int], checks: int = 100) -> RechargeCounts:
    return RechargeCounts(checks, 5, 3, {key: (recharges, pages) for key, recharges, pages in moves})


IDS = CacheIds(b"test")
A_TO_B = RechargeKey(DENTRY_0, 101, 102, DYING)


def test_without_the_signal_all_is_unknown() -> None:
    ledger = RechargeHistory(PAGE, IDS)
    assert ledger.update(None, CACHES, [], []) == []
    assert ledger.rows() == Recharges()


def test_a_row_names_both_ends_and_a_total_the_root_cache() -> None:
    ledger = RechargeHistory(PAGE, IDS)
    none = RechargeKey(FILP_0, 0, 102, FROM_NONE)
    assert ledger.update(counts((A_TO_B, 7, 7), (none, 2, 16)), CACHES, [], []) == []
    assert ledger.rows() == Recharges(
        checks_total=100,
        recharges_total=9,
        recharged_bytes_total=23 * PAGE,
        failures_total=5,
        lost_races_total=3,
        pairs=(
            RechargePair("filp(0)", None, FROM_NONE, 102, 2, 16 * PAGE, 0),
            RechargePair("dentry(0)", 101, DYING, 102, 7, 7 * PAGE, 0),
        ),
        totals=(RechargeTotal("dentry", DYING, 7, 7 * PAGE), RechargeTotal("filp", FROM_NONE, 2, 16 * PAGE)),
    )


def test_children_of_one_cache_are_one_total() -> None:
    ledger = RechargeHistory(PAGE, IDS)
    ledger.update(counts((A_TO_B, 7, 7), (RechargeKey(DENTRY_1, 103, 104, DYING), 2, 2)), CACHES, [], [])
    assert ledger.rows().totals == (RechargeTotal("dentry", DYING, 9, 9 * PAGE),)


def test_the_released_stay_in_rows_until_they_are_shown_no_more() -> None:
    ledger = RechargeHistory(PAGE, IDS)
    assert ledger.update(counts((A_TO_B, 7, 7)), CACHES, [101], []) == [A_TO_B]
    kept = ledger.rows()
    assert [pair.recharges_total for pair in kept.pairs or ()] == [7]
    assert ledger.update(counts(), CACHES, [101], []) == [], "the map has forgotten it"
    assert ledger.rows() == kept
    assert ledger.update(counts(), CACHES, [101], [101]) == []
    assert ledger.rows().pairs == ()
    assert ledger.rows().totals == kept.totals


def test_a_move_that_the_map_could_not_forget_in_time() -> None:
    """It was told to forget, but another CPU has counted meanwhile: what comes later is added."""
    ledger = RechargeHistory(PAGE, IDS)
    assert ledger.update(counts((A_TO_B, 7, 7)), CACHES, [101], []) == [A_TO_B]
    assert ledger.update(counts((A_TO_B, 1, 1)), CACHES, [101], []) == [A_TO_B]
    assert ledger.rows().recharges_total == 8


def test_a_cache_that_no_list_has_shown_goes_by_its_id() -> None:
    ledger = RechargeHistory(PAGE, IDS)
    ledger.update(counts((A_TO_B, 7, 7)), {}, [], [])
    assert [(pair.cache, pair.kmemcg_id) for pair in ledger.rows().pairs or ()] == [(IDS.name(0x101000), None)]
    ledger.update(counts((A_TO_B, 7, 7)), CACHES, [], [])
    assert [(pair.cache, pair.kmemcg_id) for pair in ledger.rows().pairs or ()] == [("dentry(0)", 0)]


def test_a_cache_that_is_gone_keeps_its_name() -> None:
    ledger = RechargeHistory(PAGE, IDS)
    ledger.update(counts((A_TO_B, 7, 7)), CACHES, [], [])
    ledger.update(counts((A_TO_B, 7, 7)), {}, [], [])
    assert [pair.cache for pair in ledger.rows().pairs or ()] == ["dentry(0)"]


class Kernel(RuleBasedStateMachine):
    """Its own books of slabs that moved, against those of the ledger, while memcgs end and maps forget."""

    alive = Bundle("alive")
    ended = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = RechargeHistory(PAGE, IDS)
        self.moves: dict[RechargeKey, tuple[int, int]] = {}
        """The map."""
        self.checks = 0
        self.next_id = 100
        self.over: set[int] = set()
        self.shown: set[int] = set()
        self.totals: Counter[tuple[str, str]] = Counter()
        """(root cache, state) -> recharges."""
        self.pages: Counter[tuple[str, str]] = Counter()
        self.rows: Counter[RechargeKey] = Counter()
        self.last: dict[tuple[str, str], tuple[int, int]] = {}

    @rule(target=alive)
    def mkdir(self) -> int:
        self.next_id += 1
        self.shown.add(self.next_id)
        return self.next_id

    @rule(
        source=alive | st.none(),
        to=alive,
        root=st.sampled_from([DENTRY, FILP]),
        kmemcg_id=st.integers(0, 1),
        dying=st.booleans(),
        pages=st.sampled_from([1, 2, 8]),
        number=st.integers(1, 1000),
    )
    def move(
        self, source: int | None, to: int, root: int, kmemcg_id: int, dying: bool, pages: int, number: int
    ) -> None:
        if source == to or {source, to} & self.over:
            return
        state = FROM_NONE if source is None else DYING if dying else ONLINE
        key = RechargeKey(CHILDREN[root][kmemcg_id], source or 0, to, state)
        before = self.moves.get(key, (0, 0))
        self.moves[key] = before[0] + number, before[1] + number * pages
        self.checks += number
        self.totals[NAMES[root], state] += number
        self.pages[NAMES[root], state] += number * pages
        self.rows[key] += number

    @rule(target=ended, memcg=consumes(alive))
    def release(self, memcg: int) -> int:
        self.over.add(memcg)
        return memcg

    @rule(memcg=consumes(ended))
    def show_no_more(self, memcg: int) -> None:
        self.read({memcg})

    @rule()
    def look(self) -> None:
        self.read(set())

    def read(self, gone: Collection[int]) -> None:
        self.shown -= set(gone)
        final = self.ledger.update(
            RechargeCounts(self.checks, 0, 0, dict(self.moves)), CACHES, (self.over & self.shown) | set(gone), gone
        )
        for key in final:
            del self.moves[key]
        rows = self.ledger.rows()
        assert rows.totals is not None
        assert rows.pairs is not None
        told = {(t.cache, t.from_state): (t.recharges_total, t.recharged_bytes_total) for t in rows.totals}
        assert told == {name: (number, self.pages[name] * PAGE) for name, number in self.totals.items()}
        assert rows.recharges_total == self.totals.total()
        assert rows.recharged_bytes_total == self.pages.total() * PAGE
        assert all(told[name] >= before for name, before in self.last.items())
        self.last = told
        expected = {
            (CACHES[key.cache].name, key.from_id or None, key.from_state, key.to_id): number
            for key, number in self.rows.items()
            if {key.from_id, key.to_id} - {0} <= self.shown
        }
        assert expected == {
            (pair.cache, pair.from_cgroup_id, pair.from_state, pair.to_cgroup_id): pair.recharges_total
            for pair in rows.pairs
        }

    @invariant()
    def nothing_is_kept_for_ever(self) -> None:
        assert all({key.from_id, key.to_id} - {0} <= self.shown for key in self.ledger._moves)


TestBooksAgree = Kernel.TestCase
