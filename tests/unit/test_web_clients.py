# SPDX-License-Identifier: GPL-2.0-only
"""Whatever a client sends, it gets an answer that is its own fault, and the log stays short."""

from __future__ import annotations

import gzip
import http.client
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kmemwatch.exporter.formats import accepts_gzip, choose_format
from kmemwatch.serve.app import App
from kmemwatch.web.clientlog import LIMIT, MAX_CHARS, ClientLog
from tests.unit.web import Site, sites

PLAIN = "text/plain; version=0.0.4"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with sites(tmp_path_factory.mktemp("open")) as start:
        yield start()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With passwords."""
    with sites(tmp_path_factory.mktemp("guarded")) as start:
        yield start("basic_auth_users: {a: $2b$04$tyoCgEGq.GSLPCJxRkpTreLJhUsv6QFsM9TZNdFuMlnfLDMXzTgYe}\n")


def exchange(
    site: Site, request: bytes, patience_s: float = 20.0
) -> tuple[int | None, http.client.HTTPResponse | None, bytes]:
    """What comes back when a client sends this; no status: the connection was closed, or it waits for more."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=patience_s) as connection:
        try:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode("latin-1"))
            answer.begin()
            return answer.status, answer, answer.read()
        except (ConnectionError, TimeoutError, http.client.BadStatusLine):
            return None, None, b""


OF_HEADERS = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=60)
ACCEPTS = st.lists(
    st.sampled_from([
        "text/plain", "application/openmetrics-text", "*/*", "", ";", ",", ";version=a", ";version=", ";version=1",
        ";version=1.0.0", ";version=0.0.4", ";version=99999999999999999999.0.0", ";version=-1", ";version=1e9", ";q=0",
        ";version=\xb2.0.0", ";version=1.0.0.0.0.0.0", ";version=..", ';version="1.0.0"', ";q=x", ";escaping=values",
        ";escaping=dots", ";escaping=\xff", ";escaping=", ";escaping=allow-utf-8", "=", "gzip", "gzip;q=", "gzip;q=0.0",
    ])
    | OF_HEADERS,
    max_size=12,
).map("".join)  # fmt: skip
CREDENTIALS = st.sampled_from(["Basic ", "basic", "Bearer ", "Basic  Og==", "Basic YTo=", "Basic /////w=="])
NAMES = ["Accept", "Accept-Encoding", "Authorization", "Host", "Connection", "Expect", "Upgrade", "Cookie", "Range",
         "X-Forwarded-For", "Content-Length", "Transfer-Encoding", "If-None-Match", "TE", "Accept-Charset"]  # fmt: skip
HEADERS = st.lists(
    st.tuples(st.just("Accept"), ACCEPTS)
    | st.tuples(st.just("Accept-Encoding"), ACCEPTS)
    | st.tuples(st.just("Authorization"), st.tuples(CREDENTIALS, OF_HEADERS).map("".join))
    | st.tuples(st.sampled_from(NAMES), OF_HEADERS),
    max_size=8,
)
TARGETS = st.sampled_from(["/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready", "/", "*", "/%ff%00", "/metrics/"])
QUERIES = st.sampled_from(["", "?name[]=", "?name[]=a&name[]=b", "?name%5B%5D=%ff", "?=&&&=", "?" + "a=1&" * 999, "#x"])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "TRACE", "get", "PRI", "G\xc9T", "", "A" * 99])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    target = draw(st.tuples(TARGETS, QUERIES).map("".join) | OF_HEADERS)
    first = f"{draw(METHODS)} {target} {draw(st.sampled_from(['HTTP/1.1', 'HTTP/1.0', 'HTTP/2.0', '']))}\r\n"
    lines = [f"{name}: {value}\r\n" for name, value in draw(HEADERS)]
    if draw(st.booleans()):
        lines.append("Host: localhost\r\n")
    return (first + "".join(lines) + "\r\n").encode("latin-1") + draw(st.binary(max_size=20))


def metrics(*headers: str, query: str = "") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"GET /metrics{query} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode("latin-1")


@given(requests())
@example(metrics("Accept: text/plain;version=a"))
@example(metrics("Accept: application/openmetrics-text;version=x.y"))
@example(metrics("Accept: application/openmetrics-text;version=99999.0.0;escaping=dots"))
@example(metrics("Accept: " + "," * 15_000))
@example(metrics("Accept: " + "a" * 70_000))
@example(metrics(*["Accept: text/plain;version=b"] * 200))
@example(metrics(*["Host: localhost"] * 3))
@example(metrics(query="?name[]=%ff&name[]="))
@example(b"\0" * 100)
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_a_client_sends_is_our_fault(
    site: Site, capfd: pytest.CaptureFixture[str], request: bytes
) -> None:
    status, _, _ = exchange(site, request, 0.5)
    assert status is None or status < 500
    assert site.logged == []
    assert capfd.readouterr().err == ""


