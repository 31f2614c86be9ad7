# SPDX-License-Identifier: GPL-2.0-only
"""What a recording, a daemon and a query of Prometheus become: hosts, the runs of each, and samples of figures; pure.

None is unknown, as everywhere. Times of samples are seconds since the side began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kmemwatch.compare.figures import Figure, Metric, Values

RECORDING, DAEMON, PROMETHEUS = "recording", "daemon", "prometheus"


@dataclass(frozen=True, slots=True)
class Sample:
    """One host at one moment."""

    at_s: float
    """Wall clock, since the epoch."""
    elapsed_s: float
    """Since the first sample of the side, by a clock that does not jump where there is one."""
    values: Values


@dataclass(frozen=True, slots=True)
class Run:
    """Samples between two starts of kmemwatch: counters only grow in it."""

    samples: tuple[Sample, ...]
    from_zero: bool
    """Its counters began at 0 within the time of the side."""
    exact: bool = False
    """It is known to be one run, so a counter that falls is not one that began at 0 again."""

    def increase(self, one: Figure) -> tuple[float | None, int]:
        """As `increase` says, of one counter."""
        return increase([sample.values.get(one) for sample in self.samples], from_zero=self.from_zero, exact=self.exact)


def increase(values: Sequence[float | None], *, from_zero: bool, exact: bool = False) -> tuple[float | None, int]:
    """(what a counter grew by, how often it fell); after a fall it began at 0 again, unless the run is `exact`."""
    total, falls, before = 0.0, 0, 0.0 if from_zero else None
    for place, value in enumerate(values):
        if value is None:
            continue
        if before is None:  # a series that comes later than the others begins at 0 with what it counts first
            before = value if place == 0 else 0.0
        if value < before:
            falls, before = falls + 1, value if exact else 0.0
        total += value - before
        before = value
    known = any(value is not None for value in values)
    return (total if known else None), falls


@dataclass(frozen=True)
class HostRuns:
    """One host of a side, and the runs of kmemwatch there."""

    name: str
    runs: tuple[Run, ...]
    kernel: str | None = None
    """``uname -r``."""
    era: str | None = None
    patchset: bool | None = None
    cgroup_version: int | None = None
    boot_ids: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Of all runs, oldest first."""
        return tuple(sample for run in self.runs for sample in run.samples)

    @property
    def duration_s(self) -> float:
        """From the first sample to the last."""
        samples = self.samples
        return samples[-1].elapsed_s - samples[0].elapsed_s if samples else 0.0

    @cached_property
    def figures(self) -> frozenset[Figure]:
        """Those that any sample has."""
        return frozenset().union(*(sample.values for run in self.runs for sample in run.samples))

    def figures_of(self, metric: Metric) -> list[Figure]:
        """Those of the metric."""
        return [one for one in self.figures if one.metric is metric]

    def increase(self, metric: Metric) -> float | None:
        """What the counters of a metric grew by, restarts included; None when it is not known."""
        return known_total(self.increase_of(one) for one in self.figures_of(metric))

    def increase_of(self, one: Figure) -> float | None:
        """The same of one figure."""
        return known_total(run.increase(one)[0] for run in self.runs)

    def falls(self) -> int:
        """How often counters fell within a run: kmemwatch was restarted, and nothing else shows it."""
        counters = [one for one in self.figures if one.metric.value.counter]
        return max((sum(run.increase(one)[1] for run in self.runs) for one in counters), default=0)

    def series(self, get: Callable[[Values], float | None]) -> list[tuple[float, float]]:
        """(elapsed seconds, value) of the samples where it is known."""
        return [(s.elapsed_s, value) for s in self.samples if (value := get(s.values)) is not None]

    def largest(self, one: Figure) -> float | None:
        """The largest value of a gauge."""
        return max((s.values[one] for s in self.samples if one in s.values), default=None)

    def last(self) -> Values:
        """The latest sample, empty when there is none."""
        samples = self.samples
        return samples[-1].values if samples else {}

    def first(self) -> Values:
        """The first sample, empty when there is none."""
        samples = self.samples
        return samples[0].values if samples else {}


