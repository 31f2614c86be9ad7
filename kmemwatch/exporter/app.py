# SPDX-License-Identifier: GPL-2.0-only
"""The routes, as an ASGI application; knows nothing about sockets, TLS or passwords."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from kmemwatch.codec import snapshot_to_json
from kmemwatch.errors import UsageError
from kmemwatch.exporter.exposition import Begun, Exposition
from kmemwatch.exporter.landing import landing_page
from kmemwatch.exporter.publisher import Publisher

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

METRICS_PATH = "/metrics"
SNAPSHOT_PATH = "/api/v1/snapshot"
HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"
LANDING_PATH = "/"

_METHODS = ("GET", "HEAD")
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
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_STORE)


Route = Callable[[Request], Response]


def check_telemetry_path(path: str) -> None:
    """Raise UsageError for what cannot be the path of the metrics."""
    if path in (SNAPSHOT_PATH, HEALTHY_PATH, READY_PATH):
        raise UsageError(f"--web.telemetry-path: {path} is another page", "for example /metrics")
    if not path.startswith("/") or not path.isprintable() or set(path) & set("?#% \\"):
        raise UsageError(f"--web.telemetry-path: not a path: {path!r}", "for example /metrics")


class App:
    """ASGI callable. Every answer comes from memory; the making of large ones happens in worker threads."""

    def __init__(
        self, publisher: Publisher, exposition: Exposition, telemetry_path: str, log: Callable[[str], None]
    ) -> None:
        """`telemetry_path` must have passed `check_telemetry_path`."""
        self._publisher = publisher
        self._exposition = exposition
        self._telemetry_path = telemetry_path
        self._log = log
        self._routes: dict[str, Route] = {
            SNAPSHOT_PATH: self._snapshot,
            HEALTHY_PATH: lambda _: Response(_TEXT, b"kmemwatch is healthy.\n"),
            READY_PATH: self._ready,
        }
        self._routes.setdefault(LANDING_PATH, self._landing)
        self._routes[telemetry_path] = self._metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        response = await self._answer(scope)
        headers = {"Content-Type": response.content_type, "Content-Length": str(len(response.body))}
        headers |= {"X-Content-Type-Options": "nosniff", **response.headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": response.status.value, "headers": raw})
        body = b"" if scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Message) -> Response:
        route = self._routes.get(scope["path"])
        if route is None:
            return Response(_TEXT, b"404 not found; see /\n", HTTPStatus.NOT_FOUND)
        if scope["method"] not in _METHODS:
            allow = {"Allow": ", ".join(_METHODS), **_NO_STORE}
            return Response(_TEXT, b"405 method not allowed\n", HTTPStatus.METHOD_NOT_ALLOWED, allow)
        try:
            return await asyncio.to_thread(route, _request(scope))
        except Exception as exc:  # noqa: BLE001 - one request that fails must be answered, and told in one line
            self._log(f"{scope['path']}: internal error: {type(exc).__name__}: {exc}")
            return Response(_TEXT, b"500 internal error\n", HTTPStatus.INTERNAL_SERVER_ERROR)

    def _metrics(self, request: Request) -> Response:
        content_type, body = self._exposition.render(request.accept, request.gzip)
        return Response(content_type, body, headers=_varying(request.gzip, "Accept, Accept-Encoding"))

    def _snapshot(self, request: Request) -> Response:
        frame = self._publisher.frame()
        if frame is None:
            return self._not_ready()
        body = frame.once("json", lambda: snapshot_to_json(frame.snapshot).encode("utf-8") + b"\n")
        if request.gzip:
            body = frame.once("json.gz", lambda: Begun(body).join(b""))
        return Response(_JSON, body, headers=_varying(request.gzip, "Accept-Encoding"))

    def _ready(self, request: Request) -> Response:
        return self._not_ready() if self._publisher.problem() else Response(_TEXT, b"kmemwatch is ready.\n")

    def _not_ready(self) -> Response:
        text = f"not ready: {self._publisher.problem() or 'no snapshot'}\n"
        return Response(_TEXT, text.encode("utf-8", "backslashreplace"), HTTPStatus.SERVICE_UNAVAILABLE)

    def _landing(self, request: Request) -> Response:
        frame, problem = self._publisher.frame(), self._publisher.problem()
        links = {
            self._telemetry_path: "metrics for Prometheus",
            SNAPSHOT_PATH: "the latest snapshot as JSON",
            READY_PATH: "is there a recent snapshot?",
            HEALTHY_PATH: "does the daemon answer?",
        }
        page = landing_page(None if frame is None else frame.snapshot, problem, links)
        return Response(_HTML, page.encode("utf-8"), headers=_LANDING_HEADERS)


def _varying(packed: bool, vary: str) -> dict[str, str]:
    headers = {**_NO_STORE, "Vary": vary}
    return {**headers, "Content-Encoding": "gzip"} if packed else headers


def _request(scope: Message) -> Request:
    values: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        values[name] = f"{values[name]},{value}" if name in values else value
    return Request(values.get("accept", ""), accepts_gzip(values.get("accept-encoding", "")))


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header wants gzip, and not ``gzip;q=0``."""
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name == "gzip":
            weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            return weight.strip("0.") != ""
    return False
