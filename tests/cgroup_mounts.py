# SPDX-License-Identifier: GPL-2.0-only
"""Where the hierarchy with the memory controller is mounted. Does not use kmemwatch's own code, which it checks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class MemoryMount(NamedTuple):
    path: Path
    version: int
    """1 or 2."""


def memory_mount(mountinfo: str = "/proc/self/mountinfo") -> MemoryMount | None:
    """The mount of the hierarchy with the memory controller; only one hierarchy can have the controller."""
    v2 = None
    for line in Path(mountinfo).read_text().splitlines():
        front, _, back = line.partition(" - ")
        mount_point = Path(front.split()[4].encode().decode("unicode_escape"))
        fstype, _source, options = back.split(maxsplit=2)
        if fstype == "cgroup" and "memory" in options.split(","):
            return MemoryMount(mount_point, 1)
        if fstype == "cgroup2" and "memory" in _words(mount_point / "cgroup.controllers"):
            v2 = MemoryMount(mount_point, 2)
    return v2


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
