# SPDX-License-Identifier: GPL-2.0-only
"""Every figure equals that of an independent source, exactly, and no event was lost.

Counts are primes, so that no batch of the kernel's or ours divides them.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import Pair, Snapshot
from tests.bpf_objects import attached_by
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import Workload, address_of, cache_named, cgroup_of, pair_of, snapshot, workload
from tests.symbols import existing
from tests.waiting import rested, settled, wait_for

TRIES = 12
"""An interrupt that hits while a program runs makes the kernel skip a run, which kmemwatch counts as lost: such a run
of the workload proves nothing and is repeated."""


def frees_are_exact(feed: LiveFeed) -> bool:
    return not _misses_frees(snapshot(feed))


def _misses_frees(taken: Snapshot) -> bool:
    """The kernel skips a kprobe while another one is handled, and while maps are read; `doctor` says so. So what an
    interrupt frees meanwhile is lost. All other hooks have a second program for it."""
    return any(probe.signal == "free" and (probe.attachment or "").startswith("kprobe") for probe in taken.probes)


def lost_now(feed: LiveFeed) -> dict[str, int]:
    """Reason -> losses; without frees where some are always lost, and nothing is said of them that needs them all."""
    taken = snapshot(feed)
    assert taken.lost.total is not None
    frees = {"skipped_free"} if _misses_frees(taken) else set()
    return {reason: count for reason, count in taken.lost.reasons.items() if reason not in frees}


def counts(row: Pair | None) -> tuple[int, int]:
    """(allocations, frees), 0 where nothing was counted yet; a figure that the kernel cannot give fails the test."""
    if row is None:
        return 0, 0
    assert row.allocations_total is not None
    return row.allocations_total, row.frees_total or 0


def without_loss(feed: LiveFeed, attempt: Callable[[], None], but: Set[str] = frozenset()) -> None:
    """Run `attempt` until nothing was lost during it, `but` for reasons that do not affect what it counts."""
    for _ in range(TRIES):
        before = {reason: count for reason, count in lost_now(feed).items() if reason not in but}
        attempt()
        after = {reason: count for reason, count in lost_now(feed).items() if reason not in but}
        if before == after:
            return
    pytest.fail(f"events were lost in each of {TRIES} runs: {after}")


def test_allocations_and_frees_equal_the_workloads_own_count(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    scale: Callable[[int], int],
    patience: Callable[[float], float],
) -> None:
    cgroup, number = own_cgroup(), scale(100_003)
    result: dict[str, tuple[int, int]] = {}
    exact = frees_are_exact(feed)

    with workload(cgroup) as work:

        def attempt() -> None:
            def files() -> tuple[int, int]:
                return counts(pair_of(snapshot(feed), "filp", cgroup.id))

            lost, before = lost_now(feed), rested(files, patience(3), patience(0.1))

            def done() -> tuple[int, int]:
                after = files()
                return after[0] - before[0], after[1] - before[1]

            work.do(f"eventfd {number}")
            # struct file is freed after a grace period on kernels before v6.7.
            limit = time.monotonic() + patience(15 if exact else 1)
            while done() != (number, number) and lost_now(feed) == lost and time.monotonic() < limit:
                time.sleep(0.3)
            result["filp"] = done()

        without_loss(feed, attempt)
    if exact:
        assert result["filp"] == (number, number)
    else:
        assert result["filp"][0] == number
        assert 0 < result["filp"][1] <= number


def test_allocations_that_fail(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    memory: MemoryMount,
    scale: Callable[[int], int],
) -> None:
    """In a cgroup at its limit, the kernel answers ENOMEM to each open() whose struct file it cannot charge."""
    cgroup, number = own_cgroup(), scale(101)
    limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
    if memory.version == 2:
        limit, usage = "memory.max", "memory.current"
    else:
        (cgroup.path / "memory.oom_control").write_text("1")
    made = 0

    def failed() -> int | None:
        return cache_named(snapshot(feed), "filp").failed_allocations_total

    with workload(cgroup) as work:
        if memory.version == 2:
            Path(f"/proc/{work.pid}/oom_score_adj").write_text("-1000")

        def attempt() -> None:
            nonlocal made
            before = failed()
            work.do(f"fail {number} {cgroup.path / limit} {cgroup.path / usage}")
            made = (failed() or 0) - (before or 0)

        without_loss(feed, attempt)
    taken = snapshot(feed)
    if failed() is None:  # at their entry, and before v6.1, hooks do not tell
        assert {cache.failed_allocations_total for cache in taken.caches} == {None}
        return
    assert made == number
    assert cache_named(taken, "kmalloc-64").failed_allocations_total is None


def test_files_on_tmpfs_come_and_go_in_both_their_caches(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    tmpfs: Path,
    scale: Callable[[int], int],
    patience: Callable[[float], float],
) -> None:
    cgroup, number = own_cgroup(), scale(10_007)
    caches = ("shmem_inode_cache", "dentry")
    made: dict[str, int] = {}
    gone: dict[str, int] = {}
    exact = frees_are_exact(feed)

    def now() -> dict[str, tuple[int, int]]:
        taken = snapshot(feed)
        return {cache: counts(pair_of(taken, cache, cgroup.id)) for cache in caches}

    with workload(cgroup) as work:

        def attempt() -> None:
            before = rested(now, patience(3), patience(0.1))
            work.do(f"files {number} {tmpfs}")
            after = now()
            made.update({cache: after[cache][0] - before[cache][0] for cache in caches})
            live = pair_of(snapshot(feed), "shmem_inode_cache", cgroup.id)
            size = cache_named(snapshot(feed), "shmem_inode_cache").object_bytes
            assert live is not None
            assert size is not None
            # Where slabs are recharged, an object may be another's by now.
            assert live.live_bytes == (None if snapshot(feed).kernel.era == "recharge" else number * size)
            work.do(f"unlink {number} {tmpfs}")
            limit = time.monotonic() + patience(15 if exact else 1)
            while time.monotonic() < limit:
                final = now()
                gone.update({cache: final[cache][1] - before[cache][1] for cache in caches})
                if all(gone[cache] >= number for cache in caches):
                    return
                time.sleep(0.5)

        without_loss(feed, attempt)
    # unlink looks each name up again only if its dentry is gone, which on tmpfs it is not.
    assert made == {"shmem_inode_cache": number, "dentry": number}
    if exact:
        assert gone == {"shmem_inode_cache": number, "dentry": number}
    else:
        assert all(0 < gone[cache] <= number for cache in caches)


def test_pipes_are_counted_in_kmalloc(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], patience: Callable[[float], float]
) -> None:
    """kmalloc objects are found through their page, which no argument of a hook names."""
    cgroup, number = own_cgroup(), 211
    made: list[int] = []
    gone: list[int] = []
    expected = [number, number] if kmalloc_is_complete(feed) else [number]
    # Before v5.14 what is charged came from the same caches as everything else.
    own = any(cache.name.startswith("kmalloc-cg-") for cache in snapshot(feed).caches)
    prefix = "kmalloc-cg-" if own else "kmalloc-"
    with workload(cgroup) as work:

        def attempt() -> None:
            def kmalloc() -> dict[str, tuple[int, int]]:
                taken = snapshot(feed)
                size = {cache.name: cache.object_bytes for cache in taken.caches}
                rows = [p for p in taken.pairs if p.cgroup_id == cgroup.id and p.cache.startswith(prefix)]
                return {p.cache: counts(p) if own else charged(p, size[p.cache]) for p in rows}

            before = rested(kmalloc, patience(3), patience(0.1))
            work.do(f"pipes {number}")
            after = kmalloc()
            # A pipe has one pipe_inode_info and one array of 16 buffers, both charged; nothing else here is.
            grown = {name: after[name][0] - before.get(name, (0, 0))[0] for name in after}
            made[:] = sorted(count for count in grown.values() if count >= number)
            work.do("close")
            freed = partial(_freed, kmalloc, before, [name for name in grown if grown[name] >= number])
            gone[:] = settled(freed, expected, patience(20 if exact else 2))

        exact = frees_are_exact(feed)
        without_loss(feed, attempt)
    assert made == expected
    if exact:
        assert gone == expected


def charged(row: Pair, object_bytes: int | None) -> tuple[int, int]:
    """As `counts`, without the allocations that the kernel charges to nobody; a row may have no others."""
    if row.live_bytes is None:
        return 0, 0
    assert object_bytes
    live, rest = divmod(row.live_bytes, object_bytes)
    assert rest == 0
    return live + (row.frees_total or 0), row.frees_total or 0


def kmalloc_is_complete(feed: LiveFeed) -> bool:
    """The array of buffers of a pipe has a size that no compiler knows; `doctor` says where that is not seen."""
    (probe,) = [probe for probe in snapshot(feed).probes if probe.signal == "alloc"]
    return "not known at compile time" not in (probe.why or "")


def _freed(
    kmalloc: Callable[[], dict[str, tuple[int, int]]], before: dict[str, tuple[int, int]], names: list[str]
) -> list[int]:
    now = kmalloc()
    return [now[name][1] - before.get(name, (0, 0))[1] for name in names]


@pytest.mark.needs("bpftrace")
def test_an_independent_tracer_counts_the_same(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    scale: Callable[[int], int],
    patience: Callable[[float], float],
) -> None:
    cgroup, number = own_cgroup(), scale(20_011)
    seen: dict[str, int] = {}
    with workload(cgroup) as work:

        def attempt() -> None:
            with _bpftrace(work, address_of(feed, cache_named(snapshot(feed), "filp")), patience(60)) as tracer:
                before = counts(pair_of(snapshot(feed), "filp", cgroup.id))[0]
                work.do(f"eventfd {number}")
                seen["ours"] = counts(pair_of(snapshot(feed), "filp", cgroup.id))[0] - before
                seen["bpftrace"] = tracer.stop()

        without_loss(feed, attempt, but={"skipped_charge", "charge_map_full"})
    assert seen == {"ours": number, "bpftrace": number}


class _bpftrace:
    """bpftrace counting allocations of struct file by one process, through whatever this kernel offers it."""

    def __init__(self, work: Workload, cache_address: int, limit_s: float) -> None:
        event = Path("/sys/kernel/tracing/events/kmem/kmem_cache_alloc/format").read_text()
        if "name" in event.split("print fmt")[0].replace("name: kmem_cache_alloc", ""):
            probe = f'tracepoint:kmem:kmem_cache_alloc /pid == {work.pid} && str(args->name) == "filp"/'
        else:
            probe = f"kprobe:{existing('kmem_cache_alloc')} /pid == {work.pid} && arg0 == {cache_address:#x}/"
        self._limit_s = limit_s
        self._process = subprocess.Popen(
            [
                shutil.which("bpftrace") or "bpftrace",
                "-e",
                f'BEGIN {{ printf("begin\\n"); }} {probe} {{ @ = count(); }}',
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> _bpftrace:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if line.strip() == "begin":
                # BEGIN runs before the other probes are attached.
                wait_for(self._is_attached, self._limit_s, "probe of bpftrace")
                return self
        raise AssertionError(f"bpftrace: {''.join(said)}")

    def _is_attached(self) -> bool:
        return any("kmem_cache_alloc" in name for name in attached_by(self._process.pid).values())

    def stop(self) -> int:
        self._process.terminate()
        told, _ = self._process.communicate(timeout=self._limit_s)
        return int(told.split("@:")[1].split()[0])

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def kernel_file_bytes(memory: MemoryMount, cgroup: OwnCgroup) -> int:
    """Kernel memory of a cgroup, from the kernel's own file."""
    if memory.version == 1:
        return int(cgroup.read("memory.kmem.usage_in_bytes"))
    # Asked for this, most kernels add up all statistics of the cgroup. What does it every two seconds has a deferrable
    # timer, which idle CPUs do not see to: a page was missing in memory.stat after five seconds.
    cgroup.read("cpu.stat")
    stat = dict(line.split() for line in cgroup.read("memory.stat").splitlines())
    return int(stat["kernel"])


