# SPDX-License-Identifier: GPL-2.0-only
"""Limits the memory that parsed JSON takes, which is up to 60 times its text. The text is checked before parsing."""

from __future__ import annotations

import zlib

from kmemwatch.errors import UsageError

MAX_TEXT_BYTES = 1 << 27
"""Of one document. A snapshot of 65,536 cgroups and 65,536 pairs takes a third of it."""
MAX_RATIO = 40
_FREE_TEXT_BYTES = 1 << 24
FREE_BYTES = 100 << 20
"""What anything may take, however small it came."""
_PER_BYTE_CAME = 80
_PER_BYTE = 12
"""On top of it, for each byte that came, perhaps compressed, and for each of the text; the smaller sum counts. 65,536
cgroups and 65,536 pairs are 7.5 MB compressed, 45 MB of text, and take 180 MB."""
_VALUE, _CONTAINER, _NAME = 60, 130, 250
"""Bytes that each of them takes at most. A key, or another string, takes that much only where it is met first."""
_PIECE = 1 << 20
_CHUNK = 1 << 16
_GZIP_WBITS = 31


def too_much_text(text_bytes: int, came_bytes: int) -> str | None:
    """Why a text of so many bytes, which came compressed as `came_bytes`, is not read; None when it is."""
    if text_bytes >= MAX_TEXT_BYTES:
        return f"more than {MAX_TEXT_BYTES >> 20} MiB"
    if text_bytes > _FREE_TEXT_BYTES + MAX_RATIO * came_bytes:  # snapshots reach 10
        return f"more than {MAX_RATIO} times its bytes when they were compressed"
    return None


def unpack(packed: bytes) -> bytes:
    """gzip -> text. Raises UsageError."""
    unpacker, text = zlib.decompressobj(_GZIP_WBITS), bytearray()
    try:
        for begin in range(0, len(packed), _CHUNK):
            rest = packed[begin : begin + _CHUNK]
            while not unpacker.eof and (part := unpacker.decompress(rest, _PIECE)):
                text += part
                rest = unpacker.unconsumed_tail
                if why := too_much_text(len(text), len(packed)):
                    raise UsageError(f"the text is {why}")
    except zlib.error as exc:
        raise UsageError("damaged gzip in the answer") from exc
    if not unpacker.eof:
        raise UsageError("the answer was cut off")
    return bytes(text)


def check_room(text: bytes, came_bytes: int) -> None:
    """Raise UsageError when parsing `text`, which came as `came_bytes`, would take more memory than it may."""
    most = FREE_BYTES + min(_PER_BYTE_CAME * came_bytes, _PER_BYTE * len(text))
    # The text and, in most characters that there are, what is decoded from it.
    left = most - len(text) * (2 if text.isascii() else 5)
    containers = text.count(b"{") + text.count(b"[")
    # Nearly everything fits even if all strings were different, and their commas and braces not in strings.
    if (
        _VALUE * text.count(b",") + _CONTAINER * containers + _NAME * text.count(b":") > left
        and _bytes(text, left) > left
    ):
        raise UsageError(f"it would take more than {most >> 20} MiB of memory", "is it what kmemwatch wrote?")


def _bytes(text: bytes, enough: int) -> int:
    """What the values in `text` take, or something above `enough`."""
    if b"\\" in text:  # so that each quote begins or ends a string
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    names: set[bytes] = set()
    inside = found = 0
    for begin in range(0, len(text), _PIECE):
        parts = text[begin : begin + _PIECE].split(b'"')
        bare = b"".join(parts[inside::2])
        names.update(parts[1 - inside :: 2])
        inside = (inside + len(parts) - 1) % 2
        found += _VALUE * bare.count(b",") + _CONTAINER * (bare.count(b"{") + bare.count(b"["))
        if found + _NAME * len(names) > enough:
            break
    return found + _NAME * len(names)
