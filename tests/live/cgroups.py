# SPDX-License-Identifier: GPL-2.0-only
"""Memory cgroups that a test makes for itself, always removed at the end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cgroup_mounts import MemoryMount

_serial = itertools.count(1)


class OwnCgroup:
    """One directory below the root of the memory hierarchy, with a name nobody else has."""

    def __init__(self, parent: Path, name: str | None = None) -> None:
        self.path = parent / (name or f"kmw-test-{os.getpid()}-{next(_serial)}")
        self.path.mkdir()
        self.id = self.path.stat().st_ino
        """kernfs id, what kmemwatch calls the cgroup id."""

    def read(self, file: str) -> str:
        return (self.path / file).read_text()

    def enter(self) -> None:
        """Move the calling process in here."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start `argv` in this cgroup: the child enters it before exec, so nothing of it is charged elsewhere."""
        return subprocess.Popen(argv, preexec_fn=self.enter, **kwargs)

    def run(self, argv: Sequence[str], **kwargs: Any) -> subprocess.CompletedProcess[Any]:
        """Like subprocess.run(check=True), in this cgroup."""
        return subprocess.run(argv, preexec_fn=self.enter, check=True, **kwargs)

    def child(self, name: str) -> OwnCgroup:
        return OwnCgroup(self.path, name)

    def open_for_children(self) -> None:
        """On v2 a child is a memcg of its own only when its parent enables the memory controller for its children."""
        control = self.path / "cgroup.subtree_control"
        if control.exists():
            control.write_text("+memory")

    def remove(self, timeout_s: float = 10) -> None:
        """Kill what runs in it and below, then remove it; harmless when it is gone already."""
        deadline = time.monotonic() + timeout_s
        while self.path.exists():
            for directory in [Path(top) for top, _, _ in os.walk(self.path, topdown=False)]:
                _kill_all(directory)
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:  # EBUSY until the killed processes have exited
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)


def _kill_all(directory: Path) -> None:
    try:
        pids = (directory / "cgroup.procs").read_text().split()
    except OSError:
        return
    for pid in pids:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def current_memory_cgroup(root: Path, version: int) -> Path:
    """Directory of the calling process in the hierarchy mounted at `root`."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (version == 2 and number == "0") or (version == 1 and "memory" in controllers.split(",")):
            return root / path.lstrip("/")
    raise LookupError("/proc/self/cgroup: no memory hierarchy")


def kernels_count(memory: MemoryMount) -> int:
    """All memcgs that the kernel has, dying ones included."""
    if memory.version == 1:
        for line in Path("/proc/cgroups").read_text().splitlines():
            if line.startswith("memory\t"):
                return int(line.split()[2])
    stat = dict(line.split() for line in (memory.path / "cgroup.stat").read_text().splitlines())
    if "nr_subsys_memory" in stat:
        return int(stat["nr_subsys_memory"]) + int(stat["nr_dying_subsys_memory"])
    return int(stat["nr_descendants"]) + int(stat["nr_dying_descendants"]) + 1


def directories(memory: MemoryMount) -> int:
    """All memcgs that are online, the root included."""
    return sum(1 for _ in os.walk(memory.path))
