# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures for tests that attach to the running kernel, on this machine and in the lab's guests alike.

tests/conftest.py registers them for all directories, so that a session makes each of them once.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cgroup_mounts import MemoryMount, memory_mount
from tests.live.cgroups import OwnCgroup, current_memory_cgroup
from tests.needs import FAILED, GUEST, require

if TYPE_CHECKING:
    from kmemwatch.feeds.live import LiveFeed


def attach(without: tuple[str, ...]) -> LiveFeed:
    # Imported here: every pytest loads this file, also one that has kmemwatch without the sources of its programs.
    from kmemwatch.feeds.live import LiveOptions, open_live

    return open_live(LiveOptions(without))


@pytest.fixture(scope="session")
def require_root_bcc() -> None:
    """No live test runs without root, bcc and a memory controller."""
    require("root", "bcc", "a memory controller")


@pytest.fixture(scope="session")
def memory(require_root_bcc: None) -> MemoryMount:
    """Mount point and version of the hierarchy that has the memory controller."""
    mount = memory_mount()
    assert mount is not None
    return mount


@pytest.fixture(scope="session")
def memory_root(memory: MemoryMount) -> Path:
    return memory.path


@pytest.fixture(scope="session")
def runner_in_root_cgroup(memory: MemoryMount) -> Iterator[None]:
    """Move the test runner and kmemwatch to the root cgroup, so that no measured cgroup is charged for them."""
    home = current_memory_cgroup(*memory)
    if memory.version == 2:
        (memory.path / "cgroup.subtree_control").write_text("+memory")
    (memory.path / "cgroup.procs").write_text(str(os.getpid()))
    yield
    if home.exists():
        (home / "cgroup.procs").write_text(str(os.getpid()))


@pytest.fixture
def own_cgroup(memory_root: Path) -> Iterator[Callable[..., OwnCgroup]]:
    """Factory: `own_cgroup()` or `own_cgroup("odd name")` makes a memory cgroup that this test alone uses.

    At the end it kills every process in them and removes them, also if the test failed.
    """
    made: list[OwnCgroup] = []

    def make(name: str | None = None) -> OwnCgroup:
        made.append(OwnCgroup(memory_root, name))
        return made[-1]

    yield make
    for cgroup in reversed(made):
        cgroup.remove()


@pytest.fixture(scope="session")
def in_guest() -> bool:
    """Whether this runs in one of the lab's kernels."""
    return GUEST is not None


@pytest.fixture(scope="session")
def scale() -> Callable[[int], int]:
    """`scale(100_003)`: that many operations here, fewer on an emulated machine. A prime stays a prime.

    The factor is KMEMWATCH_TEST_SCALE, 1 if not set.
    """
    factor = float(os.environ.get("KMEMWATCH_TEST_SCALE", "1"))
    return lambda count: count if factor == 1 else next_prime(max(11, int(count * factor)))


@pytest.fixture(scope="session")
def patience() -> Callable[[float], float]:
    """`patience(5)`: a time limit of 5 s here, longer on an emulated machine (KMEMWATCH_TEST_PATIENCE times)."""
    factor = float(os.environ.get("KMEMWATCH_TEST_PATIENCE", "1"))
    return lambda seconds: seconds * factor


WITHOUT = {
    "best": (),
    "fentry": ("raw_tp",),
    "kprobe": ("raw_tp", "fentry"),
}
"""Ways of attaching, each as the kinds of hook to leave out."""


WAYS = [
    "best",
    pytest.param("fentry", marks=pytest.mark.needs("fentry")),
    pytest.param("kprobe", marks=pytest.mark.needs("kprobes")),
]
"""Ways of attaching that this kernel may have."""


@pytest.fixture(params=WAYS)
def open_feed(request: pytest.FixtureRequest) -> Iterator[Callable[[], LiveFeed]]:
    """Open a feed that attaches in one of this kernel's ways; all feeds are closed at the end."""
    opened: list[LiveFeed] = []

    def attach_anew() -> LiveFeed:
        opened.append(attach(WITHOUT[request.param]))
        return opened[-1]

    yield attach_anew
    for live in opened:
        live.close()


class SharedFeed:
    """One feed for all tests that attach in the same way. After a failed test there is a new one, because the old may
    be broken."""

    def __init__(self, without: tuple[str, ...]) -> None:
        self._without = without
        self._live: LiveFeed | None = None

    def get(self) -> LiveFeed:
        if self._live is None:
            self._live = attach(self._without)
        return self._live

    def close(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None


@pytest.fixture(scope="session", params=WAYS)
def shared_feed(request: pytest.FixtureRequest, runner_in_root_cgroup: None) -> Iterator[SharedFeed]:
    """pytest runs all tests of one way, then those of the next, so no two are attached at once."""
    shared = SharedFeed(WITHOUT[request.param])
    yield shared
    shared.close()


@pytest.fixture
def feed(request: pytest.FixtureRequest, shared_feed: SharedFeed) -> Iterator[LiveFeed]:
    """A live feed that has attached already and served other tests, because attaching takes long on an emulated
    machine.

    A test sees only its own events. The totals of lost events include those of earlier tests.
    """
    live = shared_feed.get()
    live.next_snapshot(0)
    live.take_events()
    yield live
    if request.node.stash.get(FAILED, False):
        shared_feed.close()


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A tmpfs for one test."""
    path = Path(tempfile.mkdtemp(prefix="kmw-tmpfs-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=0", "kmw-test", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
    path.rmdir()


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """A directory on a file system with a disk below it (page cache, not shmem), for this test alone."""
    # /tmp may be a tmpfs; /var/tmp is for what survives a reboot.
    with tempfile.TemporaryDirectory(prefix="kmw-test-", dir="/var/tmp") as path:
        yield Path(path)


def next_prime(at_least: int) -> int:
    """Smallest prime that is not below `at_least`; counts are primes so that no batch size divides them."""
    candidate = max(2, at_least)
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
