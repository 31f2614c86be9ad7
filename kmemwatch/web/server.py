# SPDX-License-Identifier: GPL-2.0-only
"""The HTTP server; see docs/adr/0002-http-server.md for why it is uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
import uvicorn.lifespan.off  # which it would import when it begins, see `worker`

from kmemwatch.errors import KmemwatchError
from kmemwatch.web.protocol import Connections, LimitedProtocol

_KEEP_ALIVE_S = 75
"""More than the usual scrape interval of a minute, so that Prometheus can keep its connection."""
_FINISH_S = 1
"""Time for answers that are on their way when the daemon stops."""
_HANDSHAKE_S = 10.0
_MAX_HEADER_BYTES = 16 * 1024
_AT_ONCE = 64
"""Connections that are taken before any of them is read: well below `MAX_CONNECTIONS`, as those who have asked already
must not be closed for having waited longest. It takes asyncio four rounds to close one that is too many."""
_QUEUE = 2048
"""Connections that wait in the kernel. Those above it try again a second later."""
_START_S = 10.0
_TICK_S = 1.0


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
        """`app`: ASGI; `tls`: for new connections, None for plain HTTP; `beat`: called each second by the thread that
        answers, as long as it goes round; `log`: as often as clients cause it, so a `ClientLog` it should be."""
        _quiet()
        self._listeners = listeners
        self._log = log
        self._server = _Server(_config(app, connections or Connections(), tls), beat)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        """Return when requests are answered. Raises KmemwatchError when that fails."""
        self._thread.start()
        ready = threading.Event()
        for _ in range(int(_START_S / 0.01)):
            if self._server.started or not self._thread.is_alive():
                break
            ready.wait(0.01)
        if not self._server.started:
            raise KmemwatchError(f"the HTTP server did not start: {self._error or 'timed out'}")

    def soon(self, do: Callable[[], None]) -> None:
        """Have the thread that serves do it; nothing once that has ended."""
        self._server.soon(do)

    def check(self) -> None:
        """Raise KmemwatchError when the server is not running any more."""
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
        except BaseException as exc:  # noqa: BLE001 - told by `start`
            self._error = exc
        finally:
            loop.close()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A client that goes away or speaks no TLS is not our trouble; being out of sockets is."""
        error = context.get("exception")
        if isinstance(error, OSError) and "accept" not in context.get("message", ""):  # ssl.SSLError is one, too
            return
        self._log(f"http: {context.get('message', 'error')}: {type(error).__name__}: {error}")


class _Server(uvicorn.Server):
    """uvicorn looks ten times a second whether it shall end, which is half of what an idle daemon costs."""

    def __init__(self, config: uvicorn.Config, beat: Callable[[], None]) -> None:
        super().__init__(config)
        self._beat = beat
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which also sets the time that answers have
            self._beat()
            try:
                await asyncio.wait_for(self._ending.wait(), _TICK_S)
            except asyncio.TimeoutError:
                pass

    def end(self) -> None:
        """From any thread."""
        self.should_exit = True
        self.soon(self._ending.set)

    def soon(self, do: Callable[[], None]) -> None:
        """From any thread."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(do)
            except RuntimeError:  # it has ended
                pass


class _Loop(asyncio.SelectorEventLoop):
    """What uvicorn has no options for."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            # asyncio's own is a minute: long for somebody who only keeps a socket.
            options["ssl_handshake_timeout"] = _HANDSHAKE_S
        server = await super().create_server(*args, **options)
        # asyncio has one number for what is taken at once and for what waits.
        options["sock"].listen(_QUEUE)
        return server

    def _make_ssl_transport(self, rawsock: socket.socket, protocol: Any, *args: Any, **options: Any) -> Any:
        """asyncio has no other place where a connection is known before its handshake is over."""
        transport = super()._make_ssl_transport(rawsock, protocol, *args, **options)  # type: ignore[misc]
        # Not at once: until the loop has told its own side of TLS, there is nothing that can be closed.
        self.call_soon(protocol.shakes_hands, transport, options["waiter"])
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
    # Its own way takes names of files, and the process that serves may not be allowed to read them.
    config.ssl = tls
    return config


def _quiet() -> None:
    """uvicorn's own messages say nothing that ours do not; a client's bad request is not our problem to log."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
