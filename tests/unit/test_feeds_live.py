# SPDX-License-Identifier: GPL-2.0-only
"""The live feed on an invented kernel: what it gives, and that it can be ended at any moment from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.source.reading import Reading
from tests.unit.fake_source import FakeSource

QUICK_S = 2.0
"""An order of magnitude more than any of these takes, for machines that are busy."""


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def feed(source: FakeSource) -> Iterator[LiveFeed]:
    found = LiveFeed(source)
    yield found
    found.close()


def test_a_snapshot_at_once_and_one_later(feed: LiveFeed, source: FakeSource) -> None:
    began = time.monotonic()
    first = feed.next_snapshot(0)
    assert first is not None
    assert time.monotonic() - began < QUICK_S
    source.mkdir("a")
    began = time.monotonic()
    second = feed.next_snapshot(0.3)
    assert second is not None
    assert 0.3 <= time.monotonic() - began < 0.3 + QUICK_S
    assert [row.path for row in second.cgroups] == ["/", "/a"]
    assert [event.path for event in feed.take_events()] == ["/a"]
    assert feed.take_events() == ()


def test_events_come_as_soon_as_they_happen(feed: LiveFeed, source: FakeSource) -> None:
    assert feed.wait_events(0) == ()
    timer = threading.Timer(0.2, source.mkdir, ["late"])
    timer.start()
    began = time.monotonic()
    events = feed.wait_events(60)
    timer.join()
    assert time.monotonic() - began < 0.2 + QUICK_S
    assert events is not None
    assert [(event.kind, event.path) for event in events] == [("online", "/late")], "the root is known by a walk"


def test_who_only_waits_for_events_forgets_the_dead(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.feeds.live._UPDATE_S", 0.0)
    feed = LiveFeed(source)
    for number in range(30):
        memcg = source.mkdir(str(number))
        source.alloc(memcg)
        source.rmdir(memcg)
        source.release(memcg)
        assert feed.wait_events(0) is not None
        source.now_ns += 3600 * 10**9
    feed.wait_events(0)
    feed.wait_events(0)
    assert len(feed._state._memcgs.by_id) <= 2
    assert source.pairs == {}
    feed.close()


def test_closed(feed: LiveFeed, source: FakeSource) -> None:
    feed.close()
    feed.close()
    assert source.closed >= 1
    reads = source.reads
    assert feed.next_snapshot(0) is None
    assert feed.next_snapshot(60) is None
    assert feed.wait_events(60) is None
    assert source.reads == reads, "nothing is read after the end"


@pytest.mark.parametrize("wait", ["next_snapshot", "wait_events"])
def test_close_ends_a_wait_in_another_thread(feed: LiveFeed, wait: str) -> None:
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(getattr(feed, wait)(60)))
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    feed.close()
    thread.join(QUICK_S)
    assert not thread.is_alive()
    assert time.monotonic() - began < QUICK_S
    assert result == [None]


def test_close_lets_a_read_finish_first(source: FakeSource) -> None:
    """Descriptors must not be closed under a reader, who might read from what was opened since."""
    reading, finish = threading.Event(), threading.Event()
    order: list[str] = []

    class Slow(FakeSource):
        def read(self) -> Reading:
            reading.set()
            finish.wait(QUICK_S)
            order.append("read")
            return super().read()

        def close(self) -> None:
            order.append("close")

    feed = LiveFeed(Slow())
    worker = threading.Thread(target=feed.next_snapshot, args=[0])
    worker.start()
    assert reading.wait(QUICK_S)
    closer = threading.Thread(target=feed.close)
    closer.start()
    time.sleep(0.1)
    finish.set()
    worker.join()
    closer.join()
    assert order == ["read", "close"]
