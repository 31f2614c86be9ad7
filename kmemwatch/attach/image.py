# SPDX-License-Identifier: GPL-2.0-only
"""A start that worked, as data: maps, programs with their instructions, what was told to the parent.

`take` makes it after a cold start, `start` attaches the same again, without compiler, BTF or symbols.
"""

from __future__ import annotations

import binascii
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kmemwatch.kernel import bpf_calls, cgroupfs, libbpf

if TYPE_CHECKING:  # heavy, and a warm start does without
    from kmemwatch.attach.load import Loaded, LoadedProgram

_LOAD_64 = 0x18
"""``BPF_LD | BPF_IMM | BPF_DW``: takes two instructions; its source register says what the number is."""
_MAP_FD = 1
"""``BPF_PSEUDO_MAP_FD``."""
_INSTRUCTION = struct.Struct("=BBhi")
_TRACING = ("fentry", "fexit")
_UNIX_MODULE = Path("/sys/module/unix/initstate")
"""Only there when AF_UNIX is a module; its cache, which leads us to all others, then comes and goes with it."""


class Started(NamedTuple):
    """What goes to the parent."""

    manifest: Mapping[str, Any]
    descriptors: Sequence[int]


def map_references(code: bytes) -> Iterator[tuple[int, int]]:
    """(offset in bytes, descriptor) of every place where instructions speak of a map.

    Raises ValueError for what else would have to be translated: nothing that the compiler makes of bpf/ has it.
    """
    offset = 0
    while offset < len(code):
        opcode, registers, _, value = _INSTRUCTION.unpack_from(code, offset)
        source = registers >> 4 if sys.byteorder == "little" else registers & 15
        if opcode == _LOAD_64 and source == _MAP_FD:
            yield offset, value
        elif opcode == _LOAD_64 and source:
            raise ValueError(f"instruction {offset // 8}: a reference of kind {source}")
        offset += 16 if opcode == _LOAD_64 else 8


def translate(code: bytes, values: Mapping[int, int]) -> bytes:
    """The same instructions with other descriptors. Raises KeyError when one has no counterpart."""
    translated = bytearray(code)
    for offset, value in map_references(code):
        struct.pack_into("=i", translated, offset + 4, values[value])
    return bytes(translated)


def take(loaded: Loaded, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The image, for JSON; None when another start might find more than this one did.

    Raises OSError when the kernel does not tell about its maps, ValueError and KeyError for unknown instructions.
    """
    told = loaded.manifest
    # Caches that were not found may be found next time.
    if told.facts.shortage or told.learn_error or loaded.may_do_better:
        return None
    if _UNIX_MODULE.exists():
        return None
    places = {handle.fd: index for index, handle in enumerate(told.maps)}
    return {
        "maps": [bpf_calls.map_definition(handle.fd) for handle in told.maps],
        "programs": list(_programs(loaded.programs, places)),
        "manifest": manifest,
    }


def _programs(programs: Sequence[LoadedProgram], places: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    ids = _function_ids([program.target for program in programs if program.kind in _TRACING])
    for program in programs:
        yield {
            "kind": program.kind,
            "target": program.target,
            "name": bpf_calls.program_name(program.fd),
            "function_id": ids[program.target] if program.kind in _TRACING else 0,
            # Numbers of maps where descriptors were.
            "code": binascii.b2a_base64(translate(program.code, places), newline=False).decode(),
        }


def _function_ids(functions: Sequence[str]) -> dict[str, int]:
    if not functions:
        return {}
    from kmemwatch.kernel.btf import Btf

    with Btf() as btf:
        return {name: btf.function_id(name) or 0 for name in functions}


def start(image: Mapping[str, Any]) -> Started:
    """Make the maps, load the programs, attach them. Raises OSError when the kernel does not take one; then, and for
    an image that is not one, nothing stays."""
    manifest = image["manifest"]
    hierarchy = manifest["facts"]["hierarchy"]
    if hierarchy is not None:
        # As on a cold start: who makes the maps is charged for them, and the root memcg is charged nothing.
        cgroupfs.join_root(cgroupfs.Hierarchy(**hierarchy))
    made: list[int] = []
    try:
        maps = [_keep(made, bpf_calls.create_map(*definition)) for definition in image["maps"]]
        _set_page_base(manifest, maps)
        programs = [_keep(made, _load(program, maps)) for program in image["programs"]]
        links = [
            _keep(made, bpf_calls.attach(fd, program["kind"], program["target"]))
            for program, fd in zip(image["programs"], programs, strict=True)
            if program["kind"] != "test_run"
        ]
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return Started(manifest, [*programs, *maps, *links])


def _keep(made: list[int], fd: int) -> int:
    made.append(fd)
    return fd


def _set_page_base(manifest: Mapping[str, Any], maps: Sequence[int]) -> None:
    """Before anything is attached: objects are found through their pages from the first one on."""
    base = manifest["page_base"]
    for handle, fd in zip(manifest["maps"], maps, strict=True):
        if handle["name"] == "page_base" and base:
            value = base.to_bytes(8, sys.byteorder)
            failed = libbpf.library().bpf_map_update_elem(fd, bytes(4), value, 0)
            if failed < 0:
                raise OSError(-failed, "page_base")


def _load(program: Mapping[str, Any], maps: Sequence[int]) -> int:
    kind, attach_type = bpf_calls.LOADS[program["kind"]]
    code = translate(binascii.a2b_base64(program["code"]), dict(enumerate(maps)))
    return bpf_calls.load_program(kind, program["name"], code, attach_type, program["function_id"])
