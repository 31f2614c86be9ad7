# SPDX-License-Identifier: GPL-2.0-only
"""While serving, protection never becomes less, whatever is written into the web configuration and however."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmemwatch.errors import UsageError
from kmemwatch.web.config import WebConfig, weaker
from kmemwatch.web.configformat import parse
from tests.unit.certificates import Authority, Pki, Signed, client
from tests.unit.web import Site, Sites, sites

# Always the same, as names of tests have them.
ALICE, BOB, LATER = (
    bcrypt.hashpw(word, b"$2b$04$abcdefghijklmnopqrstuu").decode() for word in (b"alice", b"bob", b"later")
)
MUTUAL = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"
GCM, CBC = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"


def tls(more: str = "") -> str:
    return f"tls_server_config: {{cert_file: c.pem, key_file: k.pem{more and ', '}{more}}}\n"


def users(**hashes: str) -> str:
    return "basic_auth_users:\n" + "".join(f"  {name}: {text}\n" for name, text in hashes.items())


LIMIT = "rate_limit: {interval: 1s, burst: 20}\n"
BLOCKS = f"""# as an administrator writes it
tls_server_config:
  cert_file: c.pem
  key_file: k.pem
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
  client_allowed_sans:
    - client.example
    - prometheus.example
  min_version: TLS13

http_server_config:
  headers:
    X-Frame-Options: deny
rate_limit:
  burst: 2000
  interval: 0.5s
basic_auth_users:
  alice: {ALICE}
  'bob': "{BOB}"
"""
BACKWARDS = f"""---
basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}
rate_limit: {{interval: 100ms, burst: 5000}}
tls_server_config:
    client_auth_type: VerifyClientCertIfGiven
    client_ca_file: ca.pem
    cipher_suites: [{GCM}]
    key_file: k.pem
    cert_file: c.pem
