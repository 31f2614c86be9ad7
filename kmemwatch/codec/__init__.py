# SPDX-License-Identifier: GPL-2.0-only
r"""The model <-> JSON, schema 1: the one format of files, of the daemon and of the command line.

`kmemwatch.model` says which keys there are, in which order, and what each may hold; msgspec writes and checks them.
Rules that hold for every value:

- A key that this kernel cannot fill is ``null``, never left out and never 0.
- Times are RFC 3339 in UTC with nanoseconds.
- No kernel addresses: caches have ids, see `kmemwatch.cacheids`.
- Every string is in the escaped form of `units.printable` (``\x80`` for a byte that is not UTF-8, ``\n``, ``\\``), in
  the model as in JSON.
- Keys that are not known are ignored, so that a newer release may add some within schema 1.

What older releases wrote, and strings that somebody else escaped in another way, are brought into this form by
`codec.old` before they are checked. ``kmemwatch/data/snapshot.schema.json`` describes the format for others.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from msgspec import DecodeError, Struct, ValidationError

from kmemwatch.codec import old
from kmemwatch.codec.room import check_room
from kmemwatch.errors import UsageError
from kmemwatch.model import Snapshot, TimeNs
from kmemwatch.shape import MOST
from kmemwatch.units import parse_rfc3339, rfc3339

T = TypeVar("T", bound=Struct)

_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WORDS = re.compile(r"Expected `str` matching regex '\^\(\?:(.*)\)\$'")
_CACHE_ID = re.compile(r"(?:^|\.)(?:cache_id|caches\[\d+\]\.id)$")
_TYPE = re.compile(r"`(?:object|array|int|float|str|bool)(?: \| null)?`")
_TYPES = {
    f"`{name}{null}`": words + or_null
    for name, words in {
        "object": "an object", "array": "an array", "int": "a whole number", "float": "a number", "str": "a string",
        "bool": "true or false",
    }.items()
    for null, or_null in (("", ""), (" | null", " or null"))
}  # fmt: skip
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|([^.\[\]]+)")


def encode_other(value: Any) -> Any:
    """msgspec's `enc_hook`: what it does not know itself."""
    if isinstance(value, TimeNs):
        return rfc3339(value, digits=9)
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError(type(value))


def decode_other(kind: Any, value: Any) -> Any:
    """msgspec's `dec_hook`."""
    if kind is not TimeNs:
        raise NotImplementedError(kind)
    try:
        at_ns = parse_rfc3339(value if isinstance(value, str) else "")
    except ValueError:
        at_ns = None
    if at_ns is None:
        raise ValueError("Expected a time such as 2026-11-22T20:08:28.123456789Z")
    return TimeNs(at_ns)


_ENCODER = msgspec.json.Encoder(enc_hook=encode_other)


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind, dec_hook=decode_other)


def to_json(value: Struct) -> bytes:
    """A part of the model as JSON on one line."""
    return _ENCODER.encode(value)


def snapshot_to_json(snapshot: Snapshot, indent: int | None = None) -> bytes:
    """The Snapshot as JSON, without a newline at the end. Raises ValueError for NaN and infinity, which JSON lacks."""
    if not all(map(math.isfinite, (snapshot.duration_s, *snapshot.release_delays_s))):
        raise ValueError("NaN and infinity are no numbers in JSON")
    text = to_json(snapshot)
    return text if indent is None else msgspec.json.format(text, indent=indent)


def parse_json(text: str | bytes, came_bytes: int | None = None) -> object:
    """`json.loads` with kmemwatch's errors: UsageError with line and column of what is not JSON.

    `came_bytes`: how long the text was when it came, compressed. A little that would take much memory is refused.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    check_room(raw, len(raw) if came_bytes is None else came_bytes)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        raise UsageError(f"not JSON: {exc.msg} at line {exc.lineno} column {exc.colno}") from exc
    except (ValueError, RecursionError) as exc:  # bytes that are not UTF-8, NaN, numbers of thousands of digits
        raise UsageError(f"not JSON: {exc}") from exc


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def from_json(kind: type[T], text: bytes, came_bytes: int | None = None) -> T:
    """A part of the model in JSON text. Raises UsageError that names the field. `came_bytes`: see `parse_json`."""
    check_room(text, len(text) if came_bytes is None else came_bytes)
    if old.is_of_this_release(text, kind):
        try:
            found: T = old.checked(_decoder(kind).decode(text))
            return found
        except (ValidationError, DecodeError, RecursionError):
            pass  # perhaps an older release wrote it; if not, the reason is found below
    return from_builtins(kind, parse_json(text, came_bytes))


def from_builtins(kind: type[T], data: object) -> T:
    """A part of the model from parsed JSON, of whatever release. Raises UsageError that names the field."""
    if not isinstance(data, dict):
        old.refuse("document", "an object", data)
    data = old.renewed(kind, data)
    try:
        found: T = old.checked(msgspec.convert(data, kind, dec_hook=decode_other))
    except ValidationError as exc:
        raise UsageError(_explained(str(exc), data)) from exc
    return found


def _explained(message: str, data: object) -> str:
    """msgspec's message as ``cgroups[3].id: expected ...``."""
    found = _PLACE.search(message)
    place = found[1] if found else ""
    what = message[: found.start()] if found else message
    if missing := _MISSING.fullmatch(what):
        return f"{'.'.join(filter(None, (place, missing[1])))}: missing"
    if words := _WORDS.fullmatch(what):
        what = f"expected one of {words[1].replace('|', ', ')}"
    elif what.startswith("Expected `str") and _CACHE_ID.search(place):
        what = "expected the id of a cache, such as k5mw2pcq7xg3"
    what = _TYPE.sub(lambda match: _TYPES.get(match[0], match[0]), what)
    return f"{_named(place, data) or 'document'}: {what[:1].lower()}{what[1:]}"


def _named(place: str, data: Any) -> str:
    """``pins[...]`` -> ``pins.file``: msgspec does not tell at which key of a mapping of numbers it was."""
    if "[...]" not in place:
        return place
    known = ""
    for index, key in _STEP.findall(place):
        if index == "...":
            wrong = next(
                (name for name, value in data.items() if type(value) is not int or not 0 <= value <= MOST), "..."
            )
            return f"{known}.{wrong}"
        data = data[int(index)] if index else data[key]
        known += f"[{index}]" if index else f".{key}" if known else key
    return place
