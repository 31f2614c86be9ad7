# SPDX-License-Identifier: GPL-2.0-only
"""Which BPF programs, maps and links the kernel has, and which kprobes: asked of the kernel itself."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from kmemwatch.kernel import libbpf

_NAME_OFFSET, _NAME_BYTES = 64, 16
"""``bpf_prog_info.name``."""
KPROBE_EVENTS = Path("/sys/kernel/tracing/kprobe_events")
KPROBE_LIST = Path("/sys/kernel/debug/kprobes/list")
KINDS = ("prog", "map", "link")


def loaded(kind: str) -> set[int]:
    """ids of all BPF objects of one of KINDS on this machine."""
    following_id = getattr(ctypes.CDLL(libbpf.library()._name, use_errno=True), f"bpf_{kind}_get_next_id")
    found: set[int] = set()
    at, following = 0, ctypes.c_uint32()
    while following_id(ctypes.c_uint32(at), ctypes.byref(following)) == 0:
        at = following.value
        found.add(at)
    return found


def loaded_programs() -> dict[int, str]:
    """id -> name (15 characters at most) of every BPF program on this machine."""
    lib = ctypes.CDLL(libbpf.library()._name, use_errno=True)
    found = {}
    for number in loaded("prog"):
        fd = lib.bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
        if fd < 0:
            continue  # it went away in between
        info = ctypes.create_string_buffer(256)
        size = ctypes.c_uint32(len(info))
        if lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) == 0:
            found[number] = info.raw[_NAME_OFFSET : _NAME_OFFSET + _NAME_BYTES].split(b"\0")[0].decode()
        os.close(fd)
    return found


def kprobe_events() -> str:
    """Kprobes that were made through tracefs and would stay; empty where there are none."""
    return _text(KPROBE_EVENTS)


def kprobe_list() -> list[str]:
    """All kprobes of the kernel, in whatever way they were made; empty where there are none."""
    return sorted(_text(KPROBE_LIST).splitlines())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
