# SPDX-License-Identifier: GPL-2.0-only
"""A web configuration as data, and whether a new one protects less than the one in use. Pure.

One process parses the file, the other one uses it, so this module imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NO_CLIENT_CERT = "NoClientCert"
VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"
TLS_SECTION = "tls_server_config"

TLS12_CIPHERS: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""Go's name (tls.CipherSuites()) -> OpenSSL's."""
_WEAK_CIPHERS = tuple(name for name in TLS12_CIPHERS if "_CBC_" in name)
"""For old clients only: Go, too, calls CBC with SHA-1 a last resort."""


@dataclass(frozen=True)
class Pem:
    """A certificate, a key or several certificates: as text in the configuration file, or in a file of its own."""

    key: str
    """Where the configuration names it, for messages: ``tls_server_config.key_file``."""
    path: str | None = None
    text: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TlsConfig:
    """``tls_server_config``."""

    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth_type: str = NO_CLIENT_CERT
    client_allowed_sans: tuple[str, ...] = ()
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    ciphers: tuple[str, ...] = ()
    """OpenSSL's names, for TLS up to 1.2; empty: all with forward secrecy."""
    prefer_server_cipher_suites: bool = True
    curves: tuple[str, ...] = ()
    """OpenSSL's names; empty: OpenSSL's choice."""


@dataclass(frozen=True)
class RateLimit:
    """``rate_limit``: a request every `interval_s`, `burst` at once."""

    interval_s: float
    burst: int


@dataclass(frozen=True)
class WebConfig:
    """The whole file."""

    tls: TlsConfig | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Name -> bcrypt hash."""
    rate_limit: RateLimit | None = None

    @property
    def pems(self) -> tuple[Pem, ...]:
        """All certificates and keys."""
        return () if self.tls is None else tuple(p for p in (self.tls.cert, self.tls.key, self.tls.client_ca) if p)


@dataclass(frozen=True)
class ClientRequirements:
    """What the server requires of a client when the TLS connection is made.

    A connection that was made under other requirements than the current ones is no longer used.
    """

    client_auth_type: str
    client_ca: bytes | None
    allowed_names: tuple[str, ...]
    """The client's certificate must have one of these names; empty: any name."""
    versions: tuple[str, str]
    ciphers: tuple[str, ...]


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration with the contents of all its files."""

    name: str
    """Of the configuration file, for messages."""
    config: WebConfig
    contents: Mapping[str, bytes] = field(repr=False)
    """`Pem.key` -> content."""
    loaded_at_s: float
    """Since the epoch."""

    @property
    def requirements(self) -> ClientRequirements | None:
        """None without TLS."""
        tls = self.config.tls
        if tls is None:
            return None
        authority = None if tls.client_ca is None else self.contents[tls.client_ca.key]
        versions = (tls.min_version, tls.max_version)
        return ClientRequirements(tls.client_auth_type, authority, tls.client_allowed_sans, versions, tls.ciphers)


_STRICTNESS = {NO_CLIENT_CERT: 0, VERIFY_IF_GIVEN: 1, REQUIRE_AND_VERIFY: 2}
_TLS_VERSIONS = ("TLS12", "TLS13")


def weaker(old: WebConfig, new: WebConfig) -> tuple[str, ...]:
    """Where `new` protects less than `old`: key and reason of each; empty when `new` may replace it.

    A file that is still being written, or was cut off, often parses as a valid one that says less. So the running
    server never gives up protection; that takes a restart. It accepts all other changes; docs/interfaces.md has the
    table.
    """
    found = []
    if old.users and not new.users:
        found.append("basic_auth_users: nobody would need a password")
    if old.rate_limit is not None and new.rate_limit is None:
        found.append("rate_limit: there would be none")
    if old.tls is not None:
        found += [f"{TLS_SECTION}: there would be no TLS"] if new.tls is None else _weaker_tls(old.tls, new.tls)
    return tuple(found)


def _weaker_tls(old: TlsConfig, new: TlsConfig) -> list[str]:
    found = []
    if _STRICTNESS[new.client_auth_type] < _STRICTNESS[old.client_auth_type]:
        found.append(f"client_auth_type: {new.client_auth_type} asks for less than {old.client_auth_type}")
    elif old.client_ca is not None and new.client_ca is None:
        found.append("client_ca_file: every authority that this host knows would be trusted")
    if old.client_allowed_sans and not new.client_allowed_sans:
        found.append("client_allowed_sans: a certificate with any name would do")
    for key, before, now in (
        ("min_version", old.min_version, new.min_version),
        ("max_version", old.max_version, new.max_version),
    ):
        if _TLS_VERSIONS.index(now) < _TLS_VERSIONS.index(before):
            found.append(f"{key}: {now} is lower than {before}")
    if added := _weak_ciphers(new) - _weak_ciphers(old):
        found.append(f"cipher_suites: {', '.join(sorted(added))} would be allowed")
    return [f"{TLS_SECTION}.{text}" for text in found]


def _weak_ciphers(tls: TlsConfig) -> set[str]:
    """Go's names of the weak cipher suites that `tls` allows; kmemwatch's default has none."""
    if tls.min_version == "TLS13":
        return set()
    return {name for name in _WEAK_CIPHERS if TLS12_CIPHERS[name] in tls.ciphers}
