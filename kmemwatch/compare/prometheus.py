# SPDX-License-Identifier: GPL-2.0-only
"""A selector of a Prometheus server and a range of time -> a Side: one host per target, figures by query_range.

Of Prometheus' HTTP API only that one call is used.
"""

from __future__ import annotations

import hashlib
import math
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kmemwatch.codec import parse_json
from kmemwatch.compare.figures import Figure, GrowthSum, Metric, figure
from kmemwatch.compare.measure import gaps
from kmemwatch.compare.side import PROMETHEUS, HostRuns, ReleaseDelays, Run, Sample, Side, increase
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.http_client import Access, Answer, Fetcher, FetchError
from kmemwatch.units import printable, rfc3339

PREFIX = "prometheus:"
_TARGET_LABELS = ("job", "instance")
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

TIMEOUT_S = DEADLINE_S = 60.0
_ERROR_CHARS = 500
_SERVER_HINT = "is it the URL of a Prometheus server, without /api?"

TargetLabels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Seconds since the epoch, both ends included."""

    from_s: float
    to_s: float
    step_s: float

    @classmethod
    def of(cls, from_s: float, to_s: float, step_s: float | None = None) -> TimeRange:
        """Without `step_s`: a step that gives at most MAX_POINTS."""
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


@dataclass(frozen=True, slots=True)
class QueriedSeries:
    """One series of an answer."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]
    """(time, value); values that are no number are left out."""


class PrometheusServer:
    """Sends queries to one server."""

    def __init__(self, url: str, access: Access, timeout_s: float = TIMEOUT_S) -> None:
        """`url` is ``http://HOST:PORT`` with a path prefix, if there is one. Raises UsageError."""
        self.url = _base(url)
        self._fetcher = Fetcher(access, timeout_s, DEADLINE_S)

    def query_range(self, query: str, over: TimeRange) -> list[QueriedSeries]:
        """Series of a query. Raises KmemwatchError."""
        form = {
            "query": query, "start": f"{over.from_s:.3f}", "end": f"{over.to_s:.3f}", "step": f"{over.step_s:g}",
        }  # fmt: skip
        try:
            answer = self._fetcher.get(f"{self.url}/api/v1/query_range", data=urllib.parse.urlencode(form).encode())
        except FetchError as exc:
            raise KmemwatchError(f"{self.url}: cannot ask Prometheus: {exc.why}", "does it run there?") from exc
        if answer.status != 200:
            raise self._refused(answer)
        return self._series(answer.body)

    def _refused(self, answer: Answer) -> KmemwatchError:
        if answer.status in (401, 403):
            return KmemwatchError(f"{self.url}: {answer.status} {answer.reason}", "give a user and a password")
        try:
            found: Any = parse_json(answer.body)
            return UsageError(f"{self.url}: Prometheus refused the query: {str(found['error'])[:_ERROR_CHARS]}")
        except (UsageError, ValueError, KeyError, TypeError):
            return UsageError(f"{self.url}: answered with {answer.status} {answer.reason}", _SERVER_HINT)

    def _series(self, body: bytes) -> list[QueriedSeries]:
        try:
            found: Any = parse_json(body)
            return [_found(one) for one in found["data"]["result"]]
        except (UsageError, ValueError, KeyError, TypeError, OverflowError) as exc:
            raise UsageError(f"{self.url}: its answer is not one of Prometheus", _SERVER_HINT) from exc


def _found(one: Any) -> QueriedSeries:
    points = tuple((float(t), float(value)) for t, value in one["values"])
    return QueriedSeries(dict(one["metric"]), tuple(point for point in points if math.isfinite(point[1])))


def _base(url: str) -> str:
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(char.isspace() or ord(char) < 32 for char in full):
        raise UsageError(f"not a URL of a Prometheus server: {url!r}", "for example prometheus:http://127.0.0.1:9090")
    return full.rstrip("/")


@dataclass
class _Target:
    """What was found of one target."""

    values: dict[float, dict[Figure, float]] = field(default_factory=lambda: defaultdict(dict))
    starts: dict[float, float] = field(default_factory=dict)
    kernels: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    """(release, era, patchset) -> first and last time seen."""


def read_prometheus(label: str, source: str, server: PrometheusServer, selector: str, over: TimeRange) -> Side:
    """Raises UsageError when there is nothing, KmemwatchError when the server does not answer."""
    hosts: dict[TargetLabels, _Target] = defaultdict(_Target)
    for metric in Metric:
        if metric.value.in_prometheus:
            _read_metric(hosts, metric, server, selector, over)
    _read_kernels(hosts, server, selector, over)
    # Other exporters have a process_start_time_seconds, too.
    hosts = {target: host for target, host in hosts.items() if host.values}
    if not hosts:
        when = f"between {rfc3339(int(over.from_s * 1e9), 0)} and {rfc3339(int(over.to_s * 1e9), 0)}"
        raise UsageError(
            f"{source}: no metrics of kmemwatch {when}", "look at the selector, and at the time (--from, --to, --range)"
        )
    for found in server.query_range(f"{_START}{{{selector}}}", over):
        if (target := _target(found.labels)) in hosts:
            hosts[target].starts.update(found.points)
    begin_s = min(min(host.values) for host in hosts.values())
    sampled = tuple(_host_runs(target, host, begin_s) for target, host in sorted(hosts.items()))
    everything = sorted(
        (target, t, one.metric.name, one.label, value)
        for target, host in hosts.items()
        for t, values in host.values.items()
        for one, value in values.items()
    )
    return Side(
        label, PROMETHEUS, source, sampled,
        delays=ReleaseDelays(buckets=_buckets(server, selector, over)),
        probes=_probes(server, selector, over),
        kmemwatch=_version(server, selector, over),
        restarts=sum(len(one.runs) - 1 for one in sampled),
        gaps=tuple(gap for one in sampled for gap in gaps(one.runs)),
        fingerprint=hashlib.sha256(repr(everything).encode("utf-8", "surrogateescape")).hexdigest(),
        notes=tuple(note for target, host in sorted(hosts.items()) for note in _kernel_notes(target, host)),
    )  # fmt: skip


