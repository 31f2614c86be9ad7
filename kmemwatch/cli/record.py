# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch record`: snapshots and events to a file, for `top --replay` and `compare`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing

import click

from kmemwatch.cli.options import Seconds, check_source, latency_option, open_feed, without_option
from kmemwatch.cli.process import say, say_over, until_stopped
from kmemwatch.errors import UsageError
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import Event
from kmemwatch.units import bytes_human, seconds_human

INTERVAL_S = 5.0
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600.0


@click.command(short_help="Record.")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option("--duration", metavar="S", type=Seconds(0, min_open=True), help="End after S seconds.")
@click.option("--interval", metavar="S", type=Seconds(MIN_INTERVAL_S, MAX_INTERVAL_S), default=INTERVAL_S,
              help=f"Seconds between snapshots: {INTERVAL_S:g}.")  # fmt: skip
@click.option("--connect", metavar="URL", help="Record a daemon (kmemwatch serve) on another host, without events.")
@without_option
@latency_option
def command(
    file: str, duration: float | None, interval: float, connect: str | None, without: tuple[str, ...], latency: bool
) -> None:
    """Append snapshots and events to FILE until Ctrl-C. The file is compressed if its name ends in .gz.

    A FILE that exists must be a recording of this host since it was booted.
    """
    check_source(connect, None, without, latency)
    if file == "-":
        raise UsageError("-: a recording is not written to stdout", "give a file name, for example host.kmw.gz")
    with (
        RecordingWriter(file) as writer,
        until_stopped(),
        closing(open_feed(connect, None, without, latency=latency)) as feed,
    ):
        _Recorder(writer, feed).run(interval, duration)


class _Recorder:
    def __init__(self, writer: RecordingWriter, feed: Feed) -> None:
        self._writer, self._feed = writer, feed
        self._began_s = time.monotonic()
        self._snapshots = self._events = 0
        self._shows_progress = sys.stderr.isatty()

    def run(self, interval_s: float, duration_s: float | None) -> None:
        """Record until the feed ends, the time is over, or an exception (a signal) comes."""
        end_s = float("inf") if duration_s is None else self._began_s + duration_s
        try:
            self._record(interval_s, end_s)
        finally:
            self._write_events(self._feed.take_events() if self._snapshots else ())
            if self._shows_progress:
                say_over("")
            say(f"kmemwatch: {self._summary()}")
            if self._feed.notice is not None:
                say(f"kmemwatch: note: {self._feed.notice}")

    def _record(self, interval_s: float, end_s: float) -> None:
        snapshot = self._feed.next_snapshot(0)
        if snapshot is not None:
            self._writer.begin(snapshot)
            if self._writer.notice is not None:
                say(f"kmemwatch: note: {self._writer.notice}")
        before = None
        while snapshot is not None:
            if snapshot != before:  # a daemon that does not answer shows its last one again
                self._write_events(self._feed.take_events())
                self._writer.write_snapshot(snapshot)
                self._snapshots += 1
            self._show_progress()
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return
            before, snapshot = snapshot, self._feed.next_snapshot(min(interval_s, left_s))

    def _write_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._writer.write_event(event)
            self._events += 1

    def _show_progress(self) -> None:
        if self._shows_progress:
            say_over(self._summary())

    def _summary(self) -> str:
        took = seconds_human(time.monotonic() - self._began_s)
        counts = f"{self._snapshots} snapshots, {self._events} events"
        return f"{self._writer.path}: {counts} in {took}, file {bytes_human(self._writer.size_bytes)}"
