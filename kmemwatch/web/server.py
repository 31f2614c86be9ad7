# SPDX-License-Identifier: GPL-2.0-only
"""The HTTP server: uvicorn (docs/adr/0002-http-server.md says why), with what uvicorn leaves to a proxy.

That is deadlines, a limit of connections, and the names in client certificates. A client that sends slowly, or reads
its answer slowly, costs a socket until its deadline, and never a thread. When there are too many connections, the
server closes those that have waited longest without a request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import h11
import uvicorn
import uvicorn.lifespan.off  # uvicorn would import it at its start, when this process may not be able to read files
from uvicorn.protocols.http.h11_impl import H11Protocol

from kmemwatch.errors import KmemwatchError
from kmemwatch.web.access import REQUIREMENTS
from kmemwatch.web.config import ClientRequirements

REQUEST_S = 10.0
"""From the connection, or the first byte of a further request, to the end of the request's headers."""
ANSWER_S = 60.0
"""From there until the client has taken the whole answer."""
_FLUSH_S = 5.0
"""For sending what is still buffered when an idle connection is closed."""
MAX_CONNECTIONS = 512
_KEEP_ALIVE_S = 75
"""More than the usual scrape interval of a minute, so that Prometheus keeps its connection."""
_FINISH_S = 1
"""Time for answers in progress when the server stops."""
_HANDSHAKE_S = 10.0
_MAX_HEADER_BYTES = 16 * 1024
_AT_ONCE = 64
"""Connections that asyncio accepts before it reads any of them. Well below `MAX_CONNECTIONS`, so that the server does
not close connections whose request it has not read yet: asyncio takes four rounds to close one."""
_QUEUE = 2048
"""Connections that wait in the kernel. Clients above it try again a second later."""
_START_S = 10.0
_TICK_S = 1.0


class Connections:
    """All connections of one server, and their limits."""

    def __init__(self, requirements: Callable[[], ClientRequirements | None] = lambda: None) -> None:
        """`requirements`: returns the current ones."""
        self.requirements = requirements
        self.request_s = REQUEST_S
        self.answer_s = ANSWER_S
        self.limit = MAX_CONNECTIONS
        self._waiting: dict[LimitedProtocol, None] = {}
        """Connections without a request in progress, the longest idle first."""
        self._count = 0

    def opened(self, one: LimitedProtocol) -> None:
        """Count it. If there are too many, close the one that has waited longest."""
        self._count += 1
        self._waiting[one] = None
        if self._count > self.limit:
            # Removed at once: the next connection may come before asyncio reports the end of this one.
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.abort()

    def closed(self, one: LimitedProtocol) -> None:
        """It has ended."""
        self._count -= 1
        self._waiting.pop(one, None)

    def close_outdated(self) -> None:
        """Close idle connections that were made under other requirements. To be called when these have changed."""
        for one in [*self._waiting]:
            if one.is_outdated:
                one.abort()

    def busy(self, one: LimitedProtocol) -> None:
        """It has a request in progress, and must not be closed in favour of others."""
        self._waiting.pop(one, None)

    def idle(self, one: LimitedProtocol) -> None:
        """It has its answer and is idle again."""
        self._waiting[one] = None


