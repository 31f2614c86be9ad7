# SPDX-License-Identifier: GPL-2.0-only
"""What stands before the routes, as the web configuration says: rate limit, passwords, headers. ASGI."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kmemwatch.web.configmodel import ADMISSION, Admission, RateLimit, WebConfig
from kmemwatch.web.hosts import is_misdirected

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_WAITING = 16
"""Passwords that wait to be checked; more are turned away. Those that were right before do not wait."""
MAX_WAITING_EACH = 4
"""Of them from one address, so that nobody takes all places by guessing."""
_BCRYPT_BYTES = 72
"""bcrypt looks at no more, and some versions of it refuse more."""
_TEXT = b"text/plain; charset=utf-8"
_MISDIRECTED = b"421 misdirected request: on a loopback address, Host must be a loopback name such as localhost\n"


@dataclass(frozen=True)
class Remembered:
    """What passwords need from one configuration to the next."""

    secret: bytes = field(default_factory=lambda: os.urandom(32))
    never: bytes = field(default_factory=lambda: os.urandom(32))
    """In place of what is remembered of somebody who has not logged in."""
    right: dict[str, bytes] = field(default_factory=dict)
    """User -> keyed hash of the last right password, and of the bcrypt hash that it belongs to."""
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "bcrypt"))


class Passwords:
    """``basic_auth_users``.

    bcrypt takes a tenth of a second on purpose, so it runs in a thread, one password at a time, and the last right one
    of each user is remembered (only as a keyed hash). A name that is not there costs what one that is there does.
    """

    def __init__(self, users: Mapping[str, str], remembered: Remembered | None = None) -> None:
        """`remembered`: of the configuration before this one; it stays valid for hashes that are the same."""
        import bcrypt  # not loaded where there are no passwords

        self._check = bcrypt.checkpw
        self._users = dict(users)
        self._names = sorted(users)
        self._waiting: Counter[str] = Counter()
        """Address -> how many of its passwords wait."""
        self.remembered = remembered or Remembered()

    async def accept(self, header: str, address: str = "") -> bool | None:
        """Whether an Authorization header is of a user; None: too many are being checked, or of that `address`."""
        credentials = _credentials(header)
        if credentials is None:
            return False
        user, password = credentials
        known = user in self._users
        hashed = self._users[user] if known else self._stand_in(user)
        mark = self._mark(user, hashed, password)
        if hmac.compare_digest(self.remembered.right.get(user, self.remembered.never), mark) and known:
            return True
        if self._waiting.total() >= MAX_WAITING or self._waiting[address] >= MAX_WAITING_EACH:
            return None
        self._waiting[address] += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(
                self.remembered.worker, self._is_right, password, hashed
            )
        finally:
            self._waiting -= Counter((address,))  # forgets it at 0
        if right and known:
            self.remembered.right[user] = mark
        return right and known

    def _mark(self, user: str, hashed: str, password: bytes) -> bytes:
        parts = (user.encode("utf-8", "surrogateescape"), hashed.encode(), password)
        # No part can be taken for another: each is hashed by itself.
        return hmac.digest(self.remembered.secret, b"".join(hashlib.sha256(part).digest() for part in parts), "sha256")

    def _stand_in(self, user: str) -> str:
        """The hash of somebody else, always the same: hashes may differ in cost, which must not tell who is there."""
        digest = hmac.digest(self.remembered.secret, user.encode("utf-8", "surrogateescape"), "sha256")
        return self._users[self._names[int.from_bytes(digest[:8], "big") % len(self._names)]]

    def _is_right(self, password: bytes, hashed: str) -> bool:
        try:
            return self._check(password[:_BCRYPT_BYTES], hashed.encode())
        except ValueError:  # a version of bcrypt that takes no NUL
            return False


def _credentials(header: str) -> tuple[str, bytes] | None:
    """(user, password) of an Authorization header; None when there are none in it."""
    scheme, _, encoded = header.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user.decode("utf-8", "surrogateescape"), password) if colon else None


class TokenBucket:
    """``rate_limit``: as many requests at once as the bucket holds, and one more each interval."""

    def __init__(self, limit: RateLimit, now_s: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._now_s = now_s
        self._tokens = float(limit.burst)
        self._at_s = now_s()

    def take(self) -> bool:
        """Whether there is room for one more request."""
        now_s = self._now_s()
        self._tokens = min(self._limit.burst, self._tokens + (now_s - self._at_s) / self._limit.interval_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass(frozen=True)
class Rules:
    """A web configuration at work: whole, so that nobody ever sees half of one and half of another."""

    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    passwords: Passwords | None = None
    bucket: TokenBucket | None = None
    limit: RateLimit | None = None
    context: ssl.SSLContext | None = None
    """For new connections."""
    admission: Admission | None = None
    """What `context` demands of clients."""

    @staticmethod
    def of(
        config: WebConfig,
        before: Rules,
        context: ssl.SSLContext | None = None,
        admission: Admission | None = None,
    ) -> Rules:
        """Those of `config`; what is unchanged since `before` goes on."""
        headers = {name.lower().encode(): value.encode() for name, value in config.headers.items()}
        remembered = None if before.passwords is None else before.passwords.remembered
        passwords = Passwords(config.users, remembered) if config.users else None
        bucket = before.bucket if config.rate_limit == before.limit else None
        if bucket is None and config.rate_limit is not None:
            bucket = TokenBucket(config.rate_limit)
        return Rules(headers, passwords, bucket, config.rate_limit, context, admission)


class Front:
    """Lets through to `app` what the rules allow; they can be exchanged at any time."""

    def __init__(self, app: Asgi, rules: Rules = Rules()) -> None:
        self._app = app
        self.rules = rules

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        rules = self.rules
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if rules.headers and message["type"] == "http.response.start":
                others = [(name, value) for name, value in message["headers"] if name.lower() not in rules.headers]
                message = {**message, "headers": [*others, *rules.headers.items()]}
            await send(message)

        if is_misdirected(scope.get("server"), scope["headers"]):
            await _refuse(send_with_headers, scope, 421, _MISDIRECTED, [])
            return
        if rules.admission != scope.get("state", {}).get(ADMISSION):
            # Its client has met what another configuration asks for; this one's demands are met by connecting anew.
            await _refuse(send_with_headers, scope, 503, b"503 connect anew\n", [(b"connection", b"close")])
            return
        if rules.bucket is not None and not rules.bucket.take():
            await _refuse(send_with_headers, scope, 429, b"429 too many requests\n", [])
            return
        if rules.passwords is not None:
            accepted = await rules.passwords.accept(_authorization(scope), (scope.get("client") or ("",))[0])
            if accepted is None:
                await _refuse(send_with_headers, scope, 429, b"429 too many logins\n", [(b"retry-after", b"1")])
                return
            if not accepted:
                challenge = (b"www-authenticate", b'Basic realm="kmemwatch", charset="UTF-8"')
                await _refuse(send_with_headers, scope, 401, b"401 unauthorized\n", [challenge])
                return
        await self._app(scope, receive, send_with_headers)


def _authorization(scope: Message) -> str:
    """The header, empty when there is none, or more than one."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    return found[0].decode("latin-1") if len(found) == 1 else ""


async def _refuse(send: Send, scope: Message, status: int, body: bytes, more: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", _TEXT), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
