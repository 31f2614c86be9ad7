# SPDX-License-Identifier: GPL-2.0-only
"""BPF programs as the kernel knows them: what is loaded, where it is attached, how often it ran and for how long."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

from kmemwatch.kernel import libbpf

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_INSTRUCTION_BYTES = 8


class _ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` up to ``run_cnt``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("between", ctypes.c_uint8 * 168),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Counters:
    """Of one program, since it was loaded."""

    run_time_ns: int
    run_cnt: int
    length: int
    """BPF instructions, after the verifier has rewritten some."""


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(libbpf.library()._name, use_errno=True)
    lib.bpf_prog_get_next_id.argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    lib.bpf_prog_get_fd_by_id.argtypes = [ctypes.c_uint32]
    lib.bpf_obj_get_info_by_fd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    lib.bpf_task_fd_query.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint32, *[ctypes.c_void_p] * 6]
    return lib


def _info(program_fd: int) -> _ProgInfo:
    info = _ProgInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    if _library().bpf_obj_get_info_by_fd(program_fd, ctypes.byref(info), ctypes.byref(size)) < 0:
        raise OSError(ctypes.get_errno(), "bpf_prog_info")
    return info


def program_id(program_fd: int) -> int:
    """What the kernel numbers a program with."""
    return int(_info(program_fd).id)


def counters() -> dict[int, Counters]:
    """id -> counters of every loaded program."""
    lib = _library()
    found = {}
    at, following = 0, ctypes.c_uint32()
    while lib.bpf_prog_get_next_id(at, ctypes.byref(following)) == 0:
        at = following.value
        fd = lib.bpf_prog_get_fd_by_id(at)
        if fd < 0:
            continue  # it went away in between
        try:
            info = _info(fd)
        finally:
            os.close(fd)
        found[at] = Counters(info.run_time_ns, info.run_cnt, info.xlated_prog_len // _INSTRUCTION_BYTES)
    return found


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


@contextmanager
def statistics() -> Iterator[None]:
    """The kernel measures each run, which costs some 40 instructions a run, within this block."""
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text("0")


@dataclass(frozen=True)
class Run:
    """A program's share of a piece of work."""

    runs: int
    instructions: float
    """On average of a run; the kernel's own reading of the clock is in it."""
    length: int


def between(before: Mapping[int, Counters], after: Mapping[int, Counters], names: Mapping[int, str]) -> dict[str, Run]:
    """What the programs of `names` (id -> name) did; those that did not run are left out."""
    runs = {}
    for number, name in names.items():
        first, last = before[number], after[number]
        count = last.run_cnt - first.run_cnt
        if count:
            runs[name] = Run(count, (last.run_time_ns - first.run_time_ns) / count, last.length)
    return runs


def typical(rounds: Sequence[Mapping[str, Run]]) -> dict[str, Run]:
    """One run of each program that ran in each of the rounds: the median of their averages.

    An interrupt that hits within a program counts as the program's, and what it frees can be thousands of instructions.
    """
    names = set.intersection(*(set(runs) for runs in rounds))
    return {
        name: Run(
            sum(runs[name].runs for runs in rounds),
            median(runs[name].instructions for runs in rounds),
            rounds[-1][name].length,
        )
        for name in names
    }
