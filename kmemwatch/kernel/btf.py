# SPDX-License-Identifier: GPL-2.0-only
"""Offsets, sizes and enum values of the running kernel, from its BTF (BPF Type Format).

The kernel's own description of its types replaces headers: neither this module nor the BPF programs have a copy of a
kernel struct.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kmemwatch.errors import UnsupportedError, raise_if_shortage
from kmemwatch.kernel import libbpf

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_KIND_PTR, _KIND_ARRAY, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM = 2, 3, 4, 5, 6
_KIND_TYPEDEF, _KIND_VOLATILE, _KIND_CONST, _KIND_RESTRICT = 8, 9, 10, 11
_KIND_FUNC, _KIND_FUNC_PROTO, _KIND_TYPE_TAG, _KIND_ENUM64 = 12, 13, 18, 19
_QUALIFIERS = (_KIND_TYPEDEF, _KIND_VOLATILE, _KIND_CONST, _KIND_RESTRICT, _KIND_TYPE_TAG)
_AGGREGATES = (_KIND_STRUCT, _KIND_UNION)


class _Type(ctypes.Structure):
    """``struct btf_type``; what follows it in memory depends on its kind."""

    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32))

    @property
    def kind(self) -> int:
        return (int(self.info) >> 24) & 0x1F

    @property
    def vlen(self) -> int:
        return int(self.info) & 0xFFFF

    @property
    def bitfields(self) -> bool:
        return bool(int(self.info) >> 31)


class _Member(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class _Array(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint32), ("index_type", ctypes.c_uint32), ("nelems", ctypes.c_uint32))


class _Param(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32))


class _Enum(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("val", ctypes.c_int32))


class _Enum64(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("lo", ctypes.c_uint32), ("hi", ctypes.c_uint32))


class NoBtfError(UnsupportedError):
    """The kernel was built without BTF, or is older than BTF."""


def _unreadable(path: Path, error: OSError) -> UnsupportedError:
    """The error for a file that cannot be read. Raises ShortageError when that is only a shortage."""
    raise_if_shortage(error, str(path))
    return UnsupportedError(f"{path}: {error.strerror}: BTF cannot be read")


@dataclass(frozen=True, slots=True)
class StructMember:
    """Place and type of a member of a kernel struct."""

    offset_bytes: int
    size_bytes: int
    elements: int | None
    """Length of an array member; None for anything else."""
    pointer: bool
    """The member is a pointer, not the thing itself."""


class Btf:
    """Type information of one kernel. Use it as a context manager: it holds some 6 MB of C memory."""

    def __init__(self, path: Path = VMLINUX) -> None:
        """Read BTF from `path`. Raises NoBtfError when the kernel has none, UnsupportedError when it cannot be read."""
        self._lib = libbpf.library()
        try:
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoBtfError(
                f"{path}: this kernel has no BTF type information",
                hint="kmemwatch needs a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        self._btf = self._lib.btf__parse(str(path).encode(), None)
        if not self._btf:
            number = ctypes.get_errno()
            raise _unreadable(path, OSError(number, libbpf.error_text(number)))
        self._ids: dict[tuple[str, int], int | None] = {}

    def __enter__(self) -> Btf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the C memory; the object must not be used afterwards."""
        if self._btf:
            self._lib.btf__free(self._btf)
            self._btf = None

    def function_id(self, name: str) -> int | None:
        """BTF id of a function; None when BTF does not know it."""
        return self._find(name, _KIND_FUNC)

    def size(self, struct: str) -> int | None:
        """``sizeof(struct ...)`` in bytes; None when there is no such struct."""
        found = self._find(struct, _KIND_STRUCT)
        return None if found is None else self._type(found)[0].size_or_type

    def field(self, struct: str, path: str) -> StructMember | None:
        """Member `path` ("a.b.c", anonymous structs left out) of ``struct``; None when there is none.

        A path that continues behind an array goes through its first element.
        """
        type_id = self._find(struct, _KIND_STRUCT)
        offset_bits = 0
        for name in path.split("."):
            if type_id is None:
                return None
            member = self._member(self._element(type_id), name)
            if member is None:
                return None
            offset_bits += member[0]
            type_id = member[1]
        assert type_id is not None
        if offset_bits % 8:
            return None  # a bit field: no byte address to read from
        kind, address = self._type_of(self._strip(type_id))
        elements = None
        if kind == _KIND_ARRAY:
            elements = int(_Array.from_address(address + ctypes.sizeof(_Type)).nelems)
        size = int(self._lib.btf__resolve_size(self._btf, type_id))
        return StructMember(offset_bits // 8, size, elements, kind == _KIND_PTR)

    def function_args(self, name: str) -> tuple[str, ...] | None:
        """Argument types of a function, for example ``("kmem_cache *", "gfp_t")``; None when it is not in BTF."""
        found = self._find(name, _KIND_FUNC)
        if found is None:
            return None
        return self._args(self._type(found)[0].size_or_type)

    def tracepoint_args(self, name: str) -> tuple[str, ...] | None:
        """Types of ``ctx->args`` of a raw tracepoint program; None when there is no such tracepoint."""
        # Every tracepoint has a typedef of the prototype of its probe, whose first argument is the probe's own data.
        found = self._find(f"btf_trace_{name}", _KIND_TYPEDEF)
        if found is None:
            return None
        pointer, _ = self._type(self._strip(found))
        return self._args(pointer.size_or_type)[1:]

    def _args(self, proto_id: int) -> tuple[str, ...]:
        head, address = self._type(proto_id)
        assert head.kind == _KIND_FUNC_PROTO
        first = address + ctypes.sizeof(_Type)
        params = [_Param.from_address(first + i * ctypes.sizeof(_Param)) for i in range(head.vlen)]
        return tuple(self._spell(param.type) for param in params)

    def _spell(self, type_id: int) -> str:
        """A type as C writes it, without struct, const and volatile."""
        if type_id == 0:
            return "void"
        head, _ = self._type(type_id)
        if head.kind == _KIND_PTR:
            return f"{self._spell(head.size_or_type)} *"
        if head.kind in (_KIND_CONST, _KIND_VOLATILE, _KIND_RESTRICT, _KIND_TYPE_TAG):
            return self._spell(head.size_or_type)
        return self._name(head.name_off) or "(unnamed)"

    def enum_value(self, enum: str, constant: str) -> int | None:
        """Value of `constant` of ``enum``; None when either does not exist."""
        return self.enum_values(enum).get(constant)

    def enum_values(self, enum: str) -> dict[str, int]:
        """All constants of ``enum``; empty when there is no such enum."""
        for kind, entry in ((_KIND_ENUM, _Enum), (_KIND_ENUM64, _Enum64)):
            found = self._find(enum, kind)
            if found is not None:
                return dict(self._constants(found, entry))
        return {}

    def _constants(self, type_id: int, entry: type[_Enum] | type[_Enum64]) -> Iterator[tuple[str, int]]:
        head, address = self._type(type_id)
        for index in range(head.vlen):
            item = entry.from_address(address + ctypes.sizeof(_Type) + index * ctypes.sizeof(entry))
            yield self._name(item.name_off), item.val if isinstance(item, _Enum) else item.hi << 32 | item.lo

    def _find(self, name: str, kind: int) -> int | None:
        key = (name, kind)
        if key not in self._ids:
            found = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
            self._ids[key] = found if found > 0 else None
        return self._ids[key]

    def _type(self, type_id: int) -> tuple[_Type, int]:
        address = self._lib.btf__type_by_id(self._btf, type_id)
        return _Type.from_address(address), address

    def _type_of(self, type_id: int) -> tuple[int, int]:
        head, address = self._type(type_id)
        return head.kind, address

    def _strip(self, type_id: int) -> int:
        while True:
            head, _ = self._type(type_id)
            if head.kind not in _QUALIFIERS:
                return type_id
            type_id = head.size_or_type

    def _element(self, type_id: int) -> int:
        """The type without qualifiers; for an array, the type of its elements."""
        stripped = self._strip(type_id)
        kind, address = self._type_of(stripped)
        if kind != _KIND_ARRAY:
            return stripped
        return self._element(int(_Array.from_address(address + ctypes.sizeof(_Type)).type))

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """(offset in bits, type id) of a member, looking into anonymous structs and unions."""
        head, address = self._type(type_id)
        if head.kind not in _AGGREGATES:
            return None
        for index in range(head.vlen):
            member = _Member.from_address(address + ctypes.sizeof(_Type) + index * ctypes.sizeof(_Member))
            offset_bits = member.offset & 0xFFFFFF if head.bitfields else member.offset
            if member.name_off == 0:
                inner = self._member(self._strip(member.type), name)
                if inner is not None:
                    return offset_bits + inner[0], inner[1]
            elif self._name(member.name_off) == name:
                return offset_bits, member.type
        return None

    def _name(self, offset: int) -> str:
        text: bytes | None = self._lib.btf__name_by_offset(self._btf, offset)
        return text.decode() if text else ""


def find_anonymous_constant(constant: str, family: str, path: Path = VMLINUX) -> int | None:
    """Value of `constant` in an enum without a name whose constants all begin with `family`; None when absent.

    libbpf finds types by name only, and walking 100,000 types through ctypes would take too long for a start. So this
    looks for the entry's own bytes, and accepts them only behind an entry of the same family with the value before it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise_if_shortage(error, str(path))
        return None
    if len(raw) < _HEADER.size:
        return None
    header_bytes, type_off, type_len, str_off, str_len = _HEADER.unpack_from(raw)
    types = raw[header_bytes + type_off : header_bytes + type_off + type_len]
    names = raw[header_bytes + str_off : header_bytes + str_off + str_len]
    name_off = names.find(b"\0" + constant.encode() + b"\0") + 1
    if name_off == 0:
        return None
    at = types.find(name_off.to_bytes(4, "little"), 8)
    while 0 <= at <= len(types) - 8:
        before_name, before_value, _, value = _TWO_ENTRIES.unpack_from(types, at - 8)
        if at % 4 == 0 and value == before_value + 1 and names[before_name:].startswith(family.encode()):
            return int(value)
        at = types.find(name_off.to_bytes(4, "little"), at + 1)
    return None


_HEADER = struct.Struct("<4xIIIII")
"""``struct btf_header`` from hdr_len on."""
_TWO_ENTRIES = struct.Struct("<IiIi")
