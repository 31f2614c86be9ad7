# SPDX-License-Identifier: GPL-2.0-only
"""Recordings and daemons as sides: snapshots and events of one host -> runs, gaps, jumps of the clock, delays."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from kmemwatch.compare import figures
from kmemwatch.compare.figures import GrowthSum, Metric, Values, figure
from kmemwatch.compare.lifecycle import CacheInheritance, Removals
from kmemwatch.compare.side import DAEMON, RECORDING, HostRuns, Run, Sample, Side
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.http_client import Access
from kmemwatch.feeds.recording import EVENT, SNAPSHOT, Header, RecordingReader
from kmemwatch.feeds.remote import RemoteFeed
from kmemwatch.feeds.replay import DEMO, DEMO_FILE
from kmemwatch.model import Event, Host, Snapshot
from kmemwatch.units import NS_PER_S, rfc3339
from kmemwatch.views.rates import same_run

JUMP_S = 1.0
"""Two clocks of a host that differ by more between samples: the wall clock jumped; ntpd changes it slowly."""
GAP_INTERVALS = 3.0
"""Samples that are so many usual intervals apart have a gap between them."""
_MAX_CONTRADICTIONS = 5
_MUST_GROW = (
    Metric.OFFLINED,
    Metric.RELEASED,
    Metric.IDS_GIVEN,
    Metric.IDS_FREED,
    Metric.IDS_REUSED,
    Metric.CHECKS,
    Metric.FAILURES,
)
_TICK_S = 0.2
"""How soon an exception (Ctrl-C) ends the wait for daemons."""


@dataclass
class SideBuilder:
    """Takes the snapshots and events of one host, oldest first."""

    _runs: list[list[Sample]] = field(default_factory=list)
    _later: list[bool] = field(default_factory=list)
    """Of each run: whether it began within the time of the side."""
    _removals: Removals = field(default_factory=Removals)
    _inheritance: CacheInheritance = field(default_factory=CacheInheritance)
    _allocated: GrowthSum = field(default_factory=GrowthSum)
    _jumps: list[float] = field(default_factory=list)
    _contradictions: list[str] = field(default_factory=list)
    _boots: list[str] = field(default_factory=list)
    _fingerprint: Any = field(default_factory=hashlib.sha256)
    _first: Snapshot | None = None
    _last: Snapshot | None = None
    _reboots: int = 0

    @property
    def count(self) -> int:
        """Snapshots so far."""
        return sum(map(len, self._runs))

    @property
    def latest(self) -> Snapshot | None:
        """The last one that was added."""
        return self._last

    def add(self, snapshot: Snapshot, events: Iterable[Event] = ()) -> None:
        """The next snapshot and the events between the one before and it."""
        before = self._last
        if before is None:
            self._first = snapshot
            self._start_run(later=False)
        jumped = self._compare(before, snapshot) if before is not None else False
        if before is not None and not same_run(before, snapshot):
            self._start_run(later=True)
        self.add_events(events, jumped)
        self._take(snapshot, self._elapsed_s(before, snapshot))
        self._removals.take_rows(snapshot)
        self._last = snapshot

    def add_events(self, events: Iterable[Event], jumped: bool = False) -> None:
        """Events that no snapshot followed, or those before it."""
        for event in events:
            self._removals.take_event(event, jumped)
            self._inheritance.take(event)

    def header(self, host: Host) -> None:
        """Check the host of a recording's header against that of the snapshot after it, which was just added."""
        last = self._last
        if last is not None and host != last.host:
            said, shown = host.hostname, last.host.hostname
            self._contradict(f"its header is of host {said}, its snapshots are of {shown}")

    def _start_run(self, *, later: bool) -> None:
        self._runs.append([])
        self._later.append(later)
        self._allocated.restart()

    def _compare(self, before: Snapshot, now: Snapshot) -> bool:
        """Find reboots, jumps and contradictions between two snapshots; whether the wall clock jumped."""
        if before.host.boot_id != now.host.boot_id:
            self._reboots += 1
            self._removals.reboot()
            return False
        steady_s = (now.monotonic_ns - before.monotonic_ns) / NS_PER_S
        wall_s = (now.taken_at_ns - before.taken_at_ns) / NS_PER_S
        stamp = rfc3339(now.taken_at_ns, 0)
        if steady_s <= 0:
            self._contradict(f"the clock that cannot go back went back by {-steady_s:g} s before {stamp}")
            return False
        if not same_run(before, now) and now.host.hostname != before.host.hostname:
            self._contradict(f"snapshots of two hosts with one boot_id, before {stamp}")
        if jumped := abs(wall_s - steady_s) >= JUMP_S:
            self._jumps.append(round(wall_s - steady_s, 3))
            self._removals.jump()
        return jumped

    def _elapsed_s(self, before: Snapshot | None, now: Snapshot) -> float:
        if before is None:
            return 0.0
        so_far = next(run[-1] for run in reversed(self._runs) if run).elapsed_s
        if before.host.boot_id == now.host.boot_id:
            return so_far + max(0.0, (now.monotonic_ns - before.monotonic_ns) / NS_PER_S)
        return so_far + max(0.0, (now.taken_at_ns - before.taken_at_ns) / NS_PER_S)

    def _take(self, snapshot: Snapshot, elapsed_s: float) -> None:
        values = figures.read(snapshot)
        allocations = self._allocated.add(
            ((c.name, c.id), float(c.allocations_total)) for c in snapshot.caches if c.allocations_total is not None
        )
        if allocations is not None:
            values[figure(Metric.ALLOCATIONS)] = allocations
        run = self._runs[-1]
        if run:
            self._check_growth(run[-1].values, values, snapshot)
        run.append(Sample(snapshot.taken_at_ns / NS_PER_S, elapsed_s, values))
        if snapshot.host.boot_id is not None and snapshot.host.boot_id not in self._boots:
            self._boots.append(snapshot.host.boot_id)
        if self._last is None:
            self._inheritance.begin(snapshot)
        known = sorted((one.metric.name, *one[1:], value) for one, value in values.items())
        stamp = f"{snapshot.host.boot_id} {snapshot.monotonic_ns} {known}"
        self._fingerprint.update(stamp.encode("utf-8", "surrogateescape"))

    def _check_growth(self, before: Values, now: Values, snapshot: Snapshot) -> None:
        for metric in _MUST_GROW:
            was, is_ = metric.of(before), metric.of(now)
            if was is not None and is_ is not None and is_ < was:
                fall = f"{metric.value.metric} fell from {was:g} to {is_:g}"
                self._contradict(f"{fall} before {rfc3339(snapshot.taken_at_ns, 0)}, and kmemwatch was not restarted")

    def _contradict(self, what: str) -> None:
        if len(self._contradictions) < _MAX_CONTRADICTIONS and what not in self._contradictions:
            self._contradictions.append(what)

    def side(self, label: str, kind: str, source: str, **more: Any) -> Side:
        """The side; there must have been a snapshot."""
        last = self._last
        assert last is not None
        assert self._first is not None
        runs = tuple(
            Run(tuple(samples), later, exact=True) for samples, later in zip(self._runs, self._later, strict=True)
        )
        host = HostRuns(
            last.host.hostname, runs, last.host.kernel,
            last.kernel.era, last.kernel.patchset,
            last.kernel.cgroup_version, tuple(self._boots),
        )  # fmt: skip
        return Side(
            label, kind, source, (host,),
            delays=self._removals.delays(self._first.taken_at_ns, last),
            ids_reused_with_caches=self._inheritance.ids_with_caches(),
            probes=tuple(
                {"signal": p.signal, "attachment": p.attachment, "status": p.status, "why": p.why}
                for p in last.probes
            ),
            restarts=len(runs) - 1,
            reboots=self._reboots,
            gaps=gaps(runs),
            clock_jumps_s=tuple(self._jumps),
            contradictions=tuple(self._contradictions),
            fingerprint=self._fingerprint.hexdigest(),
            **more,
        )  # fmt: skip


