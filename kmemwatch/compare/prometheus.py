# SPDX-License-Identifier: GPL-2.0-only
"""A selector of a Prometheus server and a range of time -> a Side: one host per target, figures by query_range."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kmemwatch.compare import figures
from kmemwatch.compare.figures import FIGURES, Figure, Growth
from kmemwatch.compare.prometheus_api import Api, Found
from kmemwatch.compare.side import PROMETHEUS, Delays, Run, Sample, Side, Track
from kmemwatch.compare.watching import gaps
from kmemwatch.errors import UsageError
from kmemwatch.units import printable, rfc3339

PREFIX = "prometheus:"
_TARGET = ("job", "instance")
"""Labels that tell targets apart."""
_START = "process_start_time_seconds"
_KERNEL = "kmemwatch_kernel_info"
_KERNEL_LABELS = ("__name__", "release", "era", "patchset")
_PROBES = "kmemwatch_probe_attached"
_BUILD = "kmemwatch_build_info"
_BUCKET = "kmemwatch_cgroup_release_delay_seconds_bucket"
_START_SLACK_S = 2.0
"""prometheus_client computes the start from the uptime, in whole ticks."""
MAX_POINTS = 500
"""Of each series, unless the step is given."""
_MATCHER = r'\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=~|!~|!=|=)\s*(?:"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\')'
_SELECTOR = re.compile(rf"{_MATCHER}(?:\s*,{_MATCHER})*\s*(?:,\s*)?")

Target = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Seconds since the epoch, both ends included."""

    from_s: float
    to_s: float
    step_s: float

    @classmethod
    def of(cls, from_s: float, to_s: float, step_s: float | None = None) -> Range:
        """With a step that gives at most MAX_POINTS, unless told otherwise."""
        return cls(from_s, to_s, step_s or max(1.0, math.ceil((to_s - from_s) / MAX_POINTS)))


def parse(argument: str) -> tuple[str, str]:
    """``prometheus:URL?selector`` -> (URL, selector without braces). Raises UsageError."""
    url, _, selector = argument.removeprefix(PREFIX).partition("?")
    selector = selector.strip()
    if selector.startswith("{") and selector.endswith("}"):
        selector = selector[1:-1]
    if selector and not _SELECTOR.fullmatch(selector):
        raise UsageError(
            f"{argument}: not a selector of Prometheus: {selector}",
            'for example prometheus:http://HOST:9090?job="kmemwatch"',
        )
    return url, selector.strip().removesuffix(",")


