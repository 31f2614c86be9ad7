# SPDX-License-Identifier: GPL-2.0-only
"""What is measured on this machine and not in a guest: memory, start-up, and snapshots of a full map."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kmemwatch.attach import warm_start
from kmemwatch.feeds.live import LiveFeed, open_live
from kmemwatch.maps import decode
from kmemwatch.source.bpf_source import BpfSource
from tests import terminal
from tests.cgroup_mounts import memory_mount
from tests.daemon import KMEMWATCH, ON_A_FREE_PORT, Daemon, started
from tests.live.cgroups import OwnCgroup
from tests.live.helpers import workload
from tests.processes import Memory, cpu_s, memory, tree

MARKER = "kmw-first-screen"
CGROUPS, INTERVAL_S, WATCHED_S = 1000, 5.0, 60.0
TRIES = 5
CHANGES = {"all changed": 1, "a tenth changed": 10, "none changed": 0}
"""Name -> n, when every n-th pair has changed since the last snapshot; 0: none has."""

TOP_WARM, TOP_COLD = "top: first screen, warm start, s", "top: first screen, cold start, s"
SERVE_RSS, SERVE_CPU = "serve: RSS, MB", "serve: processor time, %"
SNAPSHOTS = tuple(f"snapshot of all pairs, {change}, ms" for change in CHANGES)
"""Figures that have targets."""

_LIMIT_S = 60.0


def measure() -> dict[str, Any]:
    """Figures by name; times are the best of several, as others may use the machine."""
    mount = memory_mount()
    assert mount is not None
    with tempfile.TemporaryDirectory(prefix="kmw-bench-") as directory, ExitStack() as stack:
        environment = _as_installed(directory)
        parent = stack.enter_context(_cgroup(mount.path, MARKER))
        stack.enter_context(workload(parent))
        figures = {**_top(environment), **_serve_start(environment)}
        with _many_cgroups(mount.path, CGROUPS) as cgroups:
            figures.update(_serve_at_work(environment))
            figures.update(_full_map([cgroup.id for cgroup in cgroups]))
    return figures


def _as_installed(directory: str) -> dict[str, str]:
    """Keep Python's compiled modules in `directory`: the source tree may be read-only."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _top(environment: dict[str, str]) -> dict[str, Any]:
    _first_screen(environment)  # which compiles all modules
    cold = [_first_screen(environment, cold=True) for _ in range(TRIES)]
    warm = [_first_screen(environment) for _ in range(TRIES)]
    return {
        TOP_COLD: min(screen.took_s for screen in cold),
        "top: first screen, cold start, processor time, s": min(screen.cpu_s for screen in cold),
        TOP_WARM: min(screen.took_s for screen in warm),
        "top: first screen, warm start, processor time, s": min(screen.cpu_s for screen in warm),
        "top: RSS, MB": max(screen.memory.resident for screen in warm),
        "top: peak RSS, MB": max(screen.memory.peak for screen in warm),
    }


class _Screen(NamedTuple):
    took_s: float
    """From the start of ``kmemwatch top`` on a terminal to data."""
    cpu_s: float
    """Of all its processes."""
    memory: Memory
    """After a while."""


def _first_screen(environment: dict[str, str], cold: bool = False) -> _Screen:
    """`cold`: nothing is left of an earlier start."""
    if cold:
        shutil.rmtree(warm_start.DIRECTORY, ignore_errors=True)
    with terminal.top("--delay", "1", environment=environment) as screen:
        took, used = screen.seconds_to(MARKER.encode(), _LIMIT_S), cpu_s(*tree(screen.pid))
        until = time.monotonic() + 4
        while time.monotonic() < until:
            screen.read(0.1)
        return _Screen(took, used, memory(*tree(screen.pid)))


def _serve_start(environment: dict[str, str]) -> dict[str, Any]:
    took = []
    for _ in range(TRIES + 1):  # the first compiles modules
        began = time.monotonic()
        with _serving(environment):
            took.append(time.monotonic() - began)
    return {"serve: until it serves, s": min(took)}