def gaps(runs: Iterable[Run]) -> tuple[tuple[float, float], ...]:
    """(begin, length) of times without samples, also between runs."""
    times = [sample.elapsed_s for run in runs for sample in run.samples]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not steps:
        return ()
    usual = sorted(steps)[len(steps) // 2]
    limit = GAP_INTERVALS * max(usual, 0.1)
    return tuple((t, step) for t, step in zip(times, steps, strict=False) if step > limit)


def read_recording(label: str, path: str) -> Side:
    """Read a recording once. Raises UsageError, with file and line, for one that is none, damaged, or empty."""
    with contextlib.ExitStack() as stack:
        place = path
        if path == DEMO:
            place = str(stack.enter_context(resources.as_file(resources.files("kmemwatch") / "data" / DEMO_FILE)))
        reader = stack.enter_context(RecordingReader(place, path))
        builder, header, events = _read(reader)
        if builder.latest is None:
            raise UsageError(reader.cut or f"{path}: there is no snapshot in this recording", "record again")
        return builder.side(
            label, RECORDING, path, kmemwatch=header and header.kmemwatch, events=events, cut=reader.cut
        )


def _read(reader: RecordingReader) -> tuple[SideBuilder, Header | None, int]:
    """(what it holds, the first header, number of events), up to its end or to where it was cut off."""
    builder, count = SideBuilder(), 0
    events: list[Event] = []
    first: Header | None = None
    header: Header | None = None
    while (record := reader.next()) is not None:
        if record.type == SNAPSHOT:
            builder.add(reader.parse(record.snapshot), events)
            count += len(events)
            events = []
            if header is not None:
                builder.header(header.host)
                header = None
        elif record.type == EVENT:
            events.append(reader.parse(record.event))
        else:
            header = reader.parse(record.header)
            first = first or header
    builder.add_events(events)
    return builder, first, count + len(events)


@dataclass
class DaemonWatch:
    """A daemon that is asked for snapshots until the time is over."""

    label: str
    feed: Feed
    duration_s: float
    interval_s: float
    builder: SideBuilder = field(default_factory=SideBuilder)
    error: KmemwatchError | None = None
    notices: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Ask until the time is over; an error ends it, and is kept in `error`."""
        end_s = time.monotonic() + self.duration_s
        try:
            delay_s = 0.0
            while (snapshot := self.feed.next_snapshot(delay_s)) is not None:
                latest = self.builder.latest
                if latest is None or snapshot != latest:
                    self.builder.add(snapshot)
                if self.feed.notice is not None and self.feed.notice not in self.notices:
                    self.notices.append(self.feed.notice)
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    return
                delay_s = min(self.interval_s, left_s)
        except KmemwatchError as exc:
            self.error = exc

    def side(self) -> Side:
        """What was measured. Raises `error` when there is nothing."""
        if self.builder.latest is None:
            raise self.error or KmemwatchError(f"{self.feed.title}: it ended before there was anything to compare")
        notes = [*self.notices, *([str(self.error)] if self.error is not None else [])]
        return self.builder.side(self.label, DAEMON, self.feed.title, notes=tuple(notes))


def watch(label: str, url: str, access: Access, duration_s: float, interval_s: float) -> DaemonWatch:
    """Sends nothing yet. Raises UsageError when `url` is not a URL."""
    return DaemonWatch(label, RemoteFeed(url, access=access), duration_s, interval_s)


def run_all(watches: list[DaemonWatch], progress: Callable[[float], None] = lambda s: None) -> None:
    """Measure all at the same time; `progress` gets the seconds that have passed. An exception ends all of them."""
    threads = [threading.Thread(target=one.run, daemon=True) for one in watches]
    began_s = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_TICK_S)
            progress(time.monotonic() - began_s)
            if any(one.error is not None and one.builder.latest is None for one in watches):
                return  # there will be nothing to compare
    finally:
        for one in watches:
            with contextlib.closing(one.feed):
                pass