@pytest.mark.needs("kernel memory in the cgroups' files")
def test_kernel_bytes_and_charges_equal_the_kernels_file(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    memory: MemoryMount,
    tmpfs: Path,
    scale: Callable[[int], int],
) -> None:
    """At rest: the kernel charges whole pages and keeps less than a page per CPU for the next objects, which both sides
    count as charged; it adds up statistics every two seconds, so both are read until they have not changed that long.
    """
    cgroup, number = own_cgroup(), scale(10_007)
    kernels: dict[str, int] = {}
    ours: dict[str, int] = {}

    def at_rest() -> tuple[int, int]:
        """(kernel's file, ours) once neither changes any more."""
        last: tuple[int | None, int | None, int | None] = (None, None, None)
        for _ in range(20):
            taken = snapshot(feed)
            row = cgroup_of(taken, cgroup.id)
            assert row is not None
            assert row.charged_bytes_total is not None
            assert row.uncharged_bytes_total is not None
            now = (
                kernel_file_bytes(memory, cgroup),
                row.kernel_bytes,
                row.charged_bytes_total - row.uncharged_bytes_total,
            )
            if now == last and now[0] == now[1]:
                assert now[0] is not None
                assert now[2] is not None
                return now[0], now[2]
            last = now
            time.sleep(2.5)
        raise AssertionError(f"kernel's file, ours, charges: {last}")

    with workload(cgroup) as work:
        # Where cgroups have caches of their own, the first objects are root's until the kernel has made them.
        work.do(f"files 1 {tmpfs}")
        work.do(f"unlink 1 {tmpfs}")

        attempts = itertools.count(1)

        def attempt() -> None:
            # A cache of the cgroup's own keeps the slabs that the attempt before has filled and emptied.
            files = number * next(attempts)
            file_before, charged_before = at_rest()
            work.do(f"files {files} {tmpfs}")
            file_full, charged_full = at_rest()
            work.do(f"unlink {files} {tmpfs}")
            file_after, charged_after = at_rest()
            kernels.update(full=file_full - file_before, after=file_after - file_before)
            ours.update(full=charged_full - charged_before, after=charged_after - charged_before)

        without_loss(feed, attempt)
    assert kernels["full"] > number * 500, "the workload charged less than its inodes take"
    assert ours == kernels
