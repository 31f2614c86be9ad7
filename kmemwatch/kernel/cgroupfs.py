# SPDX-License-Identifier: GPL-2.0-only
"""The cgroup file systems: where the memory controller is, and what its files say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
PROC_CGROUPS = Path("/proc/cgroups")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The hierarchy that has the memory controller."""

    version: int
    """1 or 2."""
    hierarchy_id: int
    """First column of /proc/cgroups; 0 is the default (v2) hierarchy."""
    mount: str | None
    """Where its root is mounted; None when it is not, or only a part of it is."""


def find_memory(mountinfo: Path = MOUNTINFO, proc_cgroups: Path = PROC_CGROUPS) -> Hierarchy | None:
    """The memory controller's hierarchy; None when the kernel has no enabled memory controller."""
    hierarchy_id = _hierarchy_id(proc_cgroups)
    mounts = list(_cgroup_mounts(mountinfo))
    for root, mount, kind, options in mounts:
        if kind == "cgroup" and "memory" in options:
            return Hierarchy(1, hierarchy_id or 0, mount if root == "/" else None)
    for root, mount, kind, _ in mounts:
        if kind == "cgroup2" and _has_memory(Path(mount)):
            return Hierarchy(2, 0, mount if root == "/" else None)
    if hierarchy_id is None:
        return None
    return Hierarchy(2 if hierarchy_id == 0 else 1, hierarchy_id, None)


def _hierarchy_id(proc_cgroups: Path) -> int | None:
    try:
        lines = proc_cgroups.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        columns = line.split()
        if columns[0] == "memory" and columns[3] == "1":
            return int(columns[1])
    return None


def _has_memory(mount: Path) -> bool:
    try:
        return "memory" in (mount / "cgroup.controllers").read_text().split()
    except OSError:
        return False


def _cgroup_mounts(mountinfo: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(root inside the file system, mount point, type, super block options) of each cgroup mount."""
    try:
        lines = os.fsdecode(mountinfo.read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        head, tail = before.split(" "), after.split(" ")
        if len(head) >= 5 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            yield _unescape(head[3]), _unescape(head[4]), tail[0], tail[2].split(",")


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def join_root(hierarchy: Hierarchy) -> bool:
    """Move this process to the root memcg, so that what it makes is charged to nobody; False when refused."""
    if hierarchy.mount is None:
        return False
    try:
        (Path(hierarchy.mount) / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True


def cgroup_id(path: Path) -> int:
    """The cgroup id of a directory: its inode number. Raises OSError when there is no such directory."""
    return path.stat().st_ino
