# SPDX-License-Identifier: GPL-2.0-only
"""TLS with real certificates and real clients: who gets in, what is negotiated, what happens when files change."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemwatch.errors import UsageError
from kmemwatch.web import server as server_module
from tests.unit.certificates import Pki, Signed, client, openssl
from tests.unit.web import Site, Sites, sites

REFUSED = (ssl.SSLError, ConnectionError, OSError)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as start:
        yield start


def config(pki: Pki, *more: str) -> str:
    lines = [f"cert_file: {pki.server.cert}", f"key_file: {pki.server.key}", *more]
    return "tls_server_config:\n" + "".join(f"  {line}\n" for line in lines)


def verified(pki: Pki, *more: str) -> str:
    return config(pki, "client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {pki.ours.cert}", *more)


def is_refused(site: Site, context: ssl.SSLContext) -> bool:
    """No answer of any kind: in TLS 1.3 a client learns only with its first bytes that it is not wanted."""
    try:
        site.ask(tls=context)
    except REFUSED:
        return True
    return False


def test_https(start: Sites, pki: Pki) -> None:
    site = start(config(pki))
    status, _, body = site.ask("/metrics", tls=client(pki))
    assert status == 200
    assert b"kmemwatch_dying_cgroups 4" in body
    assert site.ask("/api/v1/snapshot", tls=client(pki), headers={"Accept-Encoding": "gzip"})[0] == 200


def test_a_client_that_speaks_no_tls_harms_nobody(start: Sites, pki: Pki) -> None:
    site = start(config(pki))
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as plain:
        plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            assert b"200" not in plain.recv(1000)
        except ConnectionResetError:
            pass
    assert site.ask(tls=client(pki))[0] == 200
    assert site.logged == []


def test_a_client_that_trusts_somebody_else(start: Sites, pki: Pki) -> None:
    site = start(config(pki))
    context = ssl.create_default_context(cafile=str(pki.others.cert))
    with pytest.raises(ssl.SSLCertVerificationError):
        site.ask(tls=context)
    assert site.logged == []


def test_client_certificates_are_required(start: Sites, pki: Pki) -> None:
    site = start(verified(pki))
    assert site.ask(tls=client(pki, pki.client))[0] == 200
    assert is_refused(site, client(pki))
    assert is_refused(site, client(pki, pki.stranger))


def test_client_certificates_are_verified_if_given(start: Sites, pki: Pki) -> None:
    site = start(config(pki, "client_auth_type: VerifyClientCertIfGiven", f"client_ca_file: {pki.ours.cert}"))
    assert site.ask(tls=client(pki, pki.client))[0] == 200
    assert site.ask(tls=client(pki))[0] == 200
    assert is_refused(site, client(pki, pki.stranger))


@pytest.mark.parametrize(
    "name", ["client.example", "ops@example.org", "spiffe://cluster/prometheus", "10.0.0.7", "2001:db8::7"]
)
def test_names_of_clients(start: Sites, pki: Pki, name: str) -> None:
    site = start(verified(pki, f"client_allowed_sans: [nobody, '{name}']"))
    assert site.ask(tls=client(pki, pki.client))[0] == 200


def test_a_client_with_another_name(start: Sites, pki: Pki) -> None:
    site = start(verified(pki, "client_allowed_sans: [client.example.org, client, example]"))
    assert is_refused(site, client(pki, pki.client))
    site.write(verified(pki, "client_allowed_sans: [client.example]"))
    site.reload()
    assert site.ask(tls=client(pki, pki.client))[0] == 200


@pytest.mark.parametrize(
    ("lines", "version", "wanted"),
    [
        ((), ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        ((), ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        (("min_version: TLS13",), ssl.TLSVersion.TLSv1_2, None),
        (("max_version: TLS12",), ssl.TLSVersion.TLSv1_3, None),
        (("max_version: TLS12",), ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
    ],
)
def test_versions(start: Sites, pki: Pki, lines: tuple[str, ...], version: ssl.TLSVersion, wanted: str | None) -> None:
    site = start(config(pki, *lines))
    context = client(pki)
    context.minimum_version = context.maximum_version = version
    if wanted is None:
        assert is_refused(site, context)
    else:
        assert negotiated(site, context)[0] == wanted


def negotiated(site: Site, context: ssl.SSLContext) -> tuple[str | None, str]:
    """(version, cipher)."""
    raw = socket.create_connection(("127.0.0.1", site.port), timeout=5)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        cipher = connection.cipher()
        assert cipher is not None
        return connection.version(), cipher[0]


def test_ciphers(start: Sites, pki: Pki) -> None:
    names = "[TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]"
    site = start(config(pki, f"cipher_suites: {names}"))
    context = client(pki)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384")
    assert negotiated(site, context)[1] == "ECDHE-RSA-AES256-GCM-SHA384", "the order is the server's"
    site.write(config(pki, f"cipher_suites: {names}", "prefer_server_cipher_suites: false"))
    site.reload()
    assert negotiated(site, context)[1] == "ECDHE-RSA-AES128-GCM-SHA256"
    context.set_ciphers("ECDHE-RSA-CHACHA20-POLY1305")
    assert is_refused(site, context)


def test_one_curve(start: Sites, pki: Pki) -> None:
    site = start(config(pki, "curve_preferences: [CurveP384]"))
    context = client(pki)
    context.set_ecdh_curve("secp384r1")
    assert site.ask(tls=context)[0] == 200
    context = client(pki)
    context.set_ecdh_curve("prime256v1")
    assert is_refused(site, context)


@pytest.mark.skipif(hasattr(ssl.SSLContext, "set_groups"), reason="this Python takes several")
def test_several_curves_are_refused_by_name(start: Sites, pki: Pki) -> None:
    with pytest.raises(UsageError, match=r"web\.yml: tls_server_config\.curve_preferences: more than one cannot be"):
        start(config(pki, "curve_preferences: [X25519, CurveP256]"))


def test_a_certificate_in_the_configuration_itself(start: Sites, pki: Pki) -> None:
    def indented(path: Path) -> str:
        return "|\n" + "".join(f"    {line}\n" for line in path.read_text().splitlines())

    text = f"tls_server_config:\n  cert: {indented(pki.server.cert)}  key: {indented(pki.server.key)}"
    text += f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca: {indented(pki.ours.cert)}"
    site = start(text)
    assert site.ask(tls=client(pki, pki.client))[0] == 200
    assert is_refused(site, client(pki))


# What changes while it runs.


def serial(site: Site, context: ssl.SSLContext) -> str:
    raw = socket.create_connection(("127.0.0.1", site.port), timeout=5)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        certificate = connection.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def copied(pki: Pki, directory: Path) -> str:
    """A configuration beside its files, which it names as such."""
    renew(pki.server, directory)
    return "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n"


def renew(signed: Signed, directory: Path) -> None:
    (directory / "tls.crt").write_bytes(signed.cert.read_bytes())
    (directory / "tls.key").write_bytes(signed.key.read_bytes())


def test_a_new_certificate_is_used_for_new_connections(start: Sites, pki: Pki, tmp_path: Path) -> None:
    site = start(copied(pki, tmp_path))
    context = client(pki)
    before = serial(site, context)
    old = site.connect(context)
    old.request("GET", "/-/healthy")
    assert old.getresponse().read()
    renew(pki.ours.sign("renewed", "IP:127.0.0.1"), tmp_path)
    assert serial(site, context) == before, "nothing is read but by reload"
    site.reload()
    assert serial(site, context) != before
    old.request("GET", "/-/healthy")
    assert old.getresponse().status == 200, "those that are connected stay so"
    old.close()
    assert [line.rpartition(": ")[2] for line in site.logged] == ["in use as it is now"]


def test_moving_a_link_is_a_change(start: Sites, pki: Pki, tmp_path: Path) -> None:
    """As Kubernetes renews a mounted secret."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, signed in ((first, pki.server), (second, pki.ours.sign("moved", "IP:127.0.0.1"))):
        directory.mkdir()
        renew(signed, directory)
    link = tmp_path / "data"
    link.symlink_to("first")
    site = start("tls_server_config: {cert_file: data/tls.crt, key_file: data/tls.key}\n")
    before = serial(site, client(pki))
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").rename(link)
    site.reload()
    assert serial(site, client(pki)) != before


