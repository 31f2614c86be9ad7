# SPDX-License-Identifier: GPL-2.0-only
"""An invented kernel with known pointers: nothing that is served, written or shown holds one, in whatever notation."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kmemwatch.attach.discover import CacheRecord
from kmemwatch.attach.handover import Manifest
from kmemwatch.attach.plan import plan
from kmemwatch.cacheids import without_addresses
from kmemwatch.cli import doctor
from kmemwatch.cli.doctor import Diagnosis, to_text
from kmemwatch.cli.main import report as report_error
from kmemwatch.codec import snapshot_to_json
from kmemwatch.exporter.published import PublishedSnapshot
from kmemwatch.feeds.live import LiveFeed
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.feeds.recording.format import _closed, header_line, snapshot_line
from kmemwatch.feeds.replay import ReplayFeed
from kmemwatch.maps.decode import LifecycleEvent, SlabEvent
from kmemwatch.model import DYING, Event, Snapshot
from kmemwatch.serve import messages
from kmemwatch.serve.publisher import Publisher
from kmemwatch.source.reading import Reading, RechargeCounts, RechargeKey
from kmemwatch.views.batch import Printer
from kmemwatch.views.eventlines import EventLines
from kmemwatch.views.rows import frame
from kmemwatch.views.select import select
from kmemwatch.views.tables import VIEWS
from tests.unit import fakes
from tests.unit.fake_source import CACHES, FakeSource, recorded_facts
from tests.unit.fakes import FakeFeed
from tests.unit.screens import Person, app_of, drive, lines, refreshed
from tests.unit.web import Sites, sites

BASE = 0xFFFF_8881_2345_6780
CHILD, UNLISTED, UNLISTED_CHILD, GONE_ROOT = BASE, BASE + 0x100, BASE + 0x200, BASE + 0x300
POINTERS = (*(cache.address for cache in CACHES), CHILD, UNLISTED, UNLISTED_CHILD, GONE_ROOT)
CSS = tuple(0xFFFF_8881_0000_0000 + cgroup_id * 4096 for cgroup_id in (1, 100, 101))
TEXT = tuple(f"{number:x}" for number in POINTERS + CSS) + tuple(str(number) for number in POINTERS + CSS)
PAGES = ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready", "/none")


class Source(FakeSource):
    """With child caches, slabs that move, and caches that no list has."""

    def read(self) -> Reading:
        reading = super().read()
        assert reading.caches is not None
        key = RechargeKey(UNLISTED_CHILD, 100, 101, DYING)
        return replace(
            reading,
            caches=[*reading.caches, CacheRecord(CHILD, "dentry(3)", 192, 0, 4096, CACHES[0].address, 3),
                    CacheRecord(CHILD + 0x40, "lost(3)", 192, 0, 4096, GONE_ROOT, 3)],
            recharges=RechargeCounts(9, 1, 1, {key: (2, 2), replace(key, cache=CHILD): (1, 1)}),
            child_slabs={101: {CHILD: 3}},
        )  # fmt: skip

    def poll(self, timeout_s: float) -> list[LifecycleEvent | SlabEvent]:
        made = SlabEvent("cache_created", self.now_ns, 100, 1, "sh", 3, UNLISTED, None)
        return [*super().poll(0), made, replace(made, kind="recharge", cache=UNLISTED_CHILD, from_id=101, pages=1)]


def watched() -> tuple[list[Snapshot], list[Event]]:
    """Two looks at it, as the live feed has them."""
    source = Source(facts=recorded_facts("lab-patched"))
    feed = LiveFeed(source)
    one, dead = source.mkdir("a"), source.mkdir("b")
    for cache in (CACHES[0].address, UNLISTED, CHILD):
        source.alloc(one, cache, 7)
        source.alloc(dead, cache, 3)
    source.rmdir(dead)
    found = [feed.next_snapshot(0), feed.next_snapshot(0)]
    return [snapshot for snapshot in found if snapshot is not None], list(feed.take_events())


@pytest.fixture(scope="module")
def seen() -> tuple[list[Snapshot], list[Event]]:
    return watched()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as start:
        yield start


def assert_clean(text: str) -> None:
    assert [pointer for pointer in TEXT if pointer in text.lower()] == []
    assert not re.search(r"0x[0-9a-f]{9,}|\bffff[0-9a-f]{12}\b|\b1844[67]\d{15}\b", text.lower())


def test_the_host_has_all_that_refers_to_caches(seen: tuple[list[Snapshot], list[Event]]) -> None:
    last, events = seen[0][-1], seen[1]
    assert any(c.name.startswith("unnamed:") for c in last.caches)
    assert any((c.root or "").startswith("unnamed:") for c in last.caches)
    assert any(p.cache.startswith("unnamed:") for p in last.pairs)
    assert any(p.cache.startswith("unnamed:") for p in last.recharges.pairs or ())
    assert any(c.child_slabs for c in last.cgroups)
    assert {"cache_created", "recharge"} <= {event.kind for event in events}


def test_everything_that_is_served(start: Sites, seen: tuple[list[Snapshot], list[Event]]) -> None:
    site = start()
    for snapshot in seen[0]:
        message = messages.pack(PublishedSnapshot(snapshot, time.monotonic()))
        for pointer in POINTERS + CSS:
            assert struct.pack("<Q", pointer) not in message.packed, "the process that serves is not given any"
        site.service.handle(message)
        for page in PAGES:
            for accept in ("*/*", "application/openmetrics-text;version=1.0.0"):
                assert_clean(site.ask(page, headers={"Accept": accept})[2].decode())
        packed = site.ask("/api/v1/snapshot", headers={"Accept-Encoding": "gzip"})[2]
        assert_clean(gzip.decompress(packed).decode())
    assert "dentry(3)" in site.ask("/api/v1/snapshot")[2].decode()


@pytest.mark.parametrize("name", ["x.kmw", "x.kmw.gz"])
def test_everything_that_is_recorded(tmp_path: Path, name: str, seen: tuple[list[Snapshot], list[Event]]) -> None:
    path = tmp_path / name
    with RecordingWriter(str(path)) as writer:
        writer.begin(seen[0][0])
        for event in seen[1]:
            writer.write_event(event)
        for snapshot in seen[0]:
            writer.write_snapshot(snapshot)
    data = path.read_bytes()
    assert_clean((gzip.decompress(data) if name.endswith(".gz") else data).decode())


def test_everything_that_is_printed(seen: tuple[list[Snapshot], list[Event]]) -> None:
    for view in VIEWS:
        for output in ("table", "json", "csv", "ndjson"):
            assert_clean(Printer(select(view.name, None, None), None, output, "live", None).text(*seen[0]))
    shown = frame(seen[0][0], seen[0][1])
    for view in VIEWS:
        for row in view.rows(shown) or ():
            assert_clean(" ".join(field.text(row) for field in view.fields))
            assert_clean(view.label(row))
    told = EventLines()
    told.learn(seen[0][-1].cgroups)
    for event in seen[1]:
        assert_clean(told.line(event))
        assert_clean(json.dumps(fakes.as_dict(event)))


@pytest.mark.parametrize("view", [view.name for view in VIEWS])
def test_everything_on_the_screen(view: str, seen: tuple[list[Snapshot], list[Event]]) -> None:
    app = app_of(refreshed(lambda seconds: seen[0][seconds > 0]), view=view)

    async def test(person: Person) -> None:
        await person.pause()
        assert_clean("\n".join(lines(app)))
        for _ in range(4):
            await person.press("enter")
            assert_clean("\n".join(lines(app)))
            await person.press("escape", "down")

    drive(app, test, (160, 50))


def with_pointers() -> Diagnosis:
    facts = recorded_facts("debian-6.12")
    symbols = {name: BASE + number for number, name in enumerate(facts.symbols or ())}
    return Diagnosis(replace(facts, symbols=symbols), True, plan(facts), None, (), None, True, True)


def test_doctor_tells_addresses_only_when_it_is_asked_to() -> None:
    found = with_pointers()
    assert_clean(to_text(found))
    assert_clean(doctor.to_json(found))
    symbols = json.loads(doctor.to_json(found))["facts"]["symbols"]
    assert set(symbols.values()) == {None}
    assert f"{BASE:#018x} " in to_text(found, addresses=True)
    assert BASE in json.loads(doctor.to_json(found, addresses=True))["facts"]["symbols"].values()


def test_a_symbol_that_the_kernel_hides_is_still_told_from_one_that_we_hide() -> None:
    facts = replace(with_pointers().facts, symbols={"kfree": 0, "vfree": BASE})
    assert json.loads(facts.to_json())["symbols"] == {"kfree": 0, "vfree": None}
    assert type(facts).from_json(facts.to_json(addresses=True)) == facts


def test_only_root_may_ask_doctor_for_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = CliRunner().invoke(doctor.command, ["--addresses"])
    assert "kernel addresses are shown to root only" in str(found.exception)


def test_what_the_attaching_child_tells_is_without_them() -> None:
    why = f"(18) r1 = {BASE:#x}; KeyError: {BASE}; ffff888123456780"
    raw = Manifest(recorded_facts(), (), (), (), 1).to_raw()
    raw["probes"] = [{"signal": "free", "attachment": None, "fell_back": False, "why": why}]
    raw["learn_error"] = why
    taken = Manifest.from_raw(raw)
    assert_clean(f"{taken.probes[0].why} {taken.learn_error}")
    assert (taken.probes[0].why or "").startswith("(18) r1 = (an address); KeyError: (an address)")


def test_an_error_that_nobody_expected_is_told_without_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(delay_s: float) -> Snapshot:
        raise KeyError(BASE)

    report_error(KeyError(BASE))
    told = capsys.readouterr().err
    assert "internal error: KeyError: (an address)" in told
    assert_clean(told)
    feed = FakeFeed([])
    monkeypatch.setattr(feed, "next_snapshot", broken)
    publisher = Publisher(feed, 60, print)
    publisher._run()
    assert (publisher.latest.problem() or "").startswith("the snapshot thread died: ")
    assert_clean(publisher.latest.problem() or "")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"at {BASE:#x}.", "at (an address)."),
        ("0xFFFFFFFF81000000", "(an address)"),
        (f"KeyError: {BASE}", "KeyError: (an address)"),
        (f"offset {BASE - 2**64}", "offset (an address)"),
        ("0x400000 12345678901 ffff8881 /a/0xff", "0x400000 12345678901 ffff8881 /a/0xff"),
        ("/kubepods/podffff888123456780ab", "/kubepods/podffff888123456780ab"),
    ],
)
def test_addresses_are_known_by_their_looks(text: str, left: str) -> None:
    assert without_addresses(text) == left


def test_the_package_holds_none() -> None:
    tree = Path(__file__).parents[2]
    for path in [*(tree / "kmemwatch/data").iterdir(), *(tree / "tests/unit/facts").iterdir()]:
        data = path.read_bytes()
        assert_clean((gzip.decompress(data) if path.suffix == ".gz" else data).decode())


def test_one_host_has_the_same_ids_in_all_that_it_tells(seen: tuple[list[Snapshot], list[Event]]) -> None:
    first, second = (fakes.as_dict(snapshot) for snapshot in seen[0])
    ids = [{(c["name"], c["id"]) for c in document["caches"]} for document in (first, second)]
    assert ids[0] == ids[1]
    assert {(p["cache"], p["cache_id"]) for p in second["pairs"]} <= ids[1]
    assert snapshot_to_json(seen[0][0]) != snapshot_to_json(watched()[0][0]), "another process, other ids"


def with_addresses(snapshot: Snapshot, line: bytes) -> bytes:
    """A line of a recording as releases before ids wrote it."""
    body = json.loads(line)
    del body["crc32"]
    document = body["snapshot"]
    numbers = {cache.id: f"{BASE + 0x100 * place:#x}" for place, cache in enumerate(snapshot.caches)}
    for cache in document["caches"]:
        cache["address"] = numbers[cache.pop("id")]
    for row in [*document["pairs"], *(one for c in document["cgroups"] for one in c["child_slabs"] or ())]:
        row["cache_address"] = numbers[row.pop("cache_id")]
    return _closed(json.dumps(body, separators=(",", ":")).encode()[:-1])


def test_an_older_recording_plays_and_its_addresses_go_no_further(tmp_path: Path, start: Sites) -> None:
    path = tmp_path / "old.kmw"
    made = [fakes.patched(seconds) for seconds in (0, 5)]
    recorded = [with_addresses(one, snapshot_line(1 + at, one)) for at, one in enumerate(made)]
    path.write_bytes(header_line(0, made[0]) + b"".join(recorded))
    assert f"{BASE:x}" in path.read_text()
    feed = ReplayFeed(str(path))
    played = [feed.next_snapshot(5), feed.next_snapshot(5)]
    feed.close()
    first, second = (one for one in played if one is not None)
    assert [c.id for c in first.caches] == [c.id for c in second.caches], "one cache, one id"
    assert len({c.id for c in first.caches}) == len(first.caches)
    rates_of = frame(first, second).rates
    assert any(rate.allocations_per_s for rate in rates_of.pairs.values())
    for one in (first, second):
        assert_clean(snapshot_to_json(one).decode())
        site = start()
        site.service.handle(messages.pack(PublishedSnapshot(one, time.monotonic())))
        assert_clean(site.ask("/api/v1/snapshot")[2].decode())
    with RecordingWriter(str(path)) as writer:
        writer.begin(second)
        writer.write_snapshot(second)
    assert_clean(path.read_text().splitlines()[-1])