def _query(metric: Metric, selector: str) -> str:
    series = metric.value
    matchers = ",".join([*([selector] if selector else []), *(f'{name}="{value}"' for name, value in series.match)])
    kept = [*_TARGET_LABELS, *(label for label in (series.label, series.grown_by) if label)]
    return f"sum by ({','.join(kept)}) ({series.metric}{{{matchers}}})"


def _target(labels: Mapping[str, str]) -> TargetLabels:
    return tuple(labels.get(name, "") for name in _TARGET_LABELS)


def _read_metric(
    hosts: dict[TargetLabels, _Target], metric: Metric, server: PrometheusServer, selector: str, over: TimeRange
) -> None:
    found, label = server.query_range(_query(metric, selector), over), metric.value.label
    if metric.value.grown_by is not None:
        _read_growth(hosts, metric, metric.value.grown_by, found)
        return
    for series in found:
        key = figure(metric, "" if label is None else series.labels.get(label, ""))
        values = hosts[_target(series.labels)].values
        for t, value in series.points:
            values[t][key] = value


def _read_growth(hosts: dict[TargetLabels, _Target], metric: Metric, by: str, found: list[QueriedSeries]) -> None:
    rows: dict[TargetLabels, dict[float, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for series in found:
        for t, value in series.points:
            rows[_target(series.labels)][t][series.labels.get(by, "")] = value
    for target, times in rows.items():
        growth = GrowthSum()
        for t, items in sorted(times.items()):
            total = growth.add(items.items())
            if total is not None:
                hosts[target].values[t][figure(metric)] = total


def _read_kernels(hosts: dict[TargetLabels, _Target], server: PrometheusServer, selector: str, over: TimeRange) -> None:
    others: dict[TargetLabels, dict[str, str]] = {}
    for series in server.query_range(f"{_KERNEL}{{{selector}}}", over):
        target, labels = _target(series.labels), series.labels
        host = hosts.get(target)
        rest = {name: value for name, value in labels.items() if name not in (*_TARGET_LABELS, *_KERNEL_LABELS)}
        if rest != others.setdefault(target, rest):
            names = sorted(n for n in {*rest, *others[target]} if rest.get(n) != others[target].get(n))
            raise UsageError(
                f"{server.url}: several targets are named {target[-1]}, they differ in {', '.join(names)}",
                "choose one of them with the selector",
            )
        if host is not None and series.points:
            key = labels.get("release", "?"), labels.get("era", "?"), labels.get("patchset", "?")
            host.kernels[key] = series.points[0][0], series.points[-1][0]


def _host_runs(target: TargetLabels, host: _Target, begin_s: float) -> HostRuns:
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
    return HostRuns(
        printable(target[-1]) or "?",
        tuple(runs),
        None if kernel == "?" else kernel,
        None if era == "?" else era,
        {"true": True, "false": False}.get(patchset),
    )


def _kernel_notes(target: TargetLabels, host: _Target) -> list[str]:
    if len(host.kernels) < 2:
        return []
    order = sorted(host.kernels, key=lambda one: host.kernels[one])
    return [
        f"{target[-1]} ran several kernels in this time, figures are of all of them: {', '.join(k[0] for k in order)}"
    ]


def _buckets(server: PrometheusServer, selector: str, over: TimeRange) -> dict[float, float]:
    """Releases during the range by delay; the server's own increase() would guess beyond the samples."""
    grown: dict[float, float] = defaultdict(float)
    for series in server.query_range(f"sum by ({','.join(_TARGET_LABELS)},le) ({_BUCKET}{{{selector}}})", over):
        try:
            bound = float(series.labels.get("le", ""))
        except ValueError:
            continue
        grown[bound] += increase([value for _, value in series.points], from_zero=False)[0] or 0.0
    return dict(sorted(grown.items()))


def _probes(server: PrometheusServer, selector: str, over: TimeRange) -> tuple[Mapping[str, str | None], ...]:
    seen: dict[tuple[str, str], bool] = {}
    for series in server.query_range(f"max by (signal,attachment) ({_PROBES}{{{selector}}})", over):
        key = series.labels.get("signal", "?"), series.labels.get("attachment", "?")
        seen[key] = any(value for _, value in series.points)
    return tuple(
        {"signal": signal, "attachment": how if on else None, "status": "attached" if on else "missing", "why": None}
        for (signal, how), on in sorted(seen.items())
    )


def _version(server: PrometheusServer, selector: str, over: TimeRange) -> str | None:
    found = {series.labels.get("version", "?") for series in server.query_range(f"{_BUILD}{{{selector}}}", over)}
    return ", ".join(sorted(found)) or None
