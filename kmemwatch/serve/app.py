# SPDX-License-Identifier: GPL-2.0-only
"""The pages of the daemon, as an ASGI application; knows nothing about sockets, TLS or passwords."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus

from kmemwatch import __version__
from kmemwatch.codec import snapshot_to_json
from kmemwatch.errors import shortage_of
from kmemwatch.exporter.exposition import Exposition, GzipStart
from kmemwatch.exporter.formats import accepts_gzip
from kmemwatch.exporter.published import LatestSnapshot
from kmemwatch.model import Snapshot
from kmemwatch.serve.paths import HEALTHY_PATH, LANDING_PATH, READY_PATH, SNAPSHOT_PATH
from kmemwatch.units import UNKNOWN, printable, rfc3339, seconds_human
from kmemwatch.web.access import Message, Receive, Send

_METHODS = ("GET", "HEAD")
_CHUNK_BYTES = 256 * 1024
"""Written to a connection at once: the rest of a large answer waits until the client has read this."""
_TEXT = "text/plain; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"
_NO_STORE = {"Cache-Control": "no-store"}
_LANDING_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
}

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
.problem { font-weight: bold; } code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Request:
    """What routes need of a request."""

    accept: str
    gzip: bool


@dataclass(frozen=True)
class Response:
    """A complete answer."""

    content_type: str
    parts: tuple[bytes, ...]
    """The body; many answers share its large parts."""
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_STORE)


Route = Callable[[Request], Response]


class App:
    """ASGI callable. Every answer comes from memory. Threads write the large ones."""

    def __init__(
        self,
        latest: LatestSnapshot,
        exposition: Exposition,
        telemetry_path: str,
        log: Callable[[str], None],
        shown: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot,
    ) -> None:
        """`telemetry_path` must have passed `paths.check_telemetry_path`; `shown`: removes what must not be shown."""
        self._latest = latest
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
        except Exception as exc:  # noqa: BLE001 - the client must get an answer, and the log one line
            why = shortage_of(exc) or f"internal error: {type(exc).__name__}: {exc}"
            self._log(f"{scope['path']}: {why}")
            return Response(_TEXT, (b"500 internal error\n",), HTTPStatus.INTERNAL_SERVER_ERROR)

    def _metrics(self, request: Request) -> Response:
        content_type, parts = self._exposition.render(request.accept, request.gzip)
        return Response(content_type, parts, headers=_varying(request.gzip, "Accept, Accept-Encoding"))

    def _snapshot(self, request: Request) -> Response:
        published = self._latest.current()
        if published is None:
            return self._not_ready()
        body = published.once("json", lambda: snapshot_to_json(self._shown(published.snapshot)) + b"\n")
        if request.gzip:
            body = published.once("json.gz", lambda: GzipStart((body,)).join(b""))
        return Response(_JSON, (body,), headers=_varying(request.gzip, "Accept-Encoding"))

    def _ready(self, request: Request) -> Response:
        return self._not_ready() if self._latest.problem() else Response(_TEXT, (b"kmemwatch is ready.\n",))

    def _not_ready(self) -> Response:
        text = f"not ready: {self._latest.problem() or 'no snapshot'}\n"
        return Response(_TEXT, (text.encode("utf-8", "backslashreplace"),), HTTPStatus.SERVICE_UNAVAILABLE)

    def _landing(self, request: Request) -> Response:
        published, problem = self._latest.current(), self._latest.problem()
        links = {
            self._telemetry_path: "metrics for Prometheus",
            SNAPSHOT_PATH: "the latest snapshot as JSON",
            READY_PATH: "whether there is a recent snapshot",
            HEALTHY_PATH: "whether the daemon answers",
        }
        page = _landing_page(None if published is None else self._shown(published.snapshot), problem, links)
        return Response(_HTML, (page.encode("utf-8"),), headers=_LANDING_HEADERS)


def _chunks(parts: Iterable[bytes]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _varying(compressed: bool, vary: str) -> dict[str, str]:
    headers = {**_NO_STORE, "Vary": vary}
    return {**headers, "Content-Encoding": "gzip"} if compressed else headers


def _request(scope: Message) -> Request:
    values: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        values[name] = f"{values[name]},{value}" if name in values else value
    return Request(values.get("accept", ""), accepts_gzip(values.get("accept-encoding", "")))


def _landing_page(snapshot: Snapshot | None, problem: str | None, links: Mapping[str, str]) -> str:
    """HTML for people with a browser, without scripts or other files. `links`: path -> what is there."""
    listed = "\n".join(
        f'<li><a href="{escape(to)}">{escape(to)}</a> &ndash; {escape(what)}</li>' for to, what in links.items()
    )
    state = f'<p class="problem">Not ready: {escape(printable(problem))}</p>' if problem else ""
    about = "" if snapshot is None else _host(snapshot) + _probes(snapshot)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>kmemwatch</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>kmemwatch {escape(__version__)}</h1>
<p>Which memory cgroups hold kernel memory, in which slab caches, and what pins the dying ones.</p>
{state}
<ul>
{listed}
</ul>
{about}
</body>
</html>
"""


def _host(snapshot: Snapshot) -> str:
    host, kernel = snapshot.host, snapshot.kernel
    rows = {
        "Host": host.hostname,
        "Kernel": f"{host.kernel} {host.arch}",
        "Era": kernel.era or UNKNOWN,
        "cgroup version": UNKNOWN if kernel.cgroup_version is None else str(kernel.cgroup_version),
        "Attached for": seconds_human(snapshot.duration_s),
        "Snapshot": rfc3339(snapshot.taken_at_ns, digits=0) or UNKNOWN,
        "Lost events": UNKNOWN if snapshot.lost.total is None else str(snapshot.lost.total),
    }
    return _table([[f"<th>{escape(name)}</th>", _cell(text)] for name, text in rows.items()])


def _probes(snapshot: Snapshot) -> str:
    head = ["<th>Signal</th>", "<th>Status</th>", "<th>Attachment</th>", "<th>Why</th>"]
    rows = [[_cell(p.signal), _cell(p.status), _cell(p.attachment or ""), _cell(p.why or "")] for p in snapshot.probes]
    return "<h2>Probes</h2>\n" + _table([head, *rows])


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _table(rows: list[list[str]]) -> str:
    return "<table>\n" + "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows) + "\n</table>"
