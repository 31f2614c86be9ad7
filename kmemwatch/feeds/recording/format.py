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
from typing import Any, NamedTuple

from kmemwatch import __version__
from kmemwatch.codec import (
    dump_json,
    event_from_dict,
    event_to_dict,
    host_from_dict,
    parse_json,
    snapshot_from_dict,
    snapshot_to_dict,
)
from kmemwatch.codec.reader import Reader
from kmemwatch.errors import UsageError
from kmemwatch.model import Event, Host, Snapshot

FORMAT_VERSION = 1
MAGIC = b'{"format":"kmemwatch-recording","version":'

HEADER = "header"
SNAPSHOT = "snapshot"
EVENT = "event"

_START = re.compile(rb'(?:\{"format":"kmemwatch-recording","version":\d+,|\{)"seq":(\d{1,15}),"type":"([a-z_]{1,30})",')
_END = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n')
_END_BYTES = len(b',"crc32":"00000000"}\n')
_VERSION = re.compile(re.escape(MAGIC) + rb"(\d{1,9}),")


class Header(NamedTuple):
    """Which kmemwatch recorded the following lines, and on which host."""

    kmemwatch: str | None
    """Release."""
    host: Host


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
        return snapshot_from_dict(self.data().get("snapshot"))

    def event(self) -> Event:
        """Of an EVENT record. Raises UsageError that names the malformed field."""
        return event_from_dict(self.data().get("event"))

    def header(self) -> Header:
        """Of a HEADER record. Raises UsageError that names the malformed field."""
        data = self.data()
        return Header(Reader(data, "").opt_text("kmemwatch"), host_from_dict(data.get("host")))

    def data(self) -> dict[str, Any]:
        """The whole line. Raises UsageError when it is not a JSON object."""
        data = parse_json(self.line, self.file_bytes)
        if not isinstance(data, dict):
            raise UsageError("not a JSON object")
        return data


def snapshot_line(seq: int, snapshot: Snapshot) -> bytes:
    """The line of a SNAPSHOT record."""
    return _line({"seq": seq, "type": SNAPSHOT, "snapshot": snapshot_to_dict(snapshot)})


def event_line(seq: int, event: Event) -> bytes:
    """The line of an EVENT record."""
    return _line({"seq": seq, "type": EVENT, "event": event_to_dict(event)})


def header_line(seq: int, first: Snapshot) -> bytes:
    """The line that starts a run of snapshots; `first` is the first of them."""
    doc = snapshot_to_dict(first)
    return _line(
        {
            "format": "kmemwatch-recording",
            "version": FORMAT_VERSION,
            "seq": seq,
            "type": HEADER,
            "kmemwatch": __version__,
            "started_at": doc["taken_at"],
            "host": doc["host"],
            "kernel": doc["kernel"],
        }
    )


def _line(value: dict[str, Any]) -> bytes:
    body = dump_json(value).encode("utf-8")[:-1]
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
