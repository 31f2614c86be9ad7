# SPDX-License-Identifier: GPL-2.0-only
"""Ids of caches. They replace kernel addresses, which never leave the process that reads the kernel.

On a kernel with KASLR, the address of one `struct kmem_cache` reveals where the kernel's memory begins. An id
distinguishes two caches of one name just as well, and reveals nothing without the secret.
"""

from __future__ import annotations

import base64
import os
import re

try:
    # The module behind hashlib, which also loads OpenSSL: 4 MB in every process that reads the kernel.
    from _blake2 import blake2s
except ImportError:  # pragma: no cover - another Python than CPython
    from hashlib import blake2s

SECRET_BYTES = 32
ID = re.compile("[a-z2-7]{12}")
"""Id of a cache: 60 bits in base32, which neither a spreadsheet nor a reader takes for a number or an address."""
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{9,}|\bffff[0-9a-f]{12}\b|\b1844[67]\d{15}\b|-1[0-4]\d{13}\b")
"""A kernel address in C's notation, in the kernel's, or as a decimal number, signed or unsigned."""
_ID_BYTES, _ID_CHARS = 8, 12
_MAX_KNOWN = 1 << 17
"""Ids in memory at most; then all are dropped, and made again when needed."""


class CacheIds(dict[int, str]):
    """Address -> id; the same secret gives the same ids."""

    def __init__(self, secret: bytes | None = None) -> None:
        """Without a `secret`, no other process makes the same ids."""
        super().__init__()
        self._secret = os.urandom(SECRET_BYTES) if secret is None else secret

    def __missing__(self, address: int) -> str:
        if len(self) >= _MAX_KNOWN:
            self.clear()
        mark = blake2s(address.to_bytes(8, "little"), key=self._secret, digest_size=_ID_BYTES).digest()
        made = self[address] = base64.b32encode(mark)[:_ID_CHARS].decode("ascii").lower()
        return made

    def name(self, address: int) -> str:
        """What replaces the unknown name of a cache."""
        return f"unnamed:{self[address]}"


def without_addresses(text: str) -> str:
    """Text of others (the verifier, an unexpected exception) without kernel addresses."""
    return _ADDRESS.sub("(an address)", text)