class LimitedProtocol(H11Protocol):
    """One connection. Without a docstring: asyncio or uvicorn calls it, see their protocol classes."""

    def __init__(self, *args: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._counted = False
        """As one of `connections`."""
        self._made = False
        self._refused = False
        self._requirements: ClientRequirements | None = None

    @property
    def is_outdated(self) -> bool:
        """It was made under other requirements than the current ones."""
        return self._made and self._requirements != self._all.requirements()

    def handshake_begins(self, transport: asyncio.Transport, done: asyncio.Future[None]) -> None:
        """Count the connection during its TLS handshake, which ends with `done`: clients may never finish it."""
        self.transport = transport
        self._counted = True
        self._all.opened(self)
        done.add_done_callback(self._handshake_ended)

    def _handshake_ended(self, done: asyncio.Future[None]) -> None:
        """Without `connection_made` there is no `connection_lost`, so a failed handshake is counted here."""
        if self._counted and not self._made:
            self._counted = False
            self._all.closed(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made = True
        if not self._counted:
            self._counted = True
            self._all.opened(self)
        # From the connection's own context: the configuration may have changed during the handshake.
        context = getattr(transport.get_extra_info("ssl_object"), "context", None)
        self._requirements = getattr(context, "requirements", None)
        self.app_state = {**self.app_state, REQUIREMENTS: self._requirements}
        allowed = () if self._requirements is None else self._requirements.allowed_names
        if self.is_outdated or not _has_name(transport.get_extra_info("peercert"), allowed):
            self._refused = True
            self.abort()
            return
        self._set_deadline(self._all.request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        if self._counted:
            self._counted = False
            self._all.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:  # the data may have come together with the end of the handshake
            return
        if self._deadline is None:  # the first byte of a further request
            self._set_deadline(self._all.request_s)
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._all.busy(self)
            self._set_deadline(self._all.answer_s)

    def on_response_complete(self) -> None:
        self._set_deadline(None)
        if self._counted:
            self._all.idle(self)
        if self.is_outdated or self.conn.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            # In the other states the client announced a body, which nobody reads and which may take for ever.
            self.transport.close()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._set_deadline(_FLUSH_S)  # closing waits until the client has read its answer

    def abort(self) -> None:
        """Close at once, without sending what is still buffered."""
        self.transport.abort()

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.abort)


def _has_name(certificate: Mapping[str, Any] | None, allowed: Collection[str]) -> bool:
    """`certificate`: as `ssl.SSLSocket.getpeercert` returns it."""
    if not allowed:
        return True
    names = (certificate or {}).get("subjectAltName", ())
    return any(kind in _SAN_KINDS and _normalized(kind, name) in allowed for kind, name in names)


_SAN_KINDS = ("DNS", "email", "URI", "IP Address")


def _normalized(kind: str, name: str) -> str:
    """OpenSSL writes 0:0:0:0:0:0:0:1."""
    try:
        return str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else name
    except ValueError:
        return name


class Server:
    """Serves `app` on `listeners` from a thread of its own until `stop`, which also closes them."""

    def __init__(
        self,
        app: Any,
        listeners: list[socket.socket],
        *,
        tls: ssl.SSLContext | None = None,
        connections: Connections | None = None,
        log: Callable[[str], None] = lambda message: None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`app`: ASGI; `tls`: for new connections, None for plain HTTP; `log`: clients cause its lines, so it should be
        that of a `ClientLog`; `beat`: the serving thread calls it every second, unless it hangs."""
        _silence_loggers()
        self._listeners = listeners
        self._log = log
        self._server = _Server(_config(app, connections or Connections(), tls), beat)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        """Return when the server answers requests. Raises KmemwatchError."""
        self._thread.start()
        ready = threading.Event()
        for _ in range(int(_START_S / 0.01)):
            if self._server.started or not self._thread.is_alive():
                break
            ready.wait(0.01)
        if not self._server.started:
            raise KmemwatchError(f"the HTTP server did not start: {self._error or 'timed out'}")

    def call_soon(self, do: Callable[[], None]) -> None:
        """Call `do` in the serving thread; not after that has ended."""
        self._server.call_soon(do)

    def check(self) -> None:
        """Raise KmemwatchError when the server has stopped."""
        if not self._thread.is_alive():
            raise KmemwatchError(f"the HTTP server stopped: {self._error or 'unknown reason'}")

    def stop(self) -> None:
        """Let answers finish for a moment, then close everything; harmless when called twice."""
        self._server.end()
        if self._thread.is_alive():
            self._thread.join(2 * _FINISH_S)
        for listener in self._listeners:
            listener.close()

    def _run(self) -> None:
        loop = self._server.loop = _Loop()
        loop.set_exception_handler(self._on_loop_error)
        try:
            loop.run_until_complete(self._server.serve(sockets=self._listeners))
        except BaseException as exc:  # noqa: BLE001 - `start` and `check` report it
            self._error = exc
        finally:
            loop.close()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what the host causes, such as a lack of descriptors, but not clients that break off or speak no TLS."""
        error = context.get("exception")
        if isinstance(error, OSError) and "accept" not in context.get("message", ""):  # ssl.SSLError is one, too
            return
        self._log(f"http: {context.get('message', 'error')}: {type(error).__name__}: {error}")


class _Server(uvicorn.Server):
    """uvicorn checks ten times a second whether to end, which takes half the processor time of an idle daemon."""

    def __init__(self, config: uvicorn.Config, beat: Callable[[], None]) -> None:
        super().__init__(config)
        self._beat = beat
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # also sets the Date header of answers
            self._beat()
            try:
                await asyncio.wait_for(self._ending.wait(), _TICK_S)
            except asyncio.TimeoutError:
                pass

    def end(self) -> None:
        """From any thread."""
        self.should_exit = True
        self.call_soon(self._ending.set)

    def call_soon(self, do: Callable[[], None]) -> None:
        """From any thread."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(do)
            except RuntimeError:  # it has ended
                pass


class _Loop(asyncio.SelectorEventLoop):
    """Settings for which uvicorn has no options."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            # asyncio's default is a minute, too long for a client that only holds a socket.
            options["ssl_handshake_timeout"] = _HANDSHAKE_S
        server = await super().create_server(*args, **options)
        # asyncio has one number both for accepting at once and for the queue in the kernel.
        options["sock"].listen(_QUEUE)
        return server

    def _make_ssl_transport(self, rawsock: socket.socket, protocol: Any, *args: Any, **options: Any) -> Any:
        """asyncio has no other place where code sees a connection before its handshake ends."""
        transport = super()._make_ssl_transport(rawsock, protocol, *args, **options)  # type: ignore[misc]
        # Later: until the loop has started TLS, there is nothing to close.
        self.call_soon(protocol.handshake_begins, transport, options["waiter"])
        return transport


def _config(app: Any, connections: Connections, tls: ssl.SSLContext | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=partial(LimitedProtocol, connections=connections),  # type: ignore[arg-type]
        loop="asyncio",
        lifespan="off",
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FINISH_S,
        backlog=_AT_ONCE,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    config.load()
    # uvicorn's own options take names of files, which the serving process may not be allowed to read.
    config.ssl = tls
    return config


def _silence_loggers() -> None:
    """uvicorn and asyncio log what kmemwatch reports itself, and each bad request."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
