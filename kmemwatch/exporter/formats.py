# SPDX-License-Identifier: GPL-2.0-only
"""Series as text: which format a client accepts, Prometheus' own or OpenMetrics, and how it is written.

`write_text` writes the same as prometheus_client does (a test compares them), but keeps whole numbers whole and takes a
tenth of the time, which with 1,000 cgroups is most of the time of a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kmemwatch.exporter.series import BUCKETS_S, Family, Histogram, Labels
from kmemwatch.shape import COUNTER, HISTOGRAM, INFO

Encoder = Callable[[Iterable[Metric]], bytes]

_VERSIONS = {"application/openmetrics-text": ("", "1.0.0"), "text/plain": ("1.0.0",)}
"""Media type -> versions that prometheus_client gets to see. Others make it fail, or promise a version that it does not
write. Plain text without a version, or of 0.0.4, is its default."""
_ESCAPINGS = ("allow-utf-8", "underscores", "values")
"""These leave our names, which are ASCII, as they are; ``dots`` would double their underscores."""
_LINES = 4096
"""Encoded at once: one by one, or all as one text, they take several times the memory."""


def choose_format(accept: str) -> tuple[Encoder, str]:
    """(function that writes metrics, its Content-Type) for an Accept header. Few are possible, so each can be kept."""
    encode, content_type = choose_encoder(",".join(dict.fromkeys(_known(accept))))
    return lambda metrics: encode(_Metrics(metrics)), content_type


class _Metrics(Collector):
    """Metrics as prometheus_client's encoders take them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _known(accept: str) -> Iterator[str]:
    """Items of the header that prometheus_client understands."""
    for item in accept.split(","):
        media, parameters = _parse(item)
        version = parameters.get("version", "")
        if version not in _VERSIONS.get(media, ()) or _is_zero(parameters.get("q", "1")):
            continue
        escaping = parameters.get("escaping", "")
        yield (
            media
            + (f";version={version}" if version else "")
            + (f";escaping={escaping}" if escaping in _ESCAPINGS else "")
        )


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header wants gzip, and not ``gzip;q=0``."""
    for item in header.split(","):
        name, parameters = _parse(item)
        if name == "gzip":
            return not _is_zero(parameters.get("q", "1"))
    return False


def _parse(item: str) -> tuple[str, dict[str, str]]:
    name, *parameters = (part.strip() for part in item.split(";"))
    found: dict[str, str] = {}
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        found.setdefault(key.strip().lower(), value.strip().strip('"').lower())
    return name.lower(), found


def _is_zero(weight: str) -> bool:
    return weight.strip("0.") == ""


def write_text(families: Iterable[Family], openmetrics: bool) -> Iterator[bytes]:
    """The families in pieces, without OpenMetrics' ``# EOF``."""
    lines = chain.from_iterable(_family_lines(family, openmetrics) for family in families)
    while some := "".join(islice(lines, _LINES)):
        yield some.encode("utf-8")


def _family_lines(family: Family, openmetrics: bool) -> Iterator[str]:
    name, kind, help_ = str(family.field.metric), family.field.kind, _escape(family.field.help, openmetrics)
    title = name
    if openmetrics and kind in (COUNTER, INFO):
        title = name.removesuffix("_total" if kind == COUNTER else "_info")
    shown = "gauge" if kind == INFO and not openmetrics else kind
    head = f"# HELP {title} {help_}\n# TYPE {title} {shown}\n"
    return chain((head,), _histogram_lines(name, family) if kind == HISTOGRAM else _lines(name, family))


def _lines(name: str, family: Family) -> Iterator[str]:
    names = family.label_names
    if not names:
        return (f"{name} {value}\n" for value in family.series.values())
    labels_pattern = ",".join(label + '="%s"' for label in names)
    pattern = name + "{" + labels_pattern + "} %s\n"
    known: dict[str, str] = {}
    return (pattern % (*_escaped(labels, known), value) for labels, value in family.series.items())


def _escaped(labels: Labels, known: dict[str, str]) -> list[str]:
    found = []
    for text in labels:
        escaped = known.get(text)
        if escaped is None:
            escaped = known[text] = _escape(text, quotes=True)
        found.append(escaped)
    return found


def _histogram_lines(name: str, family: Family) -> Iterator[str]:
    assert not family.label_names, "no histogram of ours has labels"
    for histogram in family.series.values():
        assert isinstance(histogram, Histogram)
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        for bound, count in zip(bounds, histogram.counts, strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}\n'
        yield f"{name}_count {histogram.counts[-1]}\n{name}_sum {histogram.sum}\n"


def _escape(text: str, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def to_metric(family: Family) -> Metric:
    """A family in prometheus_client's form."""
    name, help_, names = str(family.field.metric), family.field.help, family.label_names
    metric: Any
    if family.field.kind == HISTOGRAM:
        metric = HistogramMetricFamily(name, help_, labels=names)
        for labels, value in family.series.items():
            assert isinstance(value, Histogram)
            bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
            metric.add_metric(labels, list(zip(bounds, value.counts, strict=True)), value.sum)
        return metric  # type: ignore[no-any-return]
    if family.field.kind == INFO:
        metric = InfoMetricFamily(name.removesuffix("_info"), help_)
        for labels in family.series:
            metric.add_metric((), dict(zip(names, labels, strict=True)))
        return metric  # type: ignore[no-any-return]
    kind = CounterMetricFamily if family.field.kind == COUNTER else GaugeMetricFamily
    metric = kind(name, help_, labels=names)
    for labels, value in family.series.items():
        metric.add_metric(labels, value)
    return metric  # type: ignore[no-any-return]
