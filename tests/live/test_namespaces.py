# SPDX-License-Identifier: GPL-2.0-only
"""Cgroups made inside another cgroup namespace, as containers do, are shown with the path that the host knows."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from kmemwatch.feeds.live import LiveFeed
from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import snapshot

MAKE = """
set -e
if [ "$1" = 1 ]; then mount -t cgroup -o memory none /mnt; else mount -t cgroup2 none /mnt; fi
mkdir /mnt/inner
cat /proc/self/cgroup
"""


def test_a_cgroup_of_another_namespace_has_the_hosts_path(
    feed: LiveFeed, own_cgroup: Callable[..., OwnCgroup], memory: MemoryMount
) -> None:
    container = own_cgroup()
    snapshot(feed)
    feed.take_events()
    inside = container.run(
        ["unshare", "--mount", "--cgroup", "sh", "-c", MAKE, "sh", str(memory.version)],
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    own = [line for line in inside.splitlines() if ":memory:" in line or line.startswith("0::")]
    assert any(line.endswith(":/") for line in own), "the container believes that it is in the root"
    inner = (container.path / "inner").stat().st_ino
    rows = {row.id: row.path for row in snapshot(feed).cgroups}
    told = {event.cgroup_id: event.path for event in feed.take_events() if event.kind == "online"}
    path = f"/{container.path.name}/inner"
    if memory.version == 1:
        assert rows[inner] == path
        assert told[inner] == path
    else:
        # On v2 a cgroup with processes cannot hand the memory controller down: it charges its parent, and has no row.
        assert inner not in rows
        assert inner not in told
