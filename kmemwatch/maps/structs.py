# SPDX-License-Identifier: GPL-2.0-only
"""Reads structs, enums, numbers and maps from the files of bpf/: what both sides need is declared in C only.

Every member is at its natural alignment without padding, so members that are packed one after the other have the
compiler's layout; `decode.check_sizes` compares the sizes with the compiler's.
"""

from __future__ import annotations

import importlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from kmemwatch.errors import KmemwatchError

_TYPES = {"u8": "B", "u32": "I", "s32": "i", "u64": "Q", "s64": "q", "int": "i", "char": "s"}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.DOTALL | re.MULTILINE)
_MEMBER = re.compile(r"^(?:struct (\w+)|(\w+)) (\w+)(?:\[(\w+)\])?$")
_ENUM = re.compile(r"^enum (\w+) \{(.*?)\};", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"^#define (\w+) (0x[0-9A-F]+|\d+)(?:ULL)?\s*$", re.MULTILINE)
_MAP = re.compile(r"^BPF_(\w+)\(([^)]*)\);", re.MULTILINE)
_MAP_ARGUMENTS = {  # kind -> places of the map's name and of the type of its values
    "F_TABLE": (3, 2),
    "ARRAY": (0, 1),
    "PERCPU_ARRAY": (0, 1),
    "HASH": (0, 2),
    "PERCPU_HASH": (0, 2),
}


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    """For a member of an inner struct: ``event.kind``."""
    code: str
    """Format of Python's `struct`, with the number of elements before it."""
    element_bytes: int


