# SPDX-License-Identifier: GPL-2.0-only
"""The test's side of a workload; reading a feed; making the kernel release what it caches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import Cache, Cgroup, Pair, Snapshot
from kmemwatch.source.bpf_source import BpfSource
from tests.live.cgroups import OwnCgroup
from tests.needs import NEEDS

_WORKLOAD = Path(__file__).with_name("workload.py")
SLAB_SYSFS = Path("/sys/kernel/slab")


class Workload:
    """A running tests/live/workload.py inside a cgroup."""

    def __init__(self, cgroup: OwnCgroup | None) -> None:
        """`cgroup` None: the cgroup of the test."""
        self.channel, theirs = socket.socketpair()
        self._process = self._start(cgroup, theirs)
        theirs.close()
        assert self._line() == "ready"
        self.pid = self._process.pid

    @staticmethod
    def _start(cgroup: OwnCgroup | None, theirs: socket.socket) -> subprocess.Popen[bytes]:
        def enter() -> None:
            if cgroup is not None:
                cgroup.enter()
            os.dup2(theirs.fileno(), 3)

        # -I -S: without site-packages, so that it touches as few files as possible.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WORKLOAD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=enter,
            close_fds=False,
        )

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def start(self, command: str) -> None:
        """Give a command; `finish` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> None:
        assert self._line() == "done"

    def do(self, command: str) -> None:
        self.start(command)
        self.finish()

    def receive_fd(self) -> int:
        """The descriptor that the workload sends to the test."""
        _, fds, _, _ = socket.recv_fds(self.channel, 1, 1)
        return int(fds[0])

    def end(self) -> None:
        """Close its stdin, wait for its exit."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.channel.close()


def connection(work: Workload, size: int) -> tuple[socket.socket, socket.socket]:
    """(our end, the workload's) of a TCP connection in which `size` bytes from us are unread."""
    work.start(f"receive {size}")
    port = int(work.channel.recv(64))
    ours = socket.create_connection(("127.0.0.1", port))
    sender = threading.Thread(target=lambda: ours.sendall(bytes(size)))
    sender.start()
    theirs = socket.socket(fileno=work.receive_fd())
    sender.join()
    work.finish()
    return ours, theirs


def warm_up(directory: Path) -> None:
    """Do once in our own cgroup all that zombies do, so that none of them is the first to read a page of the
    interpreter."""
    with workload(None) as work:
        for command in ("eventfd 3", "pipes 3", "close", f"write {directory}/warm 5000", f"read {directory}/warm"):
            work.do(command)
        work.do(f"files 3 {directory}")
        work.do(f"unlink 3 {directory}")
        work.start("inotify")
        os.close(work.receive_fd())
        work.finish()
        # Do not map what they read, or the kernel could not drop it.
        for end in connection(work, 5000):
            end.close()
    (directory / "warm").unlink()


@contextmanager
def workload(cgroup: OwnCgroup | None) -> Iterator[Workload]:
    """A workload that has ended when the block ends."""
    running = Workload(cgroup)
    try:
        yield running
    finally:
        running.end()


def snapshot(feed: LiveFeed) -> Snapshot:
    """The state of now."""
    taken = feed.next_snapshot(0)
    assert taken is not None
    return taken


def lost_lifecycle(feed: LiveFeed) -> int:
    """Lifecycle events that were lost for any reason."""
    reasons = snapshot(feed).lost.reasons
    return sum(reasons.get(reason, 0) for reason in ("ringbuf_full", "undecodable", "event_queue_full")) + reasons.get(
        "skipped_lifecycle", 0
    )


def cgroup_of(snapshot: Snapshot, cgroup_id: int) -> Cgroup | None:
    """Row of a cgroup; None when the snapshot has none."""
    return next((cgroup for cgroup in snapshot.cgroups if cgroup.id == cgroup_id), None)


def cache_named(snapshot: Snapshot, name: str) -> Cache:
    """The cache that serves `name`: itself, or the one that the kernel merged it with (/sys/kernel/slab links)."""
    names = {name}
    if (SLAB_SYSFS / name).exists():
        target = (SLAB_SYSFS / name).resolve()
        names |= {entry.name for entry in SLAB_SYSFS.iterdir() if entry.resolve() == target}
    found = [cache for cache in snapshot.caches if cache.name in names]
    assert len(found) == 1, f"{len(found)} caches serve {name}"
    return found[0]


def address_of(feed: LiveFeed, cache: Cache) -> int:
    """Address of a cache in the kernel; the source has it, and no snapshot."""
    source = feed._source
    assert isinstance(source, BpfSource)
    ids = feed._state._counts._ids
    (found,) = [one.address for one in source._read_caches() or () if ids[one.address] == cache.id]
    return found


def pair_of(snapshot: Snapshot, cache: str, cgroup_id: int) -> Pair | None:
    """Row of a pair; None when nothing was counted yet."""
    cache_id = cache_named(snapshot, cache).id
    return next((p for p in snapshot.pairs if p.cgroup_id == cgroup_id and p.cache_id == cache_id), None)


def shrink() -> None:
    """Make the kernel free unused dentries, including those of removed cgroups, and then all empty slabs. A root
    cache frees those of its children too."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    for path in SLAB_SYSFS.glob("*/shrink"):
        path.write_text("1")


def empty_batches() -> None:
    """Make the kernel drain the pages that wait in a CPU's batch (a `folio_batch`, with room for 31) and drop clean
    pages of files. On a quiet machine nothing else drains a batch, and each page in it pins its memcg."""
    Path("/proc/sys/vm/drop_caches").write_text("1")


def empty_stocks(memory_root: Path) -> None:
    """Make a process in its own cgroup charge something on every CPU. Each CPU keeps charged pages in stock for the
    last memcg (on 7.2 for several), and only the charge of another memcg pushes them out."""
    other = OwnCgroup(memory_root)
    try:
        for _ in each_processor():
            with workload(other):
                pass
    finally:
        other.remove()


def each_processor() -> Iterator[int]:
    """Run on each CPU in turn, with all processes started meanwhile."""
    allowed = os.sched_getaffinity(0)
    try:
        for processor in allowed:
            os.sched_setaffinity(0, {processor})
            yield processor
    finally:
        os.sched_setaffinity(0, allowed)


def wake_processors() -> None:
    """Be busy for some ticks on each CPU. A deferrable timer adds up the statistics of memcgs every two seconds, and it
    does not run on an idle CPU."""
    for _ in each_processor():
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass


def near(pins: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, int]:
    """`pins`, with the `expected` value in place of those that are as near to it as this kernel tells. That is exactly,
    but before v5.13 each CPU keeps up to 32 pages of a statistic to itself, also in the kernel's own files. A pin of
    fewer pages may be missing then."""
    batch = 0 if NEEDS["statistics that are added up"]() else 32 * os.sysconf("SC_PAGE_SIZE") * (os.cpu_count() or 1)
    kept_back = {name: value for name, value in expected.items() if value <= batch}
    return kept_back | {
        name: expected[name] if abs(value - expected.get(name, value + batch + 1)) <= batch else value
        for name, value in pins.items()
    }
