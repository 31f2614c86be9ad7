# SPDX-License-Identifier: GPL-2.0-only
"""Which BPF programs, maps and links the kernel has, and which kprobes: asked of the kernel itself."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from kmemwatch.kernel import libbpf
from kmemwatch.kernel.bpf_calls import ProgramInfo, program_info

KPROBE_EVENTS = Path("/sys/kernel/tracing/kprobe_events")
KPROBE_LIST = Path("/sys/kernel/debug/kprobes/list")
KINDS = ("prog", "map", "link")


@cache
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(libbpf.library()._name, use_errno=True)
    for kind in KINDS:
        getattr(lib, f"bpf_{kind}_get_next_id").argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    lib.bpf_prog_get_fd_by_id.argtypes = [ctypes.c_uint32]
    lib.bpf_task_fd_query.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint32, *[ctypes.c_void_p] * 6]
    return lib


def loaded(kind: str) -> set[int]:
    """ids of all BPF objects of one of KINDS on this machine."""
    following_id = getattr(_library(), f"bpf_{kind}_get_next_id")
    found: set[int] = set()
    at, following = 0, ctypes.c_uint32()
    while following_id(at, ctypes.byref(following)) == 0:
        at = following.value
        found.add(at)
    return found


def loaded_programs() -> dict[int, ProgramInfo]:
    """id -> program, of every program on this machine."""
    found = {}
    for number in loaded("prog"):
        fd = _library().bpf_prog_get_fd_by_id(number)
        if fd < 0:
            continue  # it went away in between
        try:
            found[number] = program_info(fd)
        finally:
            os.close(fd)
    return found


def program_id(program_fd: int) -> int:
    """The id of a program that this process has open."""
    return program_info(program_fd).id


def attached_by(pid: int) -> dict[int, str]:
    """id -> tracepoint or function of every program that process `pid` holds attached, fentry and its like excepted."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        name = ctypes.create_string_buffer(128)
        length, number, kind = ctypes.c_uint32(len(name)), ctypes.c_uint32(), ctypes.c_uint32()
        offset, address = ctypes.c_uint64(), ctypes.c_uint64()
        rest = [ctypes.byref(out) for out in (length, number, kind, offset, address)]
        if _library().bpf_task_fd_query(pid, int(entry.name), 0, name, *rest) == 0:
            found[number.value] = name.value.decode()
    return found


def kprobe_events() -> str:
    """Kprobes that were made through tracefs and would stay; empty where there are none."""
    return _text(KPROBE_EVENTS)


def kprobe_list() -> list[str]:
    """All kprobes of the kernel, however they were made; empty where there are none."""
    return sorted(_text(KPROBE_LIST).splitlines())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