class StructLayout:
    """Some members of a struct of bpf/, by name, in the order that Python asks for, whatever their order in C."""

    def __init__(self, name: str, members: Sequence[Member], wanted: Sequence[str]) -> None:
        """An array gives one value per element; an array of characters gives bytes."""
        self._offsets, at, codes = {}, 0, ["="]
        numbers: dict[str, int] = {}
        for member in members:
            if at % member.element_bytes:
                raise KmemwatchError(f"bpf/: struct {name}: {member.name} is not aligned")
            self._offsets[member.name] = at
            bytes_of_it = struct.calcsize(f"={member.code}")
            if member.name in wanted:
                numbers[member.name] = 1 if member.code.endswith("s") else bytes_of_it // member.element_bytes
            codes.append(member.code if member.name in wanted else f"{bytes_of_it}x")
            at += bytes_of_it
        if unknown := [one for one in wanted if one not in self._offsets]:
            raise KmemwatchError(f"bpf/: struct {name} has no {', '.join(unknown)}")
        self._struct = struct.Struct("".join(codes))
        self.size = at
        """Bytes."""
        first = dict(zip(numbers, accumulate(numbers.values(), initial=0), strict=False))
        self._order = [first[one] + n for one in wanted for n in range(numbers[one])]
        # Nearly always they are wanted in the order of C: then nothing has to be reordered.
        self._is_as_wanted = self._order == sorted(self._order)
        self.words = [self._offsets[one] // 8 + n for one in wanted for n in range(numbers[one])]
        """Index of each value, in words of 8 bytes."""

    def offset(self, member: str) -> int:
        """Offset of a member in bytes."""
        return self._offsets[member]

    def unpack_from(self, raw: Any, offset: int = 0) -> tuple[Any, ...]:
        """The members of the struct at `offset` bytes."""
        return self._pick(self._struct.unpack_from(raw, offset))

    def iter_unpack(self, raw: Any) -> Iterator[tuple[Any, ...]]:
        """The members of each struct in `raw`."""
        rows = self._struct.iter_unpack(raw)
        return rows if self._is_as_wanted else map(self._pick, rows)

    def _pick(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return row if self._is_as_wanted else tuple(row[place] for place in self._order)

    def pack(self, *values: Any) -> bytes:
        """The struct with these values of the wanted members, and 0 in the others."""
        row = [0] * len(self._order)
        for place, value in zip(self._order, values, strict=True):
            row[place] = value
        return self._struct.pack(*row)


def layout(name: str, *wanted: str) -> StructLayout:
    """``struct NAME``. Raises KmemwatchError when bpf/ has no such struct or member."""
    return StructLayout(name, _members(name), wanted)


def numbers(enum: str, prefix: str, but: str | None = None) -> dict[str, int]:
    """Enumerator of ``enum ENUM``, without its prefix and in small letters -> its number.

    `but`: the last enumerator, which is the number of the others. Raises KmemwatchError for another prefix.
    """
    found = dict(_enums().get(enum, {}))
    if not found or (but is not None and list(found)[-1] != but):
        raise KmemwatchError(f"bpf/: there is no enum {enum} that ends with {but or 'a value'}")
    if but is not None:
        del found[but]
    if strange := [name for name in found if not name.startswith(prefix)]:
        raise KmemwatchError(f"bpf/: enum {enum}: {', '.join(strange)}: no name that begins with {prefix}")
    return {name.removeprefix(prefix).lower(): number for name, number in found.items()}


def names(enum: str, prefix: str, but: str | None = None) -> tuple[str, ...]:
    """As `numbers`, but a tuple whose indices are the numbers. Raises KmemwatchError for an enum with gaps."""
    found = numbers(enum, prefix, but)
    if list(found.values()) != list(range(len(found))):
        raise KmemwatchError(f"bpf/: enum {enum} is no index")
    return tuple(found)


def constant(name: str) -> int:
    """Value of a macro or an enumerator that is the same on every kernel. Raises KmemwatchError."""
    if name not in _numbers():
        raise KmemwatchError(f"bpf/: {name} is not declared")
    return _numbers()[name]


def value_bytes() -> dict[str, int]:
    """Map -> bytes of one value, for all maps whose values have the same size on every kernel."""
    found = {}
    for name, kind in _maps().items():
        try:
            found[name] = layout(kind.removeprefix("struct ")).size if kind.startswith("struct ") else _size(kind)
        except KeyError:  # its size depends on the kernel
            continue
    return found


def maps_of(files: Iterable[str]) -> dict[str, bool]:
    """Map that these files of bpf/ declare -> whether each CPU has values of its own."""
    found = {}
    for file in files:
        for kind, text in _MAP.findall(_files()[file]):
            name, _ = _MAP_ARGUMENTS.get(kind, (0, 0))
            found[text.split(", ")[name]] = kind.startswith("PERCPU_")
    return found


def _size(kind: str) -> int:
    return struct.calcsize(f"={_TYPES[kind]}")


@cache
def _files() -> Mapping[str, str]:
    """File of bpf/ -> its text without comments."""
    directory = Path(importlib.import_module("kmemwatch.bpf").__path__[0])
    files = sorted([*directory.glob("*.h"), *directory.glob("*.bpf.c")])
    return {file.name: _COMMENT.sub("", file.read_text(encoding="utf-8")) for file in files}


@cache
def _source() -> str:
    """All of bpf/, without comments."""
    return "\n".join(_files().values())


@cache
def _structs() -> Mapping[str, str]:
    return dict(_STRUCT.findall(_source()))


@cache
def _enums() -> Mapping[str, Mapping[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, body in _ENUM.findall(_source()):
        at, values = 0, {}
        for entry in filter(None, (part.strip() for part in body.split(","))):
            enumerator, _, value = entry.partition(" = ")
            at = int(value) if value else at
            values[enumerator] = at
            at += 1
        found[name] = values
    return found


@cache
def _numbers() -> Mapping[str, int]:
    """Macros and enumerators that are the same on every kernel."""
    found = {name: int(value, 0) for name, value in _NUMBER.findall(_source())}
    for values in _enums().values():
        found |= values
    return found


@cache
def _maps() -> Mapping[str, str]:
    """Map -> type of its values."""
    found = {}
    for kind, text in _MAP.findall(_source()):
        if kind in _MAP_ARGUMENTS:
            arguments = text.split(", ")
            name, values = _MAP_ARGUMENTS[kind]
            found[arguments[name]] = arguments[values]
    return found


def _members(name: str) -> list[Member]:
    """Raises KmemwatchError for an unknown struct, KeyError for a size that depends on the kernel."""
    if name not in _structs():
        raise KmemwatchError(f"bpf/: there is no struct {name}")
    members: list[Member] = []
    for line in filter(None, (part.strip() for part in _structs()[name].split(";"))):
        found = _MEMBER.match(line)
        if found is None:
            raise KeyError(line)
        inner, kind, member, number = found.groups()
        count = 1 if number is None else int(number) if number.isdigit() else _numbers()[number]
        if inner is None:
            members.append(Member(member, f"{count if number else ''}{_TYPES[kind]}", _size(kind)))
            continue
        for index in range(count):
            prefix = member if number is None else f"{member}[{index}]"
            members += [replace(one, name=f"{prefix}.{one.name}") for one in _members(inner)]
    return members
