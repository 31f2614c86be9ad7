# SPDX-License-Identifier: GPL-2.0-only
"""The lines of a recording; pure.

    {"format":"kmemwatch-recording","version":1,"seq":0,"type":"header","kmemwatch":"0.1.0","started_at":...,
     "host":{...},"kernel":{...},"crc32":"8f1c02aa"}
    {"seq":1,"type":"snapshot","snapshot":{...},"crc32":"..."}
    {"seq":2,"type":"event","event":{...},"crc32":"..."}

``seq`` counts the lines of the file from 0, so that a missing line is noticed. ``crc32`` covers the bytes of its
line up to the comma before it. Every start of ``kmemwatch record`` writes a header: the counters of the snapshots
after it begin at 0 again. Snapshots and events are in the format of `kmemwatch.codec`.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Annotated

from msgspec import DecodeError, Raw, Struct, json

from kmemwatch import __version__
from kmemwatch.codec import from_json, parse_json, snapshot_to_json, to_json
from kmemwatch.errors import UsageError
from kmemwatch.model import Event, Host, Kernel, Snapshot, TimeNs
from kmemwatch.shape import TEXT, About

FORMAT_VERSION = 1
FORMAT = "kmemwatch-recording"
MAGIC = b'{"format":"kmemwatch-recording","version":'

HEADER = "header"
SNAPSHOT = "snapshot"
EVENT = "event"

_START = re.compile(rb'(?:\{"format":"kmemwatch-recording","version":\d+,|\{)"seq":(\d{1,15}),"type":"([a-z_]{1,30})",')
_END = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n')
_END_BYTES = len(b',"crc32":"00000000"}\n')
_VERSION = re.compile(re.escape(MAGIC) + rb"(\d{1,9}),")


class Header(Struct, frozen=True):
    """Which kmemwatch recorded the following lines, and on which host."""

    kmemwatch: Annotated[str | None, About("Release that recorded.", TEXT)]
    host: Annotated[Host, About("The host that was recorded.")]


class _HeaderLine(Struct, frozen=True):
    format: str
    version: int
    seq: int
    type: str
    kmemwatch: str
    started_at: TimeNs
    host: Host
    kernel: Kernel


class _Content(Struct, frozen=True):
    """What a line holds, not looked into."""

    snapshot: Raw = Raw(b"null")
    event: Raw = Raw(b"null")


_CONTENT = json.Decoder(_Content)


@dataclass(frozen=True, slots=True)
class Record:
    """One line whose checksum is right; its JSON is parsed on demand."""

    seq: int
    type: str
    """HEADER, SNAPSHOT or EVENT."""
    line: bytes
    file_bytes: int
    """How many bytes of the file it takes."""

    def snapshot(self) -> Snapshot:
        """Of a SNAPSHOT record. Raises UsageError that names the malformed field."""
        return from_json(Snapshot, bytes(self._content().snapshot), self.file_bytes)

    def event(self) -> Event:
        """Of an EVENT record. Raises UsageError that names the malformed field."""
        return from_json(Event, bytes(self._content().event), self.file_bytes)

    def header(self) -> Header:
        """Of a HEADER record. Raises UsageError that names the malformed field."""
        return from_json(Header, self.line, self.file_bytes)

    def _content(self) -> _Content:
        try:
            return _CONTENT.decode(self.line)
        except (DecodeError, RecursionError):
            parse_json(self.line, self.file_bytes)  # says where
            raise UsageError("not a JSON object") from None


def snapshot_line(seq: int, snapshot: Snapshot) -> bytes:
    """The line of a SNAPSHOT record."""
    return _closed(b'{"seq":%d,"type":"snapshot","snapshot":%b' % (seq, snapshot_to_json(snapshot)))


def event_line(seq: int, event: Event) -> bytes:
    """The line of an EVENT record."""
    return _closed(b'{"seq":%d,"type":"event","event":%b' % (seq, to_json(event)))


def header_line(seq: int, first: Snapshot) -> bytes:
    """The line that starts a run of snapshots; `first` is the first of them."""
    header = _HeaderLine(FORMAT, FORMAT_VERSION, seq, HEADER, __version__, first.taken_at_ns, first.host, first.kernel)
    return _closed(to_json(header)[:-1])


def _closed(body: bytes) -> bytes:
    """The line that begins so, with its check sum."""
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def parse_line(line: bytes, seq: int, file_bytes: int) -> Record:
    """The record in `line`, which should be number `seq` and takes `file_bytes` of the file.

    Raises UsageError without the place.
    """
    end = _END.fullmatch(line, max(0, len(line) - _END_BYTES))
    start = _START.match(line)
    if end is None or start is None or zlib.crc32(line[: end.start()]) != int(end[1], 16):
        raise UsageError("damaged record, its check sum does not fit")
    if int(start[1]) != seq:
        raise UsageError(f"expected record {seq}, found {int(start[1])}: lines are missing or out of order")
    kind = start[2].decode("ascii")
    if kind not in (HEADER, SNAPSHOT, EVENT):
        raise UsageError(
            f"unknown record type {kind}", "it was written by a newer release of kmemwatch; update this one"
        )
    return Record(seq, kind, line, file_bytes)


def check_version(line: bytes) -> None:
    """Raise UsageError when the first line of a file says that a newer release wrote it."""
    match = _VERSION.match(line)
    if match is not None and int(match[1]) > FORMAT_VERSION:
        raise UsageError(
            f"recording of format {int(match[1])}, this kmemwatch {__version__} reads up to {FORMAT_VERSION}",
            "update kmemwatch here",
        )