@dataclass(frozen=True, slots=True)
class ReleaseDelays:
    """How long memcgs that were removed during the side took to be released."""

    released_s: tuple[float, ...] = ()
    """Exact delays."""
    still_dying_s: tuple[float, ...] = ()
    """Ages, at the end of the side, of those that were not released."""
    buckets: Mapping[float, float] = field(default_factory=dict)
    """Upper bound -> releases up to it, cumulative; where exact delays are not known, as from Prometheus."""
    unusable: int = 0
    """Delays that span a jump of the clock."""

    @property
    def exact(self) -> bool:
        """Whether delays of single memcgs are known."""
        return bool(self.released_s or self.still_dying_s)


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    label: str
    """``A`` or ``B``."""
    kind: str
    """RECORDING, DAEMON or PROMETHEUS."""
    source: str
    """As the user named it, without passwords."""
    hosts: tuple[HostRuns, ...]
    delays: ReleaseDelays = ReleaseDelays()
    ids_reused_with_caches: int | None = None
    """kmemcg_ids that went to their next memcg while they had child caches; None when there are no events."""
    probes: tuple[Mapping[str, Any], ...] = ()
    """signal, attachment, status, why; None where unknown."""
    workload: Mapping[str, Any] | None = None
    """Report of `kmemwatch churn`."""
    kmemwatch: str | None = None
    """Version that measured."""
    events: int | None = None
    """Events in it; None when the source has none at all."""
    restarts: int = 0
    """Times that kmemwatch was started again, so that counters began at 0."""
    reboots: int = 0
    gaps: tuple[tuple[float, float], ...] = ()
    """(elapsed seconds where it begins, length in seconds) of times without samples."""
    clock_jumps_s: tuple[float, ...] = ()
    """By how much the wall clock jumped, each time."""
    cut: str | None = None
    """Where the recording was cut off."""
    contradictions: tuple[str, ...] = ()
    """What no kmemwatch writes: the source was changed, or put together from several."""
    fingerprint: str = ""
    """Equal for two sides with the same figures of the same time."""
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Of all hosts."""
        return sum(len(run.samples) for host in self.hosts for run in host.runs)

    @property
    def duration_s(self) -> float:
        """Of the host that was watched longest."""
        return max((host.duration_s for host in self.hosts), default=0.0)

    @property
    def span_s(self) -> tuple[float, float]:
        """Wall clock of the first and the last sample."""
        times = [sample.at_s for sample in self.all_samples()]
        return min(times, default=0.0), max(times, default=0.0)

    def all_samples(self) -> Iterator[Sample]:
        """Of all hosts, one after the other."""
        for host in self.hosts:
            yield from host.samples

    def each(self, what: str) -> list[Any]:
        """Different known values of an attribute of the hosts, such as ``kernel``."""
        found: list[Any] = []
        for host in self.hosts:
            if (value := getattr(host, what)) is not None and value not in found:
                found.append(value)
        return found

    @property
    def patchset(self) -> bool | None:
        """Whether the hosts have the patch set; None when it is unknown or they differ."""
        found = self.each("patchset")
        return found[0] if len(found) == 1 else None

    def increase(self, metric: Metric) -> float | None:
        """Sum over the hosts where it is known."""
        return known_total(host.increase(metric) for host in self.hosts)

    def increase_of(self, one: Figure) -> float | None:
        """The same of one figure."""
        return known_total(host.increase_of(one) for host in self.hosts)

    def at_end(self, get: Callable[[Values], float | None]) -> float | None:
        """Sum over the hosts where it is known, at the end of each."""
        return known_total(get(host.last()) for host in self.hosts)

    def figures_of(self, metric: Metric) -> list[Figure]:
        """Figures of a metric that any host has, sorted by their labels."""
        return sorted({one for host in self.hosts for one in host.figures_of(metric)}, key=lambda one: one[1:])

    def total(self, get: Callable[[Values], float | None]) -> list[tuple[float, float]]:
        """(elapsed seconds, sum over all hosts); only where each host has a value, the latest one up to then."""
        return summed([host.series(get) for host in self.hosts])

    def dying(self) -> list[tuple[float, float]]:
        """Dying memcgs over time."""
        return self.total(Metric.DYING.of)


def known_total(values: Iterable[float | None]) -> float | None:
    """Sum of those that are known; None when none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def summed(series: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Sum of step functions, from where the last of them begins to where the first ends."""
    if len(series) == 1:
        return series[0]
    if not series or not all(series):
        return []
    begin, end = max(one[0][0] for one in series), min(one[-1][0] for one in series)
    times = sorted({t for one in series for t, _ in one if begin <= t <= end})
    places = [0] * len(series)
    found = []
    for t in times:
        for n, one in enumerate(series):
            while places[n] + 1 < len(one) and one[places[n] + 1][0] <= t:
                places[n] += 1
        found.append((t, sum(one[place][1] for one, place in zip(series, places, strict=True))))
    return found


def value_at(series: Sequence[tuple[float, float]], at_s: float, tolerance_s: float) -> float | None:
    """The latest value up to `at_s` that is no older than `tolerance_s`."""
    found = None
    for t, value in series:
        if t > at_s:
            break
        found = value if at_s - t <= tolerance_s else None
    return found
