# SPDX-License-Identifier: GPL-2.0-only
"""Trial loads: the smallest program of a kind, loaded and dropped at once, tells what no file tells.

For example fentry: a kernel can have BTF, trampolines and ftrace, and still refuse (lockdown, a hardened build).
"""

from __future__ import annotations

import ctypes
import os
import struct

from kmemwatch.errors import raise_if_shortage
from kmemwatch.kernel import libbpf
from kmemwatch.kernel.btf import Btf

_BPF_PROG_TYPE_TRACING = 26
_BPF_TRACE_FENTRY = 24
_RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""``r0 = 0; exit``"""


def fentry(btf: Btf, privileged: bool | None, function: str = "kfree") -> tuple[bool | None, str | None]:
    """(it loads, why not). None: could not be tried, which says nothing about the kernel. Raises ShortageError."""
    lib = libbpf.library()
    function_id = btf.function_id(function)
    if function_id is None:
        return False, f"BTF has no function {function}"
    if not libbpf.has("bpf_prog_load") or privileged is False:
        return None, None
    opts = libbpf.ProgLoadOpts(
        sz=ctypes.sizeof(libbpf.ProgLoadOpts), expected_attach_type=_BPF_TRACE_FENTRY, attach_btf_id=function_id
    )
    fd = lib.bpf_prog_load(_BPF_PROG_TYPE_TRACING, b"kmw_trial", b"GPL", _RETURN_0, 2, ctypes.byref(opts))
    if fd < 0:
        raise_if_shortage(OSError(-fd, libbpf.error_text(fd)), "a trial program cannot be loaded", bpf=True)
        return False, f"a trial program for {function} is refused: {libbpf.error_text(fd)}"
    os.close(fd)
    return True, None
