# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon says its own BPF programs cost, against what the kernel says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bpf_objects import loaded, loaded_programs
from tests.daemon import Daemon
from tests.live.test_privileges import INTERVAL_S, LIMIT_S, serving
from tests.waiting import wait_for

BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


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
    programs = loaded_programs()
    assert ids <= programs.keys(), "a program went away"
    return sum(programs[one].run_cnt for one in ids), sum(programs[one].run_time_ns for one in ids)


def told(daemon: Daemon, metric: str) -> dict[str, float]:
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
        # The kernel no longer counts, so the figures stay.
        runs, run_ns = kernels_count(ours)
        assert runs > 1009
        wait_for(lambda: sum(told(daemon, "bpf_runs_total").values()) == runs, LIMIT_S)
        assert sum(told(daemon, "bpf_run_seconds_total").values()) == pytest.approx(run_ns / 1e9, abs=1e-9)
        programs = set(told(daemon, "bpf_runs_total"))
        assert "walk" in programs, "programs that are only run on demand"
        assert any(program.startswith("alloc/") for program in programs)
