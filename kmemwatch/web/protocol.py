# SPDX-License-Identifier: GPL-2.0-only
"""uvicorn's HTTP/1.1 protocol with what it leaves to a proxy: deadlines, a limit of connections, names of clients.

A client that sends slowly, or takes its answer slowly, costs a socket until its deadline, and never a thread. When
there are too many connections, those that wait longest without asking anything go first.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection, Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kmemwatch.web.configmodel import ADMISSION, Admission

REQUEST_S = 10.0
"""From a connection, or the first byte of a further request, to the end of the request's headers."""
ANSWER_S = 60.0
"""From there until the client has taken the whole answer."""
_FLUSH_S = 5.0
"""For what is written when a connection is closed for being idle."""
MAX_CONNECTIONS = 512


class Connections:
    """All connections of one server, and what they have in common."""

    def __init__(self, admission: Callable[[], Admission | None] = lambda: None) -> None:
        """`admission`: what is demanded of clients now."""
        self.admission = admission
        self.request_s = REQUEST_S
        self.answer_s = ANSWER_S
        self.limit = MAX_CONNECTIONS
        self._waiting: dict[LimitedProtocol, None] = {}
        """Those that are not being answered, longest first."""
        self._number = 0

    def opened(self, one: LimitedProtocol) -> None:
        """Count it; if there are too many, close the one that waits longest."""
        self._number += 1
        self._waiting[one] = None
        if self._number > self.limit:
            # Not there any more when the next one is opened, which may be before the end of this one is told.
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.abort()

    def closed(self, one: LimitedProtocol) -> None:
        """Forget it."""
        self._number -= 1
        self._waiting.pop(one, None)

    def close_outdated(self) -> None:
        """After `admission` has changed: close all that were made under another one, unless they are being answered."""
        for one in [*self._waiting]:
            if one.is_outdated:
                one.abort()

    def answers(self, one: LimitedProtocol) -> None:
        """It has asked, and must not be closed for others."""
        self._waiting.pop(one, None)

    def waits(self, one: LimitedProtocol) -> None:
        """It has its answer, and may ask again."""
        self._waiting[one] = None


class LimitedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._opened = False
        """It is counted."""
        self._made = False
        self._refused = False
        self._admission: Admission | None = None

    @property
    def is_outdated(self) -> bool:
        """It was made under other demands than those of now."""
        return self._made and self._admission != self._all.admission()

    def shakes_hands(self, transport: asyncio.Transport, over: asyncio.Future[None]) -> None:
        """TLS has begun, and takes until `over`. Who opens a connection and says nothing has one all the same."""
        self.transport = transport
        self._opened = True
        self._all.opened(self)
        over.add_done_callback(self._has_shaken_hands)

    def _has_shaken_hands(self, over: asyncio.Future[None]) -> None:
        """The loop tells `connection_lost` only of connections that it has told of."""
        if self._opened and not self._made:
            self._opened = False
            self._all.closed(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made = True
        if not self._opened:
            self._opened = True
            self._all.opened(self)
        # Of the configuration that made the handshake, which may have taken its time.
        self._admission = getattr(getattr(transport.get_extra_info("ssl_object"), "context", None), "admission", None)
        self.app_state = {**self.app_state, ADMISSION: self._admission}
        allowed = () if self._admission is None else self._admission.allowed_names
        if self.is_outdated or not _has_name(transport.get_extra_info("peercert"), allowed):
            self._refused = True
            self.abort()
            return
        self._set_deadline(self._all.request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        if self._opened:
            self._opened = False
            self._all.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:  # it may have come together with the end of the handshake
            return
        if self._deadline is None:  # the first byte of a further request
            self._set_deadline(self._all.request_s)
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._all.answers(self)
            self._set_deadline(self._all.answer_s)

    def on_response_complete(self) -> None:
        self._set_deadline(None)
        if self._opened:
            self._all.waits(self)
        if self.is_outdated or self.conn.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            # Or it announced a body, which nobody wants, and may take for ever to send it.
            self.transport.close()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._set_deadline(_FLUSH_S)  # closing waits for a client that has not read the end of its answer

    def abort(self) -> None:
        """Close without a word, and without waiting until what was written is sent."""
        self.transport.abort()

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.abort)


def _has_name(certificate: Mapping[str, Any] | None, allowed: Collection[str]) -> bool:
    """`certificate` as `ssl.SSLSocket.getpeercert` gives it."""
    if not allowed:
        return True
    names = (certificate or {}).get("subjectAltName", ())
    return any(kind in _SAN_KINDS and _plain(kind, name) in allowed for kind, name in names)


_SAN_KINDS = ("DNS", "email", "URI", "IP Address")


def _plain(kind: str, name: str) -> str:
    """OpenSSL writes 0:0:0:0:0:0:0:1."""
    try:
        return str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else name
    except ValueError:
        return name
