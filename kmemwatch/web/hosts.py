# SPDX-License-Identifier: GPL-2.0-only
"""Host headers on loopback addresses. Pure.

A web page can have its own name resolve to 127.0.0.1 (DNS rebinding); the browser of somebody on this host then reads
for it what nobody else can reach. Such requests carry the name of that page. On other addresses a scraper may use any
name, and on Unix sockets no browser can ask.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


def is_misdirected(
    local: Sequence[object] | None, headers: Iterable[tuple[bytes, bytes]], own_name: str = socket.gethostname()
) -> bool:
    """Whether a request must be refused. `local`: our end of the connection, (address, port); `headers`: in lower case.

    Loopback names are localhost, names below it, and loopback addresses; this host's own name is as good, as Debian has
    it resolve to 127.0.1.1. HTTP/1.0 needs no Host: no browser leaves it out.
    """
    if not local or not _is_loopback(str(local[0])):
        return False
    return not all(_is_own(value.decode("latin-1"), own_name) for name, value in headers if name == b"host")


def _is_own(host: str, own_name: str) -> bool:
    found = _HOST.fullmatch(host.strip())
    if found is None:
        return False
    name = found["name"].lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name == own_name.lower():
        return True
    return _is_loopback(name.strip("[]")) and ("[" in name) == (":" in name)


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:  # of a Unix socket
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
