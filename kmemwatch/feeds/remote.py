# SPDX-License-Identifier: GPL-2.0-only
"""A daemon elsewhere as a Feed: polls ``/api/v1/snapshot`` of `kmemwatch serve`."""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Sequence
from typing import Final

from kmemwatch.codec import from_json
from kmemwatch.codec.room import unpack
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.http_client import ANYBODY, Access, Answer, Fetcher, FetchError
from kmemwatch.model import Event, Snapshot

SNAPSHOT_PATH: Final = "/api/v1/snapshot"
TIMEOUT_S: Final = 5.0
"""Limit for connecting, and for the silence of a daemon."""
DEADLINE_S: Final = 20.0
"""Limit for a whole answer; a large one may take longer, see `http_client`."""
GIVE_UP_S: Final = 300.0
"""How long to wait for a daemon that has answered before."""
_RETRY_S: Final = 1.0
_POLL_S: Final = 0.25


class RemoteFeed:
    """Shows the snapshots of a daemon as they change.

    The first request must succeed: KmemwatchError if nobody answers, UsageError if the server is not kmemwatch. Later
    the feed waits for a daemon that goes away, for example during a restart; `notice` says so.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = TIMEOUT_S,
        give_up_s: float = GIVE_UP_S,
        access: Access = ANYBODY,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`url` is ``http://HOST:PORT``, https, or just ``HOST:PORT``. Nothing is sent yet."""
        self._url = _base(url)
        self._fetcher = Fetcher(access, timeout_s, deadline_s)
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
        """Says that the daemon does not answer at the moment, or has just restarted."""
        return self._notice

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        """The daemon's snapshot after `delay_s`, or later if the daemon measures less often, so that none comes twice.

        While the daemon does not answer, its last snapshot comes repeatedly.
        """
        due = self._polled_at + delay_s if self._latest is not None else 0.0
        give_up = max(delay_s, self._timeout_s) + time.monotonic()
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            self._polled_at = time.monotonic()
            found = self._poll()
            if found is None:
                return self._latest
            # The daemon's interval is longer than our delay, so poll until there is something new.
            if delay_s == 0 or self._latest is None or found != self._latest or self._polled_at > give_up:
                self._notice = self._restart_notice(found)
                self._latest = found
                return found
            due = self._polled_at + _POLL_S
        return None

    def take_events(self) -> Sequence[Event]:
        """Always empty: a daemon serves snapshots, not events."""
        return ()

    def wait_events(self, timeout_s: float) -> Sequence[Event] | None:
        """UsageError: see `take_events`."""
        raise UsageError(f"{self._url}: a daemon hands out no events", "run kmemwatch events on that host")

    def close(self) -> None:
        """Stop waiting; harmless when called twice."""
        self._closed.set()

    def _poll(self) -> Snapshot | None:
        """The daemon's snapshot; None if it does not answer and may still come back."""
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
        try:
            answer = self._fetcher.get(
                self._url + SNAPSHOT_PATH, {"Accept": "application/json", "Accept-Encoding": "gzip"}
            )
        except FetchError as exc:
            raise _Away(str(exc)) from exc
        if answer.status != 200:
            raise self._refused(answer)
        if answer.kind != "application/json":
            raise self._stranger(f"answered with {answer.kind}")
        try:
            text = unpack(answer.body) if answer.encoding == "gzip" else answer.body
            return from_json(Snapshot, text, len(answer.body))
        except UsageError as exc:
            raise UsageError(f"{self._url}{SNAPSHOT_PATH}: {exc}", exc.hint or "is it a kmemwatch?") from exc

    def _refused(self, answer: Answer) -> KmemwatchError | _Away:
        what = f"{answer.status} {answer.reason}"
        if answer.status in (502, 503, 504):
            return _Away(f"not ready: {what}")
        if answer.status in (401, 403):
            return KmemwatchError(f"{self._url}: {what}")
        return self._stranger(f"answered with {what}")

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
