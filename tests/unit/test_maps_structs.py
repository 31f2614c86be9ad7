# SPDX-License-Identifier: GPL-2.0-only
"""Structs and enums as they are read from bpf/: by name, whatever their order, and as the compiler has them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from kmemwatch.attach import load as loader
from kmemwatch.attach import plan as plan_module
from kmemwatch.errors import KmemwatchError
from kmemwatch.maps import structs as layouts
from kmemwatch.maps.decode import check_sizes
from kmemwatch.maps.structs import layout
from tests.unit.fake_source import recorded_facts

SOURCE = """
#define PARTS 2
enum part_kind { PART_ODD = 3, PART_EVEN, PART_KINDS };
struct inner {
	u64 one;   /* bytes */
	u64 two[PARTS];
};
struct outer {
	struct inner first;
	s32 number;
	u32 flags;
	char name[8];
	struct inner more[2];
};
struct crooked {
	u32 small;
	u64 large;
};
struct open {
	u8 bytes[PARTS * PAGE_STRUCT_BYTES];
};
BPF_HASH(outers, u64, struct outer, MAX_PAIRS);
BPF_ARRAY(opens, struct open, 1);
BPF_PERCPU_ARRAY(counts, u64, PART_KINDS);
BPF_F_TABLE("array", int, struct inner, inners, 1, BPF_F_MMAPABLE);
"""
CACHES = (layouts._structs, layouts._enums, layouts._numbers, layouts._maps)


def read_instead(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(layouts, "_source", lambda: layouts._COMMENT.sub("", text))
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for cached in CACHES:
        cached.cache_clear()


def test_members_come_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read_instead(monkeypatch, SOURCE)
    raw = struct.pack("=3QiI8s6Q", 1, 2, 3, -4, 5, b"name", *range(6, 12))
    assert layout("outer", "name", "number", "first.two").unpack_from(b"12" + raw, 2) == (
        b"name".ljust(8, b"\0"),
        -4,
        2,
        3,
    )
    assert list(layout("outer", "first.one", "flags").iter_unpack(raw + raw)) == [(1, 5), (1, 5)]
    assert layout("outer", "more[1].two", "more[0].one").unpack_from(raw) == (10, 11, 6)
    assert layout("outer", "flags", "first.one").pack(5, 1) == struct.pack("=QQQiI8s6Q", 1, 0, 0, 0, 5, b"", *[0] * 6)
    assert (layout("outer").size, layout("outer").offset("flags")) == (88, 28)
    assert layout("inner", "two", "one").words == [1, 2, 0]


def test_a_member_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = layout("pair_key", "cache", "cgroup_id")
    text = layouts._source()
    before, after = "u64 cache;", "u64 cgroup_id;"
    start = text.index("struct pair_key")
    declared = text[start : text.index("};", start)]
    swapped = declared.replace(before, "?").replace(after, before).replace("?", after)
    assert swapped != declared
    read_instead(monkeypatch, text.replace(declared, swapped))
    moved = layout("pair_key", "cache", "cgroup_id")
    assert [one.unpack_from(struct.pack("=QQ", 7, 8)) for one in (key, moved)] == [(7, 8), (8, 7)]
    assert moved.pack(7, 8) == struct.pack("=QQ", 8, 7)


@pytest.mark.parametrize(
    ("name", "wanted", "told"),
    [
        ("nothing", (), "there is no struct nothing"),
        ("inner", ("three",), "struct inner has no three"),
        ("crooked", ("large",), "struct crooked: large is not aligned"),
    ],
)
def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str, wanted: tuple[str, ...], told: str) -> None:
    read_instead(monkeypatch, SOURCE)
    with pytest.raises(KmemwatchError, match=told):
        layout(name, *wanted)


def test_enums(monkeypatch: pytest.MonkeyPatch) -> None:
    read_instead(monkeypatch, SOURCE)
    assert layouts.numbers("part_kind", "PART_", "PART_KINDS") == {"odd": 3, "even": 4}
    for enum, prefix, but in (
        ("part_kind", "P_", "PART_KINDS"),
        ("part_kind", "PART_", "PART_EVEN"),
        ("x", "X_", None),
    ):
        with pytest.raises(KmemwatchError):
            layouts.numbers(enum, prefix, but)
    with pytest.raises(KmemwatchError, match="is no index"):
        layouts.names("part_kind", "PART_", "PART_KINDS")
    assert (layouts.constant("PART_KINDS"), layouts.constant("PARTS")) == (5, 2)
    with pytest.raises(KmemwatchError, match="MISSING is not declared"):
        layouts.constant("MISSING")


def test_values_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    read_instead(monkeypatch, SOURCE)
    assert layouts.value_bytes() == {"outers": 88, "counts": 8, "inners": 24}


def leaf_offsets(leaf: Any) -> dict[str, int]:
    """Member -> offset, as bcc tells what the compiler made of a struct."""
    return {name: getattr(leaf, name).offset for name, *_ in leaf._fields_ if not name.startswith("__")}


@pytest.mark.needs("root", "bcc", "BTF")
def test_every_map_has_the_layout_that_the_compiler_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    chosen = loader.best_only(plan_module.plan(recorded_facts("lab-patched"), latency=True), {})
    module = loader.compiled(chosen, *loader.find_bcc())
    seen = set()
    try:
        for name, kind in layouts._maps().items():
            if not kind.startswith("struct ") or name == "scan_chunk":  # as long as a struct page of this kernel
                continue
            table = module[name.encode()]
            leaf = getattr(table, "sLeaf", table.Leaf)
            ours, theirs = layout(kind.removeprefix("struct ")), leaf_offsets(leaf)
            told = {member: at for member, at in theirs.items() if member in ours._offsets}
            assert {member: ours.offset(member) for member in told} == told, kind
            seen |= {f"{kind}.{member}" for member in told}
            check_sizes({name: ctypes.sizeof(leaf)})
    finally:
        module.cleanup()
    assert {"struct pair_value.count", "struct memcg_record.kmemcg_id", "struct walk_state.done"} <= seen


def test_maps_of_files() -> None:
    assert layouts.maps_of(["maps.h", "hooks.h", "latency.bpf.c"]) == {
        "lost": True,
        "events": False,
        "runs": True,
        "timed": True,
        "latency": True,
    }
    assert layouts.maps_of(["pairs.h", "slab.h"]) == {"pairs": True, "slots": False, "page_base": False}
