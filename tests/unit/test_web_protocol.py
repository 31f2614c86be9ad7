# SPDX-License-Identifier: GPL-2.0-only
"""Clients that are slow, deaf, silent or too many: what they cost, and that others do not notice."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.web import server
from kmemwatch.web.listening import listen
from kmemwatch.web.server import Connections, LimitedProtocol, Server
from tests.unit.certificates import Authority

LARGE = b"x" * (64 << 20)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """/large is more than any buffer between us and the client holds, /medium what ours alone does."""
    body = {"/large": LARGE, "/medium": LARGE[:60_000]}.get(scope["path"], b"ok")
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), 1 << 18):
        await send({"type": "http.response.body", "body": body[start : start + (1 << 18)], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Served:
    def __init__(self, connections: Connections, tls: ssl.SSLContext | None = None) -> None:
        self.connections = connections
        self.listener = listen("127.0.0.1:0")
        self.port = self.listener.getsockname()[1]
        self.server = Server(app, [self.listener], connections=connections, tls=tls)
        self.server.start()

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    @property
    def number(self) -> int:
        return self.connections._count

    def settled(self, number: int) -> bool:
        """There are as many connections, now or soon."""
        for _ in range(300):
            if self.number == number:
                return True
            time.sleep(0.01)
        return False


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:

        def start(
            request_s: float = 10.0, answer_s: float = 10.0, limit: int = 100, tls: ssl.SSLContext | None = None
        ) -> Served:
            connections = Connections()
            connections.request_s, connections.answer_s, connections.limit = request_s, answer_s, limit
            served = Served(connections, tls)
            stack.callback(served.server.stop)
            return served

        yield start


def ask(client: socket.socket, path: str = "/") -> bytes:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"ok"):
        part = client.recv(4096)
        assert part, "it was closed"
        answer += part
    return answer


def is_closed(client: socket.socket, within_s: float) -> bool:
    client.settimeout(within_s)
    try:
        while client.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize("first", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_request_that_does_not_come(serve: Callable[..., Served], first: bytes) -> None:
    served = serve(request_s=0.3)
    with served.open() as client:
        client.sendall(first)
        began = time.monotonic()
        assert is_closed(client, 3)
        assert 0.2 < time.monotonic() - began < 2
    assert served.settled(0)


def test_a_request_byte_by_byte(serve: Callable[..., Served]) -> None:
    served = serve(request_s=0.5)
    began = time.monotonic()
    with served.open() as client:
        try:
            for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.monotonic() - began < 3
    assert served.settled(0)


def test_an_idle_connection_stays_and_its_next_request_has_a_deadline(serve: Callable[..., Served]) -> None:
    served = serve(request_s=0.3)
    with served.open() as client:
        ask(client)
        assert not is_closed(client, 0.8), "Prometheus asks once a minute"
        ask(client)
        client.sendall(b"GET /")
        assert is_closed(client, 3)


def test_who_does_not_take_the_answer(serve: Callable[..., Served]) -> None:
    served = serve(answer_s=0.5)
    with served.open() as deaf:
        deaf.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.settled(1)
        time.sleep(0.2)
        with served.open() as other:
            assert ask(other).endswith(b"ok")
        assert served.settled(0)


def test_who_does_not_take_the_end_of_the_answer(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is complete for us, and what is left of it waits in a buffer."""
    monkeypatch.setattr(server, "_FLUSH_S", 0.2)
    served = serve()
    served.server._server.config.timeout_keep_alive = 0
    served.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(b"GET /medium HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.settled(1)
        assert served.settled(0), "it is not kept for a client that does not read"


def test_a_body_that_nobody_wants(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.open() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert is_closed(client, 3)
    assert served.settled(0)


def test_pipelined_requests(serve: Callable[..., Served]) -> None:
    served = serve(request_s=0.5)
    with served.open() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        answers = b""
        while answers.count(b"ok") < 5:
            answers += client.recv(4096)
        ask(client)


def test_too_many_connections_close_those_that_wait_longest(serve: Callable[..., Served]) -> None:
    served = serve(limit=10)
    with ExitStack() as stack:
        busy = stack.enter_context(served.open())
        busy.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        busy.recv(100)
        waiting = []
        for _ in range(9):
            waiting.append(stack.enter_context(served.open()))
            assert served.settled(len(waiting) + 1)
        ask(waiting[0])  # it has waited least now
        newest = stack.enter_context(served.open())
        assert is_closed(waiting[1], 3)
        assert ask(newest).endswith(b"ok")
        assert ask(waiting[0]).endswith(b"ok")
        assert not is_closed(waiting[2], 0.1)
        assert len(busy.recv(1 << 20)) > 0, "who is being answered is left alone"
        for _ in range(50):
            with served.open() as fresh:
                assert ask(fresh).endswith(b"ok")
        assert served.number <= 10


def test_who_does_not_begin_with_tls_is_counted_too(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Else it takes all descriptors, and who scrapes gets none."""
    authority = Authority(tmp_path, "ca")
    signed = authority.sign("server", "DNS:localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(signed.cert, signed.key)
    client = ssl.create_default_context(cafile=authority.cert)
    served = serve(limit=10, tls=context)
    with ExitStack() as stack:
        silent = [stack.enter_context(served.open()) for _ in range(40)]
        assert served.settled(10)
        assert is_closed(silent[0], 3)
        assert not is_closed(silent[-1], 0.1)
        wrapped = stack.enter_context(client.wrap_socket(served.open(), server_hostname="localhost"))
        assert ask(wrapped).endswith(b"ok")
        assert served.number == 10
        silent[-1].sendall(b"no TLS at all")
        assert served.settled(9)
    assert served.settled(0)


class Aborted(LimitedProtocol):
    """Its end is told later, as by a real one."""

    def __init__(self) -> None:
        self.times = 0

    def abort(self) -> None:
        self.times += 1


def test_a_burst_closes_as_many_as_are_too_many() -> None:
    """All of them opened before the end of the first that is closed."""
    connections, opened = Connections(), [Aborted() for _ in range(8)]
    connections.limit = 3
    for one in opened:
        connections.opened(one)
    assert [one.times for one in opened] == [1, 1, 1, 1, 1, 0, 0, 0]
    for one in opened[:5]:
        connections.closed(one)
    connections.opened(Aborted())
    assert [one.times for one in opened[5:]] == [1, 0, 0]
