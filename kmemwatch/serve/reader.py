# SPDX-License-Identifier: GPL-2.0-only
"""What the process that reads the kernel costs, for the one that serves HTTP to tell."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path

from kmemwatch.exporter.frames import ProgramRuns, ReaderState


class ReaderProbe:
    """`ReaderState` of the process that it is used in."""

    def __init__(self) -> None:
        self._page_bytes = resource.getpagesize()
        self._start_time_s = _start_time_s()

    def state(self, programs: Mapping[str, ProgramRuns]) -> ReaderState:
        """What this process costs now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        virtual, resident, *_ = Path("/proc/self/statm").read_text().split()
        return ReaderState(
            cpu_s=usage.ru_utime + usage.ru_stime,
            resident_bytes=int(resident) * self._page_bytes,
            virtual_bytes=int(virtual) * self._page_bytes,
            open_fds=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            start_time_s=self._start_time_s,
            programs=programs,
        )


def _start_time_s() -> float:
    """As prometheus_client's ProcessCollector computes it."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_s = float(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s
