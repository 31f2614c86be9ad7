# SPDX-License-Identifier: GPL-2.0-only
"""The one call of Prometheus' HTTP API that is used: query_range."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kmemwatch.codec import parse_json
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.http_client import Access, Answer, Fetcher, FetchError

TIMEOUT_S = DEADLINE_S = 60.0
_ERROR_CHARS = 500
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
        self._fetcher = Fetcher(access, timeout_s, DEADLINE_S)

    def query_range(self, query: str, over: Times) -> list[Found]:
        """Series of a query. Raises KmemwatchError."""
        form = {
            "query": query, "start": f"{over.from_s:.3f}", "end": f"{over.to_s:.3f}", "step": f"{over.step_s:g}",
        }  # fmt: skip
        try:
            answer = self._fetcher.get(f"{self.url}/api/v1/query_range", data=urllib.parse.urlencode(form).encode())
        except FetchError as exc:
            raise KmemwatchError(f"{self.url}: cannot ask Prometheus: {exc.why}", "does it run there?") from exc
        if answer.status != 200:
            raise self._refused(answer)
        return self._series(answer.body)

    def _refused(self, answer: Answer) -> KmemwatchError:
        if answer.status in (401, 403):
            return KmemwatchError(f"{self.url}: {answer.status} {answer.reason}", "give a user and a password")
        try:
            found: Any = parse_json(answer.body)
            return UsageError(f"{self.url}: Prometheus refused the query: {str(found['error'])[:_ERROR_CHARS]}")
        except (UsageError, ValueError, KeyError, TypeError):
            return UsageError(f"{self.url}: answered with {answer.status} {answer.reason}", _SERVER_HINT)

    def _series(self, body: bytes) -> list[Found]:
        try:
            found: Any = parse_json(body)
            return [_found(one) for one in found["data"]["result"]]
        except (UsageError, ValueError, KeyError, TypeError, OverflowError) as exc:
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
