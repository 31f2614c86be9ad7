# SPDX-License-Identifier: GPL-2.0-only
"""System calls of BPF: make maps, load programs from instructions, attach them. All raise OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from kmemwatch.kernel import libbpf

PROG_KPROBE, PROG_RAW_TRACEPOINT, PROG_TRACING = 2, 17, 26
ATTACH_FENTRY, ATTACH_FEXIT = 24, 25
INSTRUCTION_BYTES = 8
RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""The smallest program: ``r0 = 0; exit``."""
_VERIFIER_LOG_BYTES = 4 << 20
"""Kernels before v6.4 refuse the program with ENOSPC when the log is longer, and keep its beginning."""

KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
_PERF_EVENT_OPEN = {"x86_64": 298, "s390x": 331, "ppc64le": 319}
_PERF_EVENT_OPEN_ELSEWHERE = 241
"""include/uapi/asm-generic/unistd.h: aarch64, riscv64, loongarch64."""
_PERF_ATTR = struct.Struct("=IIQQQQQIIQQ")
"""``struct perf_event_attr`` of PERF_ATTR_SIZE_VER1."""
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408

_MAP_INFO = struct.Struct("=6I16s")
"""``struct bpf_map_info`` up to ``name``: type, id, key_size, value_size, max_entries, map_flags."""


