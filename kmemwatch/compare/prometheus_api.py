# SPDX-License-Identifier: GPL-2.0-only
"""The one call of Prometheus' HTTP API that is used: query_range."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kmemwatch import __version__
from kmemwatch.access import Access
from kmemwatch.errors import KmemwatchError, UsageError

TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 1 << 29
_SERVER_HINT = "is it the URL of a Prometheus server, without /api?"


class Times(Protocol):
    """A range of time and its step."""

    @property
    def from_s(self) -> float: ...
    @property
    def to_s(self) -> float: ...
    @property
    def step_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Found:
    """One series."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]
    """(time, value); values that are no number are left out."""


class Api:
    """One server."""

    def __init__(self, url: str, access: Access, timeout_s: float = TIMEOUT_S) -> None:
        """`url` is ``http://HOST:PORT`` with a path prefix, if there is one. Raises UsageError."""
        self.url = _base(url)
        self._headers, self._opener, self._timeout_s = access.headers(), access.opener(), timeout_s

    def query_range(self, query: str, over: Times) -> list[Found]:
        """Series of a query. Raises KmemwatchError."""
        form = {
            "query": query, "start": f"{over.from_s:.3f}", "end": f"{over.to_s:.3f}", "step": f"{over.step_s:g}",
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/api/v1/query_range",
            data=urllib.parse.urlencode(form).encode(),
            headers={"User-Agent": f"kmemwatch/{__version__}", **self._headers},
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                body = response.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as exc:
            raise self._refused(exc) from exc
        except (OSError, http.client.HTTPException) as exc:
            reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
            raise KmemwatchError(f"{self.url}: cannot ask Prometheus: {text}", "does it run there?") from exc
        return self._series(body)

    def _refused(self, exc: urllib.error.HTTPError) -> KmemwatchError:
        with exc:
            body = exc.read(1 << 16)
        if exc.code in (401, 403):
            return KmemwatchError(f"{self.url}: {exc.code} {exc.reason}", "give a user and a password")
        try:
            return UsageError(f"{self.url}: Prometheus refused the query: {json.loads(body)['error']}")
        except (ValueError, KeyError, TypeError):
            return UsageError(f"{self.url}: answered with {exc.code} {exc.reason}", _SERVER_HINT)

    def _series(self, body: bytes) -> list[Found]:
        try:
            answer = json.loads(body)
            return [_found(one) for one in answer["data"]["result"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{self.url}: its answer is not one of Prometheus", _SERVER_HINT) from exc


def _found(one: Any) -> Found:
    points = tuple((float(t), float(value)) for t, value in one["values"])
    return Found(dict(one["metric"]), tuple(point for point in points if math.isfinite(point[1])))


def _base(url: str) -> str:
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(char.isspace() or ord(char) < 32 for char in full):
        raise UsageError(f"not a URL of a Prometheus server: {url!r}", "for example prometheus:http://127.0.0.1:9090")
    return full.rstrip("/")
