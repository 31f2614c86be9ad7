# SPDX-License-Identifier: GPL-2.0-only
"""A web configuration as data; imports next to nothing, as it goes from one process to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NO_CLIENT_CERT = "NoClientCert"
VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"
ADMISSION = "admission"
"""Where the state of a request has the Admission of its connection."""


@dataclass(frozen=True)
class Pem:
    """A certificate, a key or several, from the file itself or from another one."""

    key: str
    """Where it is named, for messages: ``tls_server_config.key_file``."""
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
        """Everything that may be in another file."""
        return () if self.tls is None else tuple(p for p in (self.tls.cert, self.tls.key, self.tls.client_ca) if p)


@dataclass(frozen=True)
class Admission:
    """What a client has met when its TLS connection is made. A connection that was made under other demands than those
    of now is of no use any more."""

    client_auth_type: str
    client_ca: bytes | None
    allowed_names: tuple[str, ...]
    """Of which its certificate must have one; empty: any will do."""
    versions: tuple[str, str]
    ciphers: tuple[str, ...]


@dataclass(frozen=True)
class Web:
    """A configuration, with the contents of all files that belong to it."""

    name: str
    """Of the configuration file, for messages."""
    config: WebConfig
    contents: Mapping[str, bytes] = field(repr=False)
    """`Pem.key` -> what is there."""
    loaded_at_s: float
    """Since the epoch."""

    @property
    def admission(self) -> Admission | None:
        """None without TLS."""
        tls = self.config.tls
        if tls is None:
            return None
        authority = None if tls.client_ca is None else self.contents[tls.client_ca.key]
        versions = (tls.min_version, tls.max_version)
        return Admission(tls.client_auth_type, authority, tls.client_allowed_sans, versions, tls.ciphers)


@dataclass
class WebState:
    """Whether the configuration in use is the one that is in the file. Written by one thread, read by others."""

    successful: bool
    loaded_at_s: float
    """Since the epoch, of the configuration in use."""