class _ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` up to ``recursion_misses``; the kernel fills as much as it has."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("up_to_name", ctypes.c_uint8 * 40),
        ("name", ctypes.c_char * 16),
        ("up_to_run_time_ns", ctypes.c_uint8 * 112),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says about a loaded program."""

    id: int
    name: str
    """15 characters at most."""
    instructions: int
    """After the verifier has rewritten some."""
    run_time_ns: int
    """0 unless kernel.bpf_stats_enabled is set."""
    run_cnt: int
    recursion_misses: int | None
    """Runs that the kernel skipped; None before it counted them (v5.12)."""


LOADS = {
    "raw_tp": (PROG_RAW_TRACEPOINT, 0),
    "test_run": (PROG_RAW_TRACEPOINT, 0),
    "kprobe": (PROG_KPROBE, 0),
    "kretprobe": (PROG_KPROBE, 0),
    "fentry": (PROG_TRACING, ATTACH_FENTRY),
    "fexit": (PROG_TRACING, ATTACH_FEXIT),
}
"""Kind of `plan.Hook` -> program type, expected attach type."""


def available() -> bool:
    """This libbpf has every function that this module needs."""
    return all(map(libbpf.has, ("bpf_map_create", "bpf_prog_load", "bpf_raw_tracepoint_open")))


def map_definition(fd: int) -> tuple[int, str, int, int, int, int]:
    """(type, name, key bytes, value bytes, largest number of entries, flags): the arguments of `create_map`."""
    info = ctypes.create_string_buffer(_MAP_INFO.size)
    _get_info(fd, info)
    kind, _, key_bytes, value_bytes, entries, flags, name = _MAP_INFO.unpack(info.raw)
    return kind, name.split(b"\0")[0].decode(), key_bytes, value_bytes, entries, flags


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says about a program."""
    info = _ProgInfo()
    has_misses = _get_info(fd, info) >= ctypes.sizeof(info)
    misses = int(info.recursion_misses) if has_misses else None
    instructions = info.xlated_prog_len // INSTRUCTION_BYTES
    return ProgramInfo(info.id, info.name.decode(), instructions, info.run_time_ns, info.run_cnt, misses)


def _get_info(fd: int, info: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    """Fill `info`; how many bytes the kernel has filled."""
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(libbpf.library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return size.value


def create_map(kind: int, name: str, key_bytes: int, value_bytes: int, entries: int, flags: int) -> int:
    """Descriptor of a new map."""
    opts = libbpf.MapCreateOpts(sz=ctypes.sizeof(libbpf.MapCreateOpts), map_flags=flags)
    lib = libbpf.library()
    return _check(lib.bpf_map_create(kind, name.encode(), key_bytes, value_bytes, entries, ctypes.byref(opts)))


class VerifierError(OSError):
    """The verifier has rejected a program, and would do so again."""


def load_program(kind: int, name: str, code: bytes, attach_type: int = 0, function_id: int = 0) -> int:
    """Descriptor of a verified program. `function_id`: `Btf.function_id` of what fentry and fexit are attached to.

    Raises VerifierError with the verifier's reason if it gave one, else OSError.
    """
    size = ctypes.sizeof(libbpf.ProgLoadOpts)
    opts = libbpf.ProgLoadOpts(sz=size, expected_attach_type=attach_type, attach_btf_id=function_id)
    arguments = kind, name.encode(), b"GPL", code, len(code) // INSTRUCTION_BYTES, ctypes.byref(opts)
    answer = int(libbpf.library().bpf_prog_load(*arguments))
    if answer >= 0:
        return answer
    # Load it again with a buffer for the verifier's log. Writing the log takes time, so the first try goes without.
    log = ctypes.create_string_buffer(_VERIFIER_LOG_BYTES)
    opts.log_level, opts.log_size, opts.log_buf = 1, len(log), ctypes.addressof(log)
    answer_with_log = int(libbpf.library().bpf_prog_load(*arguments))
    if answer_with_log >= 0:
        return answer_with_log
    if reason := reason_in(log.value.decode("utf-8", "replace")):
        raise VerifierError(-answer, reason)
    raise OSError(-answer, libbpf.error_text(answer))


def reason_in(text: str) -> str | None:
    """The line of the compiler's or the verifier's output that has the reason: its first error, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    if errors:
        return errors[0]
    others = [line for line in lines if not line.startswith(("processed ", "sh: ", "HINT", "The '"))]
    return others[-1] if others else None


def attach(program_fd: int, kind: str, target: str) -> int:
    """Descriptor that keeps a program attached. `kind`: of `plan.Hook`, except TEST_RUN."""
    if kind in ("kprobe", "kretprobe"):
        return attach_kprobe(program_fd, target, kind == "kretprobe")
    # Programs of fentry and fexit were bound to their function when they were loaded.
    name = target.encode() if kind == "raw_tp" else None
    return _check(libbpf.library().bpf_raw_tracepoint_open(name, program_fd))


def attach_kprobe(program_fd: int, function: str, at_return: bool = False) -> int:
    """Descriptor that keeps a program attached to the entry or the return of `function`, through the kprobe PMU."""
    target = ctypes.create_string_buffer(function.encode())
    pmu = int((KPROBE_PMU / "type").read_text())
    # type, size, config (bit 0: at return), period, sample_type, read_format, flags, wakeup, bp_type, name, offset
    config, target_at = int(at_return), ctypes.addressof(target)
    attr = _PERF_ATTR.pack(pmu, _PERF_ATTR.size, config, 1, 0, 0, 0, 1, 0, target_at, 0)
    fd = _perf_event_open(attr)
    try:
        fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def _perf_event_open(attr: bytes) -> int:
    """For all processes. The event is registered on CPU 0, and the program runs on every CPU that hits the probe."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _PERF_EVENT_OPEN.get(os.uname().machine, _PERF_EVENT_OPEN_ELSEWHERE)
    all_processes, cpu, group = ctypes.c_long(-1), ctypes.c_long(0), ctypes.c_long(-1)
    flags = ctypes.c_long(_PERF_FLAG_FD_CLOEXEC)
    fd = int(libc.syscall(ctypes.c_long(number), attr, all_processes, cpu, group, flags))
    return fd if fd >= 0 else _check(-ctypes.get_errno())


def _check(answer: int) -> int:
    """Raise OSError for a negative errno, which is how libbpf 1.0 answers; else give the descriptor, or 0."""
    if answer < 0:
        raise OSError(-answer, libbpf.error_text(answer))
    return int(answer)
