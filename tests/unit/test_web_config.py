# SPDX-License-Identifier: GPL-2.0-only
"""The format of --web.config.file: what it means, what is refused, and that every refusal names file, line and key."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kmemwatch.errors import UsageError
from kmemwatch.web import configfiles
from kmemwatch.web.config import TLS12_CIPHERS, LoadedConfig, Pem, RateLimit, TlsConfig, WebConfig
from kmemwatch.web.configfiles import WebConfigFiles
from kmemwatch.web.configformat import parse

HASH = "$2y$10$" + "a" * 53
TLS = "tls_server_config: {cert_file: c, key_file: k"


def test_everything_at_once() -> None:
    text = f"""
# as it is documented
tls_server_config:
  cert_file: server.crt
  key_file: /etc/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  client_allowed_sans: [prometheus.example, 'spiffe://x']
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    - TLS_AES_128_GCM_SHA256
  prefer_server_cipher_suites: false
  curve_preferences: [X25519]
http_server_config:
  http2: true
  headers:
    X-Frame-Options: sameorigin
    X-XSS-Protection: ""
basic_auth_users:
  alice: {HASH}
  "": {HASH.replace("10", "04")}
rate_limit:
  interval: 1m30s
  burst: 20
""".replace('  "": $2y$04$' + "a" * 53 + "\n", "")
    assert parse(text.encode(), "web.yml") == WebConfig(
        TlsConfig(
            Pem("tls_server_config.cert_file", "server.crt"),
            Pem("tls_server_config.key_file", "/etc/server.key"),
            Pem("tls_server_config.client_ca_file", "ca.crt"),
            "RequireAndVerifyClientCert",
            ("prometheus.example", "spiffe://x"),
            "TLS12",
            "TLS13",
            ("ECDHE-RSA-AES128-GCM-SHA256",),
            False,
            ("X25519",),
        ),
        {"X-Frame-Options": "sameorigin"},
        {"alice": HASH},
        RateLimit(90.0, 20),
    )


@pytest.mark.parametrize("text", ["{}", "# nothing\n{}\n", "--- {}\n", "tls_server_config: {}\nbasic_auth_users: {}\n"])
def test_nothing_at_all(text: str) -> None:
    assert parse(text.encode(), "web.yml") == WebConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "web.yml: is empty"),
        ("# nothing\n", "web.yml: is empty"),
        ("---\n", "web.yml: is empty"),
        ("null", "web.yml: is empty"),
        ("tls_server_config:\n", "web.yml:1: tls_server_config: has no value"),
        ("rate_limit: {}\nbasic_auth_users:\n", "web.yml:2: basic_auth_users: has no value"),
        ("basic_auth_users: ~", "web.yml:1: basic_auth_users: has no value"),
        ("http_server_config: null", "web.yml:1: http_server_config: has no value"),
        ("http_server_config: {headers: }", "web.yml:1: http_server_config.headers: has no value"),
        ("rate_limit: # later", "web.yml:1: rate_limit: has no value"),
        (TLS + ", client_auth_type: }", "web.yml:1: tls_server_config.client_auth_type: has no value"),
        (TLS + ", client_allowed_sans: }", "web.yml:1: tls_server_config.client_allowed_sans: has no value"),
        (TLS + ", min_version: }", "web.yml:1: tls_server_config.min_version: has no value"),
        (TLS + ", cipher_suites: ~}", "web.yml:1: tls_server_config.cipher_suites: has no value"),
        (TLS + ", prefer_server_cipher_suites: }", "prefer_server_cipher_suites: has no value"),
        (f"rate_limit: {{interval: 1s, burst: {'1' * 5000}}}", "web.yml:1: rate_limit.burst: must be a whole number"),
        (f"rate_limit: {{interval: {'9' * 400}h, burst: 1}}", "is not a duration"),
        (f"rate_limit: {{interval: '{'1' * 500_000}', burst: 1}}", "is not a duration"),
        ("rate_limit: {interval: , burst: 5}", "web.yml:1: rate_limit.interval: has no value"),
        (f"basic_auth_users: {{a: {HASH}, a: {HASH}}}", "web.yml:1: basic_auth_users.a: is there twice"),
        (TLS + ", key_file: l}", "web.yml:1: tls_server_config.key_file: is there twice"),
        ("a: [", "web.yml:1: not YAML: expected the node content, but found '<stream end>'"),
        ("\n\tx: 1", "web.yml:2: not YAML: found character '\\\\t' that cannot start any token"),
        ("- x", "web.yml:1: the file: not a mapping of keys to values"),
        ("\nfoo: 1", "web.yml:2: foo: unknown key"),
        ("? [a]\n: 1", "web.yml:1: the file: a key must be text"),
        ("rate_limit: {}\nrate_limit: {}", "web.yml:2: rate_limit: is there twice"),
        ("tls_server_config: 5", "web.yml:1: tls_server_config: not a mapping of keys to values"),
        ("tls_server_config:\n  cert_fil: x", "web.yml:2: tls_server_config.cert_fil: unknown key"),
        ("tls_server_config:\n  cert_file: x", "web.yml:2: tls_server_config.key_file: is missing"),
        ("tls_server_config:\n  min_version: TLS13", "web.yml:2: tls_server_config.cert_file: is missing"),
        (TLS + ", cert: x}", "web.yml:1: tls_server_config.cert_file: and cert exclude each other"),
        (TLS + ", client_ca_file: x}", "web.yml:1: tls_server_config.client_ca_file: has no effect without client_a"),
        (
            TLS + ", client_auth_type: RequireAnyClientCert}",
            "RequireAnyClientCert cannot be honoured",
        ),
        (
            TLS + ", client_auth_type: Whatever}",
            "client_auth_type: 'Whatever' is none of NoClientCer",
        ),
        (
            TLS + ", client_allowed_sans: [x]}",
            "client_allowed_sans: needs client_auth_type: RequireAnd",
        ),
        (TLS + ", client_allowed_sans: x}", "tls_server_config.client_allowed_sans: must be a list"),
        (TLS + ", client_allowed_sans: [[x]]}", "tls_server_config.client_allowed_sans: must be a list of text"),
        (TLS + ", min_version: TLS10}", "tls_server_config.min_version: TLS10 cannot be honoured"),
        (TLS + ", min_version: SSL3}", "tls_server_config.min_version: 'SSL3' is none of TLS13, TLS12, TLS11, TLS10"),
        (
            TLS + ", min_version: TLS13, max_version: TLS12}",
            "min_version: TLS13 is above max_version",
        ),
        (TLS + ", cipher_suites: [RC4]}", "tls_server_config.cipher_suites: 'RC4' is unknown"),
        (TLS + ", cipher_suites: [TLS_AES_128_GCM_SHA256]}", "tls_server_config.cipher_suites: has none for TLS 1.2"),
        (TLS + ", curve_preferences: [P256]}", "tls_server_config.curve_preferences: 'P256' is none of CurveP256,"),
        (TLS + ", prefer_server_cipher_suites: 1}", "prefer_server_cipher_suites: must be true or false"),
        (TLS + ", client_ca: [x]}", "tls_server_config.client_ca: must be text"),
        ("http_server_config: {http3: true}", "web.yml:1: http_server_config.http3: unknown key"),
        ("http_server_config:\n headers:\n  Server: x", "web.yml:3: http_server_config.headers.Server: unknown key"),
        ("http_server_config: {headers: {X-Frame-Options: maybe}}", "X-Frame-Options: 'maybe' is not allowed"),
        ('http_server_config: {headers: {X-XSS-Protection: "a\\nb"}}', "X-XSS-Protection: 'a\\nb' is not allowed"),
        ("basic_auth_users:\n  alice: secret", "web.yml:2: basic_auth_users.alice: is not a bcrypt hash"),
        (f"basic_auth_users: {{alice: {HASH}x}}", "basic_auth_users.alice: is not a bcrypt hash"),
        (f"basic_auth_users: {{alice: {HASH.replace('10', '99')}}}", "basic_auth_users.alice: is not a bcrypt hash"),
        (f"basic_auth_users: {{'a:b': {HASH}}}", "basic_auth_users.a:b: a name must not be empty or contain a colon"),
        ("basic_auth_users: {alice: }", "basic_auth_users.alice: is not a bcrypt hash"),
        ("rate_limit: {interval: soon, burst: 1}", "web.yml:1: rate_limit.interval: 'soon' is not a duration"),
        ("rate_limit: {interval: 5, burst: 1}", "web.yml:1: rate_limit.interval: '5' is not a duration"),
        ("rate_limit: {interval: 1s}", "web.yml:1: rate_limit.burst: must be at least 1"),
        ("rate_limit: {interval: 1s, burst: -1}", "web.yml:1: rate_limit.burst: must be a whole number, not -1"),
        ("a: &a [*a]", "web.yml:1: a: unknown key"),
        ("[" * 5000, "web.yml"),
        ("x: \x00", "web.yml"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text.encode(), "web.yml")
    assert message in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value), "a password that was not hashed must not go to a log"


def test_what_is_not_text() -> None:
    with pytest.raises(UsageError, match=r"web\.yml: not UTF-8 at byte 2"):
        parse(b"a:\xff", "web.yml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("500ms", 0.5), ("1h2m3.5s", 3723.5), (".5s", 0.5), ("10us", 1e-5), ("10µs", 1e-5), ("3ns", 3e-9)],
)
def test_durations(text: str, seconds: float) -> None:
    limit = parse(f"rate_limit: {{interval: {text}, burst: 1}}".encode(), "web.yml").rate_limit
    assert limit is not None
    assert limit.interval_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", '"0"', "0s", '""'])
def test_no_limit(text: str) -> None:
    assert parse(f"rate_limit: {{interval: {text}, burst: 5}}".encode(), "web.yml").rate_limit is None


# Whatever is in the file.

KEYS = (
    "tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "cert_file", "key_file", "client_ca",
    "client_auth_type", "cipher_suites", "min_version", "headers", "http2", "interval", "burst", "X-Frame-Options",
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from((*KEYS, HASH)))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), inner)
    ),
    max_leaves=12,
)


@given(st.one_of(st.binary(), st.text().map(str.encode), trees.map(lambda tree: yaml.dump(tree).encode())))
@settings(max_examples=400)
def test_anything_is_a_configuration_or_one_line(data: bytes) -> None:
    told = None
    try:
        assert isinstance(parse(data, "web.yml"), WebConfig)
    except UsageError as error:
        told = str(error)
    if told is not None:
        assert told.startswith("web.yml:")
        assert told.isprintable(), repr(told)


names = st.text(string.ascii_letters + string.digits + "._-/ é", min_size=1).filter(lambda name: name.strip())
hashes = st.builds(
    lambda kind, cost, rest: f"$2{kind}${cost:02}${rest}",
    st.sampled_from("aby"),
    st.integers(4, 31),
    st.text("./" + string.ascii_letters + string.digits, min_size=53, max_size=53),
)
user_maps = st.dictionaries(st.text(min_size=1).filter(lambda n: ":" not in n and n.isprintable()), hashes, max_size=4)


@given(names, names, st.lists(st.sampled_from(sorted(TLS12_CIPHERS)), unique=True), user_maps, st.integers(1, 99))
def test_what_is_written_is_what_is_meant(
    cert: str, key: str, ciphers: list[str], users: dict[str, str], burst: int
) -> None:
    tree: dict[str, Any] = {
        "tls_server_config": {"cert_file": cert, "key": key, "cipher_suites": ciphers},
        "basic_auth_users": users,
        "rate_limit": {"interval": "2s", "burst": burst},
    }
    found = parse(yaml.dump(tree, allow_unicode=True).encode(), "web.yml")
    assert found.tls == TlsConfig(
        Pem("tls_server_config.cert_file", cert),
        Pem("tls_server_config.key", text=key),
        ciphers=tuple(TLS12_CIPHERS[name] for name in ciphers),
    )
    assert found.users == users
    assert found.rate_limit == RateLimit(2.0, burst)


def test_secrets_are_in_no_message() -> None:
    text = f"basic_auth_users: {{alice: {HASH}}}\ntls_server_config: {{key: hush, cert_file: c}}"
    config = parse(text.encode(), "web.yml")
    assert config.tls is not None
    assert config.tls.key.text == "hush"
    assert "hush" not in repr(config)
    assert HASH not in repr(config)


# Files.


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/web\.yml: No such file or directory") as caught:
        WebConfigFiles(str(tmp_path / "web.yml")).load()
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r": Is a directory"):
        WebConfigFiles(str(tmp_path)).load()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("")
    path.chmod(0o600)
    tmp_path.chmod(0o755)
    with as_nobody(), pytest.raises(UsageError, match=r"Permission denied") as caught:
        WebConfigFiles(str(path)).load()
    assert "without capabilities" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a\\0b", "\\ud800"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "web.yml").write_text(f'tls_server_config: {{cert_file: "{name}", key_file: k}}')
    with pytest.raises(UsageError, match=r"not a name of a file") as caught:
        WebConfigFiles(str(tmp_path / "web.yml")).load()
    assert str(caught.value).isprintable()


def test_a_fifo_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("{}")
    files = WebConfigFiles(str(path))
    files.load()
    path.unlink()
    os.mkfifo(path)
    broken: list[str] = []
    files.reload(lambda web: pytest.fail("used"), broken.append)
    assert broken == [f"{path}: is empty"]


def test_a_file_that_never_ends() -> None:
    with pytest.raises(UsageError, match=r"/dev/zero: larger than 1048576 bytes"):
        WebConfigFiles("/dev/zero").load()


def test_names_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").write_text("cert")
    (tmp_path / "k").write_text("key")
    (tmp_path / "web.yml").write_text(TLS + "}")
    monkeypatch.chdir(tmp_path.parent)
    web = WebConfigFiles(f"{tmp_path.name}/web.yml").load()
    assert web.contents == {"tls_server_config.cert_file": b"cert", "tls_server_config.key_file": b"key"}
    assert "b'key'" not in repr(web)


def test_reload_sees_every_change_once(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("{}")
    files = WebConfigFiles(str(path))
    used: list[LoadedConfig] = []
    broken: list[str] = []
    files.load()

    def reload() -> tuple[int, int]:
        files.reload(used.append, broken.append)
        return len(used), len(broken)

    assert reload() == (0, 0)
    path.write_text("nonsense: 1")
    assert [reload(), reload()] == [(0, 1), (0, 1)]
    path.write_text("rate_limit: {interval: 1s, burst: 1}")
    assert [reload(), reload()] == [(1, 1), (1, 1)]
    path.write_text(TLS + "}")
    assert reload() == (1, 2)
    (tmp_path / "c").write_text("c")
    assert reload() == (1, 3), "the key is not there yet"
    (tmp_path / "k").write_text("k")
    assert [reload(), reload()] == [(2, 3), (2, 3)]
    os.utime(tmp_path / "k")
    assert reload() == (3, 3)
    assert configfiles.MAX_BYTES > 100_000


def test_a_change_within_the_same_tick_is_seen(tmp_path: Path) -> None:
    """Times of files are as coarse as 4 ms, and may be set."""
    path = tmp_path / "web.yml"
    path.write_text("rate_limit: {interval: 1s, burst: 1}")
    before = path.stat()
    files = WebConfigFiles(str(path))
    files.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configfiles, "_state", lambda path: (before.st_mtime_ns, before.st_ctime_ns, 36, 1, 1))
        files = WebConfigFiles(str(path))
        files.load()
        used: list[LoadedConfig] = []
        path.write_text("rate_limit: {interval: 1s, burst: 2}")
        files.reload(used.append, pytest.fail)
        files.reload(used.append, pytest.fail)
    assert [web.config.rate_limit for web in used] == [RateLimit(1.0, 2)]


def test_what_is_written_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "web.yml"
    path.write_text("{}")
    files = WebConfigFiles(str(path))
    files.load()
    real = configfiles._read
    used: list[LoadedConfig] = []

    def interrupted(path: Path, name: str) -> bytes:
        data = real(path, name)
        path.write_text("rate_limit: {interval: 1s, burst: 22}")
        return data

    path.write_text("rate_limit: {interval: 1s, burst: 2}")
    with monkeypatch.context() as patch:
        patch.setattr(configfiles, "_read", interrupted)
        files.reload(used.append, pytest.fail)
    assert used == []
    files.reload(used.append, pytest.fail)
    assert [web.config.rate_limit for web in used] == [RateLimit(1.0, 22)]
