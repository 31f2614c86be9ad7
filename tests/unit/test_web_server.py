# SPDX-License-Identifier: GPL-2.0-only
"""The daemon over real sockets: routes, readiness, HTTP manners, stopping."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from kmemwatch.codec import from_json
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.exporter.exposition import Exposition
from kmemwatch.exporter.formats import accepts_gzip
from kmemwatch.feeds.feed import Feed
from kmemwatch.model import Event, Snapshot
from kmemwatch.serve.app import App
from kmemwatch.serve.paths import check_telemetry_path
from kmemwatch.serve.publisher import Publisher
from kmemwatch.web.listening import listen
from kmemwatch.web.server import Server
from tests.unit import fakes
from tests.unit.fakes import FakeFeed

PAGES = ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready")


@dataclass
class Daemon:
    """A running exporter."""

    port: int
    publisher: Publisher
    server: Server
    logged: list[str] = field(default_factory=list)

    def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def until(self, wanted: Callable[[], bool]) -> None:
        for _ in range(500):
            if wanted():
                return
            time.sleep(0.01)
        raise AssertionError("it did not happen within 5 s")


Run = Callable[..., Daemon]


@pytest.fixture
def run() -> Iterator[Run]:
    """Start a daemon on a feed; it is stopped after the test."""
    with ExitStack() as stack:

        def start(feed: Feed, interval_s: float = 60.0, path: str = "/metrics", can_go_stale: bool = True) -> Daemon:
            logged: list[str] = []
            listener = stack.enter_context(listen("127.0.0.1:0"))
            publisher = Publisher(feed, interval_s, logged.append, can_go_stale)
            stack.callback(publisher.stop)
            server = Server(
                App(publisher.latest, Exposition(publisher.latest.current, 20_000), path, logged.append), [listener]
            )
            stack.callback(server.stop)
            publisher.start()
            server.start()
            return Daemon(listener.getsockname()[1], publisher, server, logged)

        yield start


@pytest.fixture
def daemon(run: Run) -> Daemon:
    daemon = run(FakeFeed([fakes.sample()]))
    daemon.until(lambda: daemon.publisher.latest.current() is not None)
    return daemon


def test_metrics(daemon: Daemon) -> None:
    status, headers, body = daemon.ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert headers["Cache-Control"] == "no-store"
    assert "kmemwatch_dying_cgroups 4" in body.decode().splitlines()
    assert b"# EOF" not in body


def test_openmetrics_is_negotiated(daemon: Daemon) -> None:
    _, headers, body = daemon.ask("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert body.count(b"# EOF\n") == 1
    assert b"# TYPE kmemwatch_build info" in body


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/snapshot"])
def test_gzip_is_negotiated(daemon: Daemon, path: str) -> None:
    _, headers, plain = daemon.ask(path)
    assert headers["Content-Encoding"] is None
    assert "Accept-Encoding" in headers["Vary"]
    _, headers, packed = daemon.ask(path, headers={"Accept-Encoding": "br, gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert len(packed) < len(plain) / 2
    assert gzip.decompress(packed)[:2000] == plain[:2000]


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("", False),
        ("*", False),
        ("identity", False),
    ],
)
def test_accept_encoding(header: str, wanted: bool) -> None:
    assert accepts_gzip(header) is wanted


def test_snapshot(daemon: Daemon) -> None:
    status, headers, body = daemon.ask("/api/v1/snapshot")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert from_json(Snapshot, body) == fakes.sample()
    assert json.loads(body)["schema"] == 1


def test_health_and_readiness(daemon: Daemon) -> None:
    assert daemon.ask("/-/healthy")[0] == 200
    assert daemon.ask("/-/ready")[0] == 200


def test_landing_page(daemon: Daemon) -> None:
    status, headers, body = daemon.ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    page = body.decode()
    for text in ("6.18.44", 'href="/metrics"', 'href="/api/v1/snapshot"', "raw_tp:mod_memcg_state", "objcg"):
        assert text in page


def test_landing_page_escapes_what_it_shows(run: Run) -> None:
    host = replace(fakes.sample().host, hostname="<script>\\xff&")
    daemon = run(FakeFeed([replace(fakes.sample(), host=host)]))
    daemon.until(lambda: daemon.publisher.latest.current() is not None)
    page = daemon.ask("/")[2].decode()
    assert "&lt;script&gt;\\xff&amp;" in page
    assert "<script>" not in page


@pytest.mark.parametrize("path", PAGES)
def test_head_is_get_without_a_body(daemon: Daemon, path: str) -> None:
    status, headers, body = daemon.ask(path, "HEAD")
    assert (status, body) == (200, b"")
    if path != "/metrics":  # its own counters change from scrape to scrape
        assert int(headers["Content-Length"]) == len(daemon.ask(path)[2])
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", PAGES)
def test_other_methods_are_refused(daemon: Daemon, method: str, path: str) -> None:
    status, headers, _ = daemon.ask(path, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/nothing", "/metrics/", "//metrics", "/api/v1", "/../etc/passwd", "/%00", "/METRICS"]
)
def test_other_paths_are_not_found(daemon: Daemon, path: str) -> None:
    assert daemon.ask(path)[0] == 404


def test_a_query_changes_nothing(daemon: Daemon) -> None:
    assert daemon.ask("/-/ready?x=/%2f&&=")[0] == 200


def test_telemetry_path_is_configurable(run: Run) -> None:
    daemon = run(FakeFeed([fakes.sample()]), path="/deep/telemetry")
    assert daemon.ask("/deep/telemetry")[0] == 200
    assert daemon.ask("/metrics")[0] == 404
    assert b'href="/deep/telemetry"' in daemon.ask("/")[2]
    at_root = run(FakeFeed([fakes.sample()]), path="/")
    assert b"kmemwatch_scrapes_total" in at_root.ask("/")[2]


@pytest.mark.parametrize("path", ["", "metrics", "/-/ready", "/api/v1/snapshot", "/a b", "/a?b", "/a%20", "/\n"])
def test_what_cannot_be_a_telemetry_path(path: str) -> None:
    with pytest.raises(UsageError, match=r"--web\.telemetry-path"):
        check_telemetry_path(path)


def test_several_requests_on_one_connection(daemon: Daemon) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)) as connection:
        for path in (*PAGES, "/none", *PAGES):
            connection.request("GET", path)
            assert connection.getresponse().read()


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000],
)
def test_bad_requests_are_refused_and_harm_nobody(daemon: Daemon, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=5) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := client.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert daemon.ask("/-/healthy")[0] == 200


def test_idle_and_half_sent_clients_keep_nobody_waiting(daemon: Daemon) -> None:
    with ExitStack() as stack:
        for i in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=5))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost:" if i % 2 else b"")
        began = time.monotonic()
        assert daemon.ask("/metrics")[0] == 200
        assert time.monotonic() - began < 2


class SilentFeed(FakeFeed):
    """Live, but its first snapshot takes until `go` is set."""

    def __init__(self, snapshots: list[Snapshot | KmemwatchError]) -> None:
        super().__init__(snapshots)
        self.go = threading.Event()

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        self.go.wait(10)
        return super().next_snapshot(delay_s)


def test_not_ready_before_the_first_snapshot(run: Run) -> None:
    feed = SilentFeed([fakes.sample()])
    daemon = run(feed)
    assert daemon.ask("/-/healthy")[0] == 200
    for path in ("/-/ready", "/api/v1/snapshot"):
        status, _, body = daemon.ask(path)
        assert (status, body) == (503, b"not ready: no snapshot yet\n")
    status, _, body = daemon.ask("/metrics")
    assert status == 200
    assert b"kmemwatch_scrapes_total" in body
    assert b"kmemwatch_cgroup" not in body
    assert b"Not ready: no snapshot yet" in daemon.ask("/")[2]
    feed.go.set()
    daemon.until(lambda: daemon.ask("/-/ready")[0] == 200)


def test_not_ready_when_the_snapshot_thread_died(run: Run) -> None:
    daemon = run(FakeFeed([fakes.sample(), KmemwatchError("ring buffer went away")], waits=False), interval_s=0.01)
    daemon.until(lambda: daemon.ask("/-/ready")[0] == 503)
    assert daemon.ask("/-/ready")[2] == b"not ready: the snapshot thread died: ring buffer went away\n"
    assert b"kmemwatch_cgroup" not in daemon.ask("/metrics")[2], "old figures are not the present"
    assert daemon.ask("/api/v1/snapshot")[0] == 503
    assert daemon.ask("/-/healthy")[0] == 200
    with pytest.raises(KmemwatchError, match="ring buffer went away"):
        daemon.publisher.wait(5)


def test_not_ready_when_the_snapshot_is_old(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = run(FakeFeed([fakes.sample()]), interval_s=5.0)
    daemon.until(lambda: daemon.ask("/-/ready")[0] == 200)
    now = time.monotonic()
    monkeypatch.setattr("kmemwatch.serve.publisher.time.monotonic", lambda: now + 16)
    status, _, body = daemon.ask("/-/ready")
    assert (status, body) == (503, b"not ready: the last snapshot is 16 s old, more than 3 intervals\n")
    assert b"kmemwatch_cgroup" not in daemon.ask("/metrics")[2]
    monkeypatch.undo()
    assert daemon.ask("/-/ready")[0] == 200


def test_a_recording_that_ended_is_served_on(run: Run) -> None:
    daemon = run(FakeFeed([fakes.sample()], ends=True), interval_s=0.01, can_go_stale=False)
    daemon.until(lambda: any("no more snapshots" in line for line in daemon.logged))
    time.sleep(0.05)
    assert daemon.ask("/-/ready")[0] == 200


def test_a_live_feed_that_ended_is_a_failure(run: Run) -> None:
    daemon = run(FakeFeed([fakes.sample()], ends=True), interval_s=0.01)
    with pytest.raises(KmemwatchError, match="ended"):
        daemon.publisher.wait(5)


def test_events_do_not_pile_up(run: Run) -> None:
    feed = FakeFeed([fakes.sample(i) for i in range(5)], [Event(1, "online")], waits=False)
    daemon = run(feed, interval_s=0.01)
    daemon.until(lambda: len(feed.delays) > 5)
    assert feed.take_events() == []
    assert feed.delays[0] == 0, "the first snapshot is there at once"
    assert set(feed.delays[1:]) == {0.01}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("boom"), "internal error: RuntimeError: boom"),
        (RuntimeError("can't start new thread"), "out of processes or threads"),
    ],
)
def test_an_error_in_a_page_is_one_log_line(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def broken(*args: object) -> str:
        raise error

    monkeypatch.setattr("kmemwatch.serve.app._landing_page", broken)
    status, _, body = daemon.ask("/")
    assert (status, body) == (500, b"500 internal error\n")
    assert daemon.logged == [f"/: {said}"]
    assert daemon.ask("/-/healthy")[0] == 200


def test_stops_within_two_seconds_whatever_the_clients_do(run: Run) -> None:
    daemon = run(FakeFeed([fakes.big(cgroups=4000)]))
    daemon.until(lambda: daemon.ask("/-/ready")[0] == 200)
    with ExitStack() as stack:
        idle, half, deaf = (
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=5)) for _ in range(3)
        )
        idle.sendall(b"GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")
        half.sendall(b"GET /met")
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(b"GET /api/v1/snapshot HTTP/1.1\r\nHost: x\r\n\r\n")  # and never reads the answer
        time.sleep(0.5)
        began = time.monotonic()
        daemon.server.stop()
        daemon.publisher.stop()
        assert time.monotonic() - began < 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", daemon.port), timeout=5)
    with pytest.raises(KmemwatchError, match="HTTP server stopped"):
        daemon.server.check()
