# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch serve` for an invented host: ``python -m tests.load.host CGROUPS serve OPTION...``

Both processes are the real ones. Each cgroup has 16 series; a fifth of the cgroups is busy between two snapshots.
"""

from __future__ import annotations

import sys
import time
from unittest.mock import patch

from msgspec.structs import replace

from kmemwatch.cli import serve
from kmemwatch.cli.main import main
from kmemwatch.feeds.feed import Feed
from kmemwatch.model import Pair, Snapshot
from tests.unit import fakes

CACHES_EACH = 12
_BUSY_EVERY = 5


class BigHost(fakes.FakeFeed):
    """Starts from one snapshot; the counters of the busy cgroups grow."""

    def __init__(self, cgroups: int) -> None:
        super().__init__([fakes.big(0, cgroups, CACHES_EACH)])
        self._began_s = time.monotonic()

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        """The next one."""
        snapshot = super().next_snapshot(delay_s)
        return None if snapshot is None else _later(snapshot, time.monotonic() - self._began_s)


def _later(first: Snapshot, seconds: float) -> Snapshot:
    pairs = tuple(_goes_on(pair, seconds) if pair.cgroup_id % _BUSY_EVERY == 0 else pair for pair in first.pairs)
    return replace(first, taken_at_ns=first.taken_at_ns + int(seconds * 1e9), pairs=pairs)


def _goes_on(pair: Pair, seconds: float) -> Pair:
    more = int(1000 * seconds)
    allocated = (pair.allocated_bytes_total or 0) + 192 * more
    return replace(pair, allocations_total=(pair.allocations_total or 0) + more, allocated_bytes_total=allocated)


def open_big(cgroups: int) -> None:
    """`serve` takes its snapshots from a BigHost."""

    def open_feed(*given: object, **options: object) -> Feed:
        return BigHost(cgroups)

    patch.object(serve, "open_feed", open_feed).start()


if __name__ == "__main__":
    open_big(int(sys.argv.pop(1)))
    main()
