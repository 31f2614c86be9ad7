# SPDX-License-Identifier: GPL-2.0-only
"""The commands record, snapshot and serve, as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmemwatch.cli import main as cli_main
from kmemwatch.cli import record as record_module
from kmemwatch.codec import from_json
from kmemwatch.errors import KmemwatchError, UnsupportedError
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.feeds.replay import ReplayFeed
from kmemwatch.model import Event, Snapshot
from tests.unit import fakes
from tests.unit.fakes import FakeFeed

ROOT = Path(__file__).parents[2]
EVENT = Event(5, "online", 7, "/a\\xff")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Snapshots 5 s apart, with an event after the first."""
    path = tmp_path / "made.kmw"
    with RecordingWriter(str(path)) as writer:
        writer.begin(fakes.sample())
        writer.write_snapshot(fakes.sample())
        writer.write_event(EVENT)
        for seconds in (5, 10, 15):
            writer.write_snapshot(fakes.sample(seconds))
    return path


def run(*args: str) -> int:
    """Exit code of `kmemwatch ARGS` in this process."""
    with pytest.raises(SystemExit) as caught:
        cli_main.cli.main(args=list(args))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[[Feed | KmemwatchError], None]:
    """Make `record` find this feed where the live kernel would be."""

    def install(feed: Feed | KmemwatchError) -> None:
        def open_feed(*args: object, **options: object) -> Feed:
            if isinstance(feed, KmemwatchError):
                raise feed
            return feed

        monkeypatch.setattr(record_module, "open_feed", open_feed)

    return install


# snapshot


