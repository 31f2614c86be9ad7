# SPDX-License-Identifier: GPL-2.0-only
"""What every kind of side becomes: hosts, the runs of each, samples of figures, and delays; pure.

None is unknown, as everywhere. Times of samples are seconds since the side began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kmemwatch.compare import figures
from kmemwatch.compare.figures import Values, is_counter, of_metric

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

    def increase(self, figure: str) -> tuple[float | None, int]:
        """(what a counter grew by, how often it fell): after a fall it is taken to have begun at 0 again."""
        total, falls, before = 0.0, 0, 0.0 if self.from_zero else None
        for place, sample in enumerate(self.samples):
            value = sample.values.get(figure)
            if value is None:
                continue
            if before is None:  # a series that comes later than the others begins at 0 with what it counts first
                before = value if place == 0 else 0.0
            if value < before:
                falls, before = falls + 1, value if self.exact else 0.0
            total += value - before
            before = value
        known = any(figure in sample.values for sample in self.samples)
        return (total if known else None), falls


@dataclass(frozen=True, slots=True)
class Track:
    """One host of a side."""

    host: str
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

    def names(self, metric: str) -> list[str]:
        """Figures of the metric that any sample has, sorted."""
        return sorted(of_metric(self.figures(), metric))

    def figures(self) -> set[str]:
        """Names that any sample has."""
        return set().union(*(sample.values for run in self.runs for sample in run.samples))

    def increase(self, metric: str) -> float | None:
        """What the counters of a metric grew by, restarts included; None when it is not known."""
        found = [self.increase_of(one) for one in self.names(metric)]
        known = [one for one in found if one is not None]
        return sum(known) if known else None

    def increase_of(self, figure: str) -> float | None:
        """The same for one figure."""
        known = [grown for run in self.runs if (grown := run.increase(figure)[0]) is not None]
        return sum(known) if known else None

    def falls(self) -> int:
        """Counters that fell within a run: kmemwatch was restarted unseen."""
        names = filter(is_counter, self.figures())
        return max((sum(run.increase(one)[1] for run in self.runs) for one in names), default=0)

    def series(self, get: Callable[[Values], float | None]) -> list[tuple[float, float]]:
        """(elapsed seconds, value) of the samples where it is known."""
        return [(s.elapsed_s, value) for s in self.samples if (value := get(s.values)) is not None]

    def largest(self, figure: str) -> float | None:
        """The largest value of a gauge."""
        return max((s.values[figure] for s in self.samples if figure in s.values), default=None)

    def last(self) -> Values:
        """The latest sample, empty when there is none."""
        samples = self.samples
        return samples[-1].values if samples else {}

    def first(self) -> Values:
        """The first sample, empty when there is none."""
        samples = self.samples
        return samples[0].values if samples else {}


@dataclass(frozen=True, slots=True)
class Delays:
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


@dataclass(frozen=True, slots=True)
class Handovers:
    """Child caches that were there when their kmemcg_id went to its next memcg; from events."""

    reuses: int = 0
    with_caches: int = 0
    caches: int = 0


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    label: str
    """``A`` or ``B``."""
    kind: str
    """RECORDING, DAEMON or PROMETHEUS."""
    source: str
    """As the user named it, without passwords."""
    tracks: tuple[Track, ...]
    delays: Delays = Delays()
    handovers: Handovers | None = None
    """None when there are no events."""
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
    """What cannot be if the samples are what a kmemwatch wrote."""
    fingerprint: str = ""
    """Equal when two sides are the same figures of the same time."""
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Of all hosts."""
        return sum(len(run.samples) for track in self.tracks for run in track.runs)

    @property
    def duration_s(self) -> float:
        """Of the host that was watched longest."""
        return max((track.duration_s for track in self.tracks), default=0.0)

    @property
    def span_s(self) -> tuple[float, float]:
        """Wall clock of the first and the last sample."""
        times = [sample.at_s for sample in self.all_samples()]
        return min(times, default=0.0), max(times, default=0.0)

    def all_samples(self) -> Iterator[Sample]:
        """Of all hosts, one after the other."""
        for track in self.tracks:
            yield from track.samples

    def each(self, what: str) -> list[Any]:
        """Different values of an attribute of the hosts (``kernel``, ``era``, ``patchset``), unknown left out."""
        found: list[Any] = []
        for track in self.tracks:
            if (value := getattr(track, what)) is not None and value not in found:
                found.append(value)
        return found

    @property
    def patchset(self) -> bool | None:
        """Whether the hosts have the patch set; None when it is unknown or they differ."""
        found = self.each("patchset")
        return found[0] if len(found) == 1 else None

    def increase(self, metric: str) -> float | None:
        """Sum over the hosts where it is known."""
        return known_total(track.increase(metric) for track in self.tracks)

    def increase_of(self, figure: str) -> float | None:
        """The same for one figure."""
        return known_total(track.increase_of(figure) for track in self.tracks)

    def at_end(self, get: Callable[[Values], float | None]) -> float | None:
        """Sum over the hosts where it is known, at the end of each."""
        return known_total(get(track.last()) for track in self.tracks)

    def labels(self, metric: str) -> list[str]:
        """Figures of a metric that any host has."""
        return sorted({one for track in self.tracks for one in track.names(metric)})

    def total(self, get: Callable[[Values], float | None]) -> list[tuple[float, float]]:
        """(elapsed seconds, sum over all hosts); only where each host has a value, the latest one up to then."""
        return summed([track.series(get) for track in self.tracks])

    def dying(self) -> list[tuple[float, float]]:
        """Dying memcgs over time."""
        return self.total(lambda values: values.get(figures.DYING))


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
