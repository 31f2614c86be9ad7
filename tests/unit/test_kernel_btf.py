# SPDX-License-Identifier: GPL-2.0-only
"""BTF: against bpftool on the running kernel, and on small hand-made type data for what this kernel may not have."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.errors import UnsupportedError
from kmemwatch.kernel import btf
from kmemwatch.kernel import members as layout
from kmemwatch.kernel.btf import Btf, find_anonymous_constant
from tests.needs import BPFTOOL

# bpftool


class Reference:
    """The running kernel's types as bpftool prints them."""

    def __init__(self) -> None:
        command = [BPFTOOL or "bpftool", "-j", "btf", "dump", "file", str(btf.VMLINUX)]
        done = subprocess.run(command, capture_output=True, check=True)
        types = json.loads(done.stdout)["types"]
        self.by_id: dict[int, dict[str, Any]] = {entry["id"]: entry for entry in types}
        self.by_name: dict[tuple[str, str], dict[str, Any]] = {}
        for entry in types:
            self.by_name.setdefault((entry["kind"], entry["name"]), entry)

    def offset_bytes(self, struct: str, path: str) -> int | None:
        """Offset of a member as bpftool has it; None when there is none or it is a bit field."""
        entry = self.by_name.get(("STRUCT", struct))
        bits = 0
        for name in path.split("."):
            found = None if entry is None else self._member(entry, name)
            if found is None:
                return None
            bits += found[0]
            entry = self._plain(found[1])
        return None if bits % 8 else bits // 8

    def _member(self, entry: dict[str, Any], name: str) -> tuple[int, int] | None:
        for member in entry.get("members", ()):
            if member["name"] == name:
                return member["bits_offset"], member["type_id"]
            if member["name"] == "(anon)":
                inner = self._member(self._plain(member["type_id"]), name)
                if inner is not None:
                    return member["bits_offset"] + inner[0], inner[1]
        return None

    def _plain(self, type_id: int) -> dict[str, Any]:
        entry = self.by_id.get(type_id, {})
        while entry.get("kind") in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG", "ARRAY"):
            entry = self.by_id.get(entry["type_id"], {})
        return entry


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def vmlinux() -> Iterator[Btf]:
    with Btf() as found:
        yield found


MEMBERS = sorted({member for alternatives in layout.MEMBERS.values() for member in alternatives})
MORE_MEMBERS = [
    ("task_struct", "se.vruntime"), ("task_struct", "comm"), ("task_struct", "mm"), ("mm_struct", "pgd"),
    ("inode", "i_sb"), ("dentry", "d_name.name"), ("file", "f_op"), ("super_block", "s_id"), ("sk_buff", "len"),
    ("list_head", "prev"), ("css_set", "dfl_cgrp"), ("net_device", "name"), ("zone", "vm_stat"), ("page", "mapping"),
    ("task_struct", "no_such_member"), ("no_such_struct", "member"), ("list_head", "next.next"),
]  # fmt: skip


@pytest.mark.needs("BTF", "bpftool")
@pytest.mark.parametrize(("struct", "path"), [*MEMBERS, *MORE_MEMBERS], ids=".".join)
def test_offsets_are_bpftool_s(vmlinux: Btf, reference: Reference, struct: str, path: str) -> None:
    found = vmlinux.field(struct, path)
    assert (None if found is None else found.offset_bytes) == reference.offset_bytes(struct, path)


@pytest.mark.needs("BTF", "bpftool")
@pytest.mark.parametrize(
    "struct", ["page", "kmem_cache", "mem_cgroup", "task_struct", "list_head", "slabobj_ext", "nope"]
)
def test_sizes_are_bpftool_s(vmlinux: Btf, reference: Reference, struct: str) -> None:
    entry = reference.by_name.get(("STRUCT", struct))
    assert vmlinux.size(struct) == (entry and entry["size"])


@pytest.mark.needs("BTF", "bpftool")
@pytest.mark.parametrize("enum", [*layout.ENUMS, "zone_type", "pid_type", "bpf_func_id", "nope"])
def test_enums_are_bpftool_s(vmlinux: Btf, reference: Reference, enum: str) -> None:
    entry = reference.by_name.get(("ENUM", enum)) or reference.by_name.get(("ENUM64", enum)) or {"values": []}
    assert vmlinux.enum_values(enum) == {value["name"]: value["val"] for value in entry["values"]}


