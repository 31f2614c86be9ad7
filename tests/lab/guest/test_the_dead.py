# SPDX-License-Identifier: GPL-2.0-only
"""Three hundred memcgs that die with objects left: what becomes of their ids and of their caches where each memcg has
its own (they stay), and where they are reused (others take them over)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemwatch.feeds.live import LiveOptions, open_live
from kmemwatch.model import ABSENT, DYING, Cgroup
from tests.lab.guest.frames import look_at_frames
from tests.lab.guest.truth import PAGE_BYTES, Watched, at_rest, bury, every_used_id, grown, lost_between
from tests.lab.guest.workers import workers
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import shrink
from tests.needs import slab_mode

pytestmark = pytest.mark.needs("root", "bcc", "child caches")

MEMCGS = 307
PAUSE_MS = 50
"""For the child caches of each, which are created in the background."""
LIMIT_S = 60


@pytest.fixture
def fillers(memory_root: Path) -> Iterator[int]:
    """How many memcgs there are that have all ids that were given before; they have nothing else."""
    bury()
    with every_used_id(memory_root) as made:
        yield len(made)


@pytest.fixture
def watched(runner_in_root_cgroup: None, fillers: int) -> Iterator[Watched]:
    """Attached in the best way; no id was given and freed before that could not be known to have been."""
    feed = open_live(LiveOptions(()))
    yield Watched("best", feed)
    feed.close()


@pytest.fixture
def parent(memory_root: Path) -> Iterator[OwnCgroup]:
    """An online cgroup that has nothing itself, and whose children have a memory controller."""
    cgroup = OwnCgroup(memory_root, "kmw-graveyard")
    cgroup.open_for_children()
    yield cgroup
    cgroup.remove()


def test_three_hundred_die_with_objects_left(watched: Watched, fillers: int, parent: OwnCgroup, tmpfs: Path) -> None:
    before = at_rest([watched])
    with workers(1) as (worker,):
        worker.do("lives", MEMCGS, parent.path, "kmw-dead", tmpfs, PAUSE_MS, parent.path.parent)
        after = at_rest([watched])
        ours, kernels = grown(before.ours("best"), after.ours("best")), grown(before.kernels(), after.kernels())
        assert lost_between(before.feeds["best"], after.feeds["best"]) == {}
        if slab_mode() == "private":
            assert ours == {name: None if name.startswith("recharge") else value for name, value in kernels.items()}
        else:
            assert ours == kernels
        assert kernels["css_offline"] == kernels["ids_allocated"] == MEMCGS
        pinned_pages_are_the_kernels(watched, parent)
        contrast(watched, kernels, fillers, stayed=len(dying_below(parent, watched)))
        worker.do("unlink")
    time.sleep(1)  # inodes are freed after a grace period of RCU
    shrink()
    deadline = time.monotonic() + LIMIT_S
    # Others may have died before, with pages of files that are still in use.
    old = before.kernels()["dying"]
    while (left := at_rest([watched])).kernels()["dying"] > old and time.monotonic() < deadline:
        time.sleep(1)
    assert left.ours("best")["dying"] == left.kernels()["dying"] <= old
    assert dying_below(parent, watched) == []


def dying_below(parent: OwnCgroup, watched: Watched) -> list[Cgroup]:
    above = f"/{parent.path.name}/"
    return [
        cgroup for cgroup in watched.look().cgroups if cgroup.state == DYING and (cgroup.path or "").startswith(above)
    ]


def pinned_pages_are_the_kernels(watched: Watched, parent: OwnCgroup) -> None:
    """/proc/kpagecgroup counts the pages of a dying memcg for its nearest online ancestor."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        dying = dying_below(parent, watched)
        ours = [sum(slabs.slab_bytes for slabs in cgroup.child_slabs or ()) for cgroup in dying]
        kernels = look_at_frames().pages[parent.id] * PAGE_BYTES
        if sum(ours) == kernels or time.monotonic() > deadline:
            break
    assert sum(ours) == kernels > 0
    assert [(cgroup.pins or {}).get("slab", 0) for cgroup in dying] == ours


def contrast(watched: Watched, kernels: dict[str, int | None], fillers: int, stayed: int) -> None:
    """What the series changes, in our figures. The limits do not include caches and dying memcgs from before the test;
    `stayed`: how many of the test's memcgs are still dying."""
    now = watched.look()
    recharge = {probe.signal: probe.status for probe in now.probes}["recharge"]
    assert kernels["caches_created"] is not None
    assert now.ids.in_use is not None
    if slab_mode() == "private":
        assert recharge == ABSENT
        assert stayed == MEMCGS
        assert now.ids.in_use >= MEMCGS
        assert kernels["caches_created"] > 2 * MEMCGS
        assert now.ids.reuses_total == 0
    else:
        assert recharge != ABSENT
        # Objects that stay fill slabs, which pin the last memcg that took from them.
        assert stayed < MEMCGS
        assert now.ids.peak_online_memcgs is not None
        assert now.ids.in_use <= now.ids.peak_online_memcgs < fillers + MEMCGS // 10
        assert kernels["caches_created"] < MEMCGS
        assert now.ids.reuses_total == kernels["id_reuses"]
        assert kernels["id_reuses"] is not None
        assert kernels["id_reuses"] > MEMCGS // 2