@given(requests())
@example(metrics("Authorization: Basic " + "/" * 4000))
@example(metrics("Authorization: Basic YTphAGI="))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nor_what_somebody_sends_in_place_of_a_password(
    guarded: Site, capfd: pytest.CaptureFixture[str], request: bytes
) -> None:
    status, _, _ = exchange(guarded, request, 0.5)
    assert status is None or 400 <= status < 500
    assert guarded.logged == []
    assert capfd.readouterr().err == ""


def test_it_serves_after_all_this(site: Site) -> None:
    status, _, body = exchange(site, metrics())
    assert status == 200
    assert b"kmemwatch_build_info" in body


# What is negotiated


@given(ACCEPTS)
@settings(max_examples=500)
def test_there_are_few_formats_whatever_is_asked_for(accept: str) -> None:
    """Each is kept for as long as its snapshot."""
    _, content_type = choose_format(accept)
    assert re.fullmatch(
        r"text/plain; version=(0\.0\.4|1\.0\.0); charset=utf-8(; escaping=(allow-utf-8|underscores|values))?"
        r"|application/openmetrics-text; version=1\.0\.0; charset=utf-8(; escaping=(allow-utf-8|underscores|values))?",
        content_type,
    )
    assert accepts_gzip(accept) in (True, False)


@pytest.mark.parametrize(
    ("accept", "begins"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain;version=a", PLAIN),
        ("text/plain;version=99.0.0", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text;q=0, text/plain", PLAIN),
        ("application/openmetrics-text;version=7.0.0,text/plain;version=0.0.4", PLAIN),
        ("application/openmetrics-text;version=a,application/openmetrics-text;version=1.0.0", OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PLAIN),
    ],
)
def test_what_is_asked_for_is_given(accept: str, begins: str) -> None:
    assert choose_format(accept)[1].startswith(begins)


def test_a_format_that_would_change_our_names_is_not_promised(site: Site) -> None:
    _, answer, body = exchange(site, metrics("Accept: application/openmetrics-text;version=1.0.0;escaping=dots"))
    assert answer is not None
    assert "dots" not in str(answer.headers["Content-Type"])
    assert b"kmemwatch__" not in body


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("gzip", True),
        ("GZIP;Q=0.5", True),
        ("br, gzip;q=0", False),
        ("gzip;q=", False),
        ("", False),
        ("gzip;;;=", True),
    ],
)
def test_gzip(site: Site, header: str, wanted: bool) -> None:
    assert accepts_gzip(header) is wanted
    _, answer, body = exchange(site, metrics(f"Accept-Encoding: {header}"))
    assert answer is not None
    assert (answer.headers["Content-Encoding"] == "gzip") is wanted
    assert b"kmemwatch_build_info" in (gzip.decompress(body) if wanted else body)


# What is logged


class Time:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_clients_cannot_fill_the_log() -> None:
    told: list[str] = []
    time = Time()
    log = ClientLog(told.append, time)
    for number in range(100_000):
        log.say(f"trouble {number}")
        log.catch_up()
    assert told == [f"trouble {number}" for number in range(LIMIT.burst)]
    time.now_s += LIMIT.interval_s
    log.catch_up()
    assert told[LIMIT.burst :] == [f"http: {100_000 - LIMIT.burst} more such lines, the last one: trouble 99999"]
    log.catch_up()
    log.say("one more")
    assert len(told) == LIMIT.burst + 1
    time.now_s += LIMIT.interval_s
    log.catch_up()
    assert told[-1] == "http: 1 more such line, the last one: one more"
    for _ in range(24 * 60):
        time.now_s += 60
        for _ in range(100):
            log.say("x" * 10_000)
        log.catch_up()
    assert sum(map(len, told)) < 24 * 60 * (MAX_CHARS + 100), "less than a megabyte a day"


def test_many_threads() -> None:
    told: list[str] = []
    log = ClientLog(told.append, Time())

    def say() -> None:
        for _ in range(1000):
            log.say("trouble")

    threads = [threading.Thread(target=say) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["trouble"] * LIMIT.burst


def test_what_clients_sent_is_escaped_and_cut() -> None:
    told: list[str] = []
    log = ClientLog(told.append)
    log.say("/\x1b[2Jx\r\nkmemwatch: forged\x9b\u202e")
    log.say("y" * 5000)
    assert told == [r"/\x1b[2Jx\r\nkmemwatch: forged\u009b\u202e", "y" * MAX_CHARS + "..."]


def test_what_fails_in_an_answer_is_told_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: App, request: object) -> None:
        raise LookupError("made by the test\n\x1b[1m")

    monkeypatch.setattr(App, "_landing", broken)
    with sites(tmp_path) as start:
        site = start()
        for _ in range(3 * LIMIT.burst):
            assert exchange(site, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 500
        assert site.logged == [r"/: internal error: LookupError: made by the test\n\x1b[1m"] * LIMIT.burst
