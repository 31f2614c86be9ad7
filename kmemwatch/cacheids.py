# SPDX-License-Identifier: GPL-2.0-only
"""Ids of caches: they stand for kernel addresses, which never leave the process that reads the kernel.

On a kernel with KASLR, the address of one `struct kmem_cache` gives away where the kernel's memory begins. An id tells
two caches of one name apart just as well, and says nothing to anybody who does not have the secret.
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
"""Of a cache. 60 bits in base32, which no spreadsheet takes for a number, and nobody for an address."""
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{9,}|\bffff[0-9a-f]{12}\b|\b1844[67]\d{15}\b|-1[0-4]\d{13}\b")
"""In C's notation, in the kernel's, and as a whole number, with a sign and without."""
_ID_BYTES, _ID_CHARS = 8, 12
_MAX_KNOWN = 1 << 17
"""Ids that are kept rather than made again. Caches come and go, and so do the recordings that are read."""


class CacheIds(dict[int, str]):
    """Address -> id, always the same for a secret."""

    def __init__(self, secret: bytes | None = None) -> None:
        """Without a `secret`, nobody else makes the same ids."""
        super().__init__()
        self._secret = os.urandom(SECRET_BYTES) if secret is None else secret

    def __missing__(self, address: int) -> str:
        if len(self) >= _MAX_KNOWN:
            self.clear()
        mark = blake2s(address.to_bytes(8, "little"), key=self._secret, digest_size=_ID_BYTES).digest()
        made = self[address] = base64.b32encode(mark)[:_ID_CHARS].decode("ascii").lower()
        return made

    def name(self, address: int) -> str:
        """Stands for the name of a cache that is not known."""
        return f"unnamed:{self[address]}"


def without_addresses(text: str) -> str:
    """What somebody else wrote (the verifier, an exception that nobody expected), without kernel addresses."""
    return _ADDRESS.sub("(an address)", text)
