# SPDX-License-Identifier: GPL-2.0-only
"""Whether another web configuration protects less than the one in use. Pure.

A file that is being written, or was cut off, often reads as a valid one that says less. What protects is therefore
never taken away while serving: that takes a restart, which somebody wants. What merely differs is taken; the table is
in docs/interfaces.md.
"""

from __future__ import annotations

from kmemwatch.web import tlsnames
from kmemwatch.web.configmodel import NO_CLIENT_CERT, REQUIRE_AND_VERIFY, VERIFY_IF_GIVEN, TlsConfig, WebConfig

_STRICTNESS = {NO_CLIENT_CERT: 0, VERIFY_IF_GIVEN: 1, REQUIRE_AND_VERIFY: 2}
_VERSIONS = ("TLS12", "TLS13")
_TLS = "tls_server_config"


def weaker(old: WebConfig, new: WebConfig) -> tuple[str, ...]:
    """What would protect less with `new` in place of `old`: key and reason of each; nothing when it may be taken."""
    found = []
    if old.users and not new.users:
        found.append("basic_auth_users: nobody would need a password")
    if old.rate_limit is not None and new.rate_limit is None:
        found.append("rate_limit: there would be none")
    if old.tls is not None:
        found += [f"{_TLS}: there would be no TLS"] if new.tls is None else _weaker_tls(old.tls, new.tls)
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
        if _VERSIONS.index(now) < _VERSIONS.index(before):
            found.append(f"{key}: {now} is lower than {before}")
    if added := _weak(new) - _weak(old):
        found.append(f"cipher_suites: {', '.join(sorted(added))} would be allowed")
    return [f"{_TLS}.{text}" for text in found]


def _weak(tls: TlsConfig) -> set[str]:
    """Cipher suites that are there only for old clients, as the file calls them; our own choice has none."""
    if tls.min_version == "TLS13":
        return set()
    return {name for name in tlsnames.WEAK_CIPHERS if tlsnames.CIPHERS[name] in tls.ciphers}
