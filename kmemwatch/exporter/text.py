# SPDX-License-Identifier: GPL-2.0-only
"""Families as text, in Prometheus' own format and in OpenMetrics.

The same as prometheus_client writes for `collector.FamiliesCollector`, to which a test compares it, but whole numbers
stay whole, and it takes a tenth of the time: with 1,000 cgroups that is what most of a scrape is spent on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from kmemwatch.exporter.series import BUCKETS_S, Family, Histogram, Labels
from kmemwatch.shape import COUNTER, HISTOGRAM, INFO

_LINES = 4096
"""Encoded at once: as text, and line by line, megabytes take several times the memory."""


def write_text(families: Iterable[Family], openmetrics: bool) -> Iterator[bytes]:
    """The families, without OpenMetrics' ``# EOF``, piece by piece."""
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
