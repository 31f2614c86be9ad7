# SPDX-License-Identifier: GPL-2.0-only
"""What Go calls the things that OpenSSL calls otherwise. Pure.

A web configuration is written for Go's crypto/tls; each name is translated, or refused where Python's `ssl` cannot do
what it means.
"""

from __future__ import annotations

from collections.abc import Mapping

from kmemwatch.web.configmodel import NO_CLIENT_CERT, REQUIRE_AND_VERIFY, VERIFY_IF_GIVEN
from kmemwatch.web.section import Section

_CLIENT_AUTH = (NO_CLIENT_CERT, VERIFY_IF_GIVEN, REQUIRE_AND_VERIFY)
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
"""Ask for a certificate and do not look whose it is."""

_VERSIONS: Mapping[str, bool] = {"TLS13": True, "TLS12": True, "TLS11": False, "TLS10": False}
"""Name -> whether it can be had: OpenSSL's usual security level has no place for the old ones."""

CIPHERS: Mapping[str, str] = {
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
"""Go's tls.CipherSuites() for TLS 1.2 -> OpenSSL. Those of TLS 1.3 are not for choice, in Go as in Python."""
WEAK_CIPHERS = tuple(name for name in CIPHERS if "_CBC_" in name)
"""Those that are not in use without `cipher_suites`, or should not be: Go calls CBC with SHA-1 a last resort, too."""
_TLS13_CIPHERS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

CURVES: Mapping[str, str] = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}


def client_auth(section: Section) -> str:
    """``client_auth_type``. Raises UsageError."""
    value = section.text("client_auth_type") or NO_CLIENT_CERT
    if value in _UNVERIFIED:
        raise section.refuse(
            "client_auth_type",
            f"{value} cannot be honoured: here a certificate is verified, or not asked for",
            f"use {REQUIRE_AND_VERIFY} with client_ca_file",
        )
    if value not in _CLIENT_AUTH:
        raise section.refuse("client_auth_type", f"{value!r} is none of {', '.join(_CLIENT_AUTH)}")
    return value


def versions(section: Section) -> tuple[str, str]:
    """``min_version`` and ``max_version``. Raises UsageError."""
    lowest = section.one_of("min_version", _VERSIONS, "TLS12")
    highest = section.one_of("max_version", _VERSIONS, "TLS13")
    for key, name in (("min_version", lowest), ("max_version", highest)):
        if not _VERSIONS[name]:
            raise section.refuse(key, f"{name} cannot be honoured: OpenSSL does not offer it", "use TLS12 or TLS13")
    if (lowest, highest) == ("TLS13", "TLS12"):
        raise section.refuse("min_version", "TLS13 is above max_version")
    return lowest, highest


def ciphers(section: Section) -> tuple[str, ...]:
    """``cipher_suites`` as OpenSSL's names. Raises UsageError."""
    names = section.texts("cipher_suites")
    for name in names:
        if name not in CIPHERS and name not in _TLS13_CIPHERS:
            raise section.refuse("cipher_suites", f"{name!r} is unknown", "names are those of Go's tls.CipherSuites()")
    found = tuple(CIPHERS[name] for name in names if name in CIPHERS)
    if names and not found:
        raise section.refuse(
            "cipher_suites", "has none for TLS 1.2", "those of TLS 1.3 cannot be chosen; use min_version: TLS13"
        )
    return found


def curves(section: Section) -> tuple[str, ...]:
    """``curve_preferences`` as OpenSSL's names. Raises UsageError."""
    names = section.texts("curve_preferences")
    for name in names:
        if name not in CURVES:
            raise section.refuse("curve_preferences", f"{name!r} is none of {', '.join(CURVES)}")
    return tuple(CURVES[name] for name in names)
