# SPDX-License-Identifier: GPL-2.0-only
"""Caches that come and go, told once: by their event or by the list, whichever comes first."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.maps.decode import SlabEvent
from kmemwatch.state.child_caches import LATE_NS, CacheChange, CacheChanges

DENTRY = 0x1000


def cache(address: int, name: str, kmemcg_id: int | None = 0) -> CacheRecord:
    return CacheRecord(address, name, 192, 0, 4096, DENTRY, kmemcg_id)


def event(kind: str, at_ns: int, address: int, name: str, kmemcg_id: int | None = 0) -> SlabEvent:
    number = -1 if kmemcg_id is None else kmemcg_id
    return SlabEvent(kind, at_ns, None, 42, "kworker", number, address, name)


def compare(watch: CacheChanges, at_ns: int, *caches: CacheRecord) -> list[CacheChange]:
    return list(watch.take_list(caches, at_ns))


def test_the_first_list_is_no_news() -> None:
    assert compare(CacheChanges(), 10, cache(1, "dentry(0)")) == []


def test_what_no_event_told_is_told_by_the_list() -> None:
    watch = CacheChanges()
    compare(watch, 10, cache(1, "dentry(0)"), cache(2, "nfsd", None))
    assert compare(watch, 20, cache(1, "dentry(0)"), cache(3, "filp(4)", 4)) == [
        CacheChange("cache_destroyed", "nfsd", None),
        CacheChange("cache_created", "filp(4)", 4),
    ]
    assert compare(watch, 30, cache(1, "dentry(0)"), cache(3, "filp(4)", 4)) == []


def test_what_an_event_told_is_not_told_again() -> None:
    watch = CacheChanges()
    compare(watch, 10, cache(1, "dentry(0)"))
    assert watch.take_event(event("cache_destroyed", 11, 1, "dentry(0)"))
    assert watch.take_event(event("cache_created", 12, 2, "filp(0)"))
    assert compare(watch, 20, cache(2, "filp(0)")) == []


def test_a_list_that_was_read_before_the_event() -> None:
    watch = CacheChanges()
    compare(watch, 10, cache(1, "dentry(0)"))
    assert watch.take_event(event("cache_destroyed", 21, 1, "dentry(0)"))
    assert watch.take_event(event("cache_created", 22, 2, "filp(0)"))
    assert compare(watch, 20, cache(1, "dentry(0)")) == []
    assert compare(watch, 30, cache(2, "filp(0)")) == []


def test_the_first_list_may_be_older_than_the_first_events() -> None:
    watch = CacheChanges()
    assert watch.take_event(event("cache_created", 5, 3, "pipe(0)"))
    assert watch.take_event(event("cache_destroyed", 11, 1, "dentry(0)"))
    assert watch.take_event(event("cache_created", 12, 2, "filp(0)"))
    assert compare(watch, 10, cache(1, "dentry(0)"), cache(3, "pipe(0)")) == []
    assert compare(watch, 20, cache(2, "filp(0)"), cache(3, "pipe(0)")) == []


def test_a_cache_that_leaves_the_list_before_it_is_released() -> None:
    watch = CacheChanges()
    compare(watch, 10, cache(1, "sighand_cache(0)"))
    assert compare(watch, 20) == [CacheChange("cache_destroyed", "sighand_cache(0)", 0)]
    assert not watch.take_event(event("cache_destroyed", 25, 1, "sighand_cache(0)"))
    assert compare(watch, 30) == []
    assert watch.take_event(event("cache_created", 31, 1, "sighand_cache(1)", 1))
    assert watch.take_event(event("cache_destroyed", 32, 1, "sighand_cache(1)", 1)), "that is another one"


def test_a_cache_that_is_in_the_list_before_its_creation_is_told() -> None:
    watch = CacheChanges()
    compare(watch, 10)
    assert compare(watch, 20, cache(1, "dentry(0)")) == [CacheChange("cache_created", "dentry(0)", 0)]
    assert not watch.take_event(event("cache_created", 25, 1, "dentry(0)"))
    assert watch.take_event(event("cache_destroyed", 26, 1, "dentry(0)"))


def test_an_address_that_is_used_again_at_once() -> None:
    watch = CacheChanges()
    compare(watch, 10, cache(1, "dentry(0)"))
    assert compare(watch, 20, cache(1, "filp(3)", 3)) == [
        CacheChange("cache_destroyed", "dentry(0)", 0),
        CacheChange("cache_created", "filp(3)", 3),
    ]
    assert not watch.take_event(event("cache_destroyed", 21, 1, "dentry(0)"))
    assert not watch.take_event(event("cache_created", 22, 1, "filp(3)", 3))
    assert compare(watch, 30, cache(1, "filp(3)", 3)) == []


def test_an_event_that_never_came_is_not_waited_for() -> None:
    watch = CacheChanges()
    compare(watch, 10, cache(1, "dentry(0)"))
    compare(watch, 20)
    compare(watch, 30 + LATE_NS)
    assert watch.take_event(event("cache_created", 40 + LATE_NS, 1, "dentry(0)"))
    assert watch.take_event(event("cache_destroyed", 50 + LATE_NS, 1, "dentry(0)"))


class Kernel(RuleBasedStateMachine):
    """Makes and destroys caches, in two steps each: the list, and some time later the event, which may get lost."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = CacheChanges()
        self.now_ns = 1000
        self.there: dict[int, str] = {}
        """The list: address -> name."""
        self.serial = 0
        self.late: list[tuple[str, int, str]] = []
        """(kind, address, name) of events that are still to come, oldest first."""
        self.busy: set[int] = set()
        """Addresses with such an event: the memory of a cache is in use until it is released."""
        self.reading: tuple[int, list[CacheRecord]] | None = None
        self.told: set[str] = set()
        """What somebody believes to be there who hears everything."""
        self.ended: set[str] = set()
        assert compare(self.watch, self.now_ns) == []

    def _tick(self) -> int:
        self.now_ns += 1
        return self.now_ns

    @rule(address=st.integers(1, 4))
    def create(self, address: int) -> None:
        if address not in self.there and address not in self.busy:
            self.serial += 1
            self.there[address] = f"dentry({self.serial})"
            self.late.append(("cache_created", address, self.there[address]))
            self.busy.add(address)

    @rule(address=st.integers(1, 4))
    def destroy(self, address: int) -> None:
        if address in self.there and address not in self.busy:
            self.late.append(("cache_destroyed", address, self.there.pop(address)))
            self.busy.add(address)

    @precondition(lambda self: self.late)
    @rule(lost=st.booleans())
    def event(self, lost: bool) -> None:
        kind, address, name = self.late.pop(0)
        self.busy.remove(address)
        at_ns = self._tick()
        if not lost and self.watch.take_event(event(kind, at_ns, address, name)):
            self._hear(kind, name)

    def _hear(self, kind: str, name: str) -> None:
        if kind == "cache_created":
            assert name not in self.told, "told twice"
            self.told.add(name)
        else:
            # It may never have been heard of: its creation was lost, and no list was read meanwhile.
            assert name not in self.ended, "told twice"
            self.ended.add(name)
            self.told.discard(name)

    @precondition(lambda self: self.reading is None)
    @rule()
    def read(self) -> None:
        began = self._tick()
        self.reading = began, [cache(address, name) for address, name in self.there.items()]

    @precondition(lambda self: self.reading is not None)
    @rule()
    def take_in(self) -> None:
        assert self.reading is not None
        began, caches = self.reading
        self.reading = None
        self._compare(began, caches)

    def _compare(self, began: int, caches: list[CacheRecord]) -> None:
        for change in self.watch.take_list(caches, began):
            self._hear(change.kind, change.name)

    @precondition(lambda self: not self.late)
    @rule()
    def at_rest(self) -> None:
        self.reading = None
        self._compare(self._tick(), [cache(address, name) for address, name in self.there.items()])
        assert self.told == set(self.there.values())


TestEverythingIsToldOnce = Kernel.TestCase
