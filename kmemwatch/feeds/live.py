# SPDX-License-Identifier: GPL-2.0-only
"""The live feed: the programs attached to this kernel, and the state that follows them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmemwatch.attach import secret
from kmemwatch.attach.discover import boot_id, hostname
from kmemwatch.attach.handover import Child
from kmemwatch.cacheids import CacheIds
from kmemwatch.clock import RealtimeOffset
from kmemwatch.model import Event, Host, Snapshot, without_collector
from kmemwatch.source.bpf_source import BpfSource
from kmemwatch.source.reading import KernelSource, Reading
from kmemwatch.state.kernel_state import KernelState
from kmemwatch.units import printable

_TICK_S = 0.1
"""Longest time that `close` waits for another thread's poll, except between snapshots that are far apart:"""
_TICKS = 20
"""then it is a part of the time between them, up to _MAX_TICK_S, so that a daemon does not wake up ten times a second
all day. An event ends every poll at once."""
_MAX_TICK_S = 0.5
_UPDATE_S = 5.0
"""A feed that only waits for events still walks the tree now and then, for paths, and to drop released memcgs."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    without: tuple[str, ...] = ()
    """Kinds of hooks not to use: ``raw_tp``, ``fentry``, ``kprobe``; to try out the others."""
    latency: bool = False
    """Time some allocations; each allocation then costs a little more."""


def open_live(options: LiveOptions = LiveOptions()) -> LiveFeed:
    """Attach. Raises UnsupportedError when this kernel or these privileges cannot do it."""
    return take_over(Child(options.without, latency=options.latency))


def take_over(child: Child) -> LiveFeed:
    """The same, with a child that was started earlier."""
    try:
        handed = child.wait()
        try:
            return LiveFeed(BpfSource(handed), CacheIds(secret.of_boot(boot_id())))
        except BaseException:  # do not leave anything attached if the caller goes on without the feed
            handed.close()
            raise
    finally:
        child.close()


class LiveFeed:
    """`feed.Feed` of the running kernel."""

    title = "live"
    notice: str | None = None

    def __init__(self, source: KernelSource, cache_ids: CacheIds | None = None) -> None:
        """`cache_ids`: the ids of this boot."""
        self._source = source
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._updated_at_s: float | None = None
        facts = source.info.facts
        self._state = KernelState(
            source.info,
            Host(printable(hostname()), printable(facts.release), printable(facts.arch), boot_id()),
            RealtimeOffset(),
            cache_ids,
        )

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        """A snapshot in `delay_s` seconds; None once closed."""
        deadline = time.monotonic() + delay_s
        tick_s = min(max(_TICK_S, delay_s / _TICKS), _MAX_TICK_S)
        while (left := deadline - time.monotonic()) > 0:
            if not self._poll(min(left, tick_s)):
                return None
        with self._lock:
            if self._closed.is_set():
                return None
            with without_collector():
                return self._state.snapshot(self._update())

    def _update(self) -> Reading:
        self._state.apply(self._source.poll(0))
        reading = self._source.read()
        # Events that came during the walk: a memcg that the walk missed is younger than the walk.
        self._state.apply(self._source.poll(0))
        self._source.drop(self._state.update(reading))
        self._updated_at_s = time.monotonic()
        return reading

    def program_runs(self) -> Mapping[str, tuple[int, int]]:
        """Program -> (runs, nanoseconds) if the kernel counts them, see `BpfSource.program_runs`; empty once
        closed, and for a source without programs."""
        runs = getattr(self._source, "program_runs", None)
        with self._lock:
            return {} if runs is None or self._closed.is_set() else runs()

    def take_events(self) -> Sequence[Event]:
        """All events since the last call, oldest first."""
        with self._lock:
            return self._state.take_events()

    def wait_events(self, timeout_s: float) -> Sequence[Event] | None:
        """Wait up to `timeout_s` for events; () on time-out, None once closed."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            if not self._keep_updated() or not self._poll(max(0.0, min(left, _TICK_S))):
                return None
            events = self.take_events()
            if events or left <= 0:
                return events

    def _keep_updated(self) -> bool:
        with self._lock:
            if self._closed.is_set():
                return False
            if self._updated_at_s is None or time.monotonic() - self._updated_at_s > _UPDATE_S:
                self._update()
        return True

    def _poll(self, timeout_s: float) -> bool:
        with self._lock:
            if self._closed.is_set():
                return False
            self._state.apply(self._source.poll(timeout_s))
        return not self._closed.is_set()

    def close(self) -> None:
        """Detach everything; harmless when called twice, from any thread."""
        self._closed.set()
        with self._lock:
            self._source.close()
