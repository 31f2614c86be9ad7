# SPDX-License-Identifier: GPL-2.0-only
"""The format of ``--web.config.file``, which is that of Prometheus' exporter-toolkit. Pure.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md

As there, an unknown key is an error. Errors are UsageError and name file, line and key. The format is made for Go's
crypto/tls: what Python's `ssl` cannot do is an error, too, because a server that is less strict than its configuration
says would be worse than none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import yaml

from kmemwatch.errors import UsageError
from kmemwatch.units import printable
from kmemwatch.web.config import (
    NO_CLIENT_CERT,
    REQUIRE_AND_VERIFY,
    TLS12_CIPHERS,
    TLS_SECTION,
    VERIFY_IF_GIVEN,
    Pem,
    RateLimit,
    TlsConfig,
    WebConfig,
)

T = TypeVar("T")

_HTTP, _USERS, _LIMIT = "http_server_config", "basic_auth_users", "rate_limit"
_HINT = "the format is that of Prometheus' exporter-toolkit, docs/web-configuration.md there"

_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
_MIN_COST, _MAX_COST = 4, 31
_HEADERS: Mapping[str, Callable[[str], bool]] = {
    "Content-Security-Policy": lambda value: True,
    "Strict-Transport-Security": lambda value: True,
    "X-Content-Type-Options": lambda value: value.lower() in ("", "nosniff"),
    "X-Frame-Options": lambda value: value.lower() in ("", "deny", "sameorigin"),
    "X-XSS-Protection": lambda value: True,
}
"""Name -> whether a value is allowed. An empty value means that the header is not sent."""
_DURATION = re.compile(r"(?P<digits>\d+(?:\.\d*)?|\.\d+)(?P<unit>ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_CLIENT_AUTH = (NO_CLIENT_CERT, VERIFY_IF_GIVEN, REQUIRE_AND_VERIFY)
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
"""Ask for a certificate and do not verify it."""
_TLS_VERSIONS: Mapping[str, bool] = {"TLS13": True, "TLS12": True, "TLS11": False, "TLS10": False}
"""Name -> whether it works: OpenSSL's usual security level excludes the old versions."""
_TLS13_CIPHERS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Neither Go nor Python lets a server choose among these."""
_CURVES: Mapping[str, str] = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}


def parse(data: bytes, name: str) -> WebConfig:
    """`name`: of the file, for messages. Raises UsageError."""
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}", _HINT) from error
    except RecursionError as error:
        raise UsageError(f"{name}: nested too deeply", _HINT) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{place}: not YAML: {printable(problem)}", _HINT) from error
    top = Section(name, "", root)
    tls = top.section(TLS_SECTION)
    http, limit = top.section(_HTTP), top.section(_LIMIT)
    config = WebConfig(
        tls=_tls(tls) if tls is not None and tls.keys else None,
        headers=_headers(http) if http is not None else {},
        users=_users(top.section(_USERS)),
        rate_limit=_rate_limit(limit) if limit is not None else None,
    )
    top.finish()
    return config


def _tls(section: Section) -> TlsConfig:
    cert, key = _pem(section, "cert"), _pem(section, "key")
    client_ca, client_auth_type = _pem(section, "client_ca"), _client_auth(section)
    allowed, (min_version, max_version) = section.texts("client_allowed_sans"), _versions(section)
    ciphers, curves = _ciphers(section), _curves(section)
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
    """As in the toolkit, a key that would be ignored is an error."""
    if tls.client_ca is not None and tls.client_auth_type == NO_CLIENT_CERT:
        key = tls.client_ca.key.rpartition(".")[2]
        raise section.refuse(key, "has no effect without client_auth_type", "RequireAndVerifyClientCert")
    if tls.client_allowed_sans and tls.client_auth_type != REQUIRE_AND_VERIFY:
        raise section.refuse("client_allowed_sans", f"needs client_auth_type: {REQUIRE_AND_VERIFY}")


def _client_auth(section: Section) -> str:
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


def _versions(section: Section) -> tuple[str, str]:
    """``min_version`` and ``max_version``. Raises UsageError."""
    lowest = section.one_of("min_version", _TLS_VERSIONS, "TLS12")
    highest = section.one_of("max_version", _TLS_VERSIONS, "TLS13")
    for key, name in (("min_version", lowest), ("max_version", highest)):
        if not _TLS_VERSIONS[name]:
            raise section.refuse(key, f"{name} cannot be honoured: OpenSSL does not offer it", "use TLS12 or TLS13")
    if (lowest, highest) == ("TLS13", "TLS12"):
        raise section.refuse("min_version", "TLS13 is above max_version")
    return lowest, highest


def _ciphers(section: Section) -> tuple[str, ...]:
    """``cipher_suites`` as OpenSSL's names. Raises UsageError."""
    names = section.texts("cipher_suites")
    for name in names:
        if name not in TLS12_CIPHERS and name not in _TLS13_CIPHERS:
            raise section.refuse("cipher_suites", f"{name!r} is unknown", "names are those of Go's tls.CipherSuites()")
    found = tuple(TLS12_CIPHERS[name] for name in names if name in TLS12_CIPHERS)
    if names and not found:
        raise section.refuse(
            "cipher_suites", "has none for TLS 1.2", "those of TLS 1.3 cannot be chosen; use min_version: TLS13"
        )
    return found


def _curves(section: Section) -> tuple[str, ...]:
    """``curve_preferences`` as OpenSSL's names. Raises UsageError."""
    names = section.texts("curve_preferences")
    for name in names:
        if name not in _CURVES:
            raise section.refuse("curve_preferences", f"{name!r} is none of {', '.join(_CURVES)}")
    return tuple(_CURVES[name] for name in names)


