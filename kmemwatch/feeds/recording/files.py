# SPDX-License-Identifier: GPL-2.0-only
"""Lines of a plain or gzip file, with the byte up to which the file is whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from kmemwatch.codec.room import MAX_TEXT_BYTES, too_much_text
from kmemwatch.errors import UsageError

GZIP_MAGIC = b"\x1f\x8b"
MEMBER_START = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
"""First bytes of every gzip member that `compress` writes."""
_CHUNK = 1 << 16
_ZEROS = 64
"""This many NUL bytes do not end a gzip member, although the length in its last bytes has a few."""
_FIRST_CHUNK = 1 << 9
"""zlib copies what follows the end of a member, so a new member, which may be short, gets only a little."""
_GZIP_WBITS = 31


def compress(line: bytes) -> bytes:
    """One gzip member, without a time in it."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WBITS)
    return packer.compress(line) + packer.flush()


class Lines:
    """Iterator of complete lines, each with its ``\\n``.

    After the last line, `cut` says whether bytes of an unfinished line followed, and `whole_bytes` how much of the file
    lies before them. Raises UsageError, without the place, for bytes that cannot be decompressed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        self.packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        self.cut = False
        self.whole_bytes = 0
        """A recorder can append here: a line, and a gzip member, end exactly here."""
        self.lines_after_whole = 0
        """Complete lines behind `whole_bytes`: the gzip member that holds them has no end, or ends in mid-line."""
        self.file_bytes = 0
        """How many bytes of the file the line read last takes."""
        self._line = bytearray()
        self._at = self._line_began = 0
        """How much of the file has been used now, and at the end of the last line."""

    def __iter__(self) -> Iterator[bytes]:
        return self._gzip_lines() if self.packed else self._plain_lines()

    def _plain_lines(self) -> Iterator[bytes]:
        while line := self._file.readline(MAX_TEXT_BYTES):
            if not line.endswith(b"\n"):
                _check_length(line, len(line))
                self.cut = True
                return
            self.whole_bytes += len(line)
            self.file_bytes = len(line)
            yield line

    def _gzip_lines(self) -> Iterator[bytes]:
        for text in self._inflate():
            begin = 0
            while end := text.find(b"\n", begin) + 1:
                self._line += text[begin:end]
                begin = end
                self.lines_after_whole += 1
                self.file_bytes, self._line_began = self._at - self._line_began, self._at
                line, self._line = bytes(self._line), bytearray()
                yield line
            self._line += text[begin:]
            _check_length(self._line, self._at - self._line_began)

    def _inflate(self) -> Iterator[bytes]:
        """Decompressed pieces; `whole_bytes` moves with each member at whose end a line has ended, too."""
        member, member_began, chunk = zlib.decompressobj(_GZIP_WBITS), 0, _FIRST_CHUNK
        while data := self._file.read(_CHUNK):
            view = memoryview(data)
            while view:
                piece = view[:chunk]
                yield from self._unpack(member, piece, member_began)
                if self.cut:
                    return
                view, chunk = view[len(piece) - len(member.unused_data) :], _CHUNK
                if member.eof:
                    if not self._line:
                        self.whole_bytes, self.lines_after_whole = self._at, 0
                    member, member_began, chunk = zlib.decompressobj(_GZIP_WBITS), self._at, _FIRST_CHUNK
        if self._at > member_began:
            self._check_cut(member_began)
        self.cut = self._at > self.whole_bytes

    def _unpack(self, member: zlib._Decompress, piece: memoryview, member_began: int) -> Iterator[bytes]:
        """The decompressed contents of `piece`, a little at a time."""
        rest: memoryview | bytes = piece
        end = self._at + len(piece)
        try:
            while True:
                text = member.decompress(rest, _CHUNK)
                # After the end of a member, `unconsumed_tail` may hold the same as `unused_data`.
                self._at = end - len(member.unused_data if member.eof else member.unconsumed_tail)
                if text:
                    yield text
                rest = member.unconsumed_tail
                # zlib may have taken all of its input and still hold text back.
                if member.eof or not (rest or len(text) == _CHUNK):
                    return
        except zlib.error as exc:
            if self._ends_in_zeros(member_began):
                self.cut = True
                return
            raise UsageError("damaged record, gzip cannot read it") from exc

    def _ends_in_zeros(self, member_began: int) -> bool:
        """After a power cut, file systems show zeros in place of what was written last."""
        size = self._file.seek(0, 2)
        at = self._file.seek(max(member_began, size - _ZEROS))
        if self._file.read().strip(b"\0"):
            return False
        if at > member_began:
            self._check_cut(member_began)
        return True

    def _check_cut(self, member_began: int) -> None:
        """A damaged member may swallow all that follow it; that is not a cut."""
        self._file.seek(member_began + 1)
        before = b""
        while chunk := self._file.read(_CHUNK):
            if MEMBER_START in before + chunk:
                raise UsageError("damaged record, gzip finds no end of it")
            before = chunk[-len(MEMBER_START) :]


def _check_length(line: bytes | bytearray, file_bytes: int) -> None:
    if why := too_much_text(len(line), file_bytes):
        raise UsageError(f"a line that is {why}")
