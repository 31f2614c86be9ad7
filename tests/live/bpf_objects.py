# SPDX-License-Identifier: GPL-2.0-only
"""Which BPF programs the kernel has loaded, asked of the kernel itself, and which kprobes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from kmemwatch.kernel import libbpf

_NAME_OFFSET, _NAME_BYTES = 64, 16
"""``bpf_prog_info.name``."""
KPROBE_EVENTS = Path("/sys/kernel/tracing/kprobe_events")


def loaded_programs() -> dict[int, str]:
    """id -> name (15 characters at most) of every BPF program on this machine."""
    lib = ctypes.CDLL(libbpf.library()._name, use_errno=True)
    found = {}
    at, following = 0, ctypes.c_uint32()
    while lib.bpf_prog_get_next_id(ctypes.c_uint32(at), ctypes.byref(following)) == 0:
        at = following.value
        fd = lib.bpf_prog_get_fd_by_id(ctypes.c_uint32(at))
        if fd < 0:
            continue  # it went away in between
        info = ctypes.create_string_buffer(256)
        size = ctypes.c_uint32(len(info))
        if lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) == 0:
            found[at] = info.raw[_NAME_OFFSET : _NAME_OFFSET + _NAME_BYTES].split(b"\0")[0].decode()
        os.close(fd)
    return found


def kprobe_events() -> str:
    """Kprobes that were made through tracefs and would stay; empty where there are none."""
    try:
        return KPROBE_EVENTS.read_text()
    except OSError:
        return ""
