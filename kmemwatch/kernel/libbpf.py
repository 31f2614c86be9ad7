# SPDX-License-Identifier: GPL-2.0-only
"""libbpf through ctypes: loaded once, with argument types, and with errors as errno numbers."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

from kmemwatch.errors import UnsupportedError, raise_if_shortage

_SONAMES = ("libbpf.so.1", "libbpf.so.0")

_P = ctypes.c_void_p
_INT = ctypes.c_int
_U32 = ctypes.c_uint32
_STR = ctypes.c_char_p

RING_SAMPLE_FN = ctypes.CFUNCTYPE(_INT, _P, _P, ctypes.c_size_t)

_PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "btf__parse": (_P, (_STR, _P)),
    "btf__free": (None, (_P,)),
    "btf__find_by_name_kind": (ctypes.c_int32, (_P, _STR, _U32)),
    "btf__type_by_id": (_P, (_P, _U32)),
    "btf__name_by_offset": (_STR, (_P, _U32)),
    "btf__resolve_size": (ctypes.c_int64, (_P, _U32)),
    "bpf_map_create": (_INT, (_U32, _STR, _U32, _U32, _U32, _P)),
    "bpf_raw_tracepoint_open": (_INT, (_STR, _INT)),
    "bpf_map_lookup_elem": (_INT, (_INT, _P, _P)),
    "bpf_map_update_elem": (_INT, (_INT, _P, _P, ctypes.c_uint64)),
    "bpf_map_delete_elem": (_INT, (_INT, _P)),
    "bpf_map_get_next_key": (_INT, (_INT, _P, _P)),
    "bpf_map_lookup_batch": (_INT, (_INT, _P, _P, _P, _P, _P, _P)),
    "bpf_prog_test_run_opts": (_INT, (_INT, _P)),
    "bpf_prog_load": (_INT, (_U32, _STR, _STR, _STR, ctypes.c_size_t, _P)),
    "bpf_obj_get_info_by_fd": (_INT, (_INT, _P, _P)),
    "ring_buffer__new": (_P, (_INT, RING_SAMPLE_FN, _P, _P)),
    "ring_buffer__poll": (_INT, (_P, _INT)),
    "ring_buffer__consume": (_INT, (_P,)),
    "ring_buffer__epoll_fd": (_INT, (_P,)),
    "ring_buffer__free": (None, (_P,)),
    "libbpf_num_possible_cpus": (_INT, ()),
    "libbpf_set_print": (_P, (_P,)),
    "libbpf_set_strict_mode": (_INT, (_INT,)),
}


class ProgLoadOpts(ctypes.Structure):
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


class MapCreateOpts(ctypes.Structure):
    """``struct bpf_map_create_opts`` of libbpf 1.0, in full."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The shared library of the distribution. Raises UnsupportedError when it is not installed."""
    for soname in _SONAMES:
        try:
            lib = ctypes.CDLL(soname, use_errno=True)
        except OSError as error:
            raise_if_shortage(error, soname)
            continue
        for name, (restype, argtypes) in _PROTOTYPES.items():
            try:
                function = getattr(lib, name)
            except AttributeError:  # an older libbpf; callers ask `has`
                continue
            function.restype = restype
            function.argtypes = argtypes
        # Without this, libbpf 0.x answers with -errno in pointers, where 1.x answers NULL.
        if soname.endswith(".0") and hasattr(lib, "libbpf_set_strict_mode"):
            lib.libbpf_set_strict_mode(0xFFFFFFFF)
        lib.libbpf_set_print(None)  # our errors have the reason; libbpf would also write it to stderr
        return lib
    raise UnsupportedError(
        f"libbpf: none of {', '.join(_SONAMES)} can be loaded", hint="install it: apt-get install libbpf1"
    )


def has(function: str) -> bool:
    """This libbpf has `function` with the prototype of libbpf 1.0; some functions of 0.x had another one."""
    lib = library()
    return hasattr(lib, function) and hasattr(lib, "libbpf_major_version")


def error_text(code: int) -> str:
    """A negative return value or an errno as text."""
    return os.strerror(abs(code))
