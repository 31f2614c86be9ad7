# SPDX-License-Identifier: GPL-2.0-only
"""Dying memcgs: found whenever they died, counted as the kernel counts them, each with what really pins it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from kmemwatch.live import LiveFeed
from kmemwatch.model import DYING, RELEASED
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup
from tests.live.tell import (
    cgroup_of,
    empty_batches,
    lost_lifecycle,
    near,
    settled,
    shrink,
    snapshot,
    wake_processors,
    warm_up,
    workload,
)
from tests.needs import NEEDS

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
    return cached_bytes(path)


def cached_bytes(path: Path) -> int:
    """Page cache of a file."""
    return int(subprocess.check_output(["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]))


@dataclass
class Zombie:
    """A removed memcg, what pins it, and how to let it go."""

    cgroup_id: int
    path: str
    pins: dict[str, int]
    references: range
    """One for each folio of page cache or shmem, whose sizes the file system chooses; one for each kernel object."""
    let_go: Callable[[], None]
    file: Path | None = None
    file_bytes: int = 0
    """Page cache of the file when its pins were noted."""

    def pins_now(self) -> dict[str, int]:
        """The kernel may have dropped some of a file since, which nobody else reads."""
        if self.file is None:
            return self.pins
        return self.pins | {"file": self.pins["file"] - self.file_bytes + cached_bytes(self.file)}


class Graveyard:
    """Makes zombies of each kind."""

    def __init__(self, own_cgroup: Callable[..., OwnCgroup], tmpfs: Path, disk: Path, version: int) -> None:
        self._own_cgroup = own_cgroup
        self._tmpfs = tmpfs
        self._disk = disk
        self._version = version
        self._open_graves: list[tuple[OwnCgroup, Zombie]] = []

    def _page_cache(self, cgroup: OwnCgroup) -> int:
        """Page cache of a cgroup in bytes, by the kernel's own word."""
        stat = {line.split()[0]: int(line.split()[1]) for line in cgroup.read("memory.stat").splitlines()}
        return stat["cache" if self._version == 1 else "file"] - stat["shmem"]

    def shmem(self) -> Zombie:
        """A file on tmpfs."""
        cgroup = self._own_cgroup()
        path = self._tmpfs / f"{cgroup.path.name}.bin"
        with workload(cgroup) as work:
            work.do(f"write {path} {SHMEM_BYTES}")
        pins = {"shmem": whole_pages(SHMEM_BYTES)}
        return self._bury(cgroup, pins, range(1, whole_pages(SHMEM_BYTES) // PAGE + 1), path.unlink)

    def page_cache(self) -> Zombie:
        """A file on disk that it was the first to read: no block or directory of it is read for the first time."""
        cgroup = self._own_cgroup()
        path = self._disk / f"{cgroup.path.name}.bin"
        path.write_bytes(os.urandom(FILE_BYTES))
        assert settled(partial(drop_and_count, path), 0, 10) == 0
        with workload(cgroup) as work:
            work.do(f"read {path}")
        pins = {"file": whole_pages(FILE_BYTES)}
        zombie = self._bury(cgroup, pins, range(1, whole_pages(FILE_BYTES) // PAGE + 1), path.unlink)
        zombie.file = path
        return zombie

    def socket(self) -> Zombie:
        """A TCP connection with unread data, held open by an outsider."""
        cgroup = self._own_cgroup()
        if self._version == 1:  # v1 charges sockets only under a limit
            (cgroup.path / "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 30))
        with workload(cgroup) as work:
            work.start(f"receive {SOCKET_BYTES}")
            port = int(work.channel.recv(64))
            ours = socket.create_connection(("127.0.0.1", port))
            sender = threading.Thread(target=lambda: ours.sendall(bytes(SOCKET_BYTES)))
            sender.start()
            theirs = socket.socket(fileno=work.receive_fd())
            sender.join()
            work.finish()
        # What the socket itself says it has reserved: received, sent and forward allocated bytes are whole pages.
        info = struct.unpack_from("9I", theirs.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
        received, _, _, _, forward, queued, *_ = info

        def let_go() -> None:
            theirs.close()
            ours.close()

        return self._bury(cgroup, {"sock": received + forward + queued}, range(1, 2), let_go)

    def inotify(self) -> Zombie:
        """A kernel object without a byte: only the reference tells."""
        cgroup = self._own_cgroup()
        with workload(cgroup) as work:
            work.start("inotify")
            descriptor = work.receive_fd()
            work.finish()
        return self._bury(cgroup, {}, range(1, 2), lambda: os.close(descriptor))

    def _bury(self, cgroup: OwnCgroup, pins: dict[str, int], references: range, let_go: Callable[[], None]) -> Zombie:
        zombie = Zombie(cgroup.id, f"/{cgroup.path.name}", pins, references, let_go)
        self._open_graves.append((cgroup, zombie))
        return zombie

    def close(self) -> None:
        """Remove all cgroups that were prepared, after reading what the kernel says of their page cache.

        It decides what of a file is cached: it may drop some, and a cgroup may be the first to touch a page of a
        program or a directory. So the figure to meet is the kernel's own, near the size of the file.
        """
        time.sleep(2.5)  # memory.stat may be two seconds old
        for cgroup, zombie in self._open_graves:
            file_bytes = self._page_cache(cgroup)
            assert abs(file_bytes - zombie.pins.get("file", 0)) <= 64 * PAGE
            zombie.references = range(zombie.references.start, zombie.references.stop + 64)
            if file_bytes:
                zombie.pins["file"] = file_bytes
            if zombie.file is not None:
                zombie.file_bytes = cached_bytes(zombie.file)
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
    own_cgroup: Callable[..., OwnCgroup],
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
        assert settled(partial(difference, zombie), None, patience(8)) is None, kind
    for kind, zombie in zombies:
        row = cgroup_of(snapshot(feed), zombie.cgroup_id)
        assert row is not None
        assert (row.offline_at_ns is None) == kind.endswith("older"), "only deaths that were seen have a time"
    for _, zombie in zombies:
        zombie.let_go()

    def left() -> list[str]:
        empty_batches()  # and strays
        if child_caches:
            shrink()
        # Each CPU has pages in stock for whom it charged last, for several of them on 7.2: others push them out.
        with workload(own_cgroup()):
            pass
        rows = {row.id: row.state for row in snapshot(feed).cgroups}
        return [kind for kind, zombie in zombies if rows.get(zombie.cgroup_id, RELEASED) != RELEASED]

    nobody: list[str] = []
    assert settled(left, nobody, patience(20)) == nobody
    assert lost_lifecycle(feed) == 0


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
    return sum(1 for _ in os.walk(memory.path))


def test_dying_memcgs_are_as_many_as_the_kernel_says(
    feed: LiveFeed, graveyard: Graveyard, memory: MemoryMount, patience: Callable[[float], float]
) -> None:
    zombies = [graveyard.inotify() for _ in range(7)]
    graveyard.close()

    def difference() -> tuple[int, int]:
        """(online, dying) that we show more than the kernel does."""
        totals = snapshot(feed).totals
        assert totals.dying_cgroups is not None
        assert totals.online_cgroups is not None
        online = directories(memory)
        return totals.online_cgroups - online, totals.dying_cgroups - (kernels_count(memory) - online)

    # Others make and remove cgroups, too: the numbers have to be read at rest.
    assert settled(difference, (0, 0), patience(20)) == (0, 0)
    dying = snapshot(feed).totals.dying_cgroups
    assert dying is not None
    assert dying >= 7
    for zombie in zombies:
        zombie.let_go()
    assert settled(difference, (0, 0), patience(20)) == (0, 0)