@pytest.mark.needs("BTF", "bpftool")
@pytest.mark.parametrize("function", ["kfree", "kmem_cache_free", "vfs_read", "mem_cgroup_css_online", "nope"])
def test_functions_are_bpftool_s(vmlinux: Btf, reference: Reference, function: str) -> None:
    entry = reference.by_name.get(("FUNC", function))
    assert (vmlinux.function_id(function) is None) == (entry is None)
    args = vmlinux.function_args(function)
    if entry is None:
        assert args is None
    else:
        assert args is not None
        assert vmlinux.function_id(function) == entry["id"]
        assert len(args) == len(reference.by_id[entry["type_id"]]["params"])


@pytest.mark.needs("BTF", "bpftool")
@pytest.mark.parametrize("tracepoint", ["kmem_cache_free", "sched_switch", "cgroup_mkdir", "nope"])
def test_tracepoints_are_bpftool_s(vmlinux: Btf, reference: Reference, tracepoint: str) -> None:
    entry = reference.by_name.get(("TYPEDEF", f"btf_trace_{tracepoint}"))
    args = vmlinux.tracepoint_args(tracepoint)
    if entry is None:
        assert args is None
    else:
        pointer = reference.by_id[entry["type_id"]]
        assert args is not None
        assert len(args) == len(reference.by_id[pointer["type_id"]]["params"]) - 1


@pytest.mark.needs("BTF", "bpftool")
@pytest.mark.parametrize(("constant", "family"), [("BPF_F_LOCK", "BPF_"), ("___GFP_ACCOUNT_BIT", "___GFP_")])
def test_a_constant_of_an_enum_without_a_name_is_bpftool_s(reference: Reference, constant: str, family: str) -> None:
    values = {
        value["name"]: value["val"]
        for entry in reference.by_id.values()
        if entry["kind"] == "ENUM" and entry["name"] == "(anon)"
        for value in entry["values"]
    }
    found = find_anonymous_constant(constant, family)
    if constant == "BPF_F_LOCK":  # BPF_ANY 0, BPF_NOEXIST 1, BPF_EXIST 2, BPF_F_LOCK 4: not beside its predecessor
        assert found is None
    else:
        assert found == values.get(constant)


@pytest.mark.needs("BTF")
def test_spelling_of_arguments(vmlinux: Btf) -> None:
    assert vmlinux.function_args("kmem_cache_free") == ("kmem_cache *", "void *")
    assert (vmlinux.tracepoint_args("kfree") or ())[1] == "void *"


# Hand-made


INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, ENUM64 = 1, 2, 3, 4, 5, 6, 8, 10, 19


class Maker:
    """Writes BTF: a header, types, names."""

    def __init__(self) -> None:
        self.names = bytearray(b"\0")
        self.types = bytearray()
        self.number = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return len(self.names) - len(text) - 1

    def add(self, kind: int, name: str, size_or_type: int, body: bytes = b"", vlen: int = 0, flag: int = 0) -> int:
        self.types += struct.pack("=III", self.name(name), flag << 31 | kind << 24 | vlen, size_or_type) + body
        self.number += 1
        return self.number

    def integer(self, name: str, size: int) -> int:
        return self.add(INT, name, size, struct.pack("=I", size * 8))

    def aggregate(self, kind: int, name: str, size: int, members: Sequence[tuple[str, int, int]], flag: int = 0) -> int:
        """`members`: name, type, offset in bits (with `flag`: and the size of the bit field in the high byte)."""
        body = b"".join(struct.pack("=III", self.name(text), type_id, offset) for text, type_id, offset in members)
        return self.add(kind, name, size, body, len(members), flag)

    def write(self, path: Path) -> Path:
        header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.names))
        path.write_bytes(header + self.types + self.names)
        return path


