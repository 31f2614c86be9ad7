# SPDX-License-Identifier: GPL-2.0-only
"""What a scrape gets: the metrics of the latest snapshot, and those of the exporter itself.

The first part changes only with the snapshot and may be megabytes, so it is written and compressed once for each
snapshot and format; the second part is small and fresh.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kmemwatch.exporter.collector import to_metric
from kmemwatch.exporter.publisher import Frame
from kmemwatch.exporter.series import Build, Family, SeriesBuilder
from kmemwatch.exporter.text import write_text
from kmemwatch.fields.serving import SERVING, Serving

_GZIP_WBITS = 31
_GZIP_LEVEL = 1
"""Metric text packs well; higher levels take several times as long for a tenth less."""


class Exposition:
    """Answers scrapes; may be used from many threads at once."""

    def __init__(self, frame: Callable[[], Frame | None], max_series: int) -> None:
        self._frame = frame
        self._builder = SeriesBuilder(max_series)
        self._building = threading.Lock()
        self._built: tuple[int, Build] | None = None
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._counting = threading.Lock()
        self._scrapes = 0
        self._seconds = 0.0

    def render(self, accept: str, packed: bool) -> tuple[str, bytes]:
        """(Content-Type, body) in the format that `accept` asks for, gzip if `packed`."""
        began = time.monotonic()
        encode, content_type = choose_encoder(accept)
        frame = self._frame()
        build = None if frame is None else frame.once("series", lambda: self._build(frame))
        tail = encode(_Collected(self._own_metrics(frame, build)))
        if frame is None or build is None:
            body = Begun(b"").join(tail) if packed else tail
        else:
            text: bytes = frame.once(
                (content_type, "text"),
                lambda: write_text(build.families, openmetrics="openmetrics" in content_type),
            )
            body = frame.once((content_type, "gzip"), lambda: Begun(text)).join(tail) if packed else text + tail
        with self._counting:
            self._scrapes += 1
            self._seconds += time.monotonic() - began
        return content_type, body

    def _build(self, frame: Frame) -> Build:
        with self._building:
            # Counters continue from snapshot to snapshot, so a slow request must not go back in time.
            if self._built is not None and frame.snapshot.taken_at_ns < self._built[0]:
                return self._built[1]
            build = self._builder.build(frame.snapshot)
            self._built = frame.snapshot.taken_at_ns, build
            return build

    def _own_metrics(self, frame: Frame | None, build: Build | None) -> Iterable[Metric]:
        with self._counting:
            serving = Serving(
                self._scrapes,
                self._seconds,
                None if frame is None else time.monotonic() - frame.published_s,
                None if build is None else build.folded_cgroups,
                None if build is None else build.folded_series,
            )
        for field in SERVING:
            value = field.get(serving)
            if isinstance(value, (int, float)):
                yield to_metric(Family(field, (), {(): value}))
        yield from self._process.collect()


class _Collected(Collector):
    """Metrics as prometheus_client's encoders want them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Begun:
    """The first part of a gzip stream that any number of answers can continue."""

    def __init__(self, text: bytes) -> None:
        self._packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
        self._start = self._packer.compress(text)

    def join(self, tail: bytes) -> bytes:
        """A whole gzip file: the text and `tail`."""
        packer = self._packer.copy()
        return self._start + packer.compress(tail) + packer.flush()
