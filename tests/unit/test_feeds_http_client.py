# SPDX-License-Identifier: GPL-2.0-only
"""Servers that answer slowly, without an end, or with anything: every question has an answer in a bounded time."""

from __future__ import annotations

import gzip
import itertools
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmemwatch.codec import snapshot_to_json
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds import http_client
from kmemwatch.feeds.http_client import ANYBODY, Access, Fetcher, FetchError
from kmemwatch.feeds.remote import RemoteFeed
from tests.unit import fakes

Says = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def serving(says: Says) -> Iterator[str]:
    """The URL of a server that reads the beginning of a request and then says something."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65536)
                    says(connection)
                except OSError:
                    pass  # the client has gone

        def accept() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def dripping(*parts: bytes, pause_s: float = 0.05) -> Says:
    """The first at once; the rest a byte at a time, for ever."""

    def says(connection: socket.socket) -> None:
        connection.sendall(parts[0])
        for byte in itertools.cycle(parts[1]):
            connection.sendall(bytes([byte]))
            time.sleep(pause_s)

    return says


SLOW = {
    "status line": dripping(b"HTTP/1.1 200 ", b"O"),
    "header": dripping(OK + b"X-Long: ", b"x"),
    "headers": dripping(OK, b"X: y\r\n", pause_s=0.01),
    "continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.001),
    "body": dripping(OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "body without a length": dripping(OK + b"\r\n", b" "),
    "chunk sizes": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunks": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "chunk extension": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "an error's text": dripping(b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n", b" "),
    "redirect": dripping(b"HTTP/1.1 302 No\r\nLocation: /\r\nContent-Length: 100000\r\n\r\n", b" "),
    "redirects": lambda connection: connection.sendall(
        b"HTTP/1.1 302 No\r\nLocation: /a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ),
}


def outcome(url: str) -> str:
    try:
        return str(Fetcher(ANYBODY, 0.5, 1.0).get(url).status)
    except FetchError as exc:
        return str(exc)


def threads() -> int:
    return sum(thread.name.endswith("(_run)") for thread in threading.enumerate())


@pytest.mark.parametrize("name", SLOW)
def test_a_server_that_is_slow_ends_with_the_deadline(name: str) -> None:
    with serving(SLOW[name]) as url:
        began = time.monotonic()
        said = outcome(url)
        assert said in ("no whole answer in 1 s", "broke off: timed out", "302") or "100 headers" in said
        assert time.monotonic() - began < 2.5
        # Nobody is left behind who waits for it.
        while threads() and time.monotonic() - began < 5:
            time.sleep(0.01)
        assert threads() == 0


def test_a_tls_handshake_has_a_deadline() -> None:
    with serving(dripping(b"\x16\x03\x03\x40\x00", b"\x02")) as url:
        began = time.monotonic()
        with pytest.raises(FetchError):
            Fetcher(ANYBODY, 0.5, 1.0).get(url.replace("http:", "https:"))
        assert time.monotonic() - began < 2.5


def test_a_name_server_that_is_slow_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: ended.wait(10) and [])
    began = time.monotonic()
    try:
        with pytest.raises(FetchError, match=r"no whole answer in 0\.3 s"):
            Fetcher(ANYBODY, 5, 0.3).get("http://slow.invalid/")
        assert time.monotonic() - began < 2
    finally:
        ended.set()


def test_what_comes_fast_may_take_longer_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "BYTES_PER_S", 1000)

    def says(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 2000\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"x" * 100)
            time.sleep(0.05)

    with serving(says) as url:
        assert len(Fetcher(ANYBODY, 0.5, 0.3).get(url).body) == 2000


def test_an_answer_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_BYTES", 1 << 20)

    def says(connection: socket.socket) -> None:
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(bytes(1 << 16))

    with serving(says) as url, pytest.raises(FetchError, match="an answer of more than 1 MiB"):
        Fetcher(ANYBODY, 5, 5).get(url)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"\x00\xff\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 99999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        OK + b"Content-Length: 50\r\n\r\nshort",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
        OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        OK + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 302 x\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: ftp://127.0.0.1:1/x\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:99999/\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: http://a\x00b/\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: //\xff\xfe/\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_one_line(answer: bytes) -> None:
    with serving(lambda connection: connection.sendall(answer)) as url:
        with pytest.raises(KmemwatchError) as caught:
            RemoteFeed(url, 2, deadline_s=2).next_snapshot(0)
        assert str(caught.value).startswith(url)
        assert "passwd" not in str(caught.value) or "302" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not speak HTTP: SSH-2.0-OpenSSH_9.2"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "it does not speak HTTP: HTTP/9.9"),
        (b"\x1b[2J\r\n", "it does not speak HTTP: \x1b[2J"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nx", "the answer was cut off"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "the answer was cut off"),
        (b"", "broke off: Remote end closed connection without response"),
    ],
)
def test_what_is_no_answer_is_told_without_names_of_exceptions(answer: bytes, said: str) -> None:
    with serving(lambda connection: connection.sendall(answer)) as url, pytest.raises(FetchError) as caught:
        Fetcher(ANYBODY, 2, 2).get(url)
    assert str(caught.value) == said


def test_an_error_s_text_is_read_in_part_only() -> None:
    head = b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\n\r\n"
    with serving(lambda connection: connection.sendall(head + b"x" * (1 << 20))) as url:
        answer = Fetcher(ANYBODY, 5, 5).get(url)
    assert (answer.status, answer.reason) == (400, "Bad")
    assert len(answer.body) < 1 << 18


def test_a_daemon_that_becomes_slow_is_said_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.feeds.remote._RETRY_S", 0.01)
    body = snapshot_to_json(fakes.sample())
    whole = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def at_once(connection: socket.socket) -> None:
        connection.sendall(whole)

    answers: Iterator[Says] = iter([at_once, SLOW["body"]])
    with serving(lambda connection: next(answers)(connection)) as url:
        feed = RemoteFeed(url, 0.5, deadline_s=0.5)
        assert feed.next_snapshot(0) == fakes.sample()
        assert feed.next_snapshot(0.01) == fakes.sample()
        assert feed.notice == f"{url}: no whole answer in 0.5 s; trying again, old figures"


BOMB = """
import sys; sys.path.insert(0, sys.argv[1])
from kmemwatch.errors import KmemwatchError
from kmemwatch.feeds.remote import RemoteFeed
try:
    RemoteFeed(sys.argv[2]).next_snapshot(0)
except KmemwatchError as exc:
    print(str(exc)[:200])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.parametrize("text", [b" " * 900_000_000, b"[" + b"{}," * 20_000_000 + b"{}]"], ids=["spaces", "objects"])
def test_a_small_answer_takes_little_memory(text: bytes) -> None:
    body = gzip.compress(text, 6)
    assert len(body) < 1_000_000
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(lambda connection: connection.sendall(head + body)) as url:
        done = subprocess.run(
            [sys.executable, "-c", BOMB, Path(__file__).parents[2], url], capture_output=True, text=True, check=True
        )
    said, peak_kib = done.stdout.splitlines()
    assert said.startswith(f"{url}/api/v1/snapshot: ")
    assert int(peak_kib) < 200 << 10


def test_a_ca_file_that_is_a_pipe_or_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path in (tmp_path / "pipe", tmp_path / "empty", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(UsageError, match=r"no certificates in it|larger than"):
            Access(ca_file=str(path)).context()
    assert isinstance(ANYBODY.context(), ssl.SSLContext)
