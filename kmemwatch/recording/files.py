# SPDX-License-Identifier: GPL-2.0-only
"""Lines of a plain or gzip file, with the byte up to which the file is whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from kmemwatch.errors import UsageError

GZIP_MAGIC = b"\x1f\x8b"
MEMBER_START = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
"""First bytes of every gzip member that `compress` writes."""
MAX_LINE_BYTES = 1 << 28
"""No snapshot comes near; keeps a file of zeros from filling our memory."""
_CHUNK = 1 << 16
_GZIP_WBITS = 31


def compress(line: bytes) -> bytes:
    """One gzip member, without a time in it."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WBITS)
    return packer.compress(line) + packer.flush()


class Lines:
    """Iterator of complete lines, each with its ``\\n``.

    After the last one `cut` tells whether bytes of an unfinished line followed, and `whole_bytes` how much of the
    file lies before them. Raises UsageError without the place for bytes that cannot be decompressed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        self.cut = False
        self.whole_bytes = 0
        self.lines_after_whole = 0
        """Lines of a gzip member that has no end: readable, but nothing can be appended behind them."""

    def __iter__(self) -> Iterator[bytes]:
        return self._gzip_lines() if self.packed else self._plain_lines()

    def _plain_lines(self) -> Iterator[bytes]:
        while line := self._file.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                _check_length(line)
                self.cut = True
                return
            self.whole_bytes += len(line)
            yield line

    def _gzip_lines(self) -> Iterator[bytes]:
        tail = b""
        for text in self._inflate():
            *lines, tail = (tail + text).split(b"\n")
            for line in lines:
                self.lines_after_whole += 1
                yield line + b"\n"
            _check_length(tail)
        self.cut = self.cut or bool(tail)

    def _inflate(self) -> Iterator[bytes]:
        """Decompressed pieces, member by member; `whole_bytes` moves with each member that has ended."""
        member, data = zlib.decompressobj(_GZIP_WBITS), b""
        while data := data or self._file.read(_CHUNK):
            try:
                text = member.decompress(data, MAX_LINE_BYTES)
            except zlib.error as exc:
                raise UsageError("damaged record, gzip cannot read it") from exc
            if not member.eof:
                data = member.unconsumed_tail
                yield text
                continue
            data = member.unused_data
            self.whole_bytes = self._file.tell() - len(data)
            yield text
            self.lines_after_whole = 0
            member = zlib.decompressobj(_GZIP_WBITS)
        if self._file.tell() > self.whole_bytes:
            self._check_cut()
            self.cut = True

    def _check_cut(self) -> None:
        """A damaged member may swallow all that follow it; that is not a cut."""
        self._file.seek(self.whole_bytes + 1)
        before = b""
        while chunk := self._file.read(_CHUNK):
            if MEMBER_START in before + chunk:
                raise UsageError("damaged record, gzip finds no end of it")
            before = chunk[-len(MEMBER_START) :]


def _check_length(line: bytes) -> None:
    if len(line) >= MAX_LINE_BYTES:
        raise UsageError(f"a line of more than {MAX_LINE_BYTES >> 20} MiB")
