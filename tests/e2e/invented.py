# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of two invented hosts, for what this machine's kernel cannot show: one with the patch set, one without it.

Both have caches of their own for each memcg, and the same life: services that stay, and jobs that come, work for a few
seconds and are removed. With the patch set a removed job gives its kmemcg_id back, the next one to get it takes over
its slabs, and the kernel releases it within seconds. Without, it keeps id and slabs, and more and more are dying.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from msgspec.structs import replace

from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import (
    ATTACHED,
    DYING,
    FROM_NONE,
    ONLINE,
    Cache,
    Cgroup,
    ChildSlabs,
    Host,
    Ids,
    Kernel,
    MapFill,
    Probe,
    Recharges,
    RechargeTotal,
    Snapshot,
    Totals,
)
from kmemwatch.units import NS_PER_S
from tests.unit import fakes

PATCHED, UNPATCHED = "patched", "unpatched"
JOBS_PER_S = 3
JOB_S = 4
"""How long a job works."""
SERVICES = 24
ROOTS = (("dentry", 192), ("ext4_inode_cache", 1176), ("filp", 256), ("kmalloc-cg-192", 192))
PAGE = 4096
FAILURE_EVERY_S = 5
"""A recharge fails that often."""
SPREAD = 7919
"""A prime, to make delays that look irregular and are the same in every run."""


@dataclass(frozen=True)
class Job:
    """One short-lived cgroup."""

    number: int
    born_s: int
    released_s: float
    """When the kernel releases it; infinite for never."""

    @property
    def removed_s(self) -> int:
        return self.born_s + JOB_S


