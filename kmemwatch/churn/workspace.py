# SPDX-License-Identifier: GPL-2.0-only
"""The parent cgroup of a run, its directory on disk, and what the kernel counts there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from kmemwatch.errors import UnsupportedError
from kmemwatch.kernel.cgroupfs import PROC_CGROUPS, Hierarchy, cgroup_id, find_memory

PREFIX = "kmemwatch-churn-"
STALE_S = 60.0
REMOVE_S = 10.0
NO_DISK = ("tmpfs", "ramfs", "rootfs")


def memory_hierarchy() -> tuple[Hierarchy, Path]:
    """The hierarchy to make cgroups in, and its root. Raises UnsupportedError."""
    if os.geteuid() != 0:
        raise UnsupportedError("churn: only root can make cgroups", "run: sudo kmemwatch churn")
    hierarchy = find_memory()
    if hierarchy is None:
        raise UnsupportedError(
            f"{PROC_CGROUPS}: this kernel has no enabled memory controller", "boot it with cgroup_enable=memory"
        )
    if hierarchy.mount is None:
        raise UnsupportedError(
            "the root of the cgroup hierarchy with the memory controller is not mounted here",
            "run churn on the host, or mount it: mount -t cgroup2 none /sys/fs/cgroup",
        )
    return hierarchy, Path(hierarchy.mount)


class Workspace:
    """A cgroup with a unique name and a scratch directory; both locked while the run uses them."""

    def __init__(self, hierarchy: Hierarchy, root: Path, directory: str) -> None:
        """Raises UnsupportedError when one of them cannot be made."""
        self.version = hierarchy.version
        self._root = root
        self._enabled_for: Path | None = None
        self._locks: list[int] = []
        self.scratch = _make_scratch(directory)
        try:
            self._locks.append(_locked(self.scratch))
            self.parent = root / self.scratch.name
            self.parent_id = self._make_parent()
        except BaseException:
            self.remove()
            raise

    def _make_parent(self) -> int:
        try:
            self.parent.mkdir()
            self._locks.append(_locked(self.parent))
            if self.version == 2:
                self._enable_memory()
            elif _read(self.parent / "memory.use_hierarchy") == "0":
                (self.parent / "memory.use_hierarchy").write_text("1")
        except OSError as exc:
            raise UnsupportedError(
                f"{exc.filename or self.parent}: no cgroup can be made: {exc.strerror}",
                "in a container, run it privileged and with a writable /sys/fs/cgroup, or run it on the host",
            ) from exc
        return cgroup_id(self.parent)

    def _enable_memory(self) -> None:
        for directory in (self._root, self.parent):
            control = directory / "cgroup.subtree_control"
            if "memory" not in control.read_text().split():
                control.write_text("+memory")
                if directory == self._root:
                    self._enabled_for = control

    @property
    def path(self) -> str:
        """Of the parent, in the hierarchy."""
        return f"/{self.parent.name}"

    def has_disk(self) -> bool | None:
        """Whether the scratch directory is on a disk; None when that is unknown."""
        device = self.scratch.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
            before, _, after = line.partition(" - ")
            if before.split(" ")[2] == number:
                return after.split(" ")[0] not in NO_DISK
        return None

    def count_dying(self) -> int | None:
        """Cgroups that are removed and not released; None when the kernel does not say.

        v2: below the parent, from ``cgroup.stat``. v1: on the whole host, /proc/cgroups minus directories.
        """
        if self.version == 2:
            stat = dict(line.split() for line in _read(self.parent / "cgroup.stat").splitlines())
            return int(stat["nr_dying_descendants"]) if "nr_dying_descendants" in stat else None
        for line in _read(PROC_CGROUPS).splitlines():
            name, _, number, *_ = line.split()
            if name == "memory":
                return int(number) - sum(1 for _ in os.walk(self._root))
        return None

    def remove_scratch(self) -> None:
        """The directory on disk, and with it the page cache of its files."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def remove(self) -> list[str]:
        """Remove everything; one line for each thing that could not be removed."""
        remains = []
        parent = self._root / self.scratch.name
        try:
            remove_cgroups(parent, REMOVE_S)
        except OSError as exc:
            remains.append(f"{exc.filename or parent}: {exc.strerror}")
        if self._enabled_for is not None:
            with contextlib.suppress(OSError):  # a cgroup below uses it by now
                self._enabled_for.write_text("-memory")
            self._enabled_for = None
        self.remove_scratch()
        while self._locks:
            os.close(self._locks.pop())
        if self.scratch.exists():
            remains.append(f"{self.scratch}: not empty")
        return remains


def remove_cgroups(parent: Path, timeout_s: float) -> None:
    """Remove the cgroups below it, and it. Raises OSError."""
    if not parent.exists():
        return
    for path in [*(entry.path for entry in os.scandir(parent) if entry.is_dir()), str(parent)]:
        _rmdir(path, time.monotonic() + timeout_s)


def _rmdir(path: str, until: float) -> None:
    while True:
        try:
            return Path(path).rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.01)


def sweep(root: Path, directory: str) -> None:
    """Remove what killed runs left: directories that are not locked and were not made just now."""
    stale = time.time() - STALE_S
    for left in (*root.glob(f"{PREFIX}*"), *Path(directory).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < stale and left.stat().st_uid == os.geteuid():
                os.close(_locked(left))
                if left.parent == root:
                    remove_cgroups(left, 0)
                else:
                    shutil.rmtree(left, ignore_errors=True)


def _locked(directory: Path) -> int:
    """A descriptor that keeps a directory locked until the process ends. Raises OSError when it is locked already."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _make_scratch(directory: str) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=directory))
    except OSError as exc:
        raise UnsupportedError(
            f"{directory}: no directory can be made there: {exc.strerror}", "choose another one with --directory"
        ) from exc


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
