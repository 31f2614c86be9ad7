# SPDX-License-Identifier: GPL-2.0-only
"""Messages from the process that reads the kernel to the one that serves HTTP, over a Unix socket.

msgspec packs snapshots, pickle all other messages; that is safe because the trusted process writes them. The other one
answers in lines of JSON: one when it serves, or cannot and why, and one when it has its first snapshot.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from msgspec import Struct, msgpack
from msgspec.structs import replace

from kmemwatch.codec import decode_other, encode_other
from kmemwatch.errors import KmemwatchError, ShortageError, UnsupportedError, UsageError
from kmemwatch.exporter.published import PublishedSnapshot, ReaderCost
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.model import Pair, Snapshot
from kmemwatch.web.config import LoadedConfig

_HEAD = struct.Struct("=Q")
_MAX_ANSWER_BYTES = 64 * 1024
_PROTOCOL = 5
_ERRORS = {kind.__name__: kind for kind in (KmemwatchError, ShortageError, UsageError, UnsupportedError)}

_NUMBERS = attrgetter(*Pair.__struct_fields__[2:])


class _Packed(Struct, frozen=True, array_like=True):
    """There may be 65,536 pairs, so they go as columns, and what names a cache goes once: as rows they would take five
    times the bytes, and the process that unpacks them 20 MB more."""

    rest: Snapshot
    """Without pairs."""
    caches: list[tuple[str, str | None]]
    """`Pair.cache` and `Pair.cache_id`, each couple once."""
    places: list[int]
    """In `caches`, of each pair."""
    numbers: list[list[int | None]]
    """The other columns."""


@functools.cache
def _decoder() -> msgpack.Decoder[_Packed]:
    """Only the process that serves HTTP needs it."""
    return msgpack.Decoder(_Packed, dec_hook=decode_other)


@dataclass(frozen=True, slots=True)
class SnapshotMessage:
    """A packed snapshot; the other process unpacks it only if a client asks for it."""

    packed: bytes
    published_s: float
    reader: ReaderCost | None

    def open(self) -> Snapshot:
        """Unpack the snapshot."""
        found = _decoder().decode(self.packed)
        caches = map(found.caches.__getitem__, found.places)
        numbers = zip(*found.numbers, strict=True)
        return replace(found.rest, pairs=tuple(Pair(*c, *n) for c, n in zip(caches, numbers, strict=True)))

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
    caches: dict[tuple[str, str | None], int] = {}
    places = [caches.setdefault((pair.cache, pair.cache_id), len(caches)) for pair in snapshot.pairs]
    numbers = list(zip(*map(_NUMBERS, snapshot.pairs), strict=True))
    packed = _Packed(replace(snapshot, pairs=()), list(caches), places, numbers)  # type: ignore[arg-type]
    encoded = msgpack.Encoder(enc_hook=encode_other).encode(packed)
    return SnapshotMessage(encoded, published.published_s, published.reader)


def framed(message: object) -> bytes:
    """The bytes that `send` sends."""
    text = pickle.dumps(message, _PROTOCOL)
    return _HEAD.pack(len(text)) + text


def send(channel: socket.socket, message: object) -> None:
    """Send to the HTTP process. Raises OSError when it has ended."""
    text = pickle.dumps(message, _PROTOCOL)
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
