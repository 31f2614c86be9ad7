# SPDX-License-Identifier: GPL-2.0-only
"""Which BPF programs, maps and links the kernel has, and which kprobes: asked of the kernel itself."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kmemwatch.kernel import libbpf

KPROBE_EVENTS = Path("/sys/kernel/tracing/kprobe_events")
KPROBE_LIST = Path("/sys/kernel/debug/kprobes/list")
KINDS = ("prog", "map", "link")
_INSTRUCTION_BYTES = 8


class _ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` up to ``run_cnt``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("insns_to_map_ids", ctypes.c_uint8 * 40),
        ("name", ctypes.c_char * 16),
        ("ifindex_to_verified_insns", ctypes.c_uint8 * 112),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class LoadedProgram:
    """A program, and what the kernel counted since it was loaded."""

    name: str
    """15 characters at most."""
    run_time_ns: int
    run_cnt: int
    length: int
    """BPF instructions, after the verifier has rewritten some."""


@cache
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(libbpf.library()._name, use_errno=True)
    for kind in KINDS:
        getattr(lib, f"bpf_{kind}_get_next_id").argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    lib.bpf_prog_get_fd_by_id.argtypes = [ctypes.c_uint32]
    lib.bpf_obj_get_info_by_fd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
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


def loaded_programs() -> dict[int, LoadedProgram]:
    """id -> program, of every program on this machine."""
    found = {}
    for number in loaded("prog"):
        fd = _library().bpf_prog_get_fd_by_id(number)
        if fd < 0:
            continue  # it went away in between
        try:
            info = _info(fd)
        finally:
            os.close(fd)
        length = info.xlated_prog_len // _INSTRUCTION_BYTES
        found[number] = LoadedProgram(info.name.decode(), info.run_time_ns, info.run_cnt, length)
    return found


def program_id(program_fd: int) -> int:
    """The id of a program that this process has open."""
    return int(_info(program_fd).id)


def _info(program_fd: int) -> _ProgInfo:
    info = _ProgInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    if _library().bpf_obj_get_info_by_fd(program_fd, ctypes.byref(info), ctypes.byref(size)) < 0:
        raise OSError(ctypes.get_errno(), "bpf_prog_info")
    return info


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
