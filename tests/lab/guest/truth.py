# SPDX-License-Identifier: GPL-2.0-only
"""Counters that the lab's kernels keep themselves, and the same figures from kmemwatch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import DYING, FROM_NONE, Event, Snapshot
from tests.live.helpers import shrink, snapshot
from tests.needs import SLAB_COUNTERS

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
FAIL_RECHARGES = Path("/sys/kernel/debug/memcg_slab_fail_recharge")
MAX_SLAB_PAGES = 8
"""Order 3, unless slub_max_order says otherwise."""
REST_S = 120
BURIED_S = 5
"""After that time without another one, none follows."""

CUMULATIVE = (
    "recharge_checks",
    "recharges",
    "recharged_pages",
    "recharges_from_dead",
    "recharges_from_none",
    "recharge_lost_races",
    "recharge_failures",
    "ids_allocated",
    "ids_freed",
    "id_reuses",
    "caches_created",
    "caches_destroyed",
    "css_online",
    "css_offline",
    "css_free",
)
"""The kernel's counters of what kmemwatch counts from its start on."""
PRESENT = ("child_caches", "ids_in_use", "online", "dying")
"""What there is now: differences of the kernel's counters since boot."""


def kernel_counters() -> dict[str, int]:
    """Since boot; read from the root cgroup, or reading counts itself."""
    lines = (line.split() for line in SLAB_COUNTERS.read_text().splitlines())
    return {name: int(value) for name, value in lines if name != "mode"}


def kernel_figures(counters: Mapping[str, int]) -> dict[str, int]:
    """CUMULATIVE and PRESENT from the kernel's counters."""
    return {name: counters[name] for name in CUMULATIVE} | {
        "child_caches": counters["caches_created"] - counters["caches_destroyed"],
        "ids_in_use": counters["ids_allocated"] - counters["ids_freed"],
        "online": counters["css_online"] - counters["css_offline"],
        "dying": counters["css_offline"] - counters["css_free"],
    }


def our_figures(now: Snapshot, kinds: Mapping[str, int]) -> dict[str, int | None]:
    """The same from kmemwatch; `kinds`: how often each kind of event came."""
    recharges, ids, totals = now.recharges, now.ids, now.totals
    moved = None if recharges.recharged_bytes_total is None else recharges.recharged_bytes_total // PAGE_BYTES
    return {
        "recharge_checks": recharges.checks_total,
        "recharges": recharges.recharges_total,
        "recharged_pages": moved,
        "recharges_from_dead": _moved_from(now, DYING),
        "recharges_from_none": _moved_from(now, FROM_NONE),
        "recharge_lost_races": recharges.lost_races_total,
        "recharge_failures": recharges.failures_total,
        "ids_allocated": ids.given_total,
        "ids_freed": ids.freed_total,
        "id_reuses": ids.reuses_total,
        "caches_created": kinds.get("cache_created", 0),
        "caches_destroyed": kinds.get("cache_destroyed", 0),
        "css_online": totals.cgroups_onlined_total,
        "css_offline": totals.cgroups_offlined_total,
        "css_free": totals.cgroups_released_total,
        "child_caches": sum(cache.kmemcg_id is not None for cache in now.caches),
        "ids_in_use": ids.in_use,
        "online": totals.online_cgroups,
        "dying": totals.dying_cgroups,
    }


def _moved_from(now: Snapshot, state: str) -> int | None:
    if now.recharges.totals is None:
        return None
    return sum(total.recharges_total for total in now.recharges.totals if total.from_state == state)


@dataclass
class Watched:
    """A feed whose events are all kept."""

    name: str
    feed: LiveFeed
    events: list[Event] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        """Take events in for that long at most."""
        self.events += self.feed.wait_events(seconds) or ()

    def look(self) -> Snapshot:
        now = snapshot(self.feed)
        self.events += self.feed.take_events()
        return now

    @property
    def kinds(self) -> Counter[str]:
        return Counter(event.kind for event in self.events)


@dataclass(frozen=True)
class Moment:
    """What the kernel and each feed said while nothing happened."""

    kernel: Mapping[str, int]
    """Its counters."""
    feeds: Mapping[str, Snapshot]
    kinds: Mapping[str, Mapping[str, int]]

    def kernels(self) -> dict[str, int]:
        return kernel_figures(self.kernel)

    def ours(self, name: str) -> dict[str, int | None]:
        return our_figures(self.feeds[name], self.kinds[name])


def at_rest(watched: Sequence[Watched]) -> Moment:
    """Once nothing is freed any more, and the kernel's counters are the same before and after everybody was asked."""
    until = time.monotonic() + REST_S
    before = kernel_counters()
    while time.monotonic() < until:
        time.sleep(0.3)  # RCU
        feeds = {each.name: each.look() for each in watched}
        after = kernel_counters()
        if after == before and len({state.totals.dying_cgroups for state in feeds.values()}) == 1:
            return Moment(after, feeds, {each.name: each.kinds for each in watched})
        before = after
    raise AssertionError(f"no rest in {REST_S} s: {after}")


def grown(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> dict[str, int | None]:
    """How much each of CUMULATIVE has grown, and PRESENT as it is now; None stays None."""
    rows: dict[str, int | None] = {}
    for name, value in after.items():
        old = before[name] if name in CUMULATIVE else 0
        rows[name] = None if value is None or old is None else value - old
    return rows


def lost_between(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """Reason -> what was lost; empty when nothing was."""
    reasons = {name: count - before.lost.reasons.get(name, 0) for name, count in after.lost.reasons.items()}
    return {name: count for name, count in reasons.items() if count}


ELSEWHERE = frozenset({"skipped_alloc", "skipped_free", "skipped_charge"})
"""Losses of signals that none of the figures here comes from. Objects are freed in interrupts too, where kprobes miss
some."""


def slabinfo_children() -> set[str]:
    """Names of all child caches: those with a number in brackets."""
    lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    return {line.split()[0] for line in lines if "(" in line.split()[0]}


def take_used_ids(memory_root: Path, made: list[Path]) -> None:
    """Make directories whose memcgs have all the ids that anybody ever had, and the last of them one that is new; so
    the next id is new as well, and every id that is reused later on is lower than one which is in use now."""
    while True:
        reuses = kernel_counters()["id_reuses"]
        made.append(memory_root / f"kmw-filler-{len(made)}")
        made[-1].mkdir()
        if kernel_counters()["id_reuses"] == reuses:
            return


@contextmanager
def every_used_id(memory_root: Path) -> Iterator[list[Path]]:
    """As `take_used_ids`, and removes them at the end. A feed that starts meanwhile sees all ids that any memcg ever
    had. An id that was given back before it started, without caches, would look new when it is reused."""
    made: list[Path] = []
    try:
        take_used_ids(memory_root, made)
        yield made
    finally:
        for path in made:
            path.rmdir()


def bury() -> None:
    """Make the kernel release all memcgs that died before, except those with more than empty slabs. Otherwise they
    would be released during the test, when another memcg takes over what they left."""
    last, since, until = -1, 0.0, time.monotonic() + REST_S
    while time.monotonic() < until:
        shrink()
        counters = kernel_counters()
        left = counters["css_offline"] - counters["css_free"]
        if left != last:
            last, since = left, time.monotonic()
        elif time.monotonic() > since + BURIED_S:
            return
        time.sleep(0.5)
