# SPDX-License-Identifier: GPL-2.0-only
"""A daemon as a feed, over real sockets: the real exporter, and servers that are something else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from kmemwatch.codec import snapshot_to_json
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.exporter.exposition import Exposition
from kmemwatch.feeds.remote import RemoteFeed
from kmemwatch.model import Snapshot
from kmemwatch.serve.app import App
from kmemwatch.serve.publisher import Publisher
from kmemwatch.web.listening import listen
from kmemwatch.web.server import Server
from tests.http_server import OwnServer, QuietHandler
from tests.unit import fakes
from tests.unit.fakes import FakeFeed


class Answers(OwnServer):
    """A server whose answer a test sets; `asked` are the paths it was asked for."""

    def __init__(self) -> None:
        self.status, self.kind, self.body = 200, "application/json", b""
        self.encoding: str | None = None
        self.asked: list[str] = []
        answers = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                answers.asked.append(self.path)
                self.send_response(answers.status)
                self.send_header("Content-Type", answers.kind)
                if answers.encoding:
                    self.send_header("Content-Encoding", answers.encoding)
                self.end_headers()
                self.wfile.write(answers.body)

        super().__init__(Handler)

    def snapshot(self, snapshot: Snapshot) -> None:
        self.status, self.kind, self.body = 200, "application/json", snapshot_to_json(snapshot)


@pytest.fixture
def server() -> Iterator[Answers]:
    server = Answers()
    yield server
    server.stop()


def test_the_real_daemon_is_read() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1:0"))
        publisher = Publisher(FakeFeed([fakes.odd(i) for i in range(50)], waits=True), 0.1, lambda line: None)
        stack.callback(publisher.stop)
        server = Server(
            App(publisher.latest, Exposition(publisher.latest.current, 20_000), "/metrics", print), [listener]
        )
        stack.callback(server.stop)
        publisher.start()
        server.start()
        while publisher.latest.current() is None:
            time.sleep(0.01)
        feed = RemoteFeed(f"127.0.0.1:{listener.getsockname()[1]}")
        seen = [feed.next_snapshot(0.15) for _ in range(4)]
        assert all(snapshot is not None for snapshot in seen)
        times = [snapshot.monotonic_ns for snapshot in seen if snapshot]
        assert times == sorted(set(times)), "never the same twice"
        assert {snapshot.cgroups[0].path for snapshot in seen if snapshot} == {fakes.odd().cgroups[0].path}
        assert feed.notice is None
        assert feed.take_events() == ()


@pytest.mark.parametrize(
    ("url", "title", "asked"),
    [
        ("{}", "http://{}", "/api/v1/snapshot"),
        ("http://{}/", "http://{}", "/api/v1/snapshot"),
        ("http://{}/api/v1/snapshot", "http://{}", "/api/v1/snapshot"),
        ("http://{}/behind/proxy/", "http://{}/behind/proxy", "/behind/proxy/api/v1/snapshot"),
    ],
)
def test_urls(server: Answers, url: str, title: str, asked: str) -> None:
    server.snapshot(fakes.sample())
    feed = RemoteFeed(url.format(server.address))
    assert feed.title == title.format(server.address)
    assert feed.next_snapshot(60) == fakes.sample()
    assert server.asked == [asked]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "ftp://host",
        "file:///etc/passwd",
        "http://h:99999",
        "h:p",
        "http://[::1",
        "h/?q",
        "h\n",
        "http://h:0",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="not a URL of a daemon") as caught:
        RemoteFeed(url)
    assert caught.value.hint


def test_nobody_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(
        KmemwatchError, match=rf"^http://127\.0\.0\.1:{port}: cannot connect: Connection refused$"
    ) as caught:
        RemoteFeed(f"127.0.0.1:{port}").next_snapshot(3)
    assert caught.value.exit_code == 1
    assert caught.value.hint
    assert time.monotonic() - began < 2


def test_a_host_that_is_not_known() -> None:
    with pytest.raises(KmemwatchError, match=r"no\.such\.host\.invalid"):
        RemoteFeed("no.such.host.invalid:1").next_snapshot(0)


def test_a_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        feed = RemoteFeed(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(KmemwatchError, match="timed out"):
            feed.next_snapshot(0)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (200, "text/html", b"<html>", "not a kmemwatch, answered with text/html"),
        (404, "text/plain", b"", "not a kmemwatch, answered with 404 Not Found"),
        (200, "application/json", b"{}", "schema: missing"),
        (200, "application/json", b"[1, 2", "not JSON"),
        (200, "application/json", b"\xff\x00", "not JSON"),
        (200, "application/json", b'{"schema": 2}', "schema: expected 1, got 2"),
    ],
)
def test_something_else_is_one_line(server: Answers, status: int, kind: str, body: bytes, message: str) -> None:
    server.status, server.kind, server.body = status, kind, body
    with pytest.raises(UsageError, match=message) as caught:
        RemoteFeed(server.address).next_snapshot(0)
    assert str(caught.value).startswith(f"http://{server.address}/api/v1/snapshot: ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("body", [b"not gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"])
def test_broken_compression_is_one_line(server: Answers, body: bytes) -> None:
    server.body, server.encoding = body, "gzip"
    with pytest.raises(UsageError, match=r"damaged gzip|cut off"):
        RemoteFeed(server.address).next_snapshot(0)


def test_not_ready_is_told(server: Answers) -> None:
    server.status = 503
    with pytest.raises(KmemwatchError, match="not ready: 503 Service Unavailable"):
        RemoteFeed(server.address).next_snapshot(0)


def test_a_wrong_password_is_not_a_stranger(server: Answers) -> None:
    server.status = 401
    with pytest.raises(KmemwatchError, match="401 Unauthorized"):
        RemoteFeed(server.address).next_snapshot(0)


def test_a_restart_is_survived_and_told(server: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.feeds.remote._RETRY_S", 0.01)
    server.snapshot(fakes.sample(60))
    feed = RemoteFeed(server.address)
    assert feed.next_snapshot(0) == fakes.sample(60)
    server.status = 503
    assert feed.next_snapshot(0.01) == fakes.sample(60), "the last figures stay"
    assert feed.notice == f"http://{server.address}: not ready: 503 Service Unavailable; trying again, old figures"
    again = replace(fakes.sample(70), duration_s=1.0)
    server.snapshot(again)
    assert feed.next_snapshot(0.01) == again
    assert "restarted" in str(feed.notice)
    server.snapshot(replace(fakes.sample(75), duration_s=6.0))
    feed.next_snapshot(0.01)
    assert feed.notice is None


def test_a_daemon_that_stays_away_is_given_up(server: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.feeds.remote._RETRY_S", 0.01)
    server.snapshot(fakes.sample())
    feed = RemoteFeed(server.address, give_up_s=0.2)
    feed.next_snapshot(0)
    server.status = 503
    feed.next_snapshot(0.01)
    time.sleep(0.3)
    with pytest.raises(KmemwatchError, match="no answer for"):
        feed.next_snapshot(0.01)


def test_a_slower_daemon_is_waited_for_but_not_for_ever(server: Answers) -> None:
    server.snapshot(fakes.sample())
    feed = RemoteFeed(server.address, timeout_s=0.5)
    feed.next_snapshot(0)
    threading.Timer(0.4, lambda: server.snapshot(fakes.sample(5))).start()
    assert feed.next_snapshot(0.1) == fakes.sample(5)
    began = time.monotonic()
    assert feed.next_snapshot(0.1) == fakes.sample(5), "it stands still; that is its state"
    assert 0.5 <= time.monotonic() - began < 2


def test_closing_wakes_a_wait(server: Answers) -> None:
    server.snapshot(fakes.sample())
    feed = RemoteFeed(server.address)
    feed.next_snapshot(0)
    threading.Timer(0.1, feed.close).start()
    began = time.monotonic()
    assert feed.next_snapshot(3600) is None
    assert time.monotonic() - began < 2
    feed.close()


def test_events_are_not_to_be_had(server: Answers) -> None:
    with pytest.raises(UsageError, match="no events"):
        RemoteFeed(server.address).wait_events(1)
