# SPDX-License-Identifier: GPL-2.0-only
"""What /proc says about processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_MB = 1e-6
_STATE, _PARENT, _TIMES = 0, 1, slice(11, 15)
"""Fields of /proc/PID/stat behind the name: state; ppid; utime, stime, cutime, cstime."""
ENDED = (FileNotFoundError, ProcessLookupError)
"""What reading a file of /proc/PID raises when the process has just ended."""


@dataclass(frozen=True)
class Memory:
    """Of some processes together, in MB of 1,000,000 bytes."""

    resident: float
    """RSS: a page that several of them have counts for each."""
    peak: float
    """Each one's own peak RSS, added up."""
    share: float
    """PSS: a page that several processes have, ours or others, is divided among them."""


def memory(*pids: int) -> Memory:
    """What these processes have now."""
    return Memory(
        resident=sum(_bytes(f"/proc/{each}/status", "VmRSS") for each in pids) * _MB,
        peak=sum(_bytes(f"/proc/{each}/status", "VmHWM") for each in pids) * _MB,
        share=sum(_bytes(f"/proc/{each}/smaps_rollup", "Pss") for each in pids) * _MB,
    )


def cpu_s(*pids: int) -> float:
    """User and system time of these processes and of their children that ended and were waited for; to 10 ms each."""
    return sum(sum(int(field) for field in _stat(each)[_TIMES]) for each in pids) / _TICKS


def children(pid: int) -> list[int]:
    """Processes that the main thread of `pid` started and that have not been waited for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def tree(pid: int) -> list[int]:
    """The process and all below it, whichever of its threads started them."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            below.setdefault(int(_stat(int(path.name))[_PARENT]), []).append(int(path.name))
        except ENDED:
            continue
    found = [pid]
    for each in found:
        found += below.get(each, [])
    return found


def state(pid: int) -> str:
    """The letter of /proc/PID/stat; Z also when there is no such process."""
    try:
        return _stat(pid)[_STATE]
    except ENDED:
        return "Z"


def descriptors(pid: int) -> int:
    """How many files the process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _bytes(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{path}: {name}")
