# SPDX-License-Identifier: GPL-2.0-only
"""Trial loads: the smallest program of a kind, loaded and dropped at once, tells what no file tells.

For example fentry: a kernel can have BTF, trampolines and ftrace, and still refuse (lockdown, a hardened build).
"""

from __future__ import annotations

import ctypes
import os
import struct

from kmemwatch.kernel import libbpf
from kmemwatch.kernel.btf import Btf

_BPF_PROG_TYPE_TRACING = 26
_BPF_TRACE_FENTRY = 24
_RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""``r0 = 0; exit``"""


class _ProgLoadOpts(ctypes.Structure):
    """``struct bpf_prog_load_opts`` of libbpf 1.0, in full."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


def fentry(btf: Btf, function: str = "kfree") -> tuple[bool | None, str | None]:
    """(it loads, why not). None: could not be tried, which says nothing about the kernel."""
    lib = libbpf.library()
    function_id = btf.function_id(function)
    if function_id is None:
        return False, f"BTF has no function {function}"
    if not libbpf.has("bpf_prog_load") or os.geteuid() != 0:
        return None, None
    opts = _ProgLoadOpts(
        sz=ctypes.sizeof(_ProgLoadOpts), expected_attach_type=_BPF_TRACE_FENTRY, attach_btf_id=function_id
    )
    fd = lib.bpf_prog_load(_BPF_PROG_TYPE_TRACING, b"kmw_trial", b"GPL", _RETURN_0, 2, ctypes.byref(opts))
    if fd < 0:
        return False, f"a trial program for {function} is refused: {libbpf.error_text(fd)}"
    os.close(fd)
    return True, None
