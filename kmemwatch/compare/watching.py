# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots and events of one host, one after the other -> a Side: runs, gaps, jumps of the clock, delays."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmemwatch.compare import figures
from kmemwatch.compare.figures import Growth
from kmemwatch.compare.lives import Lives, Owners
from kmemwatch.compare.side import Run, Sample, Side, Track
from kmemwatch.model import Event, Host, Snapshot
from kmemwatch.units import NS_PER_S, one_line, printable, rfc3339
from kmemwatch.views.rates import same_run

JUMP_S = 1.0
"""By how much the two clocks of a host must disagree between samples to be a jump, not the work of ntpd."""
GAP_INTERVALS = 3.0
"""Samples that are that many usual intervals apart have a gap between them."""
_MAX_CONTRADICTIONS = 5
_MUST_GROW = (
    figures.OFFLINED,
    figures.RELEASED,
    figures.IDS_GIVEN,
    figures.IDS_FREED,
    figures.IDS_REUSED,
    figures.CHECKS,
    figures.FAILURES,
)


@dataclass
class Watching:
    """Takes what a recording holds, or a daemon answers, in its order."""

    _runs: list[list[Sample]] = field(default_factory=list)
    _later: list[bool] = field(default_factory=list)
    """Of each run: whether it began within the time of the side."""
    _lives: Lives = field(default_factory=Lives)
    _owners: Owners = field(default_factory=Owners)
    _allocated: Growth = field(default_factory=Growth)
    _jumps: list[float] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)
    _boots: list[str] = field(default_factory=list)
    _sum: Any = field(default_factory=hashlib.sha256)
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
        self._lives.take_rows(snapshot)
        self._last = snapshot

    def add_events(self, events: Iterable[Event], jumped: bool = False) -> None:
        """Events that no snapshot followed, or those before it."""
        for event in events:
            self._lives.take_event(event, jumped)
            self._owners.take(event)

    def header(self, host: Host) -> None:
        """The host that a recording says its next snapshots are from; call it after one of them was added."""
        last = self._last
        if last is not None and host != last.host:
            said, shown = printable(host.hostname), printable(last.host.hostname)
            self._contradict(f"its header is of host {said}, its snapshots are of {shown}")

    def _start_run(self, *, later: bool) -> None:
        self._runs.append([])
        self._later.append(later)
        self._allocated.restart()

    def _compare(self, before: Snapshot, now: Snapshot) -> bool:
        """Note what is odd between two snapshots; whether the wall clock jumped."""
        if before.host.boot_id != now.host.boot_id:
            self._reboots += 1
            self._lives.forget()
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
            self._lives.jump()
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
            values[figures.ALLOCATIONS] = allocations
        run = self._runs[-1]
        if run:
            self._check_growth(run[-1].values, values, snapshot)
        run.append(Sample(snapshot.taken_at_ns / NS_PER_S, elapsed_s, values))
        if snapshot.host.boot_id is not None and snapshot.host.boot_id not in self._boots:
            self._boots.append(snapshot.host.boot_id)
        if self._last is None:
            self._owners.begin(snapshot)
        stamp = f"{snapshot.host.boot_id} {snapshot.monotonic_ns} {sorted(values.items())}"
        self._sum.update(stamp.encode("utf-8", "surrogateescape"))

    def _check_growth(self, before: Mapping[str, float], now: Mapping[str, float], snapshot: Snapshot) -> None:
        for figure in _MUST_GROW:
            if figure in before and figure in now and now[figure] < before[figure]:
                fall = f"{figure} fell from {before[figure]:g} to {now[figure]:g}"
                self._contradict(f"{fall} before {rfc3339(snapshot.taken_at_ns, 0)}, and kmemwatch was not restarted")

    def _contradict(self, what: str) -> None:
        if len(self._wrong) < _MAX_CONTRADICTIONS and what not in self._wrong:
            self._wrong.append(what)

    def side(self, label: str, kind: str, source: str, **more: Any) -> Side:
        """All of it; there must have been a snapshot."""
        last = self._last
        assert last is not None
        assert self._first is not None
        runs = tuple(
            Run(tuple(samples), later, exact=True) for samples, later in zip(self._runs, self._later, strict=True)
        )
        track = Track(
            printable(last.host.hostname), runs, printable(last.host.kernel),
            last.kernel.era and printable(last.kernel.era), last.kernel.patchset,
            last.kernel.cgroup_version, tuple(self._boots),
        )  # fmt: skip
        return Side(
            label, kind, source, (track,),
            delays=self._lives.delays(self._first.taken_at_ns, last),
            handovers=self._owners.found(),
            probes=tuple(
                {"signal": one_line(p.signal), "attachment": p.attachment and one_line(p.attachment),
                 "status": p.status, "why": p.why and one_line(p.why)}
                for p in last.probes
            ),
            restarts=len(runs) - 1,
            reboots=self._reboots,
            gaps=gaps(runs),
            clock_jumps_s=tuple(self._jumps),
            contradictions=tuple(self._wrong),
            fingerprint=self._sum.hexdigest(),
            **more,
        )  # fmt: skip


def gaps(runs: Iterable[Run]) -> tuple[tuple[float, float], ...]:
    """(begin, length) of times without samples, those between runs included."""
    times = [sample.elapsed_s for run in runs for sample in run.samples]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not steps:
        return ()
    usual = sorted(steps)[len(steps) // 2]
    limit = GAP_INTERVALS * max(usual, 0.1)
    return tuple((t, step) for t, step in zip(times, steps, strict=False) if step > limit)
