# SPDX-License-Identifier: GPL-2.0-only
"""The answer to a scrape: the metrics of the latest snapshot, and those of the daemon itself.

The first part changes only with the snapshot and may be megabytes, so it is written and compressed once for each
snapshot and format. The second part is small and made for each scrape.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable

from prometheus_client.core import Metric

from kmemwatch.exporter import daemon
from kmemwatch.exporter.formats import choose_format, write_text
from kmemwatch.exporter.published import PublishedSnapshot, ReaderCost, T
from kmemwatch.exporter.selection import ALL, SeriesSelection
from kmemwatch.exporter.series import BuiltSeries, SeriesBuilder
from kmemwatch.model import without_collector

_GZIP_WBITS = 31
_GZIP_LEVEL = 1
"""Metrics compress well; higher levels take several times as long for a tenth less."""

Format = tuple[str, bool]
"""Content-Type, and whether compressed."""


class Exposition:
    """Answers scrapes; may be used from many threads at once."""

    def __init__(
        self,
        current: Callable[[], PublishedSnapshot | None],
        max_series: int,
        selection: SeriesSelection = ALL,
        *,
        reader: Callable[[], ReaderCost | None] = lambda: None,
        web: daemon.WebConfigStatus | None = None,
    ) -> None:
        """`current`: returns the latest snapshot if it is not too old; `reader`: the cost of the reading process."""
        self._current = current
        self._reader = reader
        self._web = web
        self._builder = SeriesBuilder(max_series, selection)
        self._building = threading.Lock()
        self._built: tuple[int, BuiltSeries] | None = None
        self._process = daemon.ProcessMetrics()
        self._counting = threading.Lock()
        self._scrapes = 0
        self._seconds = 0.0
        self._asked: tuple[PublishedSnapshot, set[Format]] | None = None
        """The latest snapshot that clients asked for, and in which formats."""

    def render(self, accept: str, compressed: bool) -> tuple[str, tuple[bytes, ...]]:
        """(Content-Type, parts of the body) in the format that `accept` asks for, as gzip if `compressed`."""
        began = time.monotonic()
        encode, content_type = choose_format(accept)
        published = self._current()
        built = None if published is None else self._build_of(published)
        tail = encode(self._daemon_metrics(published, built))
        if published is None:
            parts: tuple[bytes, ...] = (GzipStart(()).join(tail) if compressed else tail,)
        else:
            self._remember_format(published, (content_type, compressed))
            parts = self._with_tail(published, content_type, compressed, tail)
        with self._counting:
            self._scrapes += 1
            self._seconds += time.monotonic() - began
        return content_type, parts

    def prepare(self, new: PublishedSnapshot, before: PublishedSnapshot | None) -> None:
        """Write the metrics of `new`, which is not published yet, in the formats that clients asked for of `before`.

        Where large snapshots are scraped as often as they are taken, no client then waits for the writing.
        """
        with self._counting:
            formats = set(self._asked[1]) if self._asked is not None and self._asked[0] is before else set()
        for content_type, compressed in formats:
            self._with_tail(new, content_type, compressed, b"")

    def _remember_format(self, published: PublishedSnapshot, format_: Format) -> None:
        with self._counting:
            if self._asked is None or self._asked[0] is not published:
                self._asked = published, set()
            self._asked[1].add(format_)

    def _with_tail(
        self, published: PublishedSnapshot, content_type: str, compressed: bool, tail: bytes
    ) -> tuple[bytes, ...]:
        def made(whole: Callable[[Iterable[bytes]], T]) -> T:
            with without_collector():
                return whole(write_text(self._build_of(published).families, openmetrics="openmetrics" in content_type))

        if not compressed:
            return published.once((content_type, "text"), lambda: made(b"".join)), tail
        start = published.once((content_type, "gzip"), lambda: made(GzipStart))
        return start.start, start.rest(tail)

    def _build_of(self, published: PublishedSnapshot) -> BuiltSeries:
        with without_collector():
            return published.once("series", lambda: self._build(published))

    def _build(self, published: PublishedSnapshot) -> BuiltSeries:
        snapshot = published.snapshot
        with self._building:
            # Counters continue from snapshot to snapshot, so a slow request must not build an older one.
            if self._built is not None and snapshot.taken_at_ns < self._built[0]:
                return self._built[1]
            built = self._builder.build(snapshot)
            self._built = snapshot.taken_at_ns, built
            return built

    def _daemon_metrics(self, published: PublishedSnapshot | None, built: BuiltSeries | None) -> Iterable[Metric]:
        reader, web = self._reader(), self._web
        with self._counting:
            state = daemon.DaemonState(
                self._scrapes,
                self._seconds,
                None if published is None else time.monotonic() - published.published_s,
                None if built is None else built.folded_cgroups,
                None if built is None else built.folded_series,
                None if built is None else built.excluded_cgroups,
                None if built is None else built.excluded_caches,
                None if web is None else web.successful,
                None if web is None else web.loaded_at_s,
                daemon.processes(reader),
                daemon.programs(reader),
            )
        yield from daemon.daemon_metrics(state)
        yield from self._process.metrics(reader)


class GzipStart:
    """The first part of a gzip stream, which any number of answers continue."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
        self.start = b"".join(map(self._packer.compress, texts))

    def rest(self, tail: bytes) -> bytes:
        """What follows `start` for an answer that ends with `tail`."""
        packer = self._packer.copy()
        return packer.compress(tail) + packer.flush()

    def join(self, tail: bytes) -> bytes:
        """A whole gzip file: the texts and `tail`."""
        return self.start + self.rest(tail)
