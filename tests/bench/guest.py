# SPDX-License-Identifier: GPL-2.0-only
"""What runs in the guest: each tool attached in turn, the same work under each; prints nothing, writes JSON.

Run as ``python -m tests.bench.guest FILE PARTS TOOLS`` as root, where clocks count instructions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.programs import between, statistics, typical
from tests.bench.tools import NONE, Names, attached
from tests.bench.work import JOBS, OPERATIONS, Work, working
from tests.bpf_objects import loaded_programs
from tests.cgroup_mounts import memory_mount
from tests.live.cgroups import OwnCgroup

ROUNDS = 9
MICRO = "eventfd 293;file 61 files;pipe 31"
"""What programs are measured with: primes, as nothing divides them."""

PROGRAMS, OPERATED, JOBBED = "programs", "operations", "jobs"
PARTS = (PROGRAMS, OPERATED, JOBBED)


def programs(names: Names, work: Work) -> dict[str, Any]:
    """Instructions a run of each program, when each pair is known."""
    with statistics():
        work.settle(MICRO)
        rounds = []
        for _ in range(ROUNDS):
            before = loaded_programs()
            work.settle(MICRO)
            rounds.append(between(before, loaded_programs(), names))
    return {name: asdict(run) for name, run in sorted(typical(rounds).items())}


def operations(_: Names, work: Work) -> dict[str, float]:
    """Instructions of each operation."""
    return {operation.what: work.instructions(operation.command) / operation.times for operation in OPERATIONS}


def jobs(_: Names, work: Work) -> dict[str, float]:
    """Instructions of each job."""
    return {job.what: work.run(job) for job in JOBS}


_MEASURE = {PROGRAMS: programs, OPERATED: operations, JOBBED: jobs}


def measure(parts: Sequence[str], tools: Sequence[str]) -> dict[str, Any]:
    """part -> tool -> figures."""
    mount = memory_mount()
    assert mount is not None
    if mount.version == 2:
        (mount.path / "cgroup.subtree_control").write_text("+memory")
    results: dict[str, Any] = {"release": os.uname().release, "cgroup_version": mount.version}
    results.update({part: {} for part in parts})
    cgroup = OwnCgroup(mount.path, "bench")
    with working(cgroup) as work:
        for tool in tools:
            with attached(tool) as names:
                work.calibrate()
                for part in parts:
                    if tool != NONE or part != PROGRAMS:
                        results[part][tool] = _MEASURE[part](names, work)
    cgroup.remove()
    return results


if __name__ == "__main__":
    _, file, parts, tools = sys.argv
    Path(file).write_text(json.dumps(measure(parts.split(","), tools.split(","))))
