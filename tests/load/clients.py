# SPDX-License-Identifier: GPL-2.0-only
"""Clients: many at once, each with a socket of its own, and with as little work on this side as possible."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_OPENMETRICS = "application/openmetrics-text;version=1.0.0"
_BUFFER_BYTES = 1 << 20
TIMEOUT_S = 60.0
"""Long enough on a busy machine."""
Address = tuple[str, int]


class Cut(Exception):
    """The connection ended, or was never there, before the whole answer came."""

    def __init__(self, why: str, is_begun: bool) -> None:
        super().__init__(why)
        self.is_begun = is_begun
        """Part of the answer had arrived."""


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    status: int
    size: int
    """Of the body, as it was sent."""
    body: bytes
    """Empty unless it was to be kept."""


class Client:
    """One connection, opened when it is needed."""

    def __init__(self, address: Address, *, packed: bool = True, user: tuple[str, str] | None = None) -> None:
        lines = ["GET {path} HTTP/1.1", "Host: localhost", f"Accept: {_OPENMETRICS}"]
        lines += ["Accept-Encoding: gzip"] if packed else []
        lines += [] if user is None else ["Authorization: Basic " + base64.b64encode(":".join(user).encode()).decode()]
        self._request = "\r\n".join((*lines, "", ""))
        self._address = address
        self._buffer = bytearray(_BUFFER_BYTES)
        self._socket: socket.socket | None = None
        self._is_begun = False

    def get(self, path: str = "/metrics", keep: bool = False) -> Answer:
        """The whole answer. Raises Cut."""
        self._is_begun = False
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, TIMEOUT_S)
            self._socket.sendall(self._request.replace("{path}", path).encode())
            return self._answer(self._socket, keep)
        except OSError as error:
            self.close()
            raise Cut(str(error), self._is_begun) from error

    def _answer(self, connection: socket.socket, keep: bool) -> Answer:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive(connection, 65536)
        head, _, start = received.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert found, head
        size, kept = int(found[1]), bytearray(start)
        left = size - len(start)
        while left:
            part = self._receive(connection, left)
            left -= len(part)
            if keep:
                kept += part
        return Answer(int(head.split(b" ", 2)[1]), size, bytes(kept) if keep else b"")

    def _receive(self, connection: socket.socket, limit: int) -> memoryview:
        number = connection.recv_into(self._buffer, min(limit, _BUFFER_BYTES))
        if not number:
            raise ConnectionResetError("closed before the end")
        self._is_begun = True
        return memoryview(self._buffer)[:number]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@dataclass
class Crowd:
    """The results of threads that repeat the same request."""

    seconds: list[float] = field(default_factory=list)
    """That each answer took."""
    statuses: dict[int, int] = field(default_factory=dict)
    cut: list[Cut] = field(default_factory=list)

    def ask(self, client: Client, path: str) -> Answer | None:
        """Ask, and keep the result."""
        began = time.monotonic()
        try:
            answer = client.get(path)
        except Cut as cut:
            self.cut.append(cut)
            return None
        self.seconds.append(time.monotonic() - began)
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        return answer

    @property
    def figures(self) -> str:
        """In one line."""
        p50, p99, most = (1000 * percentile(self.seconds, share) for share in (0.5, 0.99, 1.0))
        return f"{len(self.seconds)} answers, p50 {p50:.0f} ms, p99 {p99:.0f} ms, slowest {most:.0f} ms"


@contextmanager
def repeating(number: int, work: Callable[[int], object]) -> Iterator[threading.Event]:
    """`number` threads call ``work(index)`` until the block ends, or the event is set. Raises what one of them did."""
    ended, errors = threading.Event(), []

    def run(index: int) -> None:
        try:
            while not ended.is_set():
                work(index)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        ended.set()
        for thread in threads:
            thread.join(2 * TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def scraping(number: int, make: Callable[[], Client], crowd: Crowd, path: str = "/metrics") -> Callable[[int], object]:
    """Work for `repeating`: scrape without a pause, each on one connection."""
    clients = [make() for _ in range(number)]
    return lambda index: crowd.ask(clients[index], path)
