# SPDX-License-Identifier: GPL-2.0-only
"""Which requests are answered: host names, rate limit, passwords. Adds the configured headers to answers. ASGI."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kmemwatch.web.config import ClientRequirements, RateLimit, WebConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

REQUIREMENTS = "requirements"
"""Key in a request's ASGI state: the ClientRequirements of its connection."""
MAX_WAITING = 16
"""Passwords that may wait for bcrypt; more are refused. A password that was right before does not wait."""
MAX_WAITING_EACH = 4
"""From one address, so that one client's guesses do not take all places."""
_BCRYPT_BYTES = 72
"""bcrypt ignores the rest, and some versions of the library refuse longer passwords."""
_TEXT = b"text/plain; charset=utf-8"
_MISDIRECTED = b"421 misdirected request: on a loopback address, Host must be a loopback name such as localhost\n"


@dataclass(frozen=True)
class LoginCache:
    """What stays when a new configuration comes into use."""

    secret: bytes = field(default_factory=lambda: os.urandom(32))
    never: bytes = field(default_factory=lambda: os.urandom(32))
    """Compared for a user who has not logged in yet; matches nothing."""
    right: dict[str, bytes] = field(default_factory=dict)
    """User -> keyed hash of the last right password and its bcrypt hash."""
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "bcrypt"))


class Passwords:
    """``basic_auth_users``.

    bcrypt takes a tenth of a second on purpose, so it runs in a thread, one password at a time, and the last right
    password of each user is remembered (as a keyed hash only). Unknown users take as long to reject as known ones.
    """

    def __init__(self, users: Mapping[str, str], cache: LoginCache | None = None) -> None:
        """`cache`: of the previous configuration; it stays valid for users whose hash is the same."""
        import bcrypt  # only where there are passwords

        self._check = bcrypt.checkpw
        self._users = dict(users)
        self._names = sorted(users)
        self._waiting: Counter[str] = Counter()
        """Address -> number of its passwords that wait."""
        self.cache = cache or LoginCache()

    async def accept(self, header: str, address: str = "") -> bool | None:
        """Whether an Authorization header is right; None when too many passwords wait, in all or from `address`."""
        credentials = _credentials(header)
        if credentials is None:
            return False
        user, password = credentials
        known = user in self._users
        hashed = self._users[user] if known else self._stand_in(user)
        digest = self._digest(user, hashed, password)
        if hmac.compare_digest(self.cache.right.get(user, self.cache.never), digest) and known:
            return True
        if self._waiting.total() >= MAX_WAITING or self._waiting[address] >= MAX_WAITING_EACH:
            return None
        self._waiting[address] += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(
                self.cache.thread, self._is_right, password, hashed
            )
        finally:
            self._waiting -= Counter((address,))  # drops the address at 0
        if right and known:
            self.cache.right[user] = digest
        return right and known

    def _digest(self, user: str, hashed: str, password: bytes) -> bytes:
        parts = (user.encode("utf-8", "surrogateescape"), hashed.encode(), password)
        # Each part is hashed by itself, so no other split of the same bytes has this digest.
        return hmac.digest(self.cache.secret, b"".join(hashlib.sha256(part).digest() for part in parts), "sha256")

    def _stand_in(self, user: str) -> str:
        """Some known user's hash for an unknown user, always the same one.

        Hashes may differ in cost, so any other choice would show by its time that the user is unknown.
        """
        digest = hmac.digest(self.cache.secret, user.encode("utf-8", "surrogateescape"), "sha256")
        return self._users[self._names[int.from_bytes(digest[:8], "big") % len(self._names)]]

    def _is_right(self, password: bytes, hashed: str) -> bool:
        try:
            return self._check(password[:_BCRYPT_BYTES], hashed.encode())
        except ValueError:  # some versions of bcrypt refuse NUL
            return False


def _credentials(header: str) -> tuple[str, bytes] | None:
    """(user, password) of an Authorization header; None when it has none."""
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
class AccessRules:
    """A web configuration in use. It is replaced as a whole, so that no request sees parts of two configurations."""

    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    passwords: Passwords | None = None
    bucket: TokenBucket | None = None
    limit: RateLimit | None = None
    context: ssl.SSLContext | None = None
    """For new connections."""
    requirements: ClientRequirements | None = None
    """What `context` requires of clients."""

    @staticmethod
    def of(
        config: WebConfig,
        before: AccessRules,
        context: ssl.SSLContext | None = None,
        requirements: ClientRequirements | None = None,
    ) -> AccessRules:
        """The rules of `config`. Logins and an unchanged rate limit carry over from `before`."""
        headers = {name.lower().encode(): value.encode() for name, value in config.headers.items()}
        cache = None if before.passwords is None else before.passwords.cache
        passwords = Passwords(config.users, cache) if config.users else None
        bucket = before.bucket if config.rate_limit == before.limit else None
        if bucket is None and config.rate_limit is not None:
            bucket = TokenBucket(config.rate_limit)
        return AccessRules(headers, passwords, bucket, config.rate_limit, context, requirements)


class AccessControl:
    """Passes requests that the rules allow to `app`, and refuses the others. `rules` may be replaced at any time."""

    def __init__(self, app: Asgi, rules: AccessRules = AccessRules()) -> None:
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
        if rules.requirements != scope.get("state", {}).get(REQUIREMENTS):
            # The client met the requirements of another configuration. A new connection checks the current ones.
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
    """The header; empty without one, or with several."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    return found[0].decode("latin-1") if len(found) == 1 else ""


async def _refuse(send: Send, scope: Message, status: int, body: bytes, more: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", _TEXT), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


def is_misdirected(
    local: Sequence[object] | None, headers: Iterable[tuple[bytes, bytes]], own_name: str = socket.gethostname()
) -> bool:
    """Whether a request on a loopback address has the Host header of another site. Such a request is refused.

    A web page can make its own name resolve to 127.0.0.1 (DNS rebinding), and so read through the browser of a user of
    this host what other hosts cannot reach. Its requests carry the page's own name. On other addresses a scraper may
    use any name, and no browser can connect to a Unix socket.

    Allowed are localhost, names below it, loopback addresses, and this host's own name, which Debian resolves to
    127.0.1.1. HTTP/1.0 needs no Host, and browsers always send one. `local`: (address, port) of the server's end of the
    connection; `headers`: names in lower case.
    """
    if not local or not _is_loopback(str(local[0])):
        return False
    return not all(_is_own_name(value.decode("latin-1"), own_name) for name, value in headers if name == b"host")


def _is_own_name(host: str, own_name: str) -> bool:
    found = _HOST.fullmatch(host.strip())
    if found is None:
        return False
    name = found["name"].lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name == own_name.lower():
        return True
    return _is_loopback(name.strip("[]")) and ("[" in name) == (":" in name)


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:  # a Unix socket
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
