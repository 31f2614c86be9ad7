# SPDX-License-Identifier: GPL-2.0-only
"""Sockets and the HTTP server; see docs/adr/0002-http-server.md for why it is uvicorn."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from typing import Any

import uvicorn

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.exporter import DEFAULT_ADDRESS
from kmemwatch.exporter.app import App

_BACKLOG = 128
_KEEP_ALIVE_S = 75
"""More than the usual scrape interval of a minute, so that Prometheus can keep its connection."""
_FINISH_S = 1
"""Time for answers that are on their way when the daemon stops."""
_MAX_HEADER_BYTES = 16 * 1024
_START_S = 10.0


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` -> (host, port); host is empty for all interfaces."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    # Unlike int(), which takes spaces, signs and underscores.
    valid = colon and port.isascii() and port.isdigit() and int(port) <= 65535 and (bracketed or ":" not in host)
    if not valid:
        raise UsageError(f"not an address to listen on: {text!r}", f"HOST:PORT, for example {DEFAULT_ADDRESS}")
    return (host[1:-1] if bracketed else host), int(port)


def listen(address: str) -> socket.socket:
    """A listening socket. Raises UsageError for text that is no address, KmemwatchError when it cannot be had."""
    host, port = parse_address(address)
    try:
        if not host:
            return _listen_everywhere(port)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, target = found[0]
        return socket.create_server(target, family=family, backlog=_BACKLOG)
    except socket.gaierror as exc:
        raise UsageError(f"cannot listen on {address}: {exc.strerror}", "is the host name right?") from exc
    except OSError as exc:
        hints = {
            errno.EADDRINUSE: "another program has this port; choose one with --web.listen-address HOST:PORT",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one",
            errno.EADDRNOTAVAIL: "this host has no such address; see: ip address",
        }
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise KmemwatchError(f"cannot listen on {address}: {reason}", hints.get(exc.errno or 0)) from exc


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=_BACKLOG)


def url_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:10777``, with the port that the kernel chose."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """Serves `app` on `listeners` from a thread of its own until `stop`, which also closes them."""

    def __init__(self, app: App, listeners: list[socket.socket]) -> None:
        _quiet()
        self._listeners = listeners
        self._server = uvicorn.Server(_config(app))
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

    def check(self) -> None:
        """Raise KmemwatchError when the server is not running any more."""
        if not self._thread.is_alive():
            raise KmemwatchError(f"the HTTP server stopped: {self._error or 'unknown reason'}")

    def stop(self) -> None:
        """Let answers finish for a moment, then close everything; harmless when called twice."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(2 * _FINISH_S)
        for listener in self._listeners:
            listener.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=self._listeners)
        except BaseException as exc:  # noqa: BLE001 - told by `start`
            self._error = exc


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
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
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )


def _quiet() -> None:
    """uvicorn's own messages say nothing that ours do not; a client's bad request is not our problem to log."""
    logger = logging.getLogger("uvicorn.error")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
