# SPDX-License-Identifier: GPL-2.0-only
"""What the live tests rely on: their cgroups, the place of the runner, what the machine offers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup, current_memory_cgroup
from tests.live.fixtures import next_prime


def test_runner_sits_in_the_root_cgroup(memory: MemoryMount) -> None:
    assert current_memory_cgroup(*memory).samefile(memory.path)


def test_child_runs_in_its_own_cgroup(own_cgroup: Callable[..., OwnCgroup]) -> None:
    cgroup = own_cgroup()
    child = cgroup.popen(["sleep", "60"])
    assert cgroup.read("cgroup.procs").split() == [str(child.pid)]
    cgroup.remove()
    assert not cgroup.path.exists()
    assert child.wait() < 0


def test_memory_controller_is_on(own_cgroup: Callable[..., OwnCgroup], memory: MemoryMount) -> None:
    cgroup = own_cgroup()
    file = "memory.current" if memory.version == 2 else "memory.usage_in_bytes"
    cgroup.run(["true"], stdout=subprocess.DEVNULL)
    assert int(cgroup.read(file)) >= 0


def test_disk_path_is_page_cache_not_shmem(disk_path: Path) -> None:
    fstype = subprocess.run(["stat", "-f", "-c", "%T", disk_path], capture_output=True, text=True, check=True)
    assert fstype.stdout.strip() not in ("tmpfs", "ramfs")
    assert os.access(disk_path, os.W_OK)


def test_scaled_counts_stay_prime() -> None:
    assert [next_prime(n) for n in (2, 10_000, 100_000)] == [2, 10_007, 100_003]
