# SPDX-License-Identifier: GPL-2.0-only
"""Documents that older releases wrote, or that another program has rewritten, brought into today's form.

Older releases wrote the addresses of caches, where today's have ids; the ids that stand for them hold in this process
only. They took differences below 0, and counts that the kernel had not finished, for numbers, which are unknown here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn, get_args

from msgspec import Struct
from msgspec.structs import replace

from kmemwatch.cacheids import CacheIds, without_addresses
from kmemwatch.errors import UsageError
from kmemwatch.model import (
    SCHEMA_VERSION,
    Cache,
    Cgroup,
    ChildSlabs,
    Event,
    Pair,
    Probe,
    RechargePair,
    RechargeTotal,
    Snapshot,
)
from kmemwatch.shape import GAUGE_END, Gauge, shape_of
from kmemwatch.units import printable, unprintable

Json = dict[str, Any]

_PREVIEW_CHARS = 60
LEAST, MOST = -(1 << 63), (1 << 64) - 1
"""All numbers of the kernel fit in 64 bits; others were written by nobody."""
_OTHER_RELEASE = "it was written by another release of kmemwatch; use the same release on both sides"
_BEGIN = re.compile(rb'\s*\{\s*"schema"\s*:')
_BACKSLASH = b"\\\\\\\\"
"""A backslash in a name, as `printable` and then JSON write it."""
_OTHER_ESCAPE = re.compile(
    rb'(?<!\\)\\(?![\\"])|\\\\\\|(?<!\\)\\\\'
    rb"(?!\\|[nrt]|x(?:0[0-8bcef]|1[0-9a-f]|7f|[89a-f][0-9a-f])|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"
)
"""What they never write, where another byte stands for each `_BACKSLASH`."""
_CHARACTER = re.compile(rb"\\\\[uU](00[01][0-9a-f]{5}|[0-9a-f]{4})")
_ADDRESS = re.compile("0x[0-9a-fA-F]{1,16}")
_IDS = CacheIds()
"""For addresses in what older releases wrote, which must be of no use to those who see the ids."""
_CACHE_NAMES: Mapping[type[Struct], tuple[str, ...]] = {
    Cache: ("name", "root"), Pair: ("cache",), ChildSlabs: ("cache",), RechargePair: ("cache",),
    RechargeTotal: ("cache",), Event: ("cache",),
}  # fmt: skip
"""Keys that hold the name of a cache, for which older releases wrote the address where they did not know it."""
_CACHE_IDS: Mapping[type[Struct], tuple[str, str]] = {
    Cache: ("id", "address"), Pair: ("cache_id", "cache_address"), ChildSlabs: ("cache_id", "cache_address"),
}  # fmt: skip
"""Key of the id, and of what older releases had instead."""
_PAGES = ("file", "shmem", "anon", "swapcache")
"""Kinds of `Cgroup.pins` that are part of `Cgroup.memory_bytes`, whatever the kernel."""


def is_of_this_release(text: bytes, kind: type[Struct]) -> bool:
    """Nothing in the text has to be brought into today's form, as far as the type does not tell.

    It has its version, all names are escaped as `units.printable` does it, and none is an address.
    """
    if (kind is Snapshot and _BEGIN.match(text) is None) or b'"0x' in text or b"\x7f" in text:
        return False
    return not (b"\\" in text and _has_other_escapes(text)) and (text.isascii() or _is_printable(text))


def _has_other_escapes(text: bytes) -> bool:
    """Without taking much memory, however many escapes there are."""
    text = text.replace(_BACKSLASH, b"!")
    if _OTHER_ESCAPE.search(text):
        return True
    # Releases of Python differ in what they call printable.
    characters = {match[0][1:] for match in _CHARACTER.finditer(text)}
    return any(printable(chr(int(one[2:], 16))).encode() != one for one in characters)


def _is_printable(text: bytes) -> bool:
    try:
        return text.translate(None, b"\t\n\r").decode().isprintable()
    except UnicodeDecodeError:
        return False


def checked(found: Any) -> Any:
    """What its type says of it is right, but what older releases wrote may not be."""
    if not isinstance(found, Snapshot):
        return found
    if any(map(_impossible, found.cgroups)):
        cgroups = tuple(replace(one, pins=None) if _impossible(one) else one for one in found.cgroups)
        found = replace(found, cgroups=cgroups)
    probes = tuple(map(_without_addresses, found.probes))
    return found if probes == found.probes else replace(found, probes=probes)


def _without_addresses(probe: Probe) -> Probe:
    return probe if probe.why is None else replace(probe, why=without_addresses(probe.why))


def _impossible(cgroup: Cgroup) -> bool:
    """Its pages are more than the memory that they are part of: older releases took statistics of the kernel for true
    that were two seconds old."""
    pins, memory_bytes = cgroup.pins, cgroup.memory_bytes
    if not pins or memory_bytes is None:
        return False
    return sum(pins.get(kind, 0) for kind in _PAGES) > memory_bytes


def renewed(kind: type[Struct], data: Json) -> Json:
    """`data`, the JSON object of a `kind`, in today's form. Raises UsageError that names the field."""
    if kind is Snapshot:
        if "schema" not in data:
            raise UsageError("schema: missing")
        if data["schema"] != SCHEMA_VERSION or data["schema"] is True:
            raise UsageError(f"schema: expected {SCHEMA_VERSION}, got {data['schema']!r}", _OTHER_RELEASE)
        return {"schema": data["schema"], **_object(kind, data, "")}
    return _object(kind, data, "")


