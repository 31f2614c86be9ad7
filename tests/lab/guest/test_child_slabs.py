# SPDX-License-Identifier: GPL-2.0-only
"""Slabs of child caches and their owners, compared with three sources of the kernel: its counters of charges, the
owner of every frame in /proc/kpagecgroup, the slabs of every cache in /proc/slabinfo. All are older than the feed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from kmemwatch.feeds.live import LiveFeed, LiveOptions, open_live
from kmemwatch.maps.decode import MemcgRecord
from kmemwatch.model import DYING, RELEASED, Cgroup
from kmemwatch.source.bpf_source import BpfSource
from tests.cgroup_mounts import MemoryMount
from tests.lab.guest.frames import Frames, look_at_frames
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import shrink, snapshot, warm_up, workload
from tests.needs import SLAB_COUNTERS
from tests.waiting import settled

pytestmark = pytest.mark.needs("root", "bcc", "child caches")

FILES = 1511
"""Each is an inode and a dentry: slabs of several pages, and of one."""
SCANS = 20
"""A slab may move between readings; then all are read again."""
LIMIT_S = 60


@dataclass(frozen=True)
class Graves:
    feed: LiveFeed
    dying: Mapping[str, OwnCgroup]
    """Name of a removed cgroup -> its online parent, which has nothing else."""
    living: OwnCgroup
    files: Path

    @property
    def source(self) -> BpfSource:
        source = self.feed._source
        assert isinstance(source, BpfSource)
        return source


@pytest.fixture(scope="module")
def graves(memory: MemoryMount, runner_in_root_cgroup: None) -> Iterator[Graves]:
    """Two dying memcgs and an online one, each with slabs charged to it, and then a feed."""
    files = Path(tempfile.mkdtemp(dir="/run"))  # a tmpfs, whose empty files are nothing but slabs
    warm_up(files)
    parents = {name: OwnCgroup(memory.path, f"kmw-slabs-{name}") for name in ("first", "second")}
    living = OwnCgroup(memory.path, "kmw-slabs-living")
    try:
        for name, parent in parents.items():
            parent.open_for_children()
            cgroup = parent.child("grave")
            make_files(cgroup, files / name)
            cgroup.remove()
        make_files(living, files / "living")
        feed = open_live(LiveOptions(()))
        yield Graves(feed, parents, living, files)
        feed.close()
    finally:
        for cgroup in (*parents.values(), living):
            cgroup.remove()
        shutil.rmtree(files)


def make_files(cgroup: OwnCgroup, directory: Path) -> None:
    """By a process of that cgroup, once its child caches exist; they are made in the background."""
    for number, name in ((11, "before"), (FILES, "files")):
        (directory / name).mkdir(parents=True)
        with workload(cgroup) as work:
            work.do(f"files {number} {directory / name}")
        time.sleep(0.5)


def counters() -> dict[str, int]:
    lines = [line.split() for line in SLAB_COUNTERS.read_text().splitlines()]
    return {name: int(value) for name, value in lines if name != "mode"}


def scanned(source: BpfSource) -> tuple[dict[int, MemcgRecord], dict[int, Mapping[int, int]]]:
    """(css -> memcg, cgroup id -> cache -> pages), of all memcgs there are."""
    assert source._peek is not None
    assert source._scan is not None
    memcgs = {record.css: record for record in source._peek.memcgs()}
    ids = [record.cgroup_id for record in memcgs.values()]
    while (found := source._scan.read(ids)) is None or found.keys() != set(ids):
        pass
    # That one may have begun long ago.
    wanted = source._scan._number + 1
    while (found := source._scan.read(ids)) is None or source._scan._number < wanted or source._scan._left:
        pass
    return memcgs, dict(found)


T = TypeVar("T")


def at_rest(look: Callable[[], T]) -> T:
    """What `look` says while no slab is charged or uncharged, or moves."""
    for _ in range(SCANS):
        before = counters()
        found = look()
        after = counters()
        if all(before[name] == after[name] for name in before if name.startswith(("slab_", "recharges"))):
            return found
    raise AssertionError(f"slabs changed hands during each of {SCANS} scans")


def test_all_pages_that_were_ever_charged_are_found(graves: Graves) -> None:
    def look() -> tuple[int, Frames, dict[str, int]]:
        found = scanned(graves.source)[1]
        return sum(sum(pages.values()) for pages in found.values()), look_at_frames(), counters()

    pages, seen, counted = at_rest(look)
    assert pages > 3 * FILES // 64
    assert pages == sum(seen.pages.values())
    assert seen.slabs == counted["slab_charges"] + counted["recharges_from_none"] - counted["slab_uncharges"]
    if not counted["recharges_from_none"]:  # of those the kernel counts slabs, and no pages
        assert pages == counted["slab_charged_pages"] - counted["slab_uncharged_pages"]


def test_every_owner_is_who_the_kernel_says_it_is(graves: Graves) -> None:
    def look() -> tuple[Counter[int], Mapping[int, int]]:
        memcgs, found = scanned(graves.source)
        ours: Counter[int] = Counter()
        for record in memcgs.values():
            living = record
            while not living.online:
                living = memcgs[living.parent_css]
            ours[living.cgroup_id] += sum(found[record.cgroup_id].values())
        return +ours, look_at_frames().pages

    ours, kernels = at_rest(look)
    assert ours == kernels
    assert min(ours[cgroup.id] for cgroup in (graves.living, *graves.dying.values())) > FILES // 64


def test_every_cache_has_the_slabs_that_the_kernel_says_it_has(graves: Graves) -> None:
    def look() -> tuple[dict[str, int], dict[str, int]]:
        found = scanned(graves.source)[1]
        ours: Counter[int] = Counter()
        for pages in found.values():
            ours.update(pages)
        assert graves.source._caches is not None
        names = {cache.address: cache.name for cache in graves.source._caches.read() if cache.root is not None}
        return {name: ours[address] for address, name in names.items()}, slabinfo(set(names.values()))

    ours, kernels = at_rest(look)
    assert ours == kernels
    assert any(name.startswith("shmem_inode_cache(") and pages for name, pages in ours.items())


def slabinfo(names: set[str]) -> dict[str, int]:
    """Cache -> pages of its slabs: num_slabs times pagesperslab."""
    rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return {row[0]: int(row[14]) * int(row[5]) for row in rows if row[0] in names}


def grave_of(graves: Graves, name: str) -> Cgroup:
    path = f"/{graves.dying[name].path.name}/grave"
    (found,) = [cgroup for cgroup in snapshot(graves.feed).cgroups if cgroup.path == path]
    return found


def slab_bytes(graves: Graves, name: str) -> int | None:
    cgroup = grave_of(graves, name)
    if cgroup.child_slabs is None:
        return None
    return sum(slabs.slab_bytes for slabs in cgroup.child_slabs)


def test_each_of_the_dead_is_seen_to_drain(graves: Graves, patience: Callable[[float], float]) -> None:
    def truth(name: str) -> int:
        return look_at_frames().pages.get(graves.dying[name].id, 0) * os.sysconf("SC_PAGE_SIZE")

    def shown(name: str, expected: int | None) -> int | None:
        return settled(partial(slab_bytes, graves, name), expected, patience(LIMIT_S))

    before = {name: truth(name) for name in graves.dying}
    for name, expected in before.items():
        assert shown(name, expected) == expected
        cgroup = grave_of(graves, name)
        assert (cgroup.state, (cgroup.pins or {})["slab"]) == (DYING, expected)
        assert {"dentry", "shmem_inode_cache"} <= {slabs.cache.partition("(")[0] for slabs in cgroup.child_slabs or ()}
    unlink(graves.files / "first", 3)
    left = truth("first")
    assert 0 < left < before["first"]
    assert shown("first", left) == left
    # The slabs that were empty are gone there as well.
    assert shown("second", truth("second")) == truth("second") > 0
    unlink(graves.files / "first", 1)
    assert settled(lambda: grave_of(graves, "first").state, RELEASED, patience(LIMIT_S)) == RELEASED
    assert truth("first") == 0
    assert grave_of(graves, "second").state == DYING


def unlink(directory: Path, one_in: int) -> None:
    """Remove every file, or those of its third that came first and share slabs; give back the slabs that are empty."""
    files = sorted((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_ino)
    for path in files[: len(files) // one_in]:
        path.unlink()
    for _ in range(2):
        time.sleep(0.5)  # inodes are freed after a grace period of RCU
        shrink()