def _pem(section: Section, key: str) -> Pem | None:
    text, path = section.text(key), section.text(f"{key}_file")
    if text is not None and path is not None:
        raise section.refuse(f"{key}_file", f"and {key} exclude each other")
    if text is not None:
        return Pem(section.full(key), text=text)
    return None if path is None else Pem(section.full(f"{key}_file"), path=path)


def _headers(section: Section) -> dict[str, str]:
    # The server speaks HTTP/1.1 only, which every client of HTTP/2 falls back to.
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
            raise section.refuse(name, "a name must not be empty or contain a colon")
        users[name] = text
    return users


def _rate_limit(section: Section) -> RateLimit | None:
    text, burst = section.text("interval", or_number=True), section.number("burst")
    section.finish()
    interval_s = 0.0 if text in (None, "0") else _seconds(text or "")
    if interval_s is None:
        raise section.refuse("interval", f"{(text or '')[:40]!r} is not a duration", "for example 1s, 500ms or 1m30s")
    if interval_s and not burst:
        raise section.refuse("burst", "must be at least 1: with 0 no request is ever answered")
    return RateLimit(interval_s, burst or 0) if interval_s else None


def _seconds(text: str) -> float | None:
    """A duration as Go writes it; None for anything else."""
    total, at = 0.0, 0
    while at < len(text):
        part = _DURATION.match(text, at)
        if part is None:
            return None
        total += float(part["digits"]) * _UNITS_S[part["unit"]]
        at = part.end()
    return total if text and math.isfinite(total) else None


_STR, _BOOL, _INT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "int", "null"))
_NO_VALUE = "has no value"
_DIGITS = 15


class Section:
    """A mapping of the file with the line of every key; its keys are read one by one."""

    def __init__(self, name: str, path: str, node: yaml.Node | None) -> None:
        self._name = name
        self._path = path
        self._node = node
        self._read_keys: list[str] = []
        self._items: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        if not path and (node is None or node.tag == _NULL):
            raise UsageError(f"{name}: is empty", "to serve without TLS and passwords, leave it out, or write {} in it")
        if node is None or node.tag == _NULL:
            raise self._error(node, path, _NO_VALUE)
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, path, "not a mapping of keys to values")
        for key, value in node.value:
            text = key.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge" else None
            if text is None:
                raise self._error(key, path, "a key must be text")
            if text in self._items:
                raise self._error(key, self.full(text), "is there twice")
            self._items[text] = key, value

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._items)

    def full(self, key: str) -> str:
        """``tls_server_config.key_file``."""
        return f"{self._path}.{key}" if self._path else key

    def _error(self, node: yaml.Node | None, path: str, problem: str, hint: str | None = None) -> UsageError:
        line = 1 if node is None else node.start_mark.line + 1
        return UsageError(f"{self._name}:{line}: {printable(path) or 'the file'}: {problem}", hint or _HINT)

    def refuse(self, key: str, problem: str, hint: str | None = None) -> UsageError:
        """The error for the value of `key`."""
        return self._error(self._items[key][1] if key in self._items else self._node, self.full(key), problem, hint)

    def section(self, key: str) -> Section | None:
        """The mapping at `key`; None without that key."""
        self._read_keys.append(key)
        return Section(self._name, self.full(key), self._items[key][1]) if key in self._items else None

    def _scalar(self, key: str, what: str, *tags: str) -> str | None:
        self._read_keys.append(key)
        if key not in self._items:
            return None
        node = self._items[key][1]
        self._refuse_null(key)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
            raise self._error(node, self.full(key), f"must be {what}")
        return str(node.value)

    def _refuse_null(self, key: str) -> None:
        """A file that was cut off often ends after a colon, and the lost value is seldom the default."""
        if self.is_null(key):
            raise self.refuse(key, _NO_VALUE)

    def is_null(self, key: str) -> bool:
        """The key is there without a value."""
        return key in self._items and self._items[key][1].tag == _NULL

    def text(self, key: str, *, or_number: bool = False) -> str | None:
        """None without that key, or with an empty text."""
        return self._scalar(key, "text", _STR, *([_INT] if or_number else [])) or None

    def flag(self, key: str) -> bool | None:
        """true or false."""
        value = self._scalar(key, "true or false", _BOOL)
        return None if value is None else value.lower() in ("true", "yes", "on")

    def number(self, key: str) -> int | None:
        """A whole number, not negative."""
        value = self._scalar(key, "a whole number", _INT)
        if value is not None and not (value.isdecimal() and len(value) <= _DIGITS):
            raise self.refuse(key, f"must be a whole number, not {value[:_DIGITS]}")
        return None if value is None else int(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of text."""
        self._read_keys.append(key)
        node = self._items[key][1] if key in self._items else None
        if node is None:
            return ()
        self._refuse_null(key)
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, self.full(key), "must be a list")
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode) or item.tag != _STR or not item.value:
                raise self._error(item, self.full(key), "must be a list of text")
        return tuple(str(item.value) for item in node.value)

    def one_of(self, key: str, names: Mapping[str, T], default: str) -> str:
        """One of `names`."""
        value = self.text(key) or default
        if value not in names:
            raise self.refuse(key, f"{value!r} is none of {', '.join(names)}")
        return value

    def finish(self) -> None:
        """Raise UsageError for keys that were not read."""
        for key, (node, _) in self._items.items():
            if key not in self._read_keys:
                raise self._error(node, self.full(key), "unknown key", f"known here: {', '.join(self._read_keys)}")
