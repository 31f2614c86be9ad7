# SPDX-License-Identifier: GPL-2.0-only
"""Messages from the process that reads the kernel to the one that serves HTTP, over a Unix socket.

pickle is safe here because the trusted process writes the messages. The other one answers in lines of JSON: one when
it serves, or cannot and why, and one when it has its first snapshot.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from kmemwatch.errors import KmemwatchError, UnsupportedError, UsageError
from kmemwatch.exporter.published import PublishedSnapshot, ReaderCost
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.model import Cgroup, Pair, Snapshot
from kmemwatch.web.config import LoadedConfig

_HEAD = struct.Struct("=Q")
_MAX_ANSWER_BYTES = 64 * 1024
_PROTOCOL = 5
_ERRORS = {kind.__name__: kind for kind in (KmemwatchError, UsageError, UnsupportedError)}

_CGROUP = attrgetter(*Cgroup.__struct_fields__)
_PAIR = attrgetter(*Pair.__struct_fields__)


@dataclass(frozen=True, slots=True)
class SnapshotMessage:
    """A packed snapshot; the other process unpacks it only if a client asks for it."""

    packed: bytes
    published_s: float
    reader: ReaderCost | None

    def open(self) -> Snapshot:
        """Unpack the snapshot."""
        snapshot, cgroups, pairs = pickle.loads(self.packed)
        assert isinstance(snapshot, Snapshot)
        return replace(
            snapshot,
            cgroups=tuple(starmap(Cgroup, zip(*cgroups, strict=True))),
            pairs=tuple(starmap(Pair, zip(*pairs, strict=True))),
        )

    @property
    def published(self) -> PublishedSnapshot:
        """For `LatestSnapshot.publish`."""
        return PublishedSnapshot(self, self.published_s, self.reader)


@dataclass(frozen=True)
class Settings:
    """The first message: how `serve` was started."""

    listeners: Sequence[int]
    """Descriptors of listening sockets."""
    telemetry_path: str
    max_series: int
    stale_s: float
    selection: SelectionOptions
    reader: ReaderCost
    web: LoadedConfig | None


@dataclass(frozen=True)
class NewConfig:
    """The web configuration has changed."""

    web: LoadedConfig


@dataclass(frozen=True)
class BrokenConfig:
    """The web configuration has changed and is invalid."""

    why: str


def pack(published: PublishedSnapshot) -> SnapshotMessage:
    """A message with this snapshot."""
    snapshot = published.snapshot
    # Column by column: there may be 65,536 pairs, and an object each takes six times as long.
    cgroups = tuple(zip(*map(_CGROUP, snapshot.cgroups), strict=True))
    pairs = tuple(zip(*map(_PAIR, snapshot.pairs), strict=True))
    rest = replace(snapshot, cgroups=(), pairs=())
    return SnapshotMessage(_dumps((rest, cgroups, pairs)), published.published_s, published.reader)


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        """The model has read-only mappings, which pickle cannot handle."""
        return (_read_only, (dict(thing),)) if isinstance(thing, MappingProxyType) else NotImplemented


def _read_only(items: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(items)


def _dumps(thing: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, _PROTOCOL).dump(thing)
    return file.getvalue()


def framed(message: object) -> bytes:
    """The bytes that `send` sends."""
    text = _dumps(message)
    return _HEAD.pack(len(text)) + text


def send(channel: socket.socket, message: object) -> None:
    """Send to the HTTP process. Raises OSError when it has ended."""
    text = _dumps(message)
    channel.sendall(_HEAD.pack(len(text)))
    channel.sendall(text)


def receive(channel: socket.socket) -> Any:
    """Read the next message in the HTTP process; None at the end."""
    head = _receive_exactly(channel, _HEAD.size)
    text = head and _receive_exactly(channel, _HEAD.unpack(head)[0])
    return pickle.loads(text) if text else None


def _receive_exactly(channel: socket.socket, size: int) -> bytearray | None:
    """None when the other end closes too early."""
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        try:
            number = channel.recv_into(view[filled:])
        except ConnectionResetError:
            return None
        if not number:
            return None
        filled += number
    return data


def answer(channel: socket.socket, error: KmemwatchError | None) -> None:
    """Send an answer from the HTTP process: success, or an error.

    It ignores that the other process has ended, which the next `receive` reports.
    """
    fields = {} if error is None else {"error": type(error).__name__, "message": str(error), "hint": error.hint}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.sendall(json.dumps(fields).encode() + b"\n")


def receive_answer(channel: socket.socket) -> bool:
    """Wait for an answer. False when the other end closed without one, or sent anything else.

    Raises the KmemwatchError that it sent.
    """
    text = bytearray()
    while not text.endswith(b"\n"):
        part = channel.recv(1)  # leave what follows the answer
        if not part or len(text) > _MAX_ANSWER_BYTES:
            return False
        text += part
    try:
        fields = json.loads(text)
        if "error" not in fields:
            return True
        error = _ERRORS[fields["error"]](str(fields["message"]), hint=fields["hint"] and str(fields["hint"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False  # clients may have taken over the other process, and make it send anything
    raise error