def test_what_is_broken_later_changes_nothing_and_is_told(start: Sites, pki: Pki, tmp_path: Path) -> None:
    good = copied(pki, tmp_path)
    site = start(good)
    context = client(pki)
    metric = "kmemwatch_web_config_last_reload_successful"
    loaded = site.metric("kmemwatch_web_config_last_reload_success_timestamp_seconds", tls=context)
    assert loaded is not None
    assert abs(float(loaded) - time.time()) < 60
    assert site.metric(metric, tls=context) == "1.0"
    before = serial(site, context)

    (tmp_path / "tls.crt").write_bytes(pki.ours.sign("half", "IP:127.0.0.1").cert.read_bytes())
    site.reload()
    assert serial(site, context) == before
    assert site.metric(metric, tls=context) == "0.0"
    assert site.logged[-1].startswith(f"{site.path}: tls_server_config.key_file: tls.key does not belong to")
    assert site.logged[-1].endswith("(the last good configuration stays in use)")
    told = len(site.logged)
    site.reload()
    assert len(site.logged) == told, "once, not every second"

    site.write(good + "nonsense: 1\n")
    site.reload()
    assert "nonsense: unknown key" in site.logged[-1]
    site.path.unlink()
    site.reload()
    assert "No such file or directory" in site.logged[-1]
    site.write(good)
    renew(pki.server, tmp_path)
    site.reload()
    assert site.metric(metric, tls=context) == "1.0"
    assert site.logged[-1].endswith("in use as it is now")