def _serve_at_work(environment: dict[str, str]) -> dict[str, Any]:
    """With CGROUPS cgroups; scraped at the interval at which it reads."""
    with _serving(environment) as daemon:
        pid = daemon.reader
        time.sleep(INTERVAL_S)
        before, began = cpu_s(*tree(pid)), time.monotonic()
        while time.monotonic() < began + WATCHED_S:
            time.sleep(INTERVAL_S)
            subprocess.run([sys.executable, "-c", _GET, daemon.metrics_url], stdout=subprocess.DEVNULL, check=True)
        share = (cpu_s(*tree(pid)) - before) / (time.monotonic() - began)
        used = memory(*tree(pid))
        return {
            SERVE_RSS: used.resident,
            "serve: peak RSS, MB": used.peak,
            "serve: PSS, MB": used.share,
            "serve: processes": len(tree(pid)),
            SERVE_CPU: 100 * share,
        }


_GET = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))"


def _serving(environment: dict[str, str]) -> AbstractContextManager[Daemon]:
    return started([*KMEMWATCH, "serve", *ON_A_FREE_PORT, "--interval", f"{INTERVAL_S:g}"], env=environment)


def _full_map(cgroup_ids: list[int]) -> dict[str, Any]:
    """Snapshots with as many pairs as the map takes, of cgroups and caches that there are."""
    feed = open_live()
    try:
        source = feed._source
        assert isinstance(source, BpfSource)
        pairs = _Pairs(source, [cache.address for cache in source._read_caches() or ()], cgroup_ids)
        figures: dict[str, Any] = {"snapshot: pairs": pairs.fill()}
        for name, (change, every) in zip(SNAPSHOTS, CHANGES.items(), strict=True):
            took = [_timed(feed, pairs, every) for _ in range(TRIES)]
            figures[name] = 1000 * min(wall_s for wall_s, _ in took)
            figures[f"snapshot of all pairs, {change}, processor time, ms"] = 1000 * min(used_s for _, used_s in took)
    finally:
        feed.close()
    return figures


class _Pairs:
    """The map, and what we write into it."""

    def __init__(self, source: BpfSource, caches: list[int], cgroup_ids: list[int]) -> None:
        self._reader = source._readers["pairs"]
        self._keys = [decode.PAIR_KEY.pack(cache, cgroup_id) for cache in caches for cgroup_id in cgroup_ids]
        self._objects = 1000

    def fill(self) -> int:
        """The number of pairs."""
        for number, key in enumerate(self._keys):
            try:
                self._reader.update(key, self._value())
            except OSError:  # E2BIG
                self._keys = self._keys[:number]
                return self._reader.handle.max_entries
        raise RuntimeError(f"{len(self._keys)} pairs do not fill the map")

    def _value(self) -> bytes:
        return decode.PAIR_VALUE.pack(self._objects, 2, 1).ljust(self._reader.stride, b"\0") * self._reader.copies

    def change(self, every: int) -> None:
        """Count one more for each of the `every`-th pairs."""
        self._objects += 1
        value = self._value()
        for key in self._keys[::every]:
            self._reader.update(key, value)


def _timed(feed: LiveFeed, pairs: _Pairs, every: int) -> tuple[float, float]:
    """Seconds of a snapshot, by the clock and of processor time: reading the maps and the tree of memcgs, and folding
    them into rows."""
    if every:
        pairs.change(every)
    began, used = time.perf_counter(), time.process_time()
    if feed.next_snapshot(0) is None:
        raise RuntimeError("the feed is closed")
    return time.perf_counter() - began, time.process_time() - used


@contextmanager
def _cgroup(root: Path, name: str) -> Iterator[OwnCgroup]:
    cgroup = OwnCgroup(root, name)
    try:
        yield cgroup
    finally:
        cgroup.remove()


@contextmanager
def _many_cgroups(root: Path, number: int) -> Iterator[list[OwnCgroup]]:
    with _cgroup(root, "kmw-bench-many") as parent:
        parent.open_for_children()
        yield [parent.child(f"{serial:04}") for serial in range(number)]
