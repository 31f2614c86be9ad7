# SPDX-License-Identifier: GPL-2.0-only
"""What the reading process tells the one that serves HTTP, over a Unix socket.

Messages go one way, from the process that is trusted to the one that is not, which is what makes pickle safe here.
Back comes a line of JSON when it serves, or the reason why not, and one when it has its first frame.
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
class FrameMessage:
    """A snapshot, still packed: it is opened only if somebody asks for it."""

    packed: bytes
    published_s: float
    reader: ReaderCost | None

    def open(self) -> Snapshot:
        """The snapshot."""
        snapshot, cgroups, pairs = pickle.loads(self.packed)
        assert isinstance(snapshot, Snapshot)
        return replace(
            snapshot,
            cgroups=tuple(starmap(Cgroup, zip(*cgroups, strict=True))),
            pairs=tuple(starmap(Pair, zip(*pairs, strict=True))),
        )

    @property
    def frame(self) -> PublishedSnapshot:
        """The same as a Frame."""
        return PublishedSnapshot(self, self.published_s, self.reader)


@dataclass(frozen=True)
class Settings:
    """What `serve` was started with; the first message."""

    listeners: Sequence[int]
    """Descriptors."""
    telemetry_path: str
    max_series: int
    stale_s: float
    selection: SelectionOptions
    reader: ReaderCost
    web: LoadedConfig | None


@dataclass(frozen=True)
class NewWeb:
    """The web configuration has changed."""

    web: LoadedConfig


@dataclass(frozen=True)
class BrokenWeb:
    """The web configuration has changed, and cannot be used."""

    why: str


def pack(frame: PublishedSnapshot) -> FrameMessage:
    """`frame` for the other side."""
    snapshot = frame.snapshot
    # Column by column: there may be 65,536 pairs, and an object each takes six times as long.
    cgroups = tuple(zip(*map(_CGROUP, snapshot.cgroups), strict=True))
    pairs = tuple(zip(*map(_PAIR, snapshot.pairs), strict=True))
    rest = replace(snapshot, cgroups=(), pairs=())
    return FrameMessage(_dumps((rest, cgroups, pairs)), frame.published_s, frame.reader)


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        """The model has read-only mappings, which pickle does not know."""
        return (_read_only, (dict(thing),)) if isinstance(thing, MappingProxyType) else NotImplemented


def _read_only(items: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(items)


def _dumps(thing: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, _PROTOCOL).dump(thing)
    return file.getvalue()


def framed(message: object) -> bytes:
    """What `send` sends."""
    text = _dumps(message)
    return _HEAD.pack(len(text)) + text


def send(channel: socket.socket, message: object) -> None:
    """To the HTTP process. Raises OSError when it is gone."""
    text = _dumps(message)
    channel.sendall(_HEAD.pack(len(text)))
    channel.sendall(text)


def receive(channel: socket.socket) -> Any:
    """In the HTTP process: the next message; None at the end."""
    head = _receive_exactly(channel, _HEAD.size)
    text = head and _receive_exactly(channel, _HEAD.unpack(head)[0])
    return pickle.loads(text) if text else None


def _receive_exactly(channel: socket.socket, size: int) -> bytearray | None:
    """None when the other end closes before."""
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
    """From the HTTP process: that it has come so far, or why it cannot. Whoever has ended meanwhile is not told; the
    next `receive` says so."""
    told = {} if error is None else {"error": type(error).__name__, "message": str(error), "hint": error.hint}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.sendall(json.dumps(told).encode() + b"\n")


def receive_answer(channel: socket.socket) -> bool:
    """Wait for `answer`; False when the other end closed without one, or sends something else.

    Raises the KmemwatchError that was sent.
    """
    text = bytearray()
    while not text.endswith(b"\n"):
        part = channel.recv(1)  # not more than this answer
        if not part or len(text) > _MAX_ANSWER_BYTES:
            return False
        text += part
    try:
        told = json.loads(text)
        if "error" not in told:
            return True
        error = _ERRORS[told["error"]](str(told["message"]), hint=told["hint"] and str(told["hint"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False  # whoever talks to clients may have been made to say anything
    raise error
