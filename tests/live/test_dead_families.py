# SPDX-License-Identifier: GPL-2.0-only
"""What a dying memcg has itself does not depend on its dying children or on swap."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveFeed
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import cgroup_of, snapshot, wake_processors, warm_up, workload
from tests.waiting import settled

PAGE = 4096
SHMEM_PAGES = 1021
SWAP_MB = 32
SHMEM_BYTES = 8 << 20

pytestmark = pytest.mark.needs("pages that pin the dead", "statistics that are added up")


def pins_of(feed: LiveFeed, cgroup_id: int) -> Mapping[str, int] | None:
    """But for slabs and for pages of programs and directories, which it may have been the first to read."""
    wake_processors()
    row = cgroup_of(snapshot(feed), cgroup_id)
    return None if row is None or row.pins is None else {k: v for k, v in row.pins.items() if k in ("shmem", "swap")}


def test_a_dead_parent_has_nothing_of_its_dead_children(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    memory: MemoryMount,
    tmpfs: Path,
    disk_path: Path,
    patience: Callable[[float], float],
) -> None:
    warm_up(disk_path)
    parent = own_cgroup()
    parent.open_for_children()
    children = [parent.child("one"), parent.child("other")]
    files = [tmpfs / f"{parent.path.name}-{child.path.name}" for child in children]
    for child, file in zip(children, files, strict=True):
        with workload(child) as work:
            work.do(f"write {file} {SHMEM_PAGES * PAGE}")
        child.path.rmdir()
    parent.path.rmdir()

    def told() -> list[int]:
        """Bytes of shmem of the parent and of both children; 0 of what is released."""
        pins = [pins_of(feed, memcg.id) for memcg in (parent, *children)]
        return [(one or {}).get("shmem", 0) for one in pins]

    held = SHMEM_PAGES * PAGE
    assert settled(told, [0, held, held], patience(30)) == [0, held, held]
    files[0].unlink()  # some kernels have stopped the parent's statistics by now
    assert settled(told, [0, 0, held], patience(30)) == [0, 0, held]
    assert pins_of(feed, parent.id) == {}, "only its children keep it"
    files[1].unlink()
    assert settled(told, [0, 0, 0], patience(30)) == [0, 0, 0]


@contextmanager
def swap_file(directory: Path) -> Iterator[None]:
    path = directory / "kmw-test-swap"
    try:
        path.touch(0o600)
        subprocess.run(["fallocate", "-l", f"{SWAP_MB}M", path], check=True)
        subprocess.run(["mkswap", "-q", path], check=True)
        subprocess.run(["swapon", path], check=True)
        yield
    finally:
        subprocess.run(["swapoff", path], stderr=subprocess.DEVNULL, check=False)
        path.unlink(missing_ok=True)


@pytest.mark.needs("swap")
def test_pages_on_their_way_to_swap_are_not_taken_from_the_page_cache(
    feed: LiveFeed,
    own_cgroup: Callable[..., OwnCgroup],
    memory: MemoryMount,
    tmpfs: Path,
    disk_path: Path,
    patience: Callable[[float], float],
) -> None:
    with swap_file(disk_path):
        cgroup = own_cgroup()
        file = tmpfs / cgroup.path.name
        limit = "memory.limit_in_bytes" if memory.version == 1 else "memory.max"
        (cgroup.path / limit).write_text(str(4 << 20))
        with workload(cgroup) as work:
            work.do(f"write {file} {SHMEM_BYTES}")
        subprocess.run(["head", "-c", "2M", file], stdout=subprocess.DEVNULL, check=True)  # some come back
        cgroup.path.rmdir()

        def told() -> tuple[bool, int]:
            """(all kinds are sizes, bytes of shmem wherever they are)."""
            wake_processors()
            row = cgroup_of(snapshot(feed), cgroup.id)
            pins = dict((row.pins if row is not None else None) or {})
            total = sum(pins.get(kind, 0) for kind in ("shmem", "swapcache", "swap"))
            return bool(pins) and min(pins.values()) > 0, total

        expected = True, SHMEM_BYTES
        sizes, total = settled(told, expected, patience(8))
        # A page that has come back may keep its place in swap, and is counted in both.
        assert (sizes, SHMEM_BYTES <= total <= SHMEM_BYTES * 3 // 2) == (True, True), total
        file.unlink()
    assert settled(partial(pins_of, feed, cgroup.id), None, patience(30)) in (None, {})
