# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon says its own BPF programs cost, against what the kernel says."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmemwatch.kernel import libbpf
from tests.live.bpf_objects import loaded
from tests.live.test_privileges import INTERVAL_S, Serving, serving

BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_RUNS = slice(200, 208)
"""``bpf_prog_info.run_cnt``."""
_RUN_NS = slice(192, 200)


@pytest.fixture
def stats_off() -> Iterator[None]:
    before = BPF_STATS.read_text()
    BPF_STATS.write_text("0")
    yield
    BPF_STATS.write_text(before)


@contextmanager
def counting() -> Iterator[None]:
    BPF_STATS.write_text("1")
    try:
        yield
    finally:
        BPF_STATS.write_text("0")


def kernels_count(ids: set[int]) -> tuple[int, int]:
    """(runs, nanoseconds) of these programs together."""
    lib = ctypes.CDLL(libbpf.library()._name, use_errno=True)
    runs = run_ns = 0
    for number in ids:
        fd = lib.bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
        assert fd >= 0, "a program went away"
        info, size = ctypes.create_string_buffer(256), ctypes.c_uint32(256)
        assert lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) == 0
        os.close(fd)
        runs += int.from_bytes(info.raw[_RUNS], "little")
        run_ns += int.from_bytes(info.raw[_RUN_NS], "little")
    return runs, run_ns


def told(daemon: Serving, metric: str) -> dict[str, float]:
    """Program -> value."""
    text = daemon.get("/metrics")
    found = re.findall(rf'^kmemwatch_{metric}{{program="([^"]+)"}} (\S+)$', text, re.MULTILINE)
    return {program: float(value) for program, value in found}


def test_runs_of_programs_are_those_that_the_kernel_counts(stats_off: None) -> None:
    before = loaded("prog")
    with serving() as daemon:
        ours = loaded("prog") - before
        assert told(daemon, "bpf_run_seconds_total") == told(daemon, "bpf_runs_total") == {}, "not counted is not 0"
        with counting():
            for number in range(1009):
                os.stat(f"/proc/self/fd/../fdinfo/{number % 3}")  # noqa: PTH116
            time.sleep(3 * INTERVAL_S)
        # Nobody counts any more, so what was counted stays.
        runs, run_ns = kernels_count(ours)
        assert runs > 1009
        daemon.until(lambda: sum(told(daemon, "bpf_runs_total").values()) == runs)
        assert sum(told(daemon, "bpf_run_seconds_total").values()) == pytest.approx(run_ns / 1e9, abs=1e-9)
        programs = set(told(daemon, "bpf_runs_total"))
        assert "walk" in programs, "programs that are only run on demand"
        assert any(program.startswith("alloc/") for program in programs)
