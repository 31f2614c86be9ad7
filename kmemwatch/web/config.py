# SPDX-License-Identifier: GPL-2.0-only
"""``--web.config.file``: the format of Prometheus' exporter-toolkit, as data. Pure.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md

As there, a key that is not known is an error. Errors are UsageError and name file, line and key. What Python's `ssl`
cannot do is an error, too: a server that is less strict than its configuration says would be worse than none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import yaml

from kmemwatch.errors import UsageError
from kmemwatch.units import printable
from kmemwatch.web import tlsnames
from kmemwatch.web.configmodel import NO_CLIENT_CERT, REQUIRE_AND_VERIFY, Pem, RateLimit, TlsConfig, WebConfig
from kmemwatch.web.section import HINT, Section

_TLS, _HTTP, _USERS, _LIMIT = "tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
_MIN_COST, _MAX_COST = 4, 31
_HEADERS: Mapping[str, Callable[[str], bool]] = {
    "Content-Security-Policy": lambda value: True,
    "Strict-Transport-Security": lambda value: True,
    "X-Content-Type-Options": lambda value: value.lower() in ("", "nosniff"),
    "X-Frame-Options": lambda value: value.lower() in ("", "deny", "sameorigin"),
    "X-XSS-Protection": lambda value: True,
}
"""Name -> whether a value is allowed; an empty one means that the header is not sent."""
_DURATION = re.compile(r"(?P<digits>\d+(?:\.\d*)?|\.\d+)(?P<unit>ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse(data: bytes, name: str) -> WebConfig:
    """`name` is what messages call the file. Raises UsageError."""
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}", HINT) from error
    except RecursionError as error:
        raise UsageError(f"{name}: nested too deeply", HINT) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{place}: not YAML: {printable(problem)}", HINT) from error
    top = Section(name, "", root)
    with_tls = top.section(_TLS)
    http, limit = top.section(_HTTP), top.section(_LIMIT)
    config = WebConfig(
        tls=_tls(with_tls) if with_tls is not None and with_tls.given else None,
        headers=_headers(http) if http is not None else {},
        users=_users(top.section(_USERS)),
        rate_limit=_rate_limit(limit) if limit is not None else None,
    )
    top.finish()
    return config


def _tls(section: Section) -> TlsConfig:
    cert, key = _pem(section, "cert"), _pem(section, "key")
    client_ca, client_auth_type = _pem(section, "client_ca"), tlsnames.client_auth(section)
    allowed, (min_version, max_version) = section.texts("client_allowed_sans"), tlsnames.versions(section)
    ciphers, curves = tlsnames.ciphers(section), tlsnames.curves(section)
    prefer = section.flag("prefer_server_cipher_suites")
    section.finish()
    if cert is None or key is None:
        name = "cert_file" if cert is None else "key_file"
        raise section.refuse(name, "is missing", "cert_file and key_file belong together")
    tls = TlsConfig(
        cert=cert,
        key=key,
        client_ca=client_ca,
        client_auth_type=client_auth_type,
        client_allowed_sans=allowed,
        min_version=min_version,
        max_version=max_version,
        ciphers=ciphers,
        prefer_server_cipher_suites=prefer is not False,
        curves=curves,
    )
    _check_clients(section, tls)
    return tls


def _check_clients(section: Section, tls: TlsConfig) -> None:
    """As the toolkit: what would be ignored is an error."""
    if tls.client_ca is not None and tls.client_auth_type == NO_CLIENT_CERT:
        key = tls.client_ca.key.rpartition(".")[2]
        raise section.refuse(key, "has no effect without client_auth_type", "RequireAndVerifyClientCert")
    if tls.client_allowed_sans and tls.client_auth_type != REQUIRE_AND_VERIFY:
        raise section.refuse("client_allowed_sans", f"needs client_auth_type: {REQUIRE_AND_VERIFY}")


def _pem(section: Section, key: str) -> Pem | None:
    text, path = section.text(key), section.text(f"{key}_file")
    if text is not None and path is not None:
        raise section.refuse(f"{key}_file", f"and {key} exclude each other")
    if text is not None:
        return Pem(section.full(key), text=text)
    return None if path is None else Pem(section.full(f"{key}_file"), path=path)


def _headers(section: Section) -> dict[str, str]:
    # HTTP/1.1 is all that is spoken here, which is what a client gets that does not insist on HTTP/2.
    section.flag("http2")
    found, inner = {}, section.section("headers")
    for name, is_valid in _HEADERS.items() if inner is not None else ():
        assert inner is not None
        value = inner.text(name)
        if value is None:
            continue
        if not is_valid(value) or not (value.isprintable() and value.isascii()):
            raise inner.refuse(name, f"{value!r} is not allowed")
        found[name] = value
    if inner is not None:
        inner.finish()
    section.finish()
    return found


def _users(section: Section | None) -> dict[str, str]:
    users: dict[str, str] = {}
    for name in section.keys if section is not None else ():
        assert section is not None
        text = "" if section.is_null(name) else section.text(name) or ""
        found = _BCRYPT.fullmatch(text)
        if found is None or not _MIN_COST <= int(found["cost"]) <= _MAX_COST:
            raise section.refuse(name, "is not a bcrypt hash", "make one with: htpasswd -nBC 10 NAME")
        if ":" in name or not name:
            raise section.refuse(name, "a name must not be empty, nor have a colon in it")
        users[name] = text
    return users


def _rate_limit(section: Section) -> RateLimit | None:
    text, burst = section.text("interval", or_number=True), section.number("burst")
    section.finish()
    interval_s = 0.0 if text in (None, "0") else _seconds(text or "")
    if interval_s is None:
        raise section.refuse("interval", f"{(text or '')[:40]!r} is not a duration", "for example 1s, 500ms or 1m30s")
    if interval_s and not burst:
        raise section.refuse("burst", "must be at least 1: without it no request is ever answered")
    return RateLimit(interval_s, burst or 0) if interval_s else None


def _seconds(text: str) -> float | None:
    """A duration as Go writes it; None for what is none."""
    total, at = 0.0, 0
    while at < len(text):
        part = _DURATION.match(text, at)
        if part is None:
            return None
        total += float(part["digits"]) * _UNITS_S[part["unit"]]
        at = part.end()
    return total if text and math.isfinite(total) else None
