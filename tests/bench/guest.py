# SPDX-License-Identifier: GPL-2.0-only
"""What runs in the guest: each tool attached in turn, the same work under each; prints nothing, writes JSON.

Run as ``python -m tests.bench.guest FILE PARTS TOOLS`` as root, where clocks count instructions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.programs import between, counters, statistics, typical
from tests.bench.tools import attached
from tests.cgroup_mounts import memory_mount
from tests.live.cgroups import OwnCgroup
from tests.live.tell import Workload, workload

EVENTFDS, FILES, ROUNDS = 293, 61, 9
_SETTLE_S = 1.0
"""Until what was freed through RCU is freed; costs nothing, as waiting takes no time here."""


def micro(work: Workload, directory: Path) -> None:
    """Known objects, made and freed: two a call of eventfd, inode and dentry of each file."""
    work.do(f"eventfd {EVENTFDS}")
    work.do(f"files {FILES} {directory}")
    work.do(f"unlink {FILES} {directory}")
    time.sleep(_SETTLE_S)


def programs(tool: str, work: Workload, directory: Path) -> dict[str, Any]:
    """Instructions a run of each program."""
    with attached(tool) as names, statistics():
        micro(work, directory)  # from here on each pair is known
        rounds = []
        for _ in range(ROUNDS):
            before = counters()
            micro(work, directory)
            rounds.append(between(before, counters(), names))
    return {name: asdict(run) for name, run in sorted(typical(rounds).items())}


def measure(parts: list[str], tools: list[str]) -> dict[str, Any]:
    """Everything."""
    mount = memory_mount()
    assert mount is not None
    if mount.version == 2:
        (mount.path / "cgroup.subtree_control").write_text("+memory")
    results: dict[str, Any] = {"kernel": os.uname().release, "cgroup_version": mount.version}
    cgroup = OwnCgroup(mount.path, "bench")
    with _tmpfs() as directory, workload(cgroup) as work:
        micro(work, directory)
        if "programs" in parts:
            results["programs"] = {tool: programs(tool, work, directory) for tool in tools if tool != "none"}
    cgroup.remove()
    return results


@contextmanager
def _tmpfs() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="kmw-bench-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=0", "kmw-bench", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
        path.rmdir()


if __name__ == "__main__":
    _, file, parts, tools = sys.argv
    Path(file).write_text(json.dumps(measure(parts.split(","), tools.split(","))))
