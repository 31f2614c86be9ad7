# SPDX-License-Identifier: GPL-2.0-only
"""A page whose name resolves to 127.0.0.1 reads nothing; everybody who means this host gets their answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.exporter.exposition import Exposition
from kmemwatch.exporter.published import LatestSnapshot, PublishedSnapshot
from kmemwatch.serve.app import App
from kmemwatch.web.access import AccessControl, is_misdirected
from kmemwatch.web.listening import listen
from kmemwatch.web.server import Server
from tests.unit import fakes
from tests.unit.web import Sites, sites

PAGES = ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready", "/none")
LOOPBACK = (
    "localhost",
    "LocalHost:10777",
    "localhost.",
    "a.localhost:1",
    "127.0.0.1",
    "127.0.0.1:10777",
    "127.1.2.3",
    "[::1]",
    "[::1]:10777",
    "[::ffff:127.0.0.1]:80",
    "web-17",
    "WEB-17:10777",
)
OTHERS = (
    "",
    ":10777",
    "evil.example",
    "evil.example:10777",
    "localhost.evil.example",
    "notlocalhost",
    "127.0.0.1.evil.example",
    "128.0.0.1",
    "0.0.0.0",
    "[::]:80",
    "[::2]",
    "::1",
    "[127.0.0.1]",
    "127.0.0.1@evil.example",
    "evil.example#127.0.0.1",
    "127.0.0.1 evil.example",
    "127.0.0.1,evil.example",
    "localhost:80:80",
    "localhost:http",
    "web-17.evil.example",
    "\u00bdlocalhost",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as start:
        yield start


def refused(local: str, *given_hosts: str) -> bool:
    headers = [(b"host", host.encode("latin-1")) for host in given_hosts]
    return is_misdirected((local, 10777), [(b"accept", b"*/*"), *headers], "web-17")


@pytest.mark.parametrize("local", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_on_a_loopback_address_only_loopback_names_are_answered(local: str) -> None:
    assert [host for host in LOOPBACK if refused(local, host)] == []
    assert [host for host in OTHERS if not refused(local, host)] == []
    assert not refused(local), "HTTP/1.0 needs no Host"
    assert refused(local, "localhost", "evil.example")


@pytest.mark.parametrize("local", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.1"])
def test_elsewhere_every_name_is(local: str) -> None:
    assert not any(refused(local, host) for host in (*LOOPBACK, *OTHERS))


@pytest.mark.parametrize("local", [None, (), ("", None), ("/run/kmemwatch.sock", None)])
def test_on_a_unix_socket_too(local: tuple[str, None] | None) -> None:
    assert not is_misdirected(local, [(b"host", b"evil.example")])


@given(st.text(st.characters(max_codepoint=255)))
def test_no_host_makes_an_error(host: str) -> None:
    refused("127.0.0.1", host)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_no_page_is_served_under_another_name(start: Sites, path: str, method: str) -> None:
    site = start()
    code, headers, body = site.ask(path, method=method, headers={"Host": f"evil.example:{site.port}"})
    assert code == 421
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"loopback" in body or method == "HEAD"
    assert b"evil" not in body
    assert site.ask(path, method=method, headers={"Host": f"localhost:{site.port}"})[0] != 421


def test_what_proxies_say_is_not_believed(start: Sites) -> None:
    site = start()
    for name in ("X-Forwarded-Host", "Forwarded", "X-Original-Host"):
        assert site.ask("/metrics", headers={"Host": "evil.example", name: "localhost"})[0] == 421
        assert site.ask("/metrics", headers={"Host": "localhost", name: "evil.example"})[0] == 200


def test_it_is_refused_before_a_password_is_looked_at(start: Sites) -> None:
    site = start("rate_limit:\n  interval: 1h\n  burst: 1\n")
    for _ in range(3):
        assert site.ask("/metrics", headers={"Host": "evil.example"})[0] == 421
    assert site.ask("/metrics")[0] == 200, "nor does it use up what others may ask"


def test_a_request_of_http_1_0_without_a_host_is_answered(start: Sites) -> None:
    with socket.create_connection(("127.0.0.1", start().port), 5) as client:
        client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_unix_socket_answers_to_any_name(tmp_path: Path) -> None:
    listener = listen(f"unix:{tmp_path}/kmemwatch.sock")
    latest = LatestSnapshot(60)
    latest.publish(PublishedSnapshot(fakes.sample(), time.monotonic()))
    server = Server(AccessControl(App(latest, Exposition(latest.current, 20_000), "/metrics", print)), [listener])
    server.start()
    try:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(f"{tmp_path}/kmemwatch.sock")
            client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        server.stop()


def test_the_name_of_this_host_is_known() -> None:
    assert not is_misdirected(("127.0.1.1", 1), [(b"host", socket.gethostname().encode())])
