# SPDX-License-Identifier: GPL-2.0-only
"""What a run will need, what this host has free, and whether that is enough."""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from kmemwatch.churn.lives import BY_NAME, ChurnOptions
from kmemwatch.errors import UnsupportedError
from kmemwatch.model import MAX_MEMCG_IDS
from kmemwatch.units import bytes_human, count_human

PAGE = 4096
CGROUP_BYTES = 64 * 1024
CGROUP_CPU_BYTES = 4 * 1024
"""A memory cgroup, and its part for each possible CPU; between the sizes in 4.x and in 7.x kernels."""
WORKER_BYTES = 16 << 20
CHILD_THREADS_BYTES = 4 << 20
"""A child that stays for its threads."""
SPARE_DESCRIPTORS = 64
CAP_SYS_RESOURCE = 24
RESERVE_SHARE = 0.03
RESERVE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Needs:
    """The most that all workers together need at any time."""

    memory_bytes: int
    disk_bytes: int
    processes: int
    """Threads as well."""
    descriptors: int
    """Open files of the process that has most."""
    memcg_ids: int
    """Only online cgroups have one: the kernel takes it back at removal."""


@dataclass(frozen=True, slots=True)
class Free:
    """What the host has free; None: unknown."""

    memory_bytes: int | None
    disk_bytes: int | None
    processes: int | None
    descriptors: int | None
    memcg_ids: int | None


def estimate(options: ChurnOptions, cpus: int) -> Needs:
    """Needs of a run, rather too high than too low; pure."""
    kept = held_at_once(options)
    total = sum(weight for _, weight in options.mix)
    busy = min(options.parallel, kept or options.parallel)
    memory = options.parallel * WORKER_BYTES + (kept + busy) * (CGROUP_BYTES + cpus * CGROUP_CPU_BYTES)
    disk = threads = held = 0
    opened = SPARE_DESCRIPTORS
    for name, weight in options.mix:
        kind = BY_NAME[name]
        made = min(options.objects, options.objects * weight // total + 1)
        left = made if name == "negative" else (made * options.leave_percent + 50) // 100
        at_once = kept * left + busy * made
        memory += at_once * kind.memory_bytes
        held += kept * left * kind.descriptors
        opened += made * kind.descriptors
        if name == "file":
            disk += at_once * PAGE
        if name == "thread":
            threads = at_once + kept
            memory += kept * CHILD_THREADS_BYTES
    most = max(opened, SPARE_DESCRIPTORS - (-held // options.parallel))
    return Needs(memory, disk, threads + 3 * options.parallel, most, busy + 1)


def held_at_once(options: ChurnOptions) -> int:
    """The most removed cgroups that keep something at the same time; the options must set some bound."""
    bounds = [options.dead] if options.dead is not None else []
    if options.cgroups is not None:
        bounds.append(options.cgroups)
    if options.rate is not None and options.duration_s is not None:
        bounds.append(int(options.rate * options.duration_s) + 1)
    return min(bounds)


def available(directory: Path, online: int | None) -> Free:
    """What this host has free now; `online`: memory cgroups that exist already."""
    disk = os.statvfs(directory)
    return Free(
        memory_bytes=available_memory(),
        disk_bytes=disk.f_bavail * disk.f_frsize,
        processes=_free_processes(),
        descriptors=_descriptor_limit(),
        memcg_ids=None if online is None else MAX_MEMCG_IDS - online,
    )


def refuse_what_does_not_fit(needs: Needs, free: Free) -> None:
    """Raises UnsupportedError with both figures."""
    reserve = None if free.memory_bytes is None else free.memory_bytes - RESERVE_BYTES
    checks = (
        ("memory", needs.memory_bytes, reserve, bytes_human),
        ("disk", needs.disk_bytes, free.disk_bytes, bytes_human),
        ("processes and threads", needs.processes, free.processes, count_human),
        ("open files in one process", needs.descriptors, free.descriptors, count_human),
        ("ids of memory cgroups", needs.memcg_ids, free.memcg_ids, count_human),
    )
    for name, needed, has, human in checks:
        if has is not None and needed > has:
            raise UnsupportedError(
                f"churn: this run may need {human(needed)} of {name}, this host has {human(max(has, 0))} to spare",
                "fewer --cgroups or --objects, a smaller --leave or --dead, or a shorter --duration",
            )


def memory_is_short() -> bool:
    """Whether the host has less free memory than a run must leave."""
    free, total = available_memory(), _meminfo("MemTotal")
    return free is not None and free < max(RESERVE_BYTES / 2, RESERVE_SHARE * (total or 0))


def available_memory() -> int | None:
    """Bytes, /proc/meminfo ``MemAvailable``."""
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _free_processes() -> int | None:
    """By the limits of the system, and of this process's pids cgroup and all above it."""
    limits = [_number(Path("/proc/sys/kernel/pid_max")), _number(Path("/proc/sys/kernel/threads-max"))]
    known = [limit for limit in limits if limit is not None]
    with contextlib.suppress(OSError, ValueError, IndexError):
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
        known = [limit - running for limit in known]
    known += _free_in_pids_cgroups()
    return min(known) if known else None


def _free_in_pids_cgroups() -> list[int]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "pids" in controllers.split(","):
            for mount in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
                here = mount / path.lstrip("/")
                if (here / "pids.max").exists():
                    return _free_up_to(here, mount)
    return []


def _free_up_to(here: Path, mount: Path) -> list[int]:
    free = []
    for directory in (here, *here.parents):
        most, now = _number(directory / "pids.max"), _number(directory / "pids.current")
        if most is not None and now is not None:
            free.append(most - now)
        if directory == mount:
            break
    return free


def _descriptor_limit() -> int | None:
    """The limit that a worker can set for itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (_number(Path("/proc/sys/fs/nr_open")) or hard) if _may_raise_limits() else hard


def _may_raise_limits() -> bool:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def _number(path: Path) -> int | None:
    """None when there is no such file, or it says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