...
"""
CRLF = BLOCKS.replace("\n", "\r\n")
REAL = {"blocks": BLOCKS, "backwards": BACKWARDS, "crlf": CRLF, "users": users(alice=ALICE, bob=BOB)}


def parsed(text: str | bytes) -> WebConfig:
    return parse(text.encode() if isinstance(text, str) else text, "web.yml")


# What is less.


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        (users(alice=ALICE), "{}", "basic_auth_users"),
        (users(alice=ALICE), "basic_auth_users: {}", "basic_auth_users"),
        (users(alice=ALICE) + LIMIT, LIMIT, "basic_auth_users"),
        (users(alice=ALICE) + LIMIT, users(alice=ALICE), "rate_limit"),
        (LIMIT, "rate_limit: {interval: 0, burst: 20}", "rate_limit"),
        (tls(), "{}", "tls_server_config"),
        (tls(), "tls_server_config: {}", "tls_server_config"),
        (tls(MUTUAL) + users(alice=ALICE), "{}", "basic_auth_users tls_server_config"),
        (tls(MUTUAL), tls(), "tls_server_config.client_auth_type"),
        (tls(MUTUAL), tls('client_auth_type: ""'), "tls_server_config.client_auth_type"),
        (
            tls(MUTUAL),
            tls("client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem"),
            "tls_server_config.client_auth_type",
        ),
        (
            tls("client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem"),
            tls(),
            "tls_server_config.client_auth_type",
        ),
        (tls(MUTUAL), tls("client_auth_type: RequireAndVerifyClientCert"), "tls_server_config.client_ca_file"),
        (tls(MUTUAL + ", client_allowed_sans: [a, b]"), tls(MUTUAL), "tls_server_config.client_allowed_sans"),
        (
            tls(MUTUAL + ", client_allowed_sans: [a]"),
            tls(MUTUAL + ", client_allowed_sans: []"),
            "tls_server_config.client_allowed_sans",
        ),
        (tls("min_version: TLS13"), tls(), "tls_server_config.min_version"),
        (tls(), tls("max_version: TLS12"), "tls_server_config.max_version"),
        (tls(f"cipher_suites: [{GCM}]"), tls(f"cipher_suites: [{GCM}, {CBC}]"), "tls_server_config.cipher_suites"),
        (tls(), tls(f"cipher_suites: [{CBC}]"), "tls_server_config.cipher_suites"),
    ],
)
def test_what_is_less(old: str, new: str, keys: str) -> None:
    found = weaker(parsed(old), parsed(new))
    assert [text.partition(":")[0] for text in found] == keys.split()
    assert all(text.partition(": ")[2] for text in found), "with a reason"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{}", users(alice=ALICE)),
        ("{}", tls(MUTUAL) + users(alice=ALICE) + LIMIT),
        (users(alice=ALICE), users(alice=LATER)),
        (users(alice=ALICE), users(alice=ALICE, bob=BOB)),
        # Half of this file: who is missing is refused, and nobody else gets in.
        (users(alice=ALICE, bob=BOB), users(alice=ALICE)),
        (users(alice=ALICE), users(bob=BOB)),
        (LIMIT, "rate_limit: {interval: 1s, burst: 50}"),
        (tls(), tls().replace("c.pem", "d.pem").replace("k.pem", "l.pem")),
        (tls(), tls(MUTUAL)),
        (tls(MUTUAL), tls(MUTUAL).replace("ca.pem", "new.pem")),
        (tls("client_auth_type: RequireAndVerifyClientCert"), tls(MUTUAL)),
        (tls(MUTUAL + ", client_allowed_sans: [a, b]"), tls(MUTUAL + ", client_allowed_sans: [c]")),
        (tls(), tls("min_version: TLS13")),
        (tls("max_version: TLS12"), tls()),
        (tls(f"cipher_suites: [{CBC}]"), tls()),
        (tls(f"cipher_suites: [{CBC}, {GCM}]"), tls(f"cipher_suites: [{CBC}]")),
        (tls("min_version: TLS13"), tls(f"min_version: TLS13, cipher_suites: [{CBC}]")),
        (tls(), tls("prefer_server_cipher_suites: false, curve_preferences: [CurveP384]")),
        ("http_server_config: {headers: {X-Frame-Options: deny}}", "{}"),
    ],
)
def test_what_is_not_less(old: str, new: str) -> None:
    assert weaker(parsed(old), parsed(new)) == ()


def protection(config: WebConfig) -> tuple[bool, ...]:
    """True for all that keeps somebody out."""
    tls = config.tls
    return (
        bool(config.users),
        config.rate_limit is not None,
        tls is not None,
        tls is not None and tls.client_auth_type != "NoClientCert",
        tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert",
        tls is not None and tls.client_ca is not None,
        tls is not None and bool(tls.client_allowed_sans),
        tls is not None and tls.min_version == "TLS13",
    )


def check(old: WebConfig, data: bytes) -> None:
    """`data` is refused, or protects by all that `old` protects by."""
    try:
        new = parse(data, "web.yml")
    except UsageError:
        return
    if not weaker(old, new):
        assert all(now for was, now in zip(protection(old), protection(new), strict=True) if was), data


@pytest.mark.parametrize("name", REAL)
def test_every_half_of_a_file_is_refused_or_protects_as_the_whole(name: str) -> None:
    data = REAL[name].encode()
    whole = parsed(data)
    assert weaker(whole, whole) == ()
    for size in range(len(data)):
        check(whole, data[:size])


pieces = st.tuples(st.integers(0, len(BLOCKS)), st.integers(0, len(BLOCKS)))


@given(st.sampled_from(sorted(REAL)), st.sampled_from(sorted(REAL)), st.lists(pieces, max_size=4))
@settings(max_examples=300)
def test_whatever_is_mixed_from_two_files(old: str, new: str, cuts: list[tuple[int, int]]) -> None:
    data = REAL[new].encode()
    for start, end in cuts:
        data = data[:start] + REAL[old].encode()[end:]
    check(parsed(REAL[old]), data)
    check(parsed(REAL[new]), data)


# A server.


@pytest.fixture
def start(tmp_path: Path, pki: Pki) -> Iterator[Sites]:
    put(tmp_path, pki.server, pki.ours)
    with sites(tmp_path) as start:
        yield start


def put(directory: Path, server: Signed, authority: Authority) -> None:
    (directory / "c.pem").write_bytes(server.cert.read_bytes())
    (directory / "k.pem").write_bytes(server.key.read_bytes())
    (directory / "ca.pem").write_bytes(authority.cert.read_bytes())


def gets_in(site: Site, tls: ssl.SSLContext | None = None, user: tuple[str, str] | None = None) -> bool:
    try:
        return site.ask("/api/v1/snapshot", tls=tls, user=user)[0] == 200
    except OSError:
        return False
    except http.client.HTTPException:
        return False


ME = ("alice", "alice")


def test_nobody_gets_in_by_any_half_of_a_file(start: Sites) -> None:
    text = users(alice=ALICE, bob=BOB)
    site = start(text)
    for size in range(len(text)):
        site.write(text[:size])
        site.reload()
        assert not gets_in(site), text[:size]
    site.write(text)
    site.reload()
    assert gets_in(site, user=ME)
    assert site.metric("kmemwatch_web_config_last_reload_successful", user=ME) == "1.0"
    assert len(site.logged) < 30, "not a line for each"
    for _ in range(10):
        site.service._config_line_limit._tokens = 1
        site.service._log_config_lines()
    assert "in use as it is now (" in site.logged[-1], "the last one is told as soon as there may be one more"
    assert site.service._config_lines == []


def test_nobody_gets_in_by_half_of_a_file_with_tls(start: Sites, pki: Pki) -> None:
    site = start(BLOCKS)
    assert gets_in(site, client(pki, pki.client), ME)
    before = site.service._access.rules
    for size in range(len(BLOCKS)):
        site.write(BLOCKS[:size])
        site.reload()
        rules = site.service._access.rules
        assert rules.passwords is not None
        assert rules.bucket is not None
        assert rules.requirements is not None
        assert before.requirements is not None
        assert rules.requirements.client_ca == before.requirements.client_ca
        assert rules.requirements.versions == before.requirements.versions
        assert set(rules.requirements.allowed_names) & {"client.example"}
    assert not gets_in(site, client(pki, pki.client))
    assert not gets_in(site, client(pki), ME)
    assert not gets_in(site, client(pki, pki.stranger), ME)


@contextmanager
def reloading(site: Site) -> Iterator[None]:
    """More often than `serve` does."""
    end = threading.Event()

    def reload() -> None:
        while not end.wait(0.001):
            site.reload()

    thread = threading.Thread(target=reload)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_nobody_gets_in_while_the_file_is_rewritten(start: Sites) -> None:
    text = users(alice=ALICE, bob=BOB)
    site = start(text)
    end = threading.Event()
    asked: list[int] = []

    def ask() -> None:
        while not end.is_set():
            asked.append(site.ask("/api/v1/snapshot")[0])

    askers = [threading.Thread(target=ask) for _ in range(2)]
    with reloading(site):
        for asker in askers:
            asker.start()
        for number in range(200):
            with site.path.open("w") as file:  # which truncates it
                for begin in range(0, len(text), 20):
                    file.write(text[begin : begin + 20])
                    file.flush()
                    if number % 2:
                        end.wait(0.0005)
        end.set()
        for asker in askers:
            asker.join()
    assert len(asked) > 50
    assert set(asked) == {401}
    site.reload()
    assert gets_in(site, user=ME)


def test_a_refused_file_changes_nothing_and_says_what_would_be_less(start: Sites, pki: Pki, tmp_path: Path) -> None:
    site = start(tls() + users(alice=ALICE) + LIMIT)
    known = client(pki)
    rules = site.service._access.rules
    put(tmp_path, pki.renewed, pki.ours)
    site.write(tls() + "http_server_config: {headers: {X-Frame-Options: deny}}\n")
    site.reload()
    assert site.service._access.rules is rules, "not even the certificate"
    (told,) = site.logged
    less = "basic_auth_users: nobody would need a password; rate_limit: there would be none"
    assert told.startswith(f"{site.path}: protects less than what is in use, which takes a restart: {less} (")
    assert site.metric("kmemwatch_web_config_last_reload_successful", tls=known, user=ME) == "0.0"
    site.reload()
    assert len(site.logged) == 1, "once"
    site.write("{}\n")
    site.reload()
    assert "tls_server_config: there would be no TLS; turning TLS on or off takes a restart" in site.logged[-1]
    site.write(tls() + users(alice=LATER) + LIMIT)
    site.reload()
    assert site.logged[-1].endswith("in use as it is now")
    assert gets_in(site, known, ("alice", "later"))
    assert site.service._access.rules.context is not rules.context


@pytest.mark.parametrize("how", ["gone", "unreadable", "half a key", "half a certificate", "no authority"])
def test_files_that_are_broken_change_nothing(start: Sites, pki: Pki, tmp_path: Path, how: str) -> None:
    text = tls(MUTUAL)
    site = start(text)
    rules = site.service._access.rules
    if how == "gone":
        site.path.unlink()
    elif how == "unreadable":
        site.path.unlink()
        site.path.mkdir()
    elif how == "no authority":
        (tmp_path / "ca.pem").write_bytes(b"")
    else:
        name = "k.pem" if how == "half a key" else "c.pem"
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    site.reload()
    assert site.service._access.rules is rules
    assert len(site.logged) == 1
    assert not gets_in(site, client(pki))
    assert gets_in(site, client(pki, pki.client))


def test_every_half_of_an_authority(start: Sites, pki: Pki, tmp_path: Path) -> None:
    both = pki.ours.cert.read_bytes() + pki.others.cert.read_bytes()
    (tmp_path / "ca.pem").write_bytes(both)
    site = start(tls(MUTUAL))
    for size in range(0, len(both), 7):
        (tmp_path / "ca.pem").write_bytes(both[:size])
        site.reload()
        admission = site.service._access.rules.requirements
        assert admission is not None
        assert admission.client_ca is not None
        assert admission.client_ca.startswith(pki.ours.cert.read_bytes().rstrip())
    assert not gets_in(site, client(pki))


# Connections that were there before.


def ask(connection: http.client.HTTPConnection, **headers: str) -> int | None:
    """Status on a connection that stays open; None when it was closed."""
    connection.auto_open = 0
    try:
        connection.request("GET", "/-/healthy", headers=headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return None
    return answer.status


@contextmanager
def open_to(site: Site, tls: ssl.SSLContext | None) -> Iterator[http.client.HTTPConnection]:
    with closing(site.connect(tls)) as connection:
        connection.connect()
        yield connection


@pytest.mark.parametrize(
    ("text", "authority", "is_kept"),
    [
        (tls(MUTUAL + ", client_allowed_sans: [client.example]"), "ours", True),
        (tls(MUTUAL + ", client_allowed_sans: [client.example]") + LIMIT, "ours", True),
        (tls(MUTUAL + ", client_allowed_sans: [other.example]"), "ours", False),
        (tls(MUTUAL + ", client_allowed_sans: [client.example]"), "others", False),
        (tls(MUTUAL + ", client_allowed_sans: [client.example], min_version: TLS13"), "ours", False),
    ],
)
def test_a_connection_goes_when_other_clients_are_wanted(
    start: Sites, pki: Pki, tmp_path: Path, text: str, authority: str, is_kept: bool
) -> None:
    site = start(tls(MUTUAL + ", client_allowed_sans: [client.example]"))
    with open_to(site, client(pki, pki.client)) as used, open_to(site, client(pki, pki.client)) as fresh:
        assert ask(used) == 200
        put(tmp_path, pki.renewed, pki.ours if authority == "ours" else pki.others)
        site.write(text)
        site.reload()
        assert ask(used) == (200 if is_kept else None)
        assert ask(fresh) == (200 if is_kept else None)
    wanted = pki.stranger if authority == "others" else pki.client
    assert gets_in(site, client(pki, wanted)) == ("other.example" not in text)


def test_an_old_connection_gets_no_answer_even_before_it_is_closed(
    start: Sites, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = start(tls(MUTUAL))
    with open_to(site, client(pki, pki.client)) as connection:
        assert ask(connection) == 200
        while not site.service._connections._waiting:  # the server is not done with the answer yet
            threading.Event().wait(0.01)
        monkeypatch.setattr(site.service._connections, "close_outdated", lambda: None)
        site.write(tls(MUTUAL + ", client_allowed_sans: [nobody.example]"))
        site.reload()
        assert ask(connection) == 503
        assert ask(connection) is None, "and is closed then"


def test_a_login_on_an_open_connection_ends_with_its_password(start: Sites) -> None:
    site = start(users(alice=ALICE, bob=BOB))
    mine = {"Authorization": "Basic YWxpY2U6YWxpY2U="}
    with open_to(site, None) as connection:
        assert ask(connection, **mine) == 200
        site.write(users(alice=LATER, bob=BOB))
        site.reload()
        assert ask(connection, **mine) == 401
        site.write(users(alice=ALICE, bob=BOB))
        site.reload()
        assert ask(connection, **mine) == 200
        site.write(users(bob=BOB))
        site.reload()
        assert ask(connection, **mine) == 401


def test_passwords_that_begin_while_serving_are_asked_of_open_connections(start: Sites) -> None:
    site = start("{}")
    with open_to(site, None) as connection:
        assert ask(connection) == 200
        site.write(users(alice=ALICE))
        site.reload()
        assert ask(connection) == 401