@dataclass(frozen=True)
class Story:
    """What happens on one of the hosts in `seconds`."""

    kind: str
    seconds: int

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._job(number) for number in range(JOBS_PER_S * self.seconds))

    def _job(self, number: int) -> Job:
        born_s = number // JOBS_PER_S
        chance = number * SPREAD % 100 / 100
        unpatched_s = 15 + 60 * chance if number % 3 else float("inf")
        delay_s = 0.2 + 9 * chance**2 if self.kind == PATCHED else unpatched_s
        return Job(number, born_s, born_s + JOB_S + delay_s)

    def at(self, second: int) -> Snapshot:
        """The host at that time."""
        now_ns = fakes.START_NS + second * NS_PER_S
        born = [job for job in self.jobs if job.born_s <= second]
        online = [job for job in born if job.removed_s > second]
        dying = [job for job in born if job.removed_s <= second < job.released_s]
        gone = sorted((job for job in born if job.released_s <= second), key=lambda job: job.released_s)
        peak = 1 + SERVICES + max(self._online(earlier) for earlier in range(second + 1))
        holders = len(online) if self.kind == PATCHED else len(online) + len(dying)
        in_use = SERVICES + holders
        ever_in_use = max(in_use, peak - 1)
        return replace(
            fakes.sample(),
            taken_at_ns=now_ns,
            monotonic_ns=fakes.MONO_START_NS + second * NS_PER_S,
            duration_s=float(second),
            host=Host(f"{self.kind}1", f"6.1.0-{self.kind}", "x86_64", fakes.HOST.boot_id),
            kernel=Kernel("recharge" if self.kind == PATCHED else "per-memcg", self.kind == PATCHED, 2, "none"),
            probes=self._probes(),
            caches=tuple(self._caches(second, ever_in_use)),
            cgroups=tuple(self._cgroups(second, online, dying)),
            pairs=(),
            recharges=self._recharges(second, len(born)),
            ids=Ids(in_use, peak, max(0, len(born) - (ever_in_use - SERVICES)), (), len(born), len(born) - holders),
            totals=Totals(
                1 + SERVICES + len(online), peak, len(dying), len(born), len(born) - len(online), len(gone),
                1 + SERVICES + len(online),
            ),
            maps=(MapFill("pairs", 40 * in_use, 65536), MapFill("charges", in_use, 65536)),
            release_delays_s=tuple(job.released_s - job.removed_s for job in gone),
        )  # fmt: skip

    def _online(self, second: int) -> int:
        return sum(job.born_s <= second < job.removed_s for job in self.jobs)

    def _probes(self) -> tuple[Probe, ...]:
        recharge = (Probe("recharge", "kprobe+kretprobe", ATTACHED, None),) if self.kind == PATCHED else ()
        return (*fakes.PROBES[:-1], *fakes.CHILD_PROBES, *recharge)

    def _caches(self, second: int, ids: int) -> Iterator[Cache]:
        for place, (root, size) in enumerate(ROOTS):
            allocated = (9000 - 2000 * place) * second
            cache_id = fakes.IDS[_address(place)]
            yield fakes.row(
                Cache,
                name=root,
                id=cache_id,
                object_bytes=size,
                allocations_total=allocated,
                allocated_bytes_total=allocated * size,
                frees_total=allocated * 9 // 10,
                slab_bytes=900 * PAGE,
            )
            for id_ in range(ids - place * 3):
                child = f"{root}({id_})"
                pages = 20 + id_ * SPREAD % 13
                cache_id = fakes.IDS[_address(place, id_)]
                yield fakes.row(
                    Cache, name=child, id=cache_id, object_bytes=size, root=root, kmemcg_id=id_, slab_bytes=pages * PAGE
                )

    def _cgroups(self, second: int, online: list[Job], dying: list[Job]) -> Iterator[Cgroup]:
        total = (180 + len(online) * 2 + len(dying)) << 20
        yield _cgroup(1, "/", ONLINE, total, second)
        for number in range(SERVICES):
            size = (1 + number * SPREAD % 9) << 20
            yield _cgroup(100 + number, f"/system.slice/service-{number}.service", ONLINE, size, second)
        for job in online:
            yield _cgroup(1000 + job.number, f"/batch.slice/job-{job.number}.scope", ONLINE, 2 << 20, second)
        for job in dying:
            yield self._dying(job, second)

    def _dying(self, job: Job, second: int) -> Cgroup:
        # With the patch set, slabs are taken over bit by bit.
        left = (job.released_s - second) / (job.released_s - job.removed_s) if self.kind == PATCHED else 1.0
        pages = max(1, int(left * (4 + job.number * SPREAD % 60)))
        place = job.number % len(ROOTS)
        root, id_ = ROOTS[place][0], job.number % 12
        slabs = ChildSlabs(f"{root}({id_})", fakes.IDS[_address(place, id_)], id_, pages * PAGE)
        path = f"/batch.slice/job-{job.number}.scope"
        found = _cgroup(1000 + job.number, path, DYING, pages * PAGE, second)
        pins = {"slab": pages * PAGE} | ({"file": 40 * PAGE} if job.number % 5 == 0 else {})
        return replace(
            found,
            offline_at_ns=fakes.START_NS + job.removed_s * NS_PER_S,
            pins=MappingProxyType(pins),
            references=pages + 3,
            child_slabs=(slabs,),
        )

    def _recharges(self, second: int, jobs: int) -> Recharges:
        if self.kind != PATCHED:
            return Recharges()
        moved = [
            RechargeTotal(root, state, count, count * PAGE)
            for place, (root, _) in enumerate(ROOTS)
            for state, count in ((DYING, jobs * (7 - place)), (ONLINE, jobs // (3 + place)), (FROM_NONE, 2 * second))
        ]
        total = sum(one.recharges_total for one in moved)
        failures = second // FAILURE_EVERY_S
        return Recharges(
            30_000 * second, total, total * PAGE, failures, second // 4, (), tuple(sorted(moved, key=_key))
        )


def _key(total: RechargeTotal) -> tuple[str, str]:
    return total.cache, total.from_state


def _cgroup(cgroup_id: int, path: str, state: str, kernel_bytes: int, second: int) -> Cgroup:
    charged = kernel_bytes // 40 * second
    return fakes.row(
        Cgroup,
        id=cgroup_id,
        path=path,
        state=state,
        memory_bytes=4 * kernel_bytes,
        kernel_bytes=kernel_bytes,
        slab_bytes=kernel_bytes * 3 // 4,
        charged_bytes_total=charged,
        uncharged_bytes_total=charged * 9 // 10,
    )


def record(kind: str, seconds: int, directory: Path) -> Path:
    """Write the recording of one of the hosts."""
    path = directory / f"{kind}.kmw"
    story = Story(kind, seconds)
    with RecordingWriter(str(path)) as writer:
        writer.begin(story.at(0))
        for second in range(1, seconds):
            writer.write_snapshot(story.at(second))
    return path


def _address(place: int, kmemcg_id: int = -1) -> int:
    """Of a root cache; of its child."""
    return 0xFFFF_8880_0100_0000 + place * 0x200 + (kmemcg_id + 1) * 0x10000
