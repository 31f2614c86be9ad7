# SPDX-License-Identifier: GPL-2.0-only
"""Requests to web servers that are not trusted: each answer has a bound and a deadline, however slowly it arrives."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from kmemwatch import __version__
from kmemwatch.errors import UsageError
from kmemwatch.feeds.user_files import read_bounded


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and certificates for one server; all are optional."""

    ca_file: str | None = None
    """Certificates, in PEM, to trust in place of the system's."""
    user: str | None = None
    password: str | None = None

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        if self.user is None:
            return {}
        both = f"{self.user}:{self.password or ''}".encode()
        return {"Authorization": "Basic " + base64.b64encode(both).decode()}

    def context(self) -> ssl.SSLContext:
        """For TLS. Raises UsageError when the CA file cannot be used."""
        if self.ca_file is None:
            return ssl.create_default_context()
        try:
            # Anything that is not ASCII is a comment. With an empty text, Python would trust the system's certificates.
            pem = read_bounded(self.ca_file, _MAX_CA_BYTES).decode("ascii", "ignore")
            return ssl.create_default_context(cadata=pem or " ")
        except (OSError, ssl.SSLError) as exc:
            what = exc.strerror if not isinstance(exc, ssl.SSLError) and exc.strerror else "no certificates in it"
            raise UsageError(
                f"{self.ca_file}: cannot use it as CA file: {what}", "a file with PEM certificates"
            ) from exc


ANYBODY = Access()
_MAX_CA_BYTES = 1 << 24
_MAX_PASSWORD_BYTES = 1 << 16


