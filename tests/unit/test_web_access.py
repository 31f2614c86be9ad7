# SPDX-License-Identifier: GPL-2.0-only
"""Passwords, headers and rate limits, with real requests; what a login costs is counted in calls of bcrypt."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.web import access
from kmemwatch.web.access import TokenBucket
from kmemwatch.web.config import RateLimit
from tests.unit.web import Site, Sites, sites

PAGES = ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready", "/none")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as start:
        yield start


def hashed(password: str, cost: int = 4) -> str:
    """As htpasswd writes it."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode().replace("$2b$", "$2y$")


def users(**passwords: str) -> str:
    return "basic_auth_users:\n" + "".join(f"  {name}: {text}\n" for name, text in passwords.items())


class Bcrypt:
    """The real one; keeps what it was asked, and waits when it is told to."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.go = threading.Event()
        self.go.set()
        self._real = bcrypt.checkpw

    def checkpw(self, password: bytes, hashed_password: bytes) -> bool:
        self.asked.append(hashed_password)
        self.go.wait(10)
        return self._real(password, hashed_password)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Bcrypt:
    spy = Bcrypt()
    monkeypatch.setattr(bcrypt, "checkpw", spy.checkpw)
    return spy


def status(site: Site, user: str, password: str, address: str = "127.0.0.1") -> int:
    return site.ask(user=(user, password), address=address)[0]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_wants_a_password(start: Sites, path: str) -> None:
    site = start(users(alice=hashed("right")))
    code, headers, body = site.ask(path)
    assert (code, body) == (401, b"401 unauthorized\n")
    assert headers["WWW-Authenticate"] == 'Basic realm="kmemwatch", charset="UTF-8"'
    assert site.ask(path, method="HEAD")[::2] == (401, b"")
    assert site.ask(path, user=("alice", "right"))[0] == (404 if path == "/none" else 200)
    assert site.ask(path, user=("alice", "wrong"))[0] == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic YWxpY2U=",
        "Basic " + "A" * 8000,
        "Bearer YWxpY2U6cmlnaHQ=",
        "Basic Og==",
        "\xff",
    ],
)
def test_headers_that_are_no_login(start: Sites, header: str) -> None:
    site = start(users(alice=hashed("right")))
    assert site.ask(headers={"Authorization": header})[0] == 401
    assert site.ask(headers={"Authorization": "basic  YWxpY2U6cmlnaHQ="})[0] == 200
    assert site.logged == []


@pytest.mark.parametrize("password", ["", "with:colon", "übermäßig", "x" * 100, " spaces ", "nul\0byte"])
def test_passwords_of_all_kinds(start: Sites, password: str) -> None:
    # bcrypt itself looks at 72 bytes; the library refuses longer ones instead.
    site = start(users(alice=hashed(password[:72]), bob=hashed("other")))
    assert status(site, "alice", password) == 200
    assert status(site, "alice", password + "x") == (200 if len(password) >= 72 else 401)
    assert status(site, "bob", password) == 401


def test_a_right_password_is_checked_once(start: Sites, spy: Bcrypt) -> None:
    site = start(users(alice=hashed("a"), bob=hashed("b")))
    for _ in range(3):
        assert status(site, "alice", "a") == 200
        assert status(site, "bob", "b") == 200
    assert len(spy.asked) == 2
    assert status(site, "alice", "b") == 401
    assert status(site, "alice", "b") == 401
    assert len(spy.asked) == 4, "what is wrong is checked every time"
    assert status(site, "alice", "a") == 200
    assert len(spy.asked) == 4, "and does not make anybody forget what is right"


def test_an_unknown_user_costs_what_a_known_one_does(start: Sites, spy: Bcrypt) -> None:
    hashes = {"alice": hashed("a", 4), "bob": hashed("b", 5)}
    site = start(users(**hashes))
    for name in ("mallory", "eve", "alice", "bob"):
        before = len(spy.asked)
        assert status(site, name, "guess") == 401
        assert len(spy.asked) == before + 1
        assert spy.asked[-1].decode() in ([hashes[name]] if name in hashes else hashes.values())
        assert status(site, name, "guess again") == 401
        assert spy.asked[-1] == spy.asked[-2], "always the same, so that its cost says nothing"


def test_an_unknown_user_does_not_get_in_with_the_password_of_another(start: Sites) -> None:
    site = start(users(alice=hashed("right")))
    for _ in range(2):
        assert status(site, "mallory", "right") == 401
        assert status(site, "alice", "right") == 200


def test_a_changed_hash_ends_what_was_remembered(start: Sites, spy: Bcrypt) -> None:
    site = start(users(alice=hashed("old"), bob=hashed("b")))
    bobs = site.path.read_text().splitlines()[-1]
    assert (status(site, "alice", "old"), status(site, "bob", "b")) == (200, 200)
    site.write(f"basic_auth_users:\n  alice: {hashed('new')}\n{bobs}\n")
    site.reload()
    asked = len(spy.asked)
    assert status(site, "bob", "b") == 200
    assert len(spy.asked) == asked, "bob's is the same"
    assert status(site, "alice", "old") == 401
    assert status(site, "alice", "new") == 200
    site.write(f"basic_auth_users:\n{bobs}\n")
    site.reload()
    assert status(site, "alice", "new") == 401, "she is gone"
    site.write("{}")
    site.reload()
    assert site.ask()[0] == 401, "passwords go with a restart only"
    assert status(site, "bob", "b") == 200


@contextmanager
def guessing(site: Site, spy: Bcrypt, addresses: Iterable[str], waiting: int) -> Iterator[None]:
    """Four more wrong passwords than may wait, in turn from each of `addresses`; `waiting` of them wait meanwhile."""
    places = list(islice(cycle(addresses), waiting + 4))
    spy.go.clear()
    try:
        with ThreadPoolExecutor(len(places)) as pool:
            guesses = [pool.submit(status, site, "mallory", f"guess {i}", at) for i, at in enumerate(places)]
            for _ in range(500):
                if sum(g.done() for g in guesses) == 4:
                    break
                threading.Event().wait(0.01)
            assert [g.result() for g in guesses if g.done()] == [429] * 4, "turned away at once"
            yield
            spy.go.set()
            assert sorted(g.result() for g in guesses) == [401] * waiting + [429] * 4
    finally:
        spy.go.set()


def test_many_wrong_passwords_do_not_keep_others_waiting(start: Sites, spy: Bcrypt) -> None:
    site = start(users(alice=hashed("right")))
    assert status(site, "alice", "right") == 200
    addresses = [f"127.0.0.{number}" for number in range(2, 12)]
    with guessing(site, spy, addresses, access.MAX_WAITING):
        assert status(site, "alice", "right") == 200, "who is known does not wait"
        assert status(site, "alice", "wrong") == 429
    assert status(site, "alice", "right") == 200


def test_one_address_leaves_places_for_others(start: Sites, spy: Bcrypt) -> None:
    site = start(users(alice=hashed("right")))
    with guessing(site, spy, ["127.0.0.2"], access.MAX_WAITING_EACH), ThreadPoolExecutor(1) as pool:
        alice = pool.submit(status, site, "alice", "right")
        threading.Event().wait(0.2)
        assert not alice.done(), "she waits for her turn"
        assert status(site, "alice", "right", "127.0.0.2") == 429
        spy.go.set()
        assert alice.result() == 200
    assert status(site, "mallory", "guess", "127.0.0.2") == 401, "nothing is held against an address"


def test_configured_headers_are_in_every_answer(start: Sites) -> None:
    text = """http_server_config:
  headers:
    X-Frame-Options: deny
    Content-Security-Policy: default-src 'self'
    Strict-Transport-Security: max-age=31536000
