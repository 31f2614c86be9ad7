# SPDX-License-Identifier: GPL-2.0-only
"""TLS for the server, made from a configuration and replaceable while the server runs."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kmemwatch.errors import UsageError
from kmemwatch.web.config import (
    NO_CLIENT_CERT,
    REQUIRE_AND_VERIFY,
    VERIFY_IF_GIVEN,
    ClientRequirements,
    LoadedConfig,
    Pem,
    TlsConfig,
)

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY = {
    NO_CLIENT_CERT: ssl.CERT_NONE,
    VERIFY_IF_GIVEN: ssl.CERT_OPTIONAL,
    REQUIRE_AND_VERIFY: ssl.CERT_REQUIRED,
}
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL says the last one when the key is of another kind than the certificate."""


_FORWARD_SECRET = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Default for TLS 1.2, in OpenSSL's words: with these, the server's key does not decrypt traffic that was recorded
earlier. In TLS 1.3 this holds for all. On some distributions Python's default is OpenSSL's, which includes others."""


class ConfigContext(ssl.SSLContext):
    """The context of one configuration; a connection has it as the `context` of its `ssl.SSLObject`."""

    requirements: ClientRequirements | None = None


class CurrentContext(ssl.SSLContext):
    """Gives every new connection the context that is current then; existing connections keep theirs."""

    _current: Callable[[], ssl.SSLContext | None]

    @classmethod
    def of(cls, current: Callable[[], ssl.SSLContext | None]) -> CurrentContext:
        """`current`: returns the context for a new connection."""
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made._current = current
        return made

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """asyncio calls it for each connection."""
        context = self._current()
        assert context is not None
        return context.wrap_bio(*args, **options)


def context_of(loaded: LoadedConfig) -> ConfigContext:
    """The context of a configuration that has TLS. Raises UsageError that names the key."""
    config, contents, name = loaded.config.tls, loaded.contents, loaded.name
    assert config is not None
    context = ConfigContext(ssl.PROTOCOL_TLS_SERVER)
    context.requirements = loaded.requirements
    context.minimum_version = _VERSIONS[config.min_version]
    context.maximum_version = _VERSIONS[config.max_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if not config.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    _set_certificate(context, config, contents, name)
    _set_clients(context, config, contents, name)
    _set_algorithms(context, config, name)
    return context


def _set_certificate(context: ssl.SSLContext, config: TlsConfig, contents: Mapping[str, bytes], name: str) -> None:
    cert, key = contents[config.cert.key], contents[config.key.key]
    for pem, content, what in ((config.cert, cert, b"CERTIFICATE-----"), (config.key, key, b"PRIVATE KEY-----")):
        if what not in content:
            raise _error(name, pem, f"has no {what.decode().lower().rstrip('-')} in PEM format")
    with _readable(cert) as cert_path, _readable(key) as key_path:
        try:
            context.load_cert_chain(cert_path, key_path, password=_no_password)
        except _PasswordError as error:
            raise _error(name, config.key, "is encrypted", "a daemon cannot ask for a password") from error
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or str(error)
            if reason in _MISMATCHES:
                raise _error(name, config.key, f"does not belong to {config.cert.key}") from error
            raise _error(name, config.cert, f"cannot be used with {config.key.key}: {reason}") from error


class _PasswordError(Exception):
    pass


def _no_password() -> str:
    raise _PasswordError


def _set_clients(context: ssl.SSLContext, config: TlsConfig, contents: Mapping[str, bytes], name: str) -> None:
    context.verify_mode = _VERIFY[config.client_auth_type]
    if config.client_ca is not None:
        try:
            context.load_verify_locations(cadata=contents[config.client_ca.key].decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise _error(name, config.client_ca, "has no certificates in PEM format") from error
    elif context.verify_mode != ssl.CERT_NONE:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)


def _set_algorithms(context: ssl.SSLContext, config: TlsConfig, name: str) -> None:
    if not config.ciphers:
        context.set_ciphers(_FORWARD_SECRET)
    else:
        try:
            context.set_ciphers(":".join(config.ciphers))
        except ssl.SSLError as error:
            raise UsageError(f"{name}: tls_server_config.cipher_suites: OpenSSL here has none of them") from error
        missing = set(config.ciphers) - {cipher["name"] for cipher in context.get_ciphers()}
        if missing:
            raise UsageError(
                f"{name}: tls_server_config.cipher_suites: OpenSSL here does not have {', '.join(sorted(missing))}"
            )
    if config.curves:
        _set_curves(context, config.curves, f"{name}: tls_server_config.curve_preferences")


def _set_curves(context: ssl.SSLContext, curves: tuple[str, ...], place: str) -> None:
    set_groups = getattr(context, "set_groups", None)
    try:
        if set_groups is not None:  # Python 3.15
            set_groups(":".join(curves))
        elif len(curves) == 1:
            context.set_ecdh_curve(curves[0])
        else:
            raise UsageError(f"{place}: more than one cannot be honoured: Python takes one curve", "name one, or none")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"{place}: OpenSSL here does not take {', '.join(curves)}: {error}") from error


@contextmanager
def _readable(content: bytes) -> Iterator[str]:
    """A path to read `content` from, which is on no disk: Python's `ssl` takes keys only as files."""
    fd = os.memfd_create("kmemwatch-pem")
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _error(name: str, pem: Pem, problem: str, hint: str | None = None) -> UsageError:
    where = "" if pem.path is None else f"{pem.path} "
    return UsageError(f"{name}: {pem.key}: {where}{problem}", hint)
