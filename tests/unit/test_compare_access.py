# SPDX-License-Identifier: GPL-2.0-only
"""Passwords and CAs go to the server that was named, and to no other."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.http_client import ANYBODY, Access, Fetcher, FetchError, read_password
from kmemwatch.feeds.remote import RemoteFeed
from tests.http_server import OwnServer, QuietHandler
from tests.unit.certificates import Authority
from tests.unit.compare_sides import snapshot
from tests.unit.test_feeds_remote import Answers

ME = Access(user="me", password="secret")
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


class Server(OwnServer):
    """Notes who it is asked by; redirects if it is told to."""

    def __init__(self, redirect: str | None = None) -> None:
        self.seen: list[str | None] = []
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                server.seen.append(self.headers["Authorization"])
                here = redirect if self.path == "/start" else None
                self.send_response(302 if here else 200)
                if here:
                    self.send_header("Location", here)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Handler)


@pytest.fixture
def other() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def ask(access: Access, url: str) -> None:
    Fetcher(access, 5, 5).get(url)


def test_who_asks_is_said_to_the_server_that_was_named(other: Server) -> None:
    ask(ME, other.url)
    ask(ANYBODY, other.url)
    assert other.seen == [BASIC, None]


def test_a_redirect_to_another_server_is_followed_without_the_password(other: Server) -> None:
    first = Server(redirect=other.url + "/there")
    try:
        ask(ME, first.url + "/start")
    finally:
        first.stop()
    assert (first.seen, other.seen) == ([BASIC], [None])


def test_a_redirect_on_the_same_server_keeps_it() -> None:
    server = Server(redirect="/there")
    try:
        ask(ME, server.url + "/start")
    finally:
        server.stop()
    assert server.seen == [BASIC, BASIC]


def test_a_daemon_is_told_who_asks() -> None:
    answers = Answers()
    try:
        answers.snapshot(snapshot(3))
        feed = RemoteFeed(answers.address, access=ME)
        assert feed.next_snapshot(0) is not None
        answers.status = 401
        with pytest.raises(KmemwatchError, match="401"):
            feed.next_snapshot(0)
    finally:
        answers.stop()


def test_a_ca_of_ones_own_is_trusted_and_another_is_not(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    signed = ours.sign("server", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.cert, signed.key)
    server = Server()
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    try:
        ask(Access(ca_file=str(ours.cert)), url)
        for access in (Access(ca_file=str(theirs.cert)), ANYBODY):
            with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
                ask(access, url)
    finally:
        server.stop()


@pytest.mark.parametrize(("text", "password"), [("a b\n", "a b"), ("x\ny\n", "x"), ("söcret", "söcret")])
def test_the_password_is_the_first_line(tmp_path: Path, text: str, password: str) -> None:
    (tmp_path / "p").write_text(text, "utf-8")
    assert read_password(str(tmp_path / "p")) == password


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe"])
def test_a_file_without_a_password_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(UsageError, match="password"):
        read_password(str(tmp_path / "p"))