@dataclass
class _Host:
    """What was found of one target."""

    values: dict[float, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    starts: dict[float, float] = field(default_factory=dict)
    kernels: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    """(release, era, patchset) -> first and last time seen."""


def read_prometheus(label: str, source: str, api: Api, selector: str, over: Range) -> Side:
    """Raises UsageError when there is nothing, KmemwatchError when the server does not answer."""
    hosts: dict[Target, _Host] = defaultdict(_Host)
    for figure in FIGURES:
        _read_figure(hosts, figure, api, selector, over)
    _read_kernels(hosts, api, selector, over)
    # Other exporters have a process_start_time_seconds, too.
    hosts = {target: host for target, host in hosts.items() if host.values}
    if not hosts:
        when = f"between {rfc3339(int(over.from_s * 1e9), 0)} and {rfc3339(int(over.to_s * 1e9), 0)}"
        raise UsageError(
            f"{source}: no metrics of kmemwatch {when}", "look at the selector, and at the time (--from, --to, --range)"
        )
    for found in api.query_range(f"{_START}{{{selector}}}", over):
        if (target := _target(found.labels)) in hosts:
            hosts[target].starts.update(found.points)
    begin_s = min(min(host.values) for host in hosts.values())
    tracks = tuple(_track(target, host, begin_s) for target, host in sorted(hosts.items()))
    everything = sorted(
        (target, t, sorted(v.items())) for target, host in hosts.items() for t, v in host.values.items()
    )
    return Side(
        label, PROMETHEUS, source, tracks,
        delays=Delays(buckets=_buckets(api, selector, over)),
        probes=_probes(api, selector, over),
        kmemwatch=_version(api, selector, over),
        restarts=sum(len(track.runs) - 1 for track in tracks),
        gaps=tuple(gap for track in tracks for gap in gaps(track.runs)),
        fingerprint=hashlib.sha256(repr(everything).encode("utf-8", "surrogateescape")).hexdigest(),
        notes=tuple(note for target, host in sorted(hosts.items()) for note in _kernel_notes(target, host)),
    )  # fmt: skip


def _query(figure: Figure, selector: str) -> str:
    matchers = ",".join([*([selector] if selector else []), *(f'{name}="{value}"' for name, value in figure.match)])
    kept = [*_TARGET, *figure.keep, *([figure.grown_by] if figure.grown_by else [])]
    return f"sum by ({','.join(kept)}) ({figure.metric}{{{matchers}}})"


def _target(labels: Mapping[str, str]) -> Target:
    return tuple(labels.get(name, "") for name in _TARGET)


def _read_figure(hosts: dict[Target, _Host], figure: Figure, api: Api, selector: str, over: Range) -> None:
    found = api.query_range(_query(figure, selector), over)
    if figure.grown_by is not None:
        _read_growth(hosts, figure.metric, figure.grown_by, found)
        return
    for series in found:
        name = figures.name(figure.metric, [(one, series.labels.get(one, "")) for one in figure.keep])
        values = hosts[_target(series.labels)].values
        for t, value in series.points:
            values[t][name] = value


def _read_growth(hosts: dict[Target, _Host], metric: str, by: str, found: list[Found]) -> None:
    rows: dict[Target, dict[float, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for series in found:
        for t, value in series.points:
            rows[_target(series.labels)][t][series.labels.get(by, "")] = value
    for target, times in rows.items():
        growth = Growth()
        for t, items in sorted(times.items()):
            total = growth.add(items.items())
            if total is not None:
                hosts[target].values[t][metric] = total


def _read_kernels(hosts: dict[Target, _Host], api: Api, selector: str, over: Range) -> None:
    others: dict[Target, dict[str, str]] = {}
    for series in api.query_range(f"{_KERNEL}{{{selector}}}", over):
        target, labels = _target(series.labels), series.labels
        host = hosts.get(target)
        rest = {name: value for name, value in labels.items() if name not in (*_TARGET, *_KERNEL_LABELS)}
        if rest != others.setdefault(target, rest):
            names = sorted(n for n in {*rest, *others[target]} if rest.get(n) != others[target].get(n))
            raise UsageError(
                f"{api.url}: several targets are named {target[-1]}, they differ in {', '.join(names)}",
                "choose one of them with the selector",
            )
        if host is not None and series.points:
            key = labels.get("release", "?"), labels.get("era", "?"), labels.get("patchset", "?")
            host.kernels[key] = series.points[0][0], series.points[-1][0]


def _track(target: Target, host: _Host, begin_s: float) -> Track:
    runs: list[Run] = []
    samples: list[Sample] = []
    started: float | None = None
    for t, values in sorted(host.values.items()):
        start = host.starts.get(t)
        if started is not None and start is not None and abs(start - started) > _START_SLACK_S:
            runs.append(Run(tuple(samples), from_zero=bool(runs)))
            samples = []
        started = start if start is not None else started
        samples.append(Sample(t, t - begin_s, values))
    runs.append(Run(tuple(samples), from_zero=bool(runs)))
    kernel, era, patchset = max(host.kernels, key=lambda one: host.kernels[one][1], default=("?", "?", "?"))
    return Track(
        printable(target[-1]) or "?",
        tuple(runs),
        None if kernel == "?" else kernel,
        None if era == "?" else era,
        {"true": True, "false": False}.get(patchset),
    )


def _kernel_notes(target: Target, host: _Host) -> list[str]:
    if len(host.kernels) < 2:
        return []
    order = sorted(host.kernels, key=lambda one: host.kernels[one])
    return [
        f"{target[-1]} ran several kernels in this time, figures are of all of them: {', '.join(k[0] for k in order)}"
    ]


def _buckets(api: Api, selector: str, over: Range) -> dict[float, float]:
    """Releases during the range by delay; the server's own increase() would guess beyond the samples."""
    grown: dict[float, float] = defaultdict(float)
    for series in api.query_range(f"sum by ({','.join(_TARGET)},le) ({_BUCKET}{{{selector}}})", over):
        samples = tuple(Sample(t, t, {"n": value}) for t, value in series.points)
        try:
            bound = float(series.labels.get("le", ""))
        except ValueError:
            continue
        grown[bound] += Run(samples, from_zero=False).increase("n")[0] or 0.0
    return dict(sorted(grown.items()))


def _probes(api: Api, selector: str, over: Range) -> tuple[Mapping[str, str | None], ...]:
    seen: dict[tuple[str, str], bool] = {}
    for series in api.query_range(f"max by (signal,attachment) ({_PROBES}{{{selector}}})", over):
        key = series.labels.get("signal", "?"), series.labels.get("attachment", "?")
        seen[key] = any(value for _, value in series.points)
    return tuple(
        {"signal": signal, "attachment": how if on else None, "status": "attached" if on else "missing", "why": None}
        for (signal, how), on in sorted(seen.items())
    )


def _version(api: Api, selector: str, over: Range) -> str | None:
    found = {series.labels.get("version", "?") for series in api.query_range(f"{_BUILD}{{{selector}}}", over)}
    return ", ".join(sorted(found)) or None
