# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel says of a process."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def rss_kib(pid: int) -> int:
    """``VmRSS``."""
    return _status(pid, "VmRSS")


def peak_kib(pid: int) -> int:
    """``VmHWM``."""
    return _status(pid, "VmHWM")


def cpu_s(pid: int) -> float:
    """User and system time of the process itself, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)
