# SPDX-License-Identifier: GPL-2.0-only
"""What a scrape gets: the metrics of the latest snapshot, and those of the exporter itself.

The first part changes only with the snapshot and may be megabytes, so it is written and compressed once for each
snapshot and format; the second part is small and fresh.
"""

from __future__ import annotations

import gc
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kmemwatch.exporter import own
from kmemwatch.exporter.accept import choose_format
from kmemwatch.exporter.frames import Frame, ReaderState, T
from kmemwatch.exporter.selection import ALL, Selection
from kmemwatch.exporter.series import Build, SeriesBuilder
from kmemwatch.exporter.serving import Serving
from kmemwatch.exporter.text import write_text

_GZIP_WBITS = 31
_GZIP_LEVEL = 1
"""Metric text packs well; higher levels take several times as long for a tenth less."""

Format = tuple[str, bool]
"""Content-Type, and whether it is packed."""


class Exposition:
    """Answers scrapes; may be used from many threads at once."""

    def __init__(
        self,
        frame: Callable[[], Frame | None],
        max_series: int,
        selection: Selection = ALL,
        *,
        reader: Callable[[], ReaderState | None] = lambda: None,
        web: own.WebConfigStatus | None = None,
    ) -> None:
        """`frame`: the latest that is valid; `reader`: of the process that reads the kernel, if it is another one."""
        self._frame = frame
        self._reader = reader
        self._web = web
        self._builder = SeriesBuilder(max_series, selection)
        self._building = threading.Lock()
        self._built: tuple[int, Build] | None = None
        self._process = own.OwnProcess()
        self._counting = threading.Lock()
        self._scrapes = 0
        self._seconds = 0.0
        self._asked: tuple[Frame, set[Format]] | None = None

    def render(self, accept: str, packed: bool) -> tuple[str, tuple[bytes, ...]]:
        """(Content-Type, parts of the body) in the format that `accept` asks for, gzip if `packed`."""
        began = time.monotonic()
        encode, content_type = choose_format(accept)
        frame = self._frame()
        build = None if frame is None else self._build_of(frame)
        tail = encode(_Collected(self._own_metrics(frame, build)))
        if frame is None:
            parts: tuple[bytes, ...] = (Begun(()).join(tail) if packed else tail,)
        else:
            self._note_asked(frame, (content_type, packed))
            parts = self._with_tail(frame, content_type, packed, tail)
        with self._counting:
            self._scrapes += 1
            self._seconds += time.monotonic() - began
        return content_type, parts

    def prepare(self, frame: Frame, before: Frame | None) -> None:
        """Write the metrics of `frame`, which nobody can ask for yet, in the formats that were asked for of `before`.

        Where snapshots are large and scraped as often as they are taken, nobody then waits for the writing.
        """
        with self._counting:
            formats = set(self._asked[1]) if self._asked is not None and self._asked[0] is before else set()
        for content_type, packed in formats:
            self._with_tail(frame, content_type, packed, b"")

    def _note_asked(self, frame: Frame, format_: Format) -> None:
        with self._counting:
            if self._asked is None or self._asked[0] is not frame:
                self._asked = frame, set()
            self._asked[1].add(format_)

    def _with_tail(self, frame: Frame, content_type: str, packed: bool, tail: bytes) -> tuple[bytes, ...]:
        def made(whole: Callable[[Iterable[bytes]], T]) -> T:
            with _without_gc():
                return whole(write_text(self._build_of(frame).families, openmetrics="openmetrics" in content_type))

        if not packed:
            return frame.once((content_type, "text"), lambda: made(b"".join)), tail
        begun = frame.once((content_type, "gzip"), lambda: made(Begun))
        return begun.start, begun.rest(tail)

    def _build_of(self, frame: Frame) -> Build:
        with _without_gc():
            return frame.once("series", lambda: self._build(frame))

    def _build(self, frame: Frame) -> Build:
        snapshot = frame.snapshot
        with self._building:
            # Counters continue from snapshot to snapshot, so a slow request must not go back in time.
            if self._built is not None and snapshot.taken_at_ns < self._built[0]:
                return self._built[1]
            build = self._builder.build(snapshot)
            self._built = snapshot.taken_at_ns, build
            return build

    def _own_metrics(self, frame: Frame | None, build: Build | None) -> Iterable[Metric]:
        reader, web = self._reader(), self._web
        with self._counting:
            serving = Serving(
                self._scrapes,
                self._seconds,
                None if frame is None else time.monotonic() - frame.published_s,
                None if build is None else build.folded_cgroups,
                None if build is None else build.folded_series,
                None if build is None else build.excluded_cgroups,
                None if build is None else build.excluded_caches,
                None if web is None else web.successful,
                None if web is None else web.loaded_at_s,
                own.processes(reader),
                own.programs(reader),
            )
        yield from own.serving_metrics(serving)
        yield from self._process.metrics(reader)


class _Collected(Collector):
    """Metrics as prometheus_client's encoders want them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Begun:
    """The first part of a gzip stream that any number of answers can continue."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
        self.start = b"".join(map(self._packer.compress, texts))

    def rest(self, tail: bytes) -> bytes:
        """What has to follow `start`: the end of a gzip file."""
        packer = self._packer.copy()
        return packer.compress(tail) + packer.flush()

    def join(self, tail: bytes) -> bytes:
        """A whole gzip file: the texts and `tail`."""
        return self.start + self.rest(tail)


@contextmanager
def _without_gc() -> Iterator[None]:
    """Pause the garbage collector while 100,000 series or so are made.

    They have no cycles, and the collector would look through all of them again and again, a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
