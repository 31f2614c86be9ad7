# SPDX-License-Identifier: GPL-2.0-only
"""The cgroup file systems: where the memory controller is mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kmemwatch.errors import raise_if_shortage

MOUNTINFO = Path("/proc/self/mountinfo")
PROC_CGROUPS = Path("/proc/cgroups")
OWN_CGROUPS = Path("/proc/self/cgroup")
_ROOT_INODE = 1
"""Of the root of every cgroup hierarchy (kernfs_create_root())."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The hierarchy that has the memory controller."""

    version: int
    """1 or 2."""
    hierarchy_id: int
    """First column of /proc/cgroups; 0 is the default (v2) hierarchy."""
    mount: str | None
    """Where its root is mounted; None when only a part of it is, or nothing."""
    part_at: str | None = None
    """Where a part of it is mounted and its root is not: in a container, or where another mount hides the root."""


class _Mount(NamedTuple):
    device: str
    """``major:minor`` of its file system."""
    root: str
    """Directory of the file system that is mounted there."""
    point: str
    kind: str
    options: list[str]


def is_root_of(device: str, point: str) -> bool:
    """Whether the root of the hierarchy `device` is visible at `point`.

    mountinfo does not say: in a cgroup namespace every root is ``/``, and another mount may hide this one.
    """
    try:
        status = os.stat(point)  # noqa: PTH116
    except OSError as error:
        raise_if_shortage(error, point)
        return False
    seen = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    return seen == device and status.st_ino == _ROOT_INODE


def find_memory(
    mountinfo: Path = MOUNTINFO, proc_cgroups: Path = PROC_CGROUPS, is_root: Callable[[str, str], bool] = is_root_of
) -> Hierarchy | None:
    """The memory controller's hierarchy; None when there is none, see `why_not_found`. Raises ShortageError."""
    hierarchy_id = _hierarchy_id(proc_cgroups)
    mounts = list(_cgroup_mounts(mountinfo))
    version, found = 1, [mount for mount in mounts if mount.kind == "cgroup" and "memory" in mount.options]
    if not found:
        version, found = 2, [mount for mount in mounts if mount.kind == "cgroup2" and _has_memory(Path(mount.point))]
    if found:
        number = (hierarchy_id or 0) if version == 1 else 0
        whole = next((one.point for one in found if one.root == "/" and is_root(one.device, one.point)), None)
        return Hierarchy(version, number, whole, found[-1].point if whole is None else None)
    if hierarchy_id is None:
        return None
    return Hierarchy(2 if hierarchy_id == 0 else 1, hierarchy_id, None)


def why_not_found(mountinfo: Path = MOUNTINFO, proc_cgroups: Path = PROC_CGROUPS) -> str:
    """Why `find_memory` found nothing, in one line. Raises ShortageError."""
    try:
        named = any(line.split()[0] == "memory" for line in proc_cgroups.read_text().splitlines())
    except OSError as error:
        raise_if_shortage(error, str(proc_cgroups))
        return f"{proc_cgroups}: cannot be read: {error.strerror}"
    if named:
        return f"{proc_cgroups}: the memory controller is not enabled"
    mounts = [mount.point for mount in _cgroup_mounts(mountinfo)]
    if not mounts:
        return f"no cgroup file system is mounted, and {proc_cgroups} does not name the memory controller"
    for point in mounts:
        try:
            os.scandir(point).close()
        except OSError as error:
            raise_if_shortage(error, point)
            return f"{point}: cannot be read, and may have the memory controller: {error.strerror}"
    return f"{proc_cgroups}: there is no memory controller"


def own_path(hierarchy: Hierarchy, file: Path = OWN_CGROUPS) -> str | None:
    """Path of this process in the memory hierarchy, as its cgroup namespace shows it. Raises ShortageError."""
    try:
        lines = os.fsdecode(file.read_bytes()).splitlines()
    except OSError as error:
        raise_if_shortage(error, str(file))
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") if hierarchy.version == 1 else not controllers:
            return path
    return None


def _hierarchy_id(proc_cgroups: Path) -> int | None:
    try:
        lines = proc_cgroups.read_text().splitlines()
    except OSError as error:
        raise_if_shortage(error, str(proc_cgroups))
        return None
    for line in lines:
        columns = line.split()
        if columns[0] == "memory" and columns[3] == "1":
            return int(columns[1])
    return None


def _has_memory(mount: Path) -> bool:
    try:
        return "memory" in (mount / "cgroup.controllers").read_text().split()
    except OSError as error:
        raise_if_shortage(error, str(mount))
        return False


def _cgroup_mounts(mountinfo: Path) -> Iterator[_Mount]:
    try:
        lines = os.fsdecode(mountinfo.read_bytes()).splitlines()
    except OSError as error:
        raise_if_shortage(error, str(mountinfo))
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        head, tail = before.split(" "), after.split(" ")
        if len(head) >= 5 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            yield _Mount(head[2], _unescape(head[3]), _unescape(head[4]), tail[0], tail[2].split(","))


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def join_root(hierarchy: Hierarchy) -> bool:
    """Move this process to the root memcg, where the kernel charges nothing for what it makes; False when refused."""
    if hierarchy.mount is None:
        return False
    try:
        (Path(hierarchy.mount) / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise_if_shortage(error, hierarchy.mount)
        return False
    return True


def cgroup_id(path: Path) -> int:
    """The cgroup id of a directory: its inode number. Raises OSError when there is no such directory."""
    return path.stat().st_ino