"""
    site = start(text + users(alice=hashed("a")))
    for path, user in (("/", ("alice", "a")), ("/metrics", ("alice", "a")), ("/", None)):
        _, headers, _ = site.ask(path, user=user)
        assert headers["X-Frame-Options"] == "deny"
        assert headers.get_all("Content-Security-Policy") == ["default-src 'self'"], "instead of the page's own"
        assert headers["Strict-Transport-Security"] == "max-age=31536000"
    site.write(users(alice=hashed("a")))
    site.reload()
    assert site.ask("/")[1]["X-Frame-Options"] is None


def test_a_rate_limit(start: Sites) -> None:
    text = "rate_limit: {interval: 1h, burst: 3}\n"
    site = start(text)
    assert [site.ask()[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    site.write(text + "# touched\n")
    site.reload()
    assert site.ask()[0] == 429, "the same limit goes on"
    site.write("rate_limit: {interval: 1h, burst: 4}\n")
    site.reload()
    assert [site.ask()[0] for _ in range(5)] == [200] * 4 + [429]


@given(st.lists(st.floats(0, 10), max_size=60), st.floats(0.01, 5), st.integers(1, 10))
def test_a_bucket_never_gives_more_than_it_says(pauses: list[float], interval_s: float, burst: int) -> None:
    now_s = 0.0
    bucket = TokenBucket(RateLimit(interval_s, burst), lambda: now_s)
    given_out = 0
    for pause_s in pauses:
        now_s += pause_s
        given_out += bucket.take()
        assert given_out <= burst + now_s / interval_s + 1e-6
    now_s += 1.01 * burst * interval_s
    assert [bucket.take() for _ in range(burst + 1)] == [True] * burst + [False]
