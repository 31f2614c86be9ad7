# SPDX-License-Identifier: GPL-2.0-only
"""What is allocated and freed many at a time: against the kernel's own record of the calls, and the workload's count.

`kfree_rcu()` collects objects and frees them in an array, or on newer kernels in a sheaf of the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kmemwatch.feeds.live import LiveFeed
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import SLAB_SYSFS, Workload, address_of, cache_named, pair_of, snapshot, workload
from tests.live.kprobe_truth import recorded_calls
from tests.live.test_truth import charged, counts, frees_are_exact, kmalloc_is_complete, without_loss
from tests.symbols import existing
from tests.waiting import rested, settled

pytestmark = pytest.mark.needs("kprobes")

REQUESTS = 61
EPOLL = "eventpoll_epi"
CACHE, SIZE = "%di", "%dx"
"""Registers of the first and the third argument."""
OF_MAPS = frozenset({"skipped_alloc", "skipped_charge", "skipped_recharge"})
"""While a system call on a BPF map runs, the kernel skips kprobe programs on that CPU, so they miss what it
allocates."""


def kmalloc_256(feed: LiveFeed) -> str:
    """The cache of what is charged and has up to 256 bytes: an entry of a trie has 244 with its value."""
    own = any(cache.name == "kmalloc-cg-256" for cache in snapshot(feed).caches)
    return "kmalloc-cg-256" if own else "kmalloc-256"


def flush(cache: str) -> None:
    """Make each CPU free what it has collected of a cache; a sheaf waits until it is full."""
    (SLAB_SYSFS / cache / "shrink").write_text("1")


def test_requests_of_io_uring_are_what_the_kernel_records(feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup]) -> None:
    cgroup = own_cgroup()
    seen: dict[str, int] = {}

    def made() -> int:
        return counts(pair_of(snapshot(feed), "io_kiocb", cgroup.id))[0]

    def attempt(work: Workload) -> None:
        address = address_of(feed, cache_named(snapshot(feed), "io_kiocb"))
        bulk, one = existing("kmem_cache_alloc_bulk"), existing("kmem_cache_alloc")
        with recorded_calls({bulk: (CACHE, SIZE), one: (CACHE,)}, work.pid) as calls:
            before = made()
            work.do(f"submit {REQUESTS}")
            seen["ours"] = made() - before
            rows = [(name, args) for name, args in calls() if args[0] == address]
        # If the kernel has merged the cache, files come from it too, one by one.
        seen["kernel's"] = sum(args[1] if name == bulk else 1 for name, args in rows)
        seen["in bulk"] = sum(args[1] for name, args in rows if name == bulk)
        work.do("close")

    with workload(cgroup) as work:
        without_loss(feed, lambda: attempt(work))
    assert seen["ours"] == seen["kernel's"] >= seen["in bulk"] >= REQUESTS


class Freed:
    """Have a workload make and free `number` objects of `cache`, which kfree_rcu() is given, until nothing is lost."""

    def __init__(
        self, feed: LiveFeed, cgroup: OwnCgroup, cache: str, number: int, patience: Callable[[float], float]
    ) -> None:
        self.exact = frees_are_exact(feed)
        self._patience = patience
        # If `doctor` says that some kmalloc() is not seen, this is one of them.
        self.expected = (number if cache == EPOLL or kmalloc_is_complete(feed) else 0, number)
        self._feed, self._cgroup, self._cache, self.number = feed, cgroup, cache, number
        self._limit_s = patience(16 if self.exact else 2)

    def _now(self) -> tuple[int, int]:
        """(made, freed) so far; of what is charged where a cache has other objects as well."""
        taken = snapshot(self._feed)
        row = pair_of(taken, self._cache, self._cgroup.id)
        if row is None or self._cache != "kmalloc-256":
            return counts(row)
        return charged(row, cache_named(taken, self._cache).object_bytes)

    def _attempt(self, work: Workload, command: str) -> tuple[int, int]:
        before = rested(self._now, self._patience(3), self._patience(0.1))
        work.do(command)

        def grown() -> tuple[int, int]:
            flush(self._cache)
            made, gone = self._now()
            return made - before[0], gone - before[1]

        return settled(grown, self.expected, self._limit_s)

    def by(self, command: str) -> tuple[int, int]:
        """(made, freed) when nothing was lost."""
        result: list[tuple[int, int]] = []
        with workload(self._cgroup) as work:
            but = frozenset() if self.exact else OF_MAPS
            without_loss(self._feed, lambda: result.append(self._attempt(work, f"{command} {self.number}")), but)
        return result[-1]


@pytest.fixture
def freed(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    scale: Callable[[int], int],
    patience: Callable[[float], float],
) -> Callable[[str], Freed]:
    """`freed(cache)`, by a workload in a cgroup of its own."""
    return lambda cache: Freed(feed, own_cgroup(), cache, scale(50_021), patience)


@pytest.mark.needs("watches freed in batches")
def test_watches_of_epoll_are_freed_as_often_as_they_are_made(freed: Callable[[str], Freed]) -> None:
    watches = freed(EPOLL)
    made, gone = watches.by("epoll")
    assert made == watches.number
    assert gone == watches.number if watches.exact else 0 < gone <= watches.number


@pytest.mark.needs("tries made of kmalloc")
def test_entries_of_tries_are_freed_as_often_as_they_are_made(feed: LiveFeed, freed: Callable[[str], Freed]) -> None:
    entries = freed(kmalloc_256(feed))
    made, gone = entries.by("trie")
    if entries.exact:
        assert (made, gone) == entries.expected
    else:
        assert 0 < gone <= entries.number