class SameServer(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but sends credentials only to the server that the user named."""

    def redirect_request(self, req: urllib.request.Request, *args: Any, **named: Any) -> urllib.request.Request | None:
        new = super().redirect_request(req, *args, **named)
        if new is not None and (new.type, new.host) != (req.type, req.host):
            new.remove_header("Authorization")
        return new


def read_password(path: str) -> str:
    """The first line of a file. Raises UsageError."""
    try:
        lines = read_bounded(path, _MAX_PASSWORD_BYTES).decode("utf-8").splitlines()
    except OSError as exc:
        raise UsageError(f"{path}: cannot read the password: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: cannot read the password: not text") from exc
    if not lines or not lines[0]:
        raise UsageError(f"{path}: there is no password in its first line")
    return lines[0]


MAX_BYTES: Final = 1 << 27
MAX_ERROR_BYTES: Final = 1 << 16
BYTES_PER_S: Final = 1 << 16
"""An answer that arrives faster than this may take longer than the deadline."""
MOST_TIMES: Final = 8
"""But never longer than this many deadlines."""
_CHUNK: Final = 1 << 16
_REASON_CHARS: Final = 200


class FetchError(Exception):
    """No answer came, or only a part of it, or one that makes no sense; `str()` says which, in a few words."""

    def __init__(self, why: str, doing: str = "") -> None:
        super().__init__(doing + why)
        self.why = why
        """The message without what was tried."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server, of any status."""

    status: int
    reason: str
    kind: str
    """Media type."""
    encoding: str | None
    """Content-Encoding."""
    body: bytes


@dataclass
class _Exchange:
    """One request and its answer, in a thread of its own. Nobody waits for that thread after the deadline."""

    deadline_s: float
    done: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    error: Exception | None = None
    received: int = 0
    _began_s: float = field(default_factory=time.monotonic)
    _socket: socket.socket | None = None
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def left_s(self) -> float:
        """Time until the deadline, which moves while data arrives fast enough."""
        allowed_s = min(self.deadline_s + self.received / BYTES_PER_S, MOST_TIMES * self.deadline_s)
        return self._began_s + allowed_s - time.monotonic()

    def connected(self, taken: socket.socket) -> None:
        """The connection to the server, or to the next one after a redirect."""
        with self._lock:
            self._socket = taken
            if self._given_up:
                self._shut()

    def give_up(self) -> None:
        """Make the thread that waits for the server fail at once."""
        with self._lock:
            self._given_up = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections and gives them to the exchange, which can then close them."""

    def __init__(self, exchange: _Exchange, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._exchange, self._tls = exchange, context

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._known(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._known(http.client.HTTPSConnection), req, context=self._tls)

    def _known(self, kind: type[http.client.HTTPConnection]) -> Any:
        exchange = self._exchange

        class Connection(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                exchange.connected(self.sock)

        return Connection


class Fetcher:
    """Requests to one server."""

    def __init__(self, access: Access, timeout_s: float, deadline_s: float) -> None:
        """`timeout_s`: for connecting, and for the longest silence of the server; `deadline_s`: for a whole answer.

        Raises UsageError when the CA file of `access` cannot be used.
        """
        self._headers = {"User-Agent": f"kmemwatch/{__version__}", **access.headers()}
        self._context = access.context()
        self._timeout_s, self._deadline_s = timeout_s, deadline_s

    def get(self, url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> Answer:
        """The answer, also if its status is an error. Raises FetchError."""
        exchange = _Exchange(self._deadline_s)
        request = urllib.request.Request(url, data, {**self._headers, **(headers or {})})
        threading.Thread(target=self._run, args=(exchange, request), daemon=True).start()
        try:
            while not exchange.done.wait(max(0.0, exchange.left_s())):
                if exchange.left_s() <= 0:
                    raise FetchError(f"no whole answer in {self._deadline_s:g} s")
        finally:
            if not exchange.done.is_set():
                exchange.give_up()
        if exchange.answer is None:
            raise _in_words(exchange.error) from exchange.error
        return exchange.answer

    def _run(self, exchange: _Exchange, request: urllib.request.Request) -> None:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            _Handler(exchange, self._context),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            SameServer(),
        ):
            opener.add_handler(handler)
        try:
            with opener.open(request, timeout=self._timeout_s) as response:
                exchange.answer = _read(response, exchange, MAX_BYTES)
        except urllib.error.HTTPError as exc:
            try:
                with exc:
                    exchange.answer = _read(exc, exchange, MAX_ERROR_BYTES, whole=False)
            except Exception as reading:  # noqa: BLE001 - see below
                exchange.error = reading
        except Exception as exc:  # noqa: BLE001 - a server can make urllib raise nearly anything
            exchange.error = exc
        finally:
            exchange.done.set()


def _read(response: Any, exchange: _Exchange, most: int, whole: bool = True) -> Answer:
    """Read until the end. `whole`: more than the bound is an error, and so is an end before the announced length."""
    read: Callable[[int], bytes] = getattr(response, "read1", response.read)
    parts: list[bytes] = []
    while part := read(_CHUNK):
        parts.append(part)
        exchange.received += len(part)
        if exchange.left_s() <= 0:
            raise TimeoutError
        if exchange.received > most:
            if whole:
                raise FetchError(f"an answer of more than {most >> 20} MiB")
            break
    if whole and getattr(response, "length", None):
        raise FetchError("the answer was cut off")
    headers = response.headers
    return Answer(
        response.status, str(response.reason)[:_REASON_CHARS], headers.get_content_type(),
        headers.get("Content-Encoding"), b"".join(parts),
    )  # fmt: skip


def _in_words(error: Exception | None) -> FetchError:
    """Put an exception into words, because its name and number do not help the user."""
    if isinstance(error, FetchError):
        return error
    if isinstance(error, urllib.error.URLError):
        return FetchError(_reason(error.reason), "cannot connect: ")
    if isinstance(error, http.client.IncompleteRead):
        return FetchError("the answer was cut off")
    if isinstance(error, (http.client.BadStatusLine, http.client.UnknownProtocol)) and not isinstance(error, OSError):
        return FetchError(f"it does not speak HTTP: {_reason(error).strip()}")
    if isinstance(error, ValueError):  # for example, a redirect to something that is no URL
        return FetchError(_reason(error), "an answer that cannot be understood: ")
    return FetchError(_reason(error), "broke off: ")


def _reason(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "timed out"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return (str(reason) or type(reason).__name__)[:_REASON_CHARS]
