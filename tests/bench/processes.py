# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel says of a process and those that it has started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_MB = 1e-6
_PARENT, _TIMES = 1, slice(11, 15)
"""Of /proc/PID/stat, behind the name: ppid; utime, stime, cutime, cstime."""


@dataclass(frozen=True)
class Memory:
    """Of a process and all below it, in MB of 1,000,000 bytes."""

    resident: float
    """Pages that several of them have count for each."""
    peak: float
    """Each one's own peak, added up."""
    share: float
    """Pages that several processes have, be they ours or others, count in parts."""


def memory(pid: int) -> Memory:
    """Now."""
    pids = tree(pid)
    return Memory(
        resident=sum(_bytes(f"/proc/{each}/status", "VmRSS") for each in pids) * _MB,
        peak=sum(_bytes(f"/proc/{each}/status", "VmHWM") for each in pids) * _MB,
        share=sum(_bytes(f"/proc/{each}/smaps_rollup", "Pss") for each in pids) * _MB,
    )


def cpu_s(pid: int) -> float:
    """User and system time of a process and all below it, those that have ended and were waited for included; each to
    10 ms."""
    return sum(sum(int(field) for field in _stat(each)[_TIMES]) for each in tree(pid)) / _TICKS


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            below.setdefault(int(_stat(int(path.name))[_PARENT]), []).append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    found = [pid]
    for each in found:
        found += below.get(each, [])
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _bytes(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{path}: {name}")