@pytest.mark.parametrize("is_on", [False, True])
def test_tls_is_not_switched_on_or_off(start: Sites, pki: Pki, is_on: bool) -> None:
    on, off = config(pki), "basic_auth_users: {}\n"
    site = start(on if is_on else off)
    site.write(off if is_on else on)
    site.reload()
    assert "turning TLS on or off takes a restart" in site.logged[-1]
    assert site.ask(tls=client(pki) if is_on else None)[0] == 200


# What is refused at the start.


def test_files_that_do_not_fit(start: Sites, pki: Pki, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    openssl("pkey", "-in", str(pki.server.key), "-aes256", "-passout", "pass:x", "-out", str(encrypted))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("hello\n")
    auth = "client_auth_type: RequireAndVerifyClientCert"
    for cert, key, more, message in (
        (pki.server.cert, pki.client.key, "", r"key_file: \S+/client.key does not belong to tls_server_config.cert_f"),
        (pki.server.cert, encrypted, "", r"key_file: \S+/encrypted.key is encrypted"),
        (garbage, pki.server.key, "", r"cert_file: \S+/garbage.pem cannot be used"),
        (nothing, pki.server.key, "", r"cert_file: \S+/nothing.pem has no certificate in PEM format"),
        (pki.server.cert, pki.server.cert, "", r"key_file: \S+/server.pem has no private key in PEM format"),
        (pki.server.cert, "none.key", "", r"key_file: none.key: No such file or directory"),
        (pki.server.cert, pki.server.key, f", {auth}, client_ca_file: {nothing}", r"client_ca_file: \S+ has no certif"),
        (pki.server.cert, pki.server.key, f", {auth}, client_ca_file: {garbage}", r"client_ca_file: \S+ has no certif"),
    ):
        text = f"tls_server_config: {{cert_file: {cert}, key_file: {key}{more}}}\n"
        with pytest.raises(UsageError) as caught:
            start(text)
        expected = rf"{re.escape(str(tmp_path))}/web\.yml: tls_server_config\.{message}"
        assert re.match(expected, str(caught.value)), str(caught.value)
        assert "\n" not in str(caught.value)


def test_who_never_ends_a_handshake_is_dropped(start: Sites, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HANDSHAKE_S", 0.3)
    site = start(config(pki))
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as slow:
        slow.sendall(b"\x16\x03\x01")
        began = time.monotonic()
        assert slow.recv(100) == b""
        assert time.monotonic() - began < 3
    assert site.ask(tls=client(pki))[0] == 200
    assert site.logged == []


def suites(names: str) -> ssl.SSLContext:
    """A client that offers these to TLS 1.2, and checks nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(names)
    return context


def suite_of(site: Site, context: ssl.SSLContext) -> str | None:
    """The suite; None when there is none that both have."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
        try:
            with context.wrap_socket(raw) as client:
                found = client.cipher()
        except ssl.SSLError:
            return None
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    "offered",
    ["AES128-SHA", "AES256-GCM-SHA384:AES128-GCM-SHA256", "kRSA", "ECDHE-RSA-AES128-SHA", "DHE"],
)
def test_by_default_tls12_has_forward_secrecy(start: Sites, pki: Pki, offered: str) -> None:
    try:
        context = suites(offered)
    except ssl.SSLError:
        pytest.skip("OpenSSL here does not offer it")
    assert suite_of(start(config(pki)), context) is None


@pytest.mark.parametrize(
    "name", ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305"]
)
def test_tls12_with_forward_secrecy_is_served(start: Sites, pki: Pki, name: str) -> None:
    assert suite_of(start(config(pki)), suites(name)) == name


def test_suites_of_the_configuration_are_its_own_choice(start: Sites, pki: Pki) -> None:
    site = start(config(pki, "cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]"))
    assert suite_of(site, suites("ECDHE-RSA-AES128-SHA")) == "ECDHE-RSA-AES128-SHA"
    assert suite_of(site, suites("ECDHE-RSA-AES128-GCM-SHA256")) is None
