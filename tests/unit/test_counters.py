# SPDX-License-Identifier: GPL-2.0-only
"""Totals of counters that end and begin again: no growth is lost, none is counted twice, nothing is kept for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kmemwatch.counters import GrowingTotals, Growth

items = st.integers(0, 5)
keys = st.integers(0, 2)
amounts = st.integers(0, 9)


def test_a_new_item_has_grown_from_0() -> None:
    growth: Growth[str, int] = Growth(2)
    grown = growth.look({"a": (3, 1), "b": (0, 0)})
    assert (grown.items, grown.columns, grown.gone) == (["a", "b"], [[3, 0], [1, 0]], set())


def test_an_item_that_did_not_change_is_not_given() -> None:
    growth: Growth[str, float] = Growth(1)
    growth.look({"a": (1.5,), "b": (2.0,)})
    grown = growth.look({"a": (1.5,), "b": (2.25,)})
    assert (grown.items, grown.columns) == (["b"], [[0.25]])


def test_when_one_counter_fell_all_of_its_item_began_again() -> None:
    growth: Growth[str, int] = Growth(2)
    growth.look({"a": (100, 50), "b": (1, 1)})
    grown = growth.look({"a": (120, 10), "b": (2, 1)})
    assert (grown.items, grown.columns) == (["a", "b"], [[120, 1], [10, 0]])


def test_who_ends_begins_at_0_whatever_it_shows_next() -> None:
    growth: Growth[str, int] = Growth(1)
    growth.look({"a": (5,)})
    growth.end(["a", "never seen"])
    assert growth.look({"a": (7,)}).columns == [[7]]
    assert growth.look({}).gone == {"a"}
    assert growth.look({"a": (7,)}).columns == [[7]]


def test_a_look_at_nothing_has_all_columns() -> None:
    assert Growth[str, int](3).look({}).columns == [[], [], []]


def test_totals_of_a_key_that_nothing_was_added_to_are_0() -> None:
    totals: GrowingTotals[str, int] = GrowingTotals(2)
    assert totals["a"] == (0, 0)
    assert list(totals) == []
    totals.add(["a", "b", "a"], ([1, 2, 3], [0, 0, 4]))
    assert (totals["a"], totals["b"], totals.keys()) == ((4, 4), (2, 0), {"a", "b"})
    assert totals.pop("b") == (2, 0)
    assert totals.pop("b") == (0, 0)


class Books(RuleBasedStateMachine):
    """Counters of items that come, go, restart and change their key, against books of every single event."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[int, list[int]] = {}
        self.key_of = dict.fromkeys(range(6), 0)
        self.unread: dict[int, list[int]] = {}
        """What was counted since the last look."""
        self.growth: Growth[int, int] = Growth(2)
        self.totals: GrowingTotals[int, int] = GrowingTotals(2)
        self.expected: tuple[Counter[int], Counter[int]] = (Counter(), Counter())

    @rule(item=items, first=amounts, second=amounts)
    def count(self, item: int, first: int, second: int) -> None:
        for counters in (self.there.setdefault(item, [0, 0]), self.unread.setdefault(item, [0, 0])):
            counters[0] += first
            counters[1] += second

    @rule(item=items, key=keys)
    def move(self, item: int, key: int) -> None:
        self.key_of[item] = key

    @rule(item=items)
    def goes(self, item: int) -> None:
        """One look before, as what is counted after the last look nobody can know, and one that sees it gone."""
        self.look()
        self.there.pop(item, None)
        self.look()

    @rule(item=items)
    def restarts_unseen(self, item: int) -> None:
        """Whoever reads it is told that it began again, as it may count more than before until the next look."""
        self.look()
        if item in self.there:
            self.there[item] = [0, 0]
            self.growth.end([item])

    @rule(item=items, first=amounts)
    def restarts_and_is_seen_to(self, item: int, first: int) -> None:
        self.look()
        if self.there.get(item, [0, 0])[0] > first:
            self.there[item] = [first, 99]
            self.unread[item] = [first, 99]
        self.look()

    @rule()
    def look(self) -> None:
        grown = self.growth.look({item: (first, second) for item, (first, second) in self.there.items()})
        self.totals.add([self.key_of[item] for item in grown.items], grown.columns)
        for item, counts in self.unread.items():
            for expected, count in zip(self.expected, counts, strict=True):
                expected[self.key_of[item]] += count
        self.unread.clear()
        for key in range(3):
            assert self.totals[key] == (self.expected[0][key], self.expected[1][key])

    @rule(key=keys)
    def drop(self, key: int) -> None:
        self.totals.keep(set(range(3)) - {key})
        for expected in self.expected:
            expected.pop(key, None)
        assert self.totals[key] == (0, 0)

    @invariant()
    def nothing_is_kept_of_what_is_gone(self) -> None:
        assert len(self.growth.latest) <= 6
        assert len(list(self.totals)) <= 3


Books.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBooksAgree = Books.TestCase
