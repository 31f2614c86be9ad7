# SPDX-License-Identifier: GPL-2.0-only
"""What a client accepts. Whatever it sends, one of a handful of answers comes out: each is made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

Encoder = Callable[[Collector], bytes]

_VERSIONS = {"application/openmetrics-text": ("", "1.0.0"), "text/plain": ("1.0.0",)}
"""What prometheus_client chooses something for. It fails at versions that are none, and promises any that it is asked
for. Plain text without a version, or of 0.0.4, is what it writes when nothing is chosen."""
_ESCAPINGS = ("allow-utf-8", "underscores", "values")
"""All the same to our names, which are ASCII. ``dots`` is not: it would double their underscores."""


def choose_format(accept: str) -> tuple[Encoder, str]:
    """(how to write metrics, the Content-Type of that) for an Accept header."""
    encode, content_type = choose_encoder(",".join(dict.fromkeys(_known(accept))))
    return encode, content_type


def _known(accept: str) -> Iterator[str]:
    """Items of the header that prometheus_client understands."""
    for item in accept.split(","):
        media, parameters = _parse(item)
        version = parameters.get("version", "")
        if version not in _VERSIONS.get(media, ()) or _is_zero(parameters.get("q", "1")):
            continue
        escaping = parameters.get("escaping", "")
        yield (
            media
            + (f";version={version}" if version else "")
            + (f";escaping={escaping}" if escaping in _ESCAPINGS else "")
        )


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header wants gzip, and not ``gzip;q=0``."""
    for item in header.split(","):
        name, parameters = _parse(item)
        if name == "gzip":
            return not _is_zero(parameters.get("q", "1"))
    return False


def _parse(item: str) -> tuple[str, dict[str, str]]:
    name, *parameters = (part.strip() for part in item.split(";"))
    found: dict[str, str] = {}
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        found.setdefault(key.strip().lower(), value.strip().strip('"').lower())
    return name.lower(), found


def _is_zero(weight: str) -> bool:
    return weight.strip("0.") == ""