def test_snapshot_prints_the_state_after_the_duration(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", "--replay", str(recording), "--duration", "10") == 0
    out, err = capsys.readouterr()
    assert from_json(Snapshot, out.encode()) == fakes.sample(10)
    assert out.startswith('{\n  "schema": 1,\n')
    assert err == ""


def test_snapshot_of_no_duration_is_the_first_state(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", "--replay", str(recording), "--duration", "0", "--indent", "0") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert from_json(Snapshot, out.encode()) == fakes.sample()


def test_snapshot_of_a_recording_with_one_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.kmw"
    with RecordingWriter(str(path)) as writer:
        writer.begin(fakes.sample())
        writer.write_snapshot(fakes.sample())
    path.write_bytes(path.read_bytes() + b'{"seq":2,')
    assert run("snapshot", "--replay", str(path)) == 0
    out, err = capsys.readouterr()
    assert from_json(Snapshot, out.encode()) == fakes.sample()
    assert err == f"kmemwatch: note: {path}:3: recording cut off here; this is all of it\n"


def test_snapshot_as_csv_and_table(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", "--replay", str(recording), "--output", "csv", "--view", "caches") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["cache"] for row in rows} == {c.name for c in fakes.sample().caches}
    assert run("snapshot", "--replay", str(recording), "--output", "table") == 0
    assert "/system.slice/docker.service" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        ("--indent", "2", "--output", "csv"),
        ("--view", "caches"),
        ("--output", "yaml"),
        ("--duration", "-1"),
        ("--connect", "http://x", "--replay", "y"),
        ("--replay", "/none"),
        ("--connect", "ftp://x"),
        ("surplus",),
    ],
)
def test_snapshot_used_wrongly(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kmemwatch: ")
    assert len(err.splitlines()) == 2
    assert err.splitlines()[1].startswith("  hint: ")


def test_snapshot_of_an_unreachable_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert run("snapshot", "--connect", f"127.0.0.1:{port}") == 1
    assert f"http://127.0.0.1:{port}: cannot connect: Connection refused" in capsys.readouterr().err


# record


def test_record_writes_what_the_feed_gives(
    tmp_path: Path, live: Callable[[Feed], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.kmw.gz"
    feed = FakeFeed([fakes.sample(0), fakes.sample(5)], [EVENT], ends=True)
    live(feed)
    assert run("record", str(path)) == 0
    assert feed.closed == 1
    assert feed.delays == [0, 5, 5]
    replay = ReplayFeed(str(path))
    assert replay.next_snapshot(0) == fakes.sample(0)
    assert replay.next_snapshot(0) == fakes.sample(5)
    assert replay.next_snapshot(0) is None
    assert replay.take_events() == [EVENT]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"kmemwatch: {path}: 2 snapshots, 1 events in 0s, file \d\.\dK\n", err)


def test_record_ends_after_the_duration(tmp_path: Path, live: Callable[[Feed], None]) -> None:
    path = tmp_path / "new.kmw"
    live(FakeFeed([fakes.sample(i) for i in range(100)], waits=True))
    began = time.monotonic()
    assert run("record", str(path), "--duration", "0.5", "--interval", "0.2") == 0
    assert 0.5 <= time.monotonic() - began < 2
    assert path.read_text().count('"type":"snapshot"') in (3, 4)


class Interrupted(FakeFeed):
    """Ctrl-C comes while it waits."""

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        if self.delays:
            raise KeyboardInterrupt
        return super().next_snapshot(delay_s)


def test_record_keeps_everything_on_ctrl_c(
    tmp_path: Path, live: Callable[[Feed], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.kmw"
    feed = Interrupted([fakes.sample(0)])
    late = [EVENT]
    feed.take_events = lambda: [late.pop()] if feed.delays and late else []  # type: ignore[method-assign]
    live(feed)
    assert run("record", str(path)) == 0
    assert "1 snapshots, 1 events" in capsys.readouterr().err
    assert feed.closed == 1


def test_record_without_a_kernel_leaves_no_file(
    tmp_path: Path, live: Callable[[KmemwatchError], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.kmw"
    live(UnsupportedError("no BTF", "use another kernel"))
    assert run("record", str(path)) == 3
    assert capsys.readouterr().err == "kmemwatch: no BTF\n  hint: use another kernel\n"
    assert not path.exists()


@pytest.mark.parametrize("dropped", [0, 5, 30])
@pytest.mark.parametrize("args", [(), ("--connect", "127.0.0.1:1")], ids=["live", "daemon"])
def test_record_that_cannot_begin_leaves_the_file_as_it_is(
    recording: Path, live: Callable[[KmemwatchError], None], dropped: int, args: tuple[str, ...]
) -> None:
    recording.write_bytes(recording.read_bytes()[: -dropped or None])
    os.utime(recording, ns=(5, 5))
    before = recording.read_bytes()
    if not args:
        live(UnsupportedError("cannot do it"))
    assert run("record", str(recording), *args) == (1 if args else 3)
    assert (recording.read_bytes(), recording.stat().st_mtime_ns) == (before, 5)
    new = recording.with_name("new.kmw")
    assert run("record", str(new), *args) == (1 if args else 3)
    assert list(recording.parent.iterdir()) == [recording]


def test_record_says_how_much_of_a_cut_file_it_dropped(
    recording: Path, live: Callable[[Feed], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = recording.read_bytes()
    last = len(before.splitlines(keepends=True)[-1])
    recording.write_bytes(before[:-30])
    live(FakeFeed([fakes.sample(20)], ends=True))
    assert run("record", str(recording)) == 0
    said = f"note: {recording}: dropped an unfinished record of {last - 30} bytes at the end"
    assert said in capsys.readouterr().err
    feed = ReplayFeed(str(recording))
    seen = []
    while (snapshot := feed.next_snapshot(0)) is not None:
        seen.append(snapshot)
    assert seen == [fakes.sample(seconds) for seconds in (0, 5, 10, 20)]
    assert "cut off" not in str(feed.notice)


def test_record_to_stdout_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("record", "-") == 2
    assert "-: a recording is not written to stdout" in capsys.readouterr().err


def test_record_to_a_file_that_is_something_else(
    tmp_path: Path, live: Callable[[Feed], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir,\n")
    feed = FakeFeed([fakes.sample()])
    live(feed)
    assert run("record", str(path)) == 2
    assert f"{path}:1: not a kmemwatch recording" in capsys.readouterr().err
    assert path.read_text() == "Dear Sir,\n"
    assert feed.delays == [], "nothing was attached for it"


def test_record_of_another_host_changes_nothing(
    recording: Path, live: Callable[[Feed], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = recording.read_bytes()
    live(FakeFeed([replace(fakes.sample(), host=replace(fakes.sample().host, hostname="db2"))]))
    assert run("record", str(recording)) == 2
    assert "recording of another host, db1" in capsys.readouterr().err.splitlines()[-2]
    assert recording.read_bytes() == before


# serve


@contextmanager
def serving(*args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A daemon process and the URL that it printed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kmemwatch", "serve", "--web.listen-address", "127.0.0.1:0", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd="/") as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.fullmatch(r"kmemwatch: serving (http://127\.0\.0\.1:\d+)/metrics\n", line)
            assert found, line
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serve_until_told_to_stop(recording: Path, signum: int) -> None:
    with serving("--replay", str(recording), "--interval", "0.5") as (process, url):
        with urllib.request.urlopen(f"{url}/api/v1/snapshot", timeout=5) as answer:
            assert json.load(answer)["host"]["hostname"] == "db1"
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")  # not finished
            began = time.monotonic()
            process.send_signal(signum)
            assert process.wait(5) == 0
            assert time.monotonic() - began < 2
        assert process.stderr is not None
        assert process.stderr.read() == "kmemwatch: stopping\n"


def test_serve_on_a_port_in_use(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run("serve", "--replay", str(recording), "--web.listen-address", address) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"kmemwatch: cannot listen on {address}: Address already in use"
    assert err[1].startswith("  hint: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--web.listen-address", "nonsense"), "not an address to listen on"),
        (("--web.telemetry-path", "metrics"), "--web.telemetry-path: not a path"),
        (("--web.telemetry-path", "/-/ready"), "is another page"),
        (("--max-series", "5"), "--max-series"),
        (("--interval", "0"), "--interval"),
        (("--replay", "/none", "--web.listen-address", "127.0.0.1:0"), "/none: no such file"),
        (("--replay", "x", "--without", "fentry", "--web.listen-address", "127.0.0.1:0"), "--without"),
    ],
)
def test_serve_used_wrongly(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", *args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 2


def test_serve_ends_with_an_error_when_its_feed_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kmemwatch.cli import serve as serve_module

    feed = FakeFeed([fakes.sample(), KmemwatchError("the ring buffer went away")])
    monkeypatch.setattr(serve_module, "open_feed", lambda *args, **options: feed)
    assert run("serve", "--web.listen-address", "127.0.0.1:0", "--interval", "0.1") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "kmemwatch: the ring buffer went away"
    assert feed.closed
