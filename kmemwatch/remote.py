# SPDX-License-Identifier: GPL-2.0-only
"""A daemon elsewhere as a Feed: polls ``/api/v1/snapshot`` of `kmemwatch serve`."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Sequence
from typing import Final

from kmemwatch import __version__
from kmemwatch.access import ANYBODY, Access
from kmemwatch.codec import snapshot_from_json
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.model import Event, Snapshot

SNAPSHOT_PATH: Final = "/api/v1/snapshot"
TIMEOUT_S: Final = 5.0
"""For connecting, and for each read."""
GIVE_UP_S: Final = 300.0
"""How long a daemon that has answered before may stay away."""
MAX_ANSWER_BYTES: Final = 1 << 29
_RETRY_S: Final = 1.0
_POLL_S: Final = 0.25
_GZIP_WBITS: Final = 31


class RemoteFeed:
    """Shows the snapshots of a daemon as they change.

    The first answer must come: KmemwatchError when nobody answers, UsageError when it is not a kmemwatch.
    After that a daemon that goes away, for example to be restarted, is waited for; `notice` says so.
    """

    def __init__(
        self, url: str, timeout_s: float = TIMEOUT_S, give_up_s: float = GIVE_UP_S, access: Access = ANYBODY
    ) -> None:
        """`url` is ``http://HOST:PORT``, https, or just ``HOST:PORT``. Nothing is sent yet."""
        self._url = _base(url)
        self._headers = access.headers()
        self._opener = access.opener()
        self._timeout_s = timeout_s
        self._give_up_s = give_up_s
        self._closed = threading.Event()
        self._latest: Snapshot | None = None
        self._polled_at = 0.0
        self._away_since: float | None = None
        self._notice: str | None = None

    @property
    def title(self) -> str:
        """URL of the daemon."""
        return self._url

    @property
    def notice(self) -> str | None:
        """That the daemon does not answer at the moment, or was restarted just now."""
        return self._notice

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        """The daemon's snapshot after `delay_s`; later, when it measures less often than that, so none comes twice.

        While the daemon does not answer: its last snapshot, again.
        """
        due = self._polled_at + delay_s if self._latest is not None else 0.0
        give_up = max(delay_s, self._timeout_s) + time.monotonic()
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            self._polled_at = time.monotonic()
            found = self._poll()
            if found is None:
                return self._latest
            # A daemon with an interval longer than our delay: see it as soon as there is something new.
            if delay_s == 0 or self._latest is None or found != self._latest or self._polled_at > give_up:
                self._notice = self._restart_notice(found)
                self._latest = found
                return found
            due = self._polled_at + _POLL_S
        return None

    def take_events(self) -> Sequence[Event]:
        """Always empty: a daemon hands out states, not events."""
        return ()

    def wait_events(self, timeout_s: float) -> Sequence[Event] | None:
        """UsageError: see `take_events`."""
        raise UsageError(f"{self._url}: a daemon hands out no events", "run kmemwatch events on that host")

    def close(self) -> None:
        """Stop waiting; harmless when called twice."""
        self._closed.set()

    def _poll(self) -> Snapshot | None:
        """The daemon's state; None when it is away and may still come back."""
        try:
            found = self._fetch()
        except _Away as exc:
            if self._latest is None:
                raise KmemwatchError(f"{self._url}: {exc}", "is kmemwatch serve running there, on this port?") from exc
            now = time.monotonic()
            self._away_since = self._away_since or now
            away_s = now - self._away_since
            if away_s > self._give_up_s:
                raise KmemwatchError(f"{self._url}: no answer for {away_s:.0f} s: {exc}") from exc
            self._notice = f"{self._url}: {exc}; trying again, old figures"
            self._closed.wait(_RETRY_S)
            return None
        self._away_since = None
        return found

    def _restart_notice(self, found: Snapshot) -> str | None:
        before = self._latest
        if before is None or found.duration_s >= before.duration_s:
            return None
        return f"{self._url}: the daemon was restarted, its counters began at 0 again"

    def _fetch(self) -> Snapshot:
        request = urllib.request.Request(
            self._url + SNAPSHOT_PATH,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"kmemwatch/{__version__}",
                **self._headers,
            },
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                kind = answer.headers.get_content_type()
                body = answer.read(MAX_ANSWER_BYTES)
                packed = answer.headers.get("Content-Encoding") == "gzip"
        except urllib.error.HTTPError as exc:
            raise self._refused(exc) from exc
        except urllib.error.URLError as exc:
            raise _Away(f"cannot connect: {_reason(exc.reason)}") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise _Away(f"broke off: {_reason(exc)}") from exc
        if kind != "application/json":
            raise self._stranger(f"answered with {kind}")
        try:
            return snapshot_from_json(_unpack(body) if packed else body)
        except UsageError as exc:
            raise UsageError(f"{self._url}{SNAPSHOT_PATH}: {exc}", exc.hint or "is it a kmemwatch?") from exc

    def _refused(self, exc: urllib.error.HTTPError) -> KmemwatchError | _Away:
        exc.close()
        if exc.code in (502, 503, 504):
            return _Away(f"not ready: {exc.code} {exc.reason}")
        if exc.code in (401, 403):
            return KmemwatchError(f"{self._url}: {exc.code} {exc.reason}")
        return self._stranger(f"answered with {exc.code} {exc.reason}")

    def _stranger(self, what: str) -> UsageError:
        return UsageError(f"{self._url}{SNAPSHOT_PATH}: not a kmemwatch, {what}", "give the URL of a kmemwatch serve")


class _Away(Exception):
    """The daemon does not answer now and may do so later; `str()` says how."""


def _base(url: str) -> str:
    """``scheme://host:port`` and a path prefix, if any. Raises UsageError."""
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number, or the address not IPv6
        valid = False
    if not valid or parts.query or parts.fragment or any(char.isspace() or ord(char) < 32 for char in full):
        raise UsageError(f"not a URL of a daemon: {url!r}", "for example http://node1:10777")
    return f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix(SNAPSHOT_PATH).rstrip('/')}"


def _reason(reason: object) -> str:
    """The short text of an OSError; names and numbers of the exception help nobody."""
    if isinstance(reason, TimeoutError):
        return "timed out"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__


def _unpack(body: bytes) -> bytes:
    unpacker = zlib.decompressobj(_GZIP_WBITS)
    try:
        text = unpacker.decompress(body, MAX_ANSWER_BYTES)
    except zlib.error as exc:
        raise UsageError("damaged gzip in the answer") from exc
    if not unpacker.eof:
        raise UsageError("the answer was cut off")
    return text
