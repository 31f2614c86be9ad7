# SPDX-License-Identifier: GPL-2.0-only
"""The routes, as an ASGI application; knows nothing about sockets, TLS or passwords."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from kmemwatch.codec import snapshot_to_json
from kmemwatch.exporter.accept import accepts_gzip
from kmemwatch.exporter.exposition import Begun, Exposition
from kmemwatch.exporter.frames import Frame
from kmemwatch.model import Snapshot
from kmemwatch.serve.landing import landing_page
from kmemwatch.serve.paths import HEALTHY_PATH, LANDING_PATH, READY_PATH, SNAPSHOT_PATH
from kmemwatch.web.access import Message, Receive, Send

_METHODS = ("GET", "HEAD")
_CHUNK_BYTES = 256 * 1024
"""Handed to a connection at once: the rest of an answer of megabytes waits until the client has taken it."""
_TEXT = "text/plain; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"
_NO_STORE = {"Cache-Control": "no-store"}
_LANDING_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
}


@dataclass(frozen=True)
class Request:
    """What a route may look at."""

    accept: str
    gzip: bool


@dataclass(frozen=True)
class Response:
    """What a route answers; made whole before a byte is sent."""

    content_type: str
    parts: tuple[bytes, ...]
    """Of the body; large ones are shared by many answers."""
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_STORE)


class Source(Protocol):
    """Where answers come from: `frames.Latest`, `publisher.Publisher`."""

    def frame(self) -> Frame | None:
        """The latest snapshot that is valid."""

    def problem(self) -> str | None:
        """Why there is none, in one line."""


Route = Callable[[Request], Response]


class App:
    """ASGI callable. Every answer comes from memory; the making of large ones happens in worker threads."""

    def __init__(
        self,
        source: Source,
        exposition: Exposition,
        telemetry_path: str,
        log: Callable[[str], None],
        shown: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot,
    ) -> None:
        """`telemetry_path` must have passed `paths.check_telemetry_path`; `shown`: what of a snapshot is shown."""
        self._source = source
        self._shown = shown
        self._exposition = exposition
        self._telemetry_path = telemetry_path
        self._log = log
        self._routes: dict[str, Route] = {
            SNAPSHOT_PATH: self._snapshot,
            HEALTHY_PATH: lambda _: Response(_TEXT, (b"kmemwatch is healthy.\n",)),
            READY_PATH: self._ready,
        }
        self._routes.setdefault(LANDING_PATH, self._landing)
        self._routes[telemetry_path] = self._metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        response = await self._answer(scope)
        headers = {"Content-Type": response.content_type, "Content-Length": str(sum(map(len, response.parts)))}
        headers |= {"X-Content-Type-Options": "nosniff", **response.headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": response.status.value, "headers": raw})
        if scope["method"] != "HEAD":
            for chunk in _chunks(response.parts):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, scope: Message) -> Response:
        route = self._routes.get(scope["path"])
        if route is None:
            return Response(_TEXT, (b"404 not found; see /\n",), HTTPStatus.NOT_FOUND)
        if scope["method"] not in _METHODS:
            allow = {"Allow": ", ".join(_METHODS), **_NO_STORE}
            return Response(_TEXT, (b"405 method not allowed\n",), HTTPStatus.METHOD_NOT_ALLOWED, allow)
        try:
            return await asyncio.to_thread(route, _request(scope))
        except Exception as exc:  # noqa: BLE001 - one request that fails must be answered, and told in one line
            self._log(f"{scope['path']}: internal error: {type(exc).__name__}: {exc}")
            return Response(_TEXT, (b"500 internal error\n",), HTTPStatus.INTERNAL_SERVER_ERROR)

    def _metrics(self, request: Request) -> Response:
        content_type, parts = self._exposition.render(request.accept, request.gzip)
        return Response(content_type, parts, headers=_varying(request.gzip, "Accept, Accept-Encoding"))

    def _snapshot(self, request: Request) -> Response:
        frame = self._source.frame()
        if frame is None:
            return self._not_ready()
        body = frame.once("json", lambda: snapshot_to_json(self._shown(frame.snapshot)).encode("utf-8") + b"\n")
        if request.gzip:
            body = frame.once("json.gz", lambda: Begun((body,)).join(b""))
        return Response(_JSON, (body,), headers=_varying(request.gzip, "Accept-Encoding"))

    def _ready(self, request: Request) -> Response:
        return self._not_ready() if self._source.problem() else Response(_TEXT, (b"kmemwatch is ready.\n",))

    def _not_ready(self) -> Response:
        text = f"not ready: {self._source.problem() or 'no snapshot'}\n"
        return Response(_TEXT, (text.encode("utf-8", "backslashreplace"),), HTTPStatus.SERVICE_UNAVAILABLE)

    def _landing(self, request: Request) -> Response:
        frame, problem = self._source.frame(), self._source.problem()
        links = {
            self._telemetry_path: "metrics for Prometheus",
            SNAPSHOT_PATH: "the latest snapshot as JSON",
            READY_PATH: "is there a recent snapshot?",
            HEALTHY_PATH: "does the daemon answer?",
        }
        page = landing_page(None if frame is None else self._shown(frame.snapshot), problem, links)
        return Response(_HTML, (page.encode("utf-8"),), headers=_LANDING_HEADERS)


def _chunks(parts: Iterable[bytes]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _varying(packed: bool, vary: str) -> dict[str, str]:
    headers = {**_NO_STORE, "Vary": vary}
    return {**headers, "Content-Encoding": "gzip"} if packed else headers


def _request(scope: Message) -> Request:
    values: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        values[name] = f"{values[name]},{value}" if name in values else value
    return Request(values.get("accept", ""), accepts_gzip(values.get("accept-encoding", "")))
