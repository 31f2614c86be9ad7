# SPDX-License-Identifier: GPL-2.0-only
"""Dying memcgs: found at any age, counted as the kernel counts them, each with what really pins it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import DYING, RELEASED, Cgroup
from kmemwatch.views.rows import Frame, zombie_row
from kmemwatch.views.tables import pinned_by
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup, directories, kernels_count
from tests.live.helpers import (
    cgroup_of,
    connection,
    empty_batches,
    empty_stocks,
    lost_lifecycle,
    near,
    shrink,
    snapshot,
    wake_processors,
    warm_up,
    workload,
)
from tests.needs import NEEDS
from tests.waiting import settled

PAGE = 4096
SO_MEMINFO = 55
SHMEM_BYTES = 5_000_011
FILE_BYTES = 3_000_017
SOCKET_BYTES = 50_021


def whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def drop_and_count(path: Path) -> int:
    """Drop the page cache of a file; bytes that are still there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return int(subprocess.check_output(["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]))


@dataclass
class Zombie:
    """A removed memcg, what pins it, and how to release it."""

    cgroup_id: int
    path: str
    pins: dict[str, int]
    references: range
    """One for each folio of page cache or shmem, whose sizes the file system chooses; one for each kernel object."""
    let_go: Callable[[], None]
    page_cache: Callable[[], int]
    """Bytes of page cache that pin it now, from the kernel's own file."""

    def pins_now(self) -> dict[str, int]:
        """Read it now: the kernel may drop some of the page cache at any time, so an earlier figure is too high."""
        file_bytes = self.page_cache()
        others = {name: value for name, value in self.pins.items() if name != "file"}
        return others | ({"file": file_bytes} if file_bytes else {})


class Graveyard:
    """Makes zombies of each kind."""

    def __init__(self, own_cgroup: Callable[..., OwnCgroup], tmpfs: Path, disk: Path, version: int) -> None:
        self._own_cgroup = own_cgroup
        self._tmpfs = tmpfs
        self._disk = disk
        self._version = version
        self._open_graves: list[tuple[OwnCgroup, Zombie]] = []

    def _make(self) -> OwnCgroup:
        """With an online parent of its own, whose files show what the dying cgroup has."""
        parent = self._own_cgroup()
        parent.open_for_children()
        return parent.child("grave")

    def _page_cache(self, parent: Path) -> int:
        """Page cache of a cgroup and all below it, dying ones too, in bytes, from the kernel's own file."""
        if not PAGES:  # it becomes the parent's
            return 0
        if self._version == 2:
            (parent / "cpu.stat").read_text()  # adds up the statistics of most kernels
        stat = dict(line.split() for line in (parent / "memory.stat").read_text().splitlines())
        cache, shmem = ("total_cache", "total_shmem") if self._version == 1 else ("file", "shmem")
        return int(stat[cache]) - int(stat[shmem])

    def shmem(self) -> Zombie:
        """A file on tmpfs."""
        cgroup = self._make()
        path = self._tmpfs / f"{cgroup.path.parent.name}.bin"
        with workload(cgroup) as work:
            work.do(f"write {path} {SHMEM_BYTES}")
        pins = {"shmem": whole_pages(SHMEM_BYTES)}
        return self._bury(cgroup, pins, range(1, whole_pages(SHMEM_BYTES) // PAGE + 1), path.unlink)

    def page_cache(self) -> Zombie:
        """A file on disk that it was the first to read: no block or directory of it is read for the first time."""
        cgroup = self._make()
        path = self._disk / f"{cgroup.path.parent.name}.bin"
        path.write_bytes(os.urandom(FILE_BYTES))
        assert settled(partial(drop_and_count, path), 0, 30) == 0
        with workload(cgroup) as work:
            work.do(f"read {path}")
        pins = {"file": whole_pages(FILE_BYTES)}
        return self._bury(cgroup, pins, range(1, whole_pages(FILE_BYTES) // PAGE + 1), path.unlink)

    def socket(self) -> Zombie:
        """A TCP connection with unread data, held open by an outsider."""
        cgroup = self._make()
        if self._version == 1:  # v1 charges sockets only under a limit
            (cgroup.path / "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 30))
        with workload(cgroup) as work:
            ours, theirs = connection(work, SOCKET_BYTES)
        # What the socket itself says it has reserved: received, sent and forward allocated bytes are whole pages.
        info = struct.unpack_from("9I", theirs.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
        received, _, _, _, forward, queued, *_ = info

        def let_go() -> None:
            theirs.close()
            ours.close()

        return self._bury(cgroup, {"sock": received + forward + queued}, range(1, 2), let_go)

    def inotify(self) -> Zombie:
        """A kernel object that owns no memory: there is only the reference."""
        cgroup = self._make()
        with workload(cgroup) as work:
            work.start("inotify")
            descriptor = work.receive_fd()
            work.finish()
        return self._bury(cgroup, {}, range(1, 2), lambda: os.close(descriptor))

    def _bury(self, cgroup: OwnCgroup, pins: dict[str, int], references: range, let_go: Callable[[], None]) -> Zombie:
        parent = cgroup.path.parent
        path = f"/{parent.name}/{cgroup.path.name}"
        zombie = Zombie(cgroup.id, path, pins, references, let_go, partial(self._page_cache, parent))
        self._open_graves.append((cgroup, zombie))
        return zombie

    def close(self) -> None:
        """Remove all cgroups that were prepared, after a look at their page cache.

        It is near the size of the file and not that size: a cgroup may be the first to touch a page of a program or a
        directory, and the kernel may drop some of the file.
        """
        time.sleep(2.5)  # memory.stat may be two seconds old
        for cgroup, zombie in self._open_graves:
            if PAGES:
                assert abs(zombie.page_cache() - zombie.pins.get("file", 0)) <= 64 * PAGE
            zombie.references = range(zombie.references.start, zombie.references.stop + 64)
            cgroup.path.rmdir()
        self._open_graves.clear()


@pytest.fixture
def graveyard(own_cgroup: Callable[..., OwnCgroup], tmpfs: Path, disk_path: Path, memory: MemoryMount) -> Graveyard:
    warm_up(disk_path)
    return Graveyard(own_cgroup, tmpfs, disk_path, memory.version)


PAGES = ("shmem", "page_cache") if NEEDS["pages that pin the dead"]() else ()
KINDS = (*PAGES, "socket", "inotify")


def test_each_zombie_names_its_pin_and_goes_when_the_pin_goes(
    open_feed: Callable[[], LiveFeed],
    graveyard: Graveyard,
    memory_root: Path,
    patience: Callable[[float], float],
) -> None:
    older = {kind: getattr(graveyard, kind)() for kind in KINDS}
    graveyard.close()
    feed = open_feed()
    younger = {kind: getattr(graveyard, kind)() for kind in KINDS}
    graveyard.close()
    zombies = [(f"{kind}, older", zombie) for kind, zombie in older.items()]
    zombies += [(f"{kind}, younger", zombie) for kind, zombie in younger.items()]
    # Where a memcg is charged for whole slabs, each of these has some; tests/lab/guest sees whether they are right.
    child_caches = NEEDS["child caches"]()

    def difference(zombie: Zombie) -> tuple[object, ...] | None:
        """(told, expected); None when they are the same."""
        wake_processors()
        pins_before = zombie.pins_now()
        row = cgroup_of(snapshot(feed), zombie.cgroup_id)
        if row is None:
            return None, zombie
        pins = dict(row.pins or {})
        if child_caches:
            pins.pop("slab", None)
        told = (row.state, row.path, near(pins, pins_before), row.references in zombie.references)
        expected = (DYING, zombie.path, pins_before, True)
        return None if told == expected else (told, expected)

    for kind, zombie in zombies:
        # The kernel adds up statistics every two seconds.
        assert settled(partial(difference, zombie), None, patience(30)) is None, kind
    for kind, zombie in zombies:
        row = cgroup_of(snapshot(feed), zombie.cgroup_id)
        assert row is not None
        assert (row.offline_at_ns is None) == kind.endswith("older"), "only deaths that were seen have a time"
    for _, zombie in zombies:
        zombie.let_go()

    def left() -> list[tuple[str, object, int | None, int]]:
        """(kind, what pins it, references, its page cache by the kernel's word)."""
        empty_batches()  # and strays
        if child_caches:
            shrink()
        empty_stocks(memory_root)
        rows = {row.id: row for row in snapshot(feed).cgroups if row.state != RELEASED}
        there = [(kind, zombie, rows[zombie.cgroup_id]) for kind, zombie in zombies if zombie.cgroup_id in rows]
        return [(kind, row.pins, row.references, zombie.page_cache()) for kind, zombie, row in there]

    nobody: list[tuple[str, object, int | None, int]] = []
    assert settled(left, nobody, patience(30)) == nobody
    assert lost_lifecycle(feed) == 0


# Where memcgs have child caches, each of their slabs is a reference, too.
@pytest.mark.needs("caches that all share")
def test_a_dying_parent_names_its_dying_children(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], memory: MemoryMount, patience: Callable[[float], float]
) -> None:
    """One reference for each child, and one for an inotify instance of the parent's own."""
    top = own_cgroup()
    top.open_for_children()
    pod = top.child("pod")
    with workload(pod) as work:
        work.start("inotify")
        inotify = work.receive_fd()
        work.finish()
    pod.open_for_children()
    children, held = [pod.child("c1"), pod.child("c2"), pod.child("c3")], []
    for child in children:
        with workload(child) as work:
            work.start("inotify")
            held.append(work.receive_fd())
            work.finish()
    for cgroup in (*children, pod):
        cgroup.path.rmdir()

    def row() -> Cgroup | None:
        empty_batches()
        found = cgroup_of(snapshot(feed), pod.id)
        return None if found is None or found.state == RELEASED else found

    def told() -> list[object]:
        found = row()
        if found is None:
            return []
        others = None if found.references is None else found.references - (found.dying_children or 0)
        shown = Frame(snapshot(feed))
        below = sorted((c.path or "").rpartition("/")[2] for c in shown.dying_below.get(pod.id, []))
        return [found.dying_children, others, below]

    names = ["c1", "c2", "c3"]
    assert settled(told, [3, 1, names], patience(30)) == [3, 1, names]
    shown = Frame(snapshot(feed))
    dead = cgroup_of(shown.snapshot, pod.id)
    assert dead is not None
    said = pinned_by(zombie_row(shown, dead))
    assert "3 dying children: " in said
    assert all(name in said for name in names)
    os.close(inotify)
    assert settled(told, [3, 0, names], patience(30)) == [3, 0, names]
    for descriptor in held:
        os.close(descriptor)
    assert settled(row, None, patience(30)) is None


@pytest.mark.needs("pages that pin the dead")
def test_reclaim_in_the_parent_releases_those_that_page_cache_pins(
    feed: LiveFeed, graveyard: Graveyard, memory_root: Path, memory: MemoryMount, patience: Callable[[float], float]
) -> None:
    """What docs/runbook.md says to do, in the nearest cgroup above that still exists."""
    zombie = graveyard.page_cache()
    graveyard.close()

    def is_dying() -> bool:
        row = cgroup_of(snapshot(feed), zombie.cgroup_id)
        return row is not None and row.state == DYING

    assert settled(is_dying, True, patience(30))
    parent = memory_root / zombie.path.strip("/").partition("/")[0]

    def reclaim() -> None:
        if memory.version == 1:
            (parent / "memory.force_empty").write_text("1")
        elif (parent / "memory.reclaim").exists():
            with contextlib.suppress(BlockingIOError):  # there is less than that
                (parent / "memory.reclaim").write_text("1G")
        else:
            (parent / "memory.high").write_text("0")
            (parent / "memory.high").write_text("max")

    def state() -> str | None:
        reclaim()
        empty_stocks(memory_root)
        found = cgroup_of(snapshot(feed), zombie.cgroup_id)
        if found is None or found.state == RELEASED:
            return None
        # Where memcgs have child caches, the slabs of what it made stay until they are recharged or freed.
        return None if found.child_slabs and set(found.pins or ("unknown",)) == {"slab"} else found.state

    assert settled(state, None, patience(30)) is None
    zombie.let_go()


def test_dying_memcgs_are_as_many_as_the_kernel_says(
    feed: LiveFeed, graveyard: Graveyard, memory: MemoryMount, patience: Callable[[float], float]
) -> None:
    zombies = [graveyard.inotify() for _ in range(7)]
    graveyard.close()

    def difference() -> tuple[int, int]:
        """(online, dying): how many more we show than the kernel."""
        totals = snapshot(feed).totals
        assert totals.dying_cgroups is not None
        assert totals.online_cgroups is not None
        online = directories(memory)
        return totals.online_cgroups - online, totals.dying_cgroups - (kernels_count(memory) - online)

    # Others make and remove cgroups, too: the numbers have to be read at rest.
    assert settled(difference, (0, 0), patience(30)) == (0, 0)
    dying = snapshot(feed).totals.dying_cgroups
    assert dying is not None
    assert dying >= 7
    for zombie in zombies:
        zombie.let_go()
    assert settled(difference, (0, 0), patience(30)) == (0, 0)
