# SPDX-License-Identifier: GPL-2.0-only
"""A recording as a feed: whose time it is, what comes when, and what is said about cuts and restarts."""

from __future__ import annotations

import threading
import time
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kmemwatch.errors import UsageError
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.feeds.replay import ReplayFeed
from kmemwatch.model import Event, Snapshot
from tests.unit import fakes

EVERY_S = 5


def at(seconds: float) -> Snapshot:
    ns = int(seconds * 10**9)
    return replace(fakes.empty(), monotonic_ns=10**12 + ns, taken_at_ns=10**18 + ns, duration_s=float(seconds))


def event(seconds: float) -> Event:
    return Event(10**18 + int(seconds * 10**9), "online", int(seconds))


def write(path: Path, *runs: list[Snapshot | Event]) -> None:
    for items in runs:
        with RecordingWriter(str(path)) as writer:
            writer.begin(next(item for item in items if isinstance(item, Snapshot)))
            for item in items:
                writer.write_snapshot(item) if isinstance(item, Snapshot) else writer.write_event(item)


def seconds_of(snapshot: Snapshot | None) -> float | None:
    return None if snapshot is None else (snapshot.monotonic_ns - 10**12) / 10**9


def play(feed: Feed, delay_s: float) -> list[float]:
    """Seconds of all snapshots up to the end."""
    found = []
    while (snapshot := feed.next_snapshot(delay_s)) is not None:
        found.append((snapshot.monotonic_ns - 10**12) / 10**9)
    assert feed.next_snapshot(delay_s) is None, "the end is the end"
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Every 5 s for a minute, an event in the middle of each step."""
    path = tmp_path / "minute.kmw"
    items: list[Snapshot | Event] = [at(0)]
    for seconds in range(EVERY_S, 61, EVERY_S):
        items += [event(seconds - 2), at(seconds)]
    write(path, [*items, event(62)])
    return path


def test_the_first_snapshot_comes_at_once_whatever_the_delay(path: Path) -> None:
    for delay_s in (0, 3, 30):
        assert seconds_of(ReplayFeed(str(path)).next_snapshot(delay_s)) == 0


@pytest.mark.parametrize(
    ("delay_s", "expected"),
    [
        (0, [*range(0, 61, 5)]),  # record by record
        (3, [*range(0, 61, 5)]),  # finer than it was recorded: nothing twice
        (5, [*range(0, 61, 5)]),
        (10, [*range(0, 61, 10)]),
        (12, [0, 10, 20, 35, 45, 60]),  # steps of 12 s on average, at what there is
        (3600, [0, 60]),
    ],
)
def test_delay_is_time_of_the_recording(path: Path, delay_s: float, expected: list[int]) -> None:
    began = time.monotonic()
    assert play(ReplayFeed(str(path)), delay_s) == expected
    assert time.monotonic() - began < 1


def test_a_recording_that_is_not_on_the_second_loses_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw"
    write(path, [at(i * 5.003) for i in range(200)])
    assert len(play(ReplayFeed(str(path)), 5)) == 200
    assert len(play(ReplayFeed(str(path)), 10)) == pytest.approx(101, abs=1)
    early = tmp_path / "y.kmw"
    write(early, [at(i * 4.997) for i in range(200)])
    assert len(play(ReplayFeed(str(early)), 5)) == pytest.approx(200, abs=2)


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=20), st.lists(st.floats(0, 100), min_size=1, max_size=20))
@settings(max_examples=60)
def test_time_only_goes_forward_and_reaches_the_end(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], delays: list[float]
) -> None:
    path = tmp_path_factory.mktemp("replay") / "x.kmw"
    times = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    write(path, [at(t) for t in times])
    feed = ReplayFeed(str(path))
    seen = []
    for delay_s in delays + [1000.0] * len(times):
        if (snapshot := feed.next_snapshot(delay_s)) is None:
            break
        seen.append(snapshot.monotonic_ns)
    assert seen == sorted(set(seen))
    assert seen[0] == at(0).monotonic_ns
    assert seen[-1] == at(times[-1]).monotonic_ns


def test_events_come_with_the_step_they_belong_to(path: Path) -> None:
    feed = ReplayFeed(str(path))
    feed.next_snapshot(0)
    assert feed.take_events() == []
    feed.next_snapshot(10)
    assert [e.cgroup_id for e in feed.take_events()] == [3, 8]
    assert feed.take_events() == []
    while feed.next_snapshot(10) is not None:
        pass
    assert [e.cgroup_id for e in feed.take_events()] == [13, 18, 23, 28, 33, 38, 43, 48, 53, 58, 62]


def test_waiting_for_events_reads_them_all(path: Path) -> None:
    feed = ReplayFeed(str(path))
    found = []
    while (events := feed.wait_events(1)) is not None:
        found += [e.cgroup_id for e in events]
    assert found == [*range(3, 61, 5), 62]
    assert feed.wait_events(1) is None


def test_realtime_takes_the_recorded_time(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw"
    write(path, [at(0), at(0.2), event(0.3), at(0.4)])
    began = time.monotonic()
    assert play(ReplayFeed(str(path), realtime=True), 0.1) == [0, 0.2, 0.4]
    assert 0.4 <= time.monotonic() - began < 0.8
    began = time.monotonic()
    assert ReplayFeed(str(path), realtime=True).wait_events(0.05) == ()
    feed = ReplayFeed(str(path), realtime=True)
    while (events := feed.wait_events(0.05)) == ():
        pass
    assert events == [event(0.3)]
    assert 0.45 <= time.monotonic() - began < 0.9


def test_closing_wakes_a_realtime_wait(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw"
    write(path, [at(0), at(3600)])
    feed = ReplayFeed(str(path), realtime=True)
    feed.next_snapshot(0)
    closer = threading.Timer(0.1, feed.close)
    closer.start()
    began = time.monotonic()
    assert feed.next_snapshot(3600) is None
    assert time.monotonic() - began < 2
    closer.join()
    feed.close()
    assert feed.wait_events(1) is None


def test_a_restart_of_the_recorder_is_told_and_its_pause_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw"
    write(path, [at(0), at(5)], [event(3999), at(4000), at(4005)])
    feed = ReplayFeed(str(path))
    assert [seconds_of(feed.next_snapshot(5)) for _ in range(2)] == [0, 5]
    assert not feed.notice
    assert seconds_of(feed.next_snapshot(5)) == 4000
    assert "restarted" in str(feed.notice)
    assert seconds_of(feed.next_snapshot(5)) == 4005
    assert feed.notice is None
    feed = ReplayFeed(str(path), realtime=True)
    feed.next_snapshot(0)
    began = time.monotonic()
    feed.next_snapshot(0)
    assert seconds_of(feed.next_snapshot(0.1)) == 4000
    assert 0.1 <= time.monotonic() - began < 1


def test_a_long_delay_does_not_skip_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw"
    write(path, [at(0), at(5), at(10)], [at(20), at(25)])
    assert play(ReplayFeed(str(path)), 3600) == [0, 10, 20, 25]


def test_a_cut_recording_plays_up_to_the_cut_and_says_so(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    feed = ReplayFeed(str(path))
    feed.next_snapshot(0)
    assert feed.notice is None, "not before it is reached"
    assert play(feed, 0)[-1] == 60
    assert feed.notice == f"{path}:27: recording cut off here; this is all of it"


def test_damage_is_raised_where_it_is_and_not_before(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7] = lines[7].replace(b'"duration_s":', b'"duration_z":')
    path.write_bytes(b"".join(lines))
    feed = ReplayFeed(str(path))
    assert [seconds_of(feed.next_snapshot(0)) for _ in range(3)] == [0, 5, 10]
    for _ in range(2):
        with pytest.raises(UsageError, match=rf"{path}:8: damaged record"):
            feed.next_snapshot(0)


@pytest.mark.parametrize("keep", [0, 1])
def test_without_a_snapshot_there_is_nothing_to_play(path: Path, keep: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:keep]))
    with pytest.raises(UsageError, match=str(path)):
        ReplayFeed(str(path))


def test_demo_is_the_packaged_recording(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "data").mkdir(parents=True)
    monkeypatch.setattr(resources, "files", lambda name: package)
    with pytest.raises(UsageError, match=r"demo\.kmw\.gz is missing"):
        ReplayFeed("demo")
    write(package / "data/demo.kmw.gz", [at(0), at(5)])
    feed = ReplayFeed("demo")
    assert feed.title == "demo"
    assert play(feed, 5) == [0, 5]


def test_title_is_the_file_name(path: Path) -> None:
    assert ReplayFeed(str(path)).title == "minute.kmw"


def test_the_demo_that_ships_can_be_played_to_its_end() -> None:
    feed = ReplayFeed("demo")
    seen = []
    while (snapshot := feed.next_snapshot(0)) is not None:
        seen.append(snapshot)
    feed.close()
    assert len(seen) > 10
    assert feed.notice is None
    assert {snapshot.kernel.era for snapshot in seen} == {"objcg"}
    # It catches a memcg that is just being removed, whose references the kernel has not added up.
    references = [cgroup.references for snapshot in seen for cgroup in snapshot.cgroups]
    assert max(filter(None, references)) < 10_000
    # Recorded before there were these fields.
    assert {(s.ids.given_total, s.ids.meaning, s.recharges.totals) for s in seen} == {(None, None, None)}
