# SPDX-License-Identifier: GPL-2.0-only
"""The purpose of the series, in the output of `kmemwatch events`: A fills caches and dies, B takes over its id and
caches and allocates from A's slabs, which are then charged to B, and A is released."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from tests.daemon import KMEMWATCH
from tests.lab.guest.truth import bury, every_used_id, kernel_counters, slabinfo_children
from tests.lab.guest.workers import workers
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import shrink
from tests.waiting import settled, wait_for

pytestmark = pytest.mark.needs("root", "bcc", "recharges")

FILES = 601
LIMIT_S = 60

Told = dict[str, Any]
"""One line of `kmemwatch events --output ndjson`."""


@dataclass
class Story:
    """The output of a running `kmemwatch events`."""

    told: list[Told] = field(default_factory=list)

    def read(self, lines: IO[str]) -> None:
        """Until it ends."""
        for line in lines:
            self.told.append(json.loads(line))

    def wait(self, kind: str, **members: Any) -> int:
        """Place of the only event of that kind and with these members, once it is there; fails when there is none."""

        def places() -> list[int]:
            wanted = {"kind": kind, **members}.items()
            return [place for place, event in enumerate(list(self.told)) if wanted <= event.items()]

        found = wait_for(places, LIMIT_S, f"{kind} {members}")
        assert len(found) == 1, f"{len(found)} events of {kind} {members} in {self.told}"
        return found[0]


@pytest.fixture
def story(memory_root: Path) -> Iterator[Story]:
    """A running `kmemwatch events`, once it prints every event."""
    argv = [*KMEMWATCH, "events", "--output", "ndjson"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    story = Story()
    reader = threading.Thread(target=story.read, args=(process.stdout,))
    reader.start()
    try:
        sentinel = memory_root / "kmw-sentinel"
        until = time.monotonic() + 3 * LIMIT_S
        while not any(event["path"] == "/kmw-sentinel" and event["kind"] == "online" for event in story.told):
            assert time.monotonic() < until, "kmemwatch events says nothing"
            sentinel.mkdir()
            time.sleep(0.2)
            sentinel.rmdir()
        yield story
    finally:
        process.terminate()
        reader.join()
        process.wait()


@pytest.fixture
def fillers(story: Story, memory_root: Path) -> Iterator[list[Path]]:
    """Told of, as they are made after the story has begun."""
    with every_used_id(memory_root) as made:
        yield made


def test_a_dies_and_b_takes_over(
    story: Story, fillers: list[Path], memory_root: Path, own_cgroup: Callable[..., OwnCgroup], tmpfs: Path
) -> None:
    bury()
    story.wait("online", path=f"/{fillers[-1].name}")
    start, counters = len(story.told), [kernel_counters()]
    before = slabinfo_children()

    a = own_cgroup("kmw-story-a")
    with workers(1) as (worker,):
        worker.do("pin", 0)
        worker.do("enter", a.path)
        for number in (11, FILES):
            worker.do("files", number, f"{tmpfs}/a{number}-")
            time.sleep(1)  # the first made the child caches known, which are created in the background
        worker.do("enter", memory_root)
        made = slabinfo_children() - before
        for path in sorted(tmpfs.iterdir(), key=lambda path: path.stat().st_ino)[::2]:
            path.unlink()
        time.sleep(1)  # inodes are freed after a grace period of RCU
        counters.append(kernel_counters())
        a.path.rmdir()
        freed = counters[-1]["ids_freed"] + 1
        assert settled(lambda: kernel_counters()["ids_freed"], freed, LIMIT_S) == freed
        b = own_cgroup("kmw-story-b")
        worker.do("enter", b.path)
        counters.append(kernel_counters())
        worker.do("files", FILES, f"{tmpfs}/b-")
        worker.do("enter", memory_root)
    counters.append(kernel_counters())
    for path in tmpfs.iterdir():
        path.unlink()
    time.sleep(1)
    shrink()
    settled(lambda: kernel_counters()["css_free"] - counters[0]["css_free"], 1, LIMIT_S)
    released = story.wait("released", cgroup_id=a.id)
    counters.append(kernel_counters())

    given = story.wait("id_given", cgroup_id=a.id)
    kmemcg_id = story.told[given]["kmemcg_id"]
    created = [place for place, event in enumerate(story.told) if event["kind"] == "cache_created" and place > given]
    moved = [
        place
        for place, event in enumerate(story.told)
        if event["kind"] == "recharge" and (event["other_cgroup_id"], event["cgroup_id"]) == (a.id, b.id)
    ]
    steps = [
        story.wait("online", cgroup_id=a.id, path="/kmw-story-a"),
        given,
        *created,
        story.wait("id_freed", cgroup_id=a.id, kmemcg_id=kmemcg_id),
        story.wait("id_reused", cgroup_id=b.id, kmemcg_id=kmemcg_id, other_cgroup_id=a.id),
        *moved,
        released,
    ]
    assert steps == sorted(steps)
    assert given < story.wait("offline", cgroup_id=a.id) < story.wait("online", cgroup_id=b.id) < moved[0]

    # The caches are those that the kernel lists; it made none for B.
    assert {story.told[place]["cache"] for place in created} == made
    assert {story.told[place]["kmemcg_id"] for place in created} == {kmemcg_id}
    assert all(name.endswith(f"({kmemcg_id})") for name in made)
    assert counters[1]["caches_created"] - counters[0]["caches_created"] == len(created) == len(made)
    assert counters[4]["caches_created"] == counters[1]["caches_created"]

    # Of all moves of a cache, only the first one is an event.
    names = [story.told[place]["cache"] for place in moved]
    assert set(names) <= made
    assert {f"dentry({kmemcg_id})", f"shmem_inode_cache({kmemcg_id})"} <= set(names)
    assert len(names) == len(set(names))
    assert counters[3]["recharges_from_dead"] - counters[2]["recharges_from_dead"] >= max(len(names), FILES // 64)

    kinds = Counter(event["kind"] for event in story.told[start:])
    grown = {name: counters[4][name] - counters[0][name] for name in counters[4]}
    assert kinds["online"] == grown["css_online"] == 2
    assert kinds["offline"] == grown["css_offline"] == 1
    assert kinds["released"] == grown["css_free"] == 1
    assert kinds["id_given"] + kinds["id_reused"] == grown["ids_allocated"] == 2
    assert kinds["id_reused"] == grown["id_reuses"] == 1
    assert kinds["id_freed"] == grown["ids_freed"] == 1
    assert kinds["recharge_failed"] == grown["recharge_failures"] == 0