def test_members_of_a_hand_made_struct(tmp_path: Path) -> None:
    maker = Maker()
    u64, u32 = maker.integer("long", 8), maker.integer("int", 4)
    array = maker.add(ARRAY, "", 0, struct.pack("=III", u64, u32, 7))
    pointer = maker.add(PTR, "", u64)
    const = maker.add(CONST, "", pointer)
    typedef = maker.add(TYPEDEF, "alias_t", const)
    inner = maker.aggregate(STRUCT, "", 16, [("deep", u64, 64)])
    union = maker.aggregate(UNION, "", 16, [("", inner, 0), ("other", u32, 0)])
    element = maker.aggregate(STRUCT, "element", 16, [("barn", pointer, 0), ("node", pointer, 64)])
    elements = maker.add(ARRAY, "", 0, struct.pack("=III", element, u32, 3))
    maker.aggregate(
        STRUCT,
        "outer",
        200,
        [("first", u32, 0), ("", union, 64), ("array", array, 192), ("alias", typedef, 640), ("nodes", elements, 704)],
    )
    bits = [("low", u32, 3 << 24 | 0), ("high", u32, 5 << 24 | 3), ("whole", u32, 32)]
    maker.aggregate(STRUCT, "fields", 8, bits, flag=1)
    with Btf(maker.write(tmp_path / "btf")) as found:
        assert found.field("outer", "deep") == btf.StructMember(16, 8, None, False)
        assert found.field("outer", "other") == btf.StructMember(8, 4, None, False)
        assert found.field("outer", "array") == btf.StructMember(24, 56, 7, False)
        assert found.field("outer", "alias") == btf.StructMember(80, 8, None, True)
        assert found.field("outer", "nodes.node") == btf.StructMember(96, 8, None, True)
        assert found.field("fields", "whole") == btf.StructMember(4, 4, None, False)
        assert found.field("fields", "high") is None, "no byte address leads to it"
        assert found.field("outer", "first.x") is None
        assert found.size("outer") == 200
        assert found.size("element") == 16
        assert found.function_args("outer") is None


def test_enums_of_both_sizes(tmp_path: Path) -> None:
    maker = Maker()
    constants = [("MINUS", -1), ("ZERO", 0), ("BIG", 2**31 - 1)]
    body = b"".join(struct.pack("=Ii", maker.name(name), value) for name, value in constants)
    maker.add(ENUM, "small", 4, body, 3, flag=1)
    wide = [("LOW", 5), ("WIDE", 0x1234_5678_9ABC_DEF0)]
    body = b"".join(struct.pack("=III", maker.name(name), value & 0xFFFFFFFF, value >> 32) for name, value in wide)
    maker.add(ENUM64, "wide", 8, body, 2)
    with Btf(maker.write(tmp_path / "btf")) as found:
        assert found.enum_values("small") == dict(constants)
        assert found.enum_value("wide", "WIDE") == 0x1234_5678_9ABC_DEF0
        assert found.enum_value("wide", "MISSING") is None
        assert found.enum_values("missing") == {}


@pytest.mark.parametrize("decoy", [False, True])
def test_an_anonymous_constant_is_told_from_chance(tmp_path: Path, decoy: bool) -> None:
    maker = Maker()
    maker.integer("int", 4)
    names = ["___GFP_A_BIT", "___GFP_B_BIT", "___GFP_ACCOUNT_BIT", "___GFP_LAST_BIT"]
    offsets = [maker.name(name) for name in names]
    if decoy:  # the same number as a member's name, before the enum
        maker.types += struct.pack("=III", maker.name("decoy"), STRUCT << 24 | 1, 8)
        maker.types += struct.pack("=III", offsets[2], 1, 0)
    body = b"".join(struct.pack("=Ii", offset, 20 + index) for index, offset in enumerate(offsets))
    maker.add(ENUM, "", 4, body, 4)
    path = maker.write(tmp_path / "btf")
    assert find_anonymous_constant("___GFP_ACCOUNT_BIT", "___GFP_", path) == 22
    assert find_anonymous_constant("___GFP_ACCOUNT_BIT", "___OTHER_", path) is None
    assert find_anonymous_constant("___GFP_NONE_BIT", "___GFP_", path) is None
    assert find_anonymous_constant("___GFP_ACCOUNT_BIT", "___GFP_", tmp_path / "missing") is None


def test_a_kernel_without_btf(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no BTF type information") as caught:
        Btf(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"no BTF at all", b"\x9f\xeb\x01\x00" + bytes(3)])
def test_broken_btf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinux").write_bytes(content)
    with pytest.raises(UnsupportedError, match="BTF cannot be read"):
        Btf(tmp_path / "vmlinux")


def test_broken_btf_has_no_anonymous_constants(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\x9f\xeb")
    assert find_anonymous_constant("A", "A", tmp_path / "short") is None


def test_the_tool_is_where_it_is_looked_for() -> None:
    assert BPFTOOL is None or shutil.which(BPFTOOL)
