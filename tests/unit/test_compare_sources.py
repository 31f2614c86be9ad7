# SPDX-License-Identifier: GPL-2.0-only
"""Recordings and daemons as sides: restarts, reboots, gaps, jumps of the clock, cuts, and what cannot be."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from pathlib import Path
from types import MappingProxyType

import pytest
from msgspec.structs import replace

from kmemwatch.compare.comparison import compare
from kmemwatch.compare.figures import Metric, figure, pinned
from kmemwatch.compare.figures import read as read_snapshot
from kmemwatch.compare.measure import DaemonWatch, SideBuilder, read_recording, run_all
from kmemwatch.compare.side import Side
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.exporter.metrics import METRICS
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import Cache, Event, Host, Snapshot
from kmemwatch.shape import COUNTER
from tests.unit import fakes
from tests.unit.compare_sides import BOOT, S, life, recording, snapshot
from tests.unit.fakes import IDS, FakeFeed


def read(path: Path, label: str = "A") -> Side:
    return read_recording(label, str(path))


def watched(*snapshots: Snapshot, events: dict[int, list[Event]] | None = None) -> Side:
    builder = SideBuilder()
    for number, one in enumerate(snapshots):
        builder.add(one, (events or {}).get(number, ()))
    return builder.side("A", "recording", "test")


def notes(side: Side) -> str:
    return " | ".join(compare(side, dataclasses.replace(side, label="B")).side_notes[0])


def test_counters_are_those_that_the_metrics_say() -> None:
    kinds = {f.metric: f.kind for table in METRICS for f in table.fields}
    for metric in Metric:
        if metric.value.metric in kinds:
            assert (kinds[metric.value.metric] == COUNTER) == metric.value.counter, metric
    exported = [metric.value for metric in Metric if metric.value.in_prometheus]
    named = {series.label for series in exported if series.label is not None}
    labels = {label for table in METRICS for label in table.labels}
    assert named <= labels


def test_figures_of_a_snapshot_are_added_up_over_other_labels() -> None:
    found = read_snapshot(fakes.sample())
    assert Metric.DYING.of(found) == 4
    assert found[figure(Metric.DYING_BYTES, "slab")] == 81920 + 1572864
    assert pinned(found) == sum(sum(kinds.values()) for kinds in fakes.PINS.values())
    assert Metric.SLAB_BYTES.of(found) == sum(c.slab_bytes or 0 for c in fakes.sample().caches)
    assert Metric.KERNEL_BYTES.of(found) == 1832 * fakes.MB
    assert Metric.CHECKS.of(found) is None
    assert Metric.CACHES_MAX.of(found) is None


def test_a_recording_is_a_side(tmp_path: Path) -> None:
    events = {2: life(7, 0.5, 1.5), 5: life(8, 3.25, None)}
    path = recording(tmp_path / "a.kmw", (snapshot(t, dead_s={8: 3.25} if t > 3 else {}) for t in range(10)), events)
    side = read(path)
    assert (side.samples, side.duration_s, side.events) == (10, 9.0, 3)
    assert side.increase(Metric.OFFLINED) == 18
    assert side.delays.released_s == (1.0,)
    assert side.delays.still_dying_s == (5.75,)
    assert side.hosts[0].name == "hostA"
    assert side.hosts[0].boot_ids == (BOOT["A"],)
    assert (side.restarts, side.gaps, side.clock_jumps_s, side.cut, side.contradictions) == (0, (), (), None, ())


def test_a_restart_halfway_is_recognised_and_added_up() -> None:
    # Attached again 100 s later: counters begin at 0, the clocks go on.
    later = [
        replace(
            snapshot(t), taken_at_ns=fakes.START_NS + (100 + t) * S, monotonic_ns=fakes.MONO_START_NS + (100 + t) * S
        )
        for t in range(1, 6)
    ]
    side = watched(*(snapshot(t) for t in range(10)), *later)
    assert side.restarts == 1
    assert side.increase(Metric.OFFLINED) == 18 + 10
    assert side.increase(Metric.RECHARGES) == 27 + 15
    assert side.duration_s == 105
    assert side.gaps == ((9.0, 92.0),)
    assert not side.contradictions
    assert "kmemwatch was restarted once" in notes(side)
    assert "no samples for 1m32s" in notes(side)


def test_a_reboot_is_recognised() -> None:
    booted = replace(snapshot(3), host=Host("hostA", "6.1", "x86_64", BOOT["B"]), taken_at_ns=fakes.START_NS + 60 * S)
    side = watched(snapshot(0), snapshot(1), booted)
    assert (side.reboots, side.restarts) == (1, 1)
    assert side.hosts[0].boot_ids == (BOOT["A"], BOOT["B"])
    assert side.duration_s == 60
    assert side.increase(Metric.OFFLINED) == 2 + 6
    assert "booted once" in notes(side)


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_clock_that_jumps_spoils_no_times(jump_s: int) -> None:
    def at(t: int) -> Snapshot:
        one = snapshot(t)
        return one if t < 5 else replace(one, taken_at_ns=one.taken_at_ns + jump_s * S)

    across = [Event(fakes.START_NS + 2 * S, "offline", 1), Event(fakes.START_NS + (7 + jump_s) * S, "released", 1)]
    before = life(2, 1, 2.5)
    side = watched(*map(at, range(10)), events={3: [across[0], *before], 8: [across[1]]})
    assert list(side.clock_jumps_s) == [jump_s]
    assert side.duration_s == 9
    assert side.delays.released_s == (1.5,)
    assert side.delays.unusable == 1
    assert "clock jumped" in notes(side)
    assert not side.contradictions


def test_a_clock_that_is_slewed_does_not_jump() -> None:
    drifting = [
        replace(one, taken_at_ns=one.taken_at_ns + n * S // 100) for n, one in enumerate(map(snapshot, range(50)))
    ]
    assert watched(*drifting).clock_jumps_s == ()


def test_a_counter_that_falls_in_one_run_cannot_be() -> None:
    fallen = replace(snapshot(2), totals=replace(snapshot(2).totals, cgroups_offlined_total=1))
    side = watched(snapshot(0), snapshot(1), fallen, snapshot(3))
    assert len(side.contradictions) == 1
    assert "kmemwatch_cgroups_offlined_total fell from 2 to 1" in side.contradictions[0]


def test_time_that_goes_back_cannot_be() -> None:
    side = watched(snapshot(0), snapshot(5), snapshot(3))
    assert "went back by 2 s" in side.contradictions[0]


def test_a_header_of_another_host_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a.kmw"
    recording(path, [snapshot(0)])
    other = recording(tmp_path / "b.kmw", [snapshot(0, "B")])
    # Put together by hand, check sums and all: the header of one, the snapshot of the other.
    lines = [path.read_bytes().splitlines(keepends=True)[0], other.read_bytes().splitlines(keepends=True)[1]]
    path.write_bytes(b"".join(lines))
    assert "its header is of host hostA, its snapshots are of hostB" in read(path).contradictions


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("host", 7, "host: expected an object, got a whole number"),
        ("host", "B", "host: expected an object, got a string"),
        ("host", {}, "host.hostname: missing"),
        ("kmemwatch", ["0.1"], "kmemwatch: expected a string or null, got an array"),
    ],
)
def test_a_header_of_something_else_is_one_line(tmp_path: Path, field: str, value: object, said: str) -> None:
    path = tmp_path / "a.kmw"
    recording(path, [snapshot(0)])
    header, rest = path.read_bytes().split(b"\n", 1)
    changed = {key: old for key, old in json.loads(header).items() if key != "crc32"} | {field: value}
    body = json.dumps(changed, separators=(",", ":")).encode()[:-1]
    path.write_bytes(body + b',"crc32":"%08x"}\n' % zlib.crc32(body) + rest)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=re.escape(f"{path}:1: {said}")):
        read(path)
    with pytest.raises(UsageError, match=re.escape(f"{path}:1: {said}")):
        RecordingWriter(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a.kmw", "a.kmw.gz"])
def test_a_truncated_recording_is_used_up_to_the_cut_and_that_is_said(tmp_path: Path, name: str) -> None:
    path = recording(tmp_path / name, map(snapshot, range(10)))
    whole = read(path)
    path.write_bytes(path.read_bytes()[:-100])
    side = read(path)
    assert side.samples == 9
    assert side.cut is not None
    assert str(path) in side.cut
    assert side.fingerprint != whole.fingerprint
    assert "cut off" in notes(side)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_tampered_recording_is_refused_with_its_line(tmp_path: Path, place: float) -> None:
    path = recording(tmp_path / "a.kmw", map(snapshot, range(5)))
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.kmw:\d+: damaged record"):
        read(path)


def test_a_recording_without_snapshots_is_refused(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.kmw", [snapshot(0)])
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match="no snapshot"):
        read(path)


def test_one_snapshot_is_no_change() -> None:
    side = watched(snapshot(7))
    assert side.increase(Metric.OFFLINED) == 0
    assert side.duration_s == 0
    assert "only one sample" in notes(side)
    assert compare(side, side).table.rows == ()


def test_the_same_recording_twice_is_recognised(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.kmw", map(snapshot, range(5)))
    copy = tmp_path / "b.kmw.gz"
    recording(copy, map(snapshot, range(5)))
    assert compare(read(path), read(copy, "B")).notes[0].startswith("both sides are the same")
    other = recording(tmp_path / "c.kmw", (snapshot(t) for t in range(1, 6)))
    assert compare(read(path), read(other, "B")).notes[0].startswith("both sides are one host at the same time")


def test_caches_that_go_take_no_allocations_with_them() -> None:
    def at(t: int, *totals: tuple[str, int]) -> Snapshot:
        return replace(
            snapshot(t),
            caches=tuple(
                fakes.row(
                    Cache,
                    name=n,
                    id=IDS[ord(n)],
                    object_bytes=8,
                    allocations_total=count,
                    allocated_bytes_total=0,
                    frees_total=0,
                )
                for n, count in totals
            ),
        )

    side = watched(
        at(0, ("a", 100), ("b", 50)), at(1, ("a", 110), ("b", 70)), at(2, ("a", 120)), at(3, ("a", 121), ("c", 5))
    )
    assert side.increase(Metric.ALLOCATIONS) == 10 + 20 + 10 + 1 + 5
    assert not side.contradictions


def test_losses_are_said() -> None:
    lossy = [
        replace(one, lost=replace(one.lost, reasons=MappingProxyType({"ringbuf_full": 3 * n})))
        for n, one in enumerate(map(snapshot, range(4)))
    ]
    assert "kmemwatch lost 9 events" in notes(watched(*lossy))


@pytest.mark.parametrize(("gaps", "said"), [(4, "1 more time without samples"), (5, "2 more times without samples")])
def test_many_times_without_samples_are_not_all_told(gaps: int, said: str) -> None:
    times = [20 * block + second for block in range(gaps + 1) for second in range(8)]
    text = notes(watched(*map(snapshot, times)))
    assert text.count("no samples for 13.0 s") == 3
    assert said in text


def test_rows_tell_delays_where_there_are_no_events() -> None:
    row = snapshot(2, dead_s={5: 1.0}).cgroups[0]
    gone = replace(snapshot(4), cgroups=(replace(row, state="released", released_at_ns=fakes.START_NS + 3 * S),))
    side = watched(snapshot(0), snapshot(2, dead_s={5: 1.0}), gone, replace(gone, monotonic_ns=gone.monotonic_ns + S))
    assert side.delays.released_s == (2.0,)


def test_those_that_died_before_are_left_out_of_the_delays() -> None:
    side = watched(
        snapshot(10), snapshot(11, dead_s={1: 2.0}), events={1: [Event(fakes.START_NS + 11 * S, "released", 1)]}
    )
    assert not side.delays.exact


STORIES = {
    "reused": ("+dentry(3) +filp(3) reuse reuse", 2),
    "some are missing": ("+dentry(3) reuse +filp(3) reuse", 2),
    "destroyed in time": ("+dentry(3:a) -dentry(3:a) reuse", 0),
    # The event of the first comes when kmemwatch reads the list of caches the next time.
    "destroyed and reported late": ("+dentry(3:a) reuse +dentry(3:b) -dentry(3:a) reuse +dentry(3:c)", 0),
    "destroyed, and not made again": ("+dentry(3:a) reuse -dentry(3:a) reuse", 0),
    "of another id": ("+dentry(4) reuse", 0),
}


@pytest.mark.parametrize("name", STORIES)
def test_ids_that_bring_caches_are_counted_from_events(name: str) -> None:
    kinds = {"+": "cache_created", "-": "cache_destroyed"}

    def event(word: str) -> Event:
        if word == "reuse":
            return Event(fakes.START_NS, "id_reused", 1, kmemcg_id=3)
        return Event(fakes.START_NS, kinds[word[0]], 1, kmemcg_id=int(word.partition("(")[2][0]), cache=word[1:])

    story, wanted = STORIES[name]
    found = watched(snapshot(0), snapshot(1), events={1: [event(word) for word in story.split()]})
    assert found.ids_reused_with_caches == wanted


def test_without_events_nothing_is_known_of_caches_that_an_id_brings() -> None:
    assert watched(snapshot(0)).ids_reused_with_caches is None


def test_daemons_are_measured_at_once() -> None:
    feeds = [FakeFeed([snapshot(t) for t in range(50)], waits=True) for _ in range(2)]
    watches = [DaemonWatch(label, feed, 0.3, 0.05) for label, feed in zip("AB", feeds, strict=True)]
    seen: list[float] = []
    run_all(watches, seen.append)
    for one in watches:
        side = one.side()
        assert side.samples >= 3
        assert side.kind == "daemon"
    assert seen
    assert seen[-1] < 2


def test_a_daemon_that_breaks_is_used_up_to_there() -> None:
    class Broken(FakeFeed):
        def next_snapshot(self, delay_s: float) -> Snapshot | None:
            if watch.builder.count == 2:
                raise KmemwatchError("http://db1: no answer for 300 s")
            return super().next_snapshot(0)

    watch = DaemonWatch("A", Broken([snapshot(t) for t in range(50)]), 5, 0.05)
    run_all([watch])
    assert watch.side().samples == 2
    assert "no answer" in notes(watch.side())


def test_a_daemon_that_never_answers_is_an_error() -> None:
    class Silent(FakeFeed):
        def next_snapshot(self, delay_s: float) -> Snapshot | None:
            raise KmemwatchError("http://db1: cannot connect")

    watches = [
        DaemonWatch("A", Silent([]), 60, 1),
        DaemonWatch("B", FakeFeed([snapshot(t) for t in range(99)], waits=True), 60, 1),
    ]
    run_all(watches)  # does not wait a minute for the other one
    with pytest.raises(KmemwatchError, match="cannot connect"):
        watches[0].side()


def test_what_probes_say_of_themselves_cannot_move_a_cursor() -> None:
    probes = tuple(replace(probe, attachment="a\\x1b[2J", why="b\\u202ec") for probe in fakes.sample().probes)
    told = watched(replace(snapshot(0), probes=probes)).probes
    assert told
    for probe in told:
        assert (probe["attachment"], probe["why"]) == ("a\\x1b[2J", "b\\u202ec")