def _object(kind: type[Struct], data: Json, where: str) -> Json:
    """The object at `where`, without the keys that are not known."""
    parts = _parts(kind)
    found = {}
    for key in (one.key for one in shape_of(kind).values()):
        if key in data:
            place = f"{where}.{key}" if where else key
            found[key] = _part(parts[key], data[key], place) if key in parts else _value(data[key], place)
    if kind in _CACHE_IDS:
        key, old_key = _CACHE_IDS[kind]
        if key not in data and old_key in data:
            found[key] = _id(data[old_key], f"{where}.{old_key}")
    for key in _CACHE_NAMES.get(kind, ()):
        name = found.get(key)
        if isinstance(name, str) and _ADDRESS.fullmatch(name):
            found[key] = _IDS.name(int(name, 16))
    for key, many in _gauges(kind).items():
        if key in found and not (_all_may_be if many else _may_be)(found[key]):
            found[key] = None
    return found


def _part(kind: type[Struct], value: Any, where: str) -> Any:
    """What should be a part of the model, or an array of that."""
    if isinstance(value, dict):
        return _object(kind, value, where)
    if not isinstance(value, list):
        return _value(value, where)
    return [
        _object(kind, one, f"{where}[{index}]") if isinstance(one, dict) else _safe(one)
        for index, one in enumerate(value)
    ]


def _value(value: Any, where: str) -> Any:
    """Strings are escaped as `printable` does it."""
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, list):
        return list(map(_safe, value))
    if isinstance(value, dict):
        return {_text(name, f"{where}.{name}"): _safe(one) for name, one in value.items()}
    return value


def _safe(value: Any) -> Any:
    """A string where none belongs may be one that msgspec cannot refuse, because it is no UTF-8."""
    return printable(value) if isinstance(value, str) else value


def _text(text: str, where: str) -> str:
    try:
        return printable(unprintable(text))
    except ValueError:
        refuse(where, r"text with escapes such as \x80, \n or \\", text)


def _id(address: Any, where: str) -> str | None:
    if address is None:
        return None
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        # What it is instead is not shown: it may be most of an address.
        raise UsageError(f"{where}: expected an address of 64 bits, got something else")
    return _IDS[int(address, 16)]


def _may_be(gauge: Any) -> bool:
    """Not what an older release took for a number."""
    return type(gauge) is not int or 0 <= gauge < GAUGE_END or not LEAST <= gauge <= MOST


def _all_may_be(gauges: Any) -> bool:
    return not isinstance(gauges, dict) or all(map(_may_be, gauges.values()))


def refuse(where: str, expected: str, got: object) -> NoReturn:
    """Raise the UsageError for `where`, with the beginning of what is there."""
    text = repr(got)
    shown = text if len(text) <= _PREVIEW_CHARS else text[:_PREVIEW_CHARS] + "..."
    raise UsageError(f"{where}: expected {expected}, got {shown}")


@cache
def _gauges(kind: type[Struct]) -> Mapping[str, bool]:
    """Keys of what is bytes or references now, and may have been below 0 in an older release; whether of many."""
    return {one.key: _has(one.type, Mapping[str, Gauge]) for one in shape_of(kind).values() if _has(one.type, Gauge)}


@cache
def _parts(kind: type[Struct]) -> Mapping[str, type[Struct]]:
    """Keys of what is part of the model itself, or an array of that."""
    found = {}
    for one in shape_of(kind).values():
        structs = [part for part in _within(one.type) if isinstance(part, type) and issubclass(part, Struct)]
        if structs:
            found[one.key] = structs[0]
    return found


def _has(hint: Any, wanted: Any) -> bool:
    return hint == wanted or any(_has(part, wanted) for part in get_args(hint))


def _within(hint: Any) -> list[Any]:
    return [hint, *(part for inner in get_args(hint) for part in _within(inner))]
