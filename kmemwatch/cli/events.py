# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch events`: what happens to cgroups, caches and ids, one line each, as it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing

import click

from kmemwatch.cli.options import Seconds, open_feed, replay_option, without_option
from kmemwatch.cli.process import say, until_stopped
from kmemwatch.codec import to_json
from kmemwatch.feeds.feed import Feed
from kmemwatch.model import Event
from kmemwatch.views.eventlines import EventLines

POLL_S = 1.0
"""How late a closed pipe or the end of --duration is noticed at worst."""


@click.command(short_help="Print events.")
@click.option("--output", metavar="FORMAT", default="text", type=click.Choice(("text", "ndjson")),
              help="text (default) or ndjson.")  # fmt: skip
@click.option("--duration", metavar="S", type=Seconds(0, min_open=True), help="End after S seconds.")
@replay_option
@without_option
def command(output: str, duration: float | None, replay: str | None, without: tuple[str, ...]) -> None:
    """Print when cgroups go online, go offline, are released and take over slabs, until Ctrl-C."""
    with until_stopped(), closing(open_feed(None, replay, without, realtime=duration is not None)) as feed:
        _follow(feed, output, duration)
        if feed.notice is not None:
            say(f"kmemwatch: note: {feed.notice}")


def _follow(feed: Feed, output: str, duration: float | None) -> None:
    end = None if duration is None else time.monotonic() + duration
    line = _ndjson if output == "ndjson" else _text(feed)
    while True:
        left = POLL_S if end is None else min(POLL_S, end - time.monotonic())
        if left <= 0:
            return
        events = feed.wait_events(left)
        if events is None:
            return
        for event in events:
            sys.stdout.write(line(event) + "\n")
            sys.stdout.flush()  # the reader of a pipe wants it now


def _ndjson(event: Event) -> str:
    return to_json(event).decode()


def _text(feed: Feed) -> Callable[[Event], str]:
    """Events speak of cgroups that were there before, too; the first snapshot has their paths."""
    lines = EventLines()
    first = feed.next_snapshot(0)
    if first is not None:
        lines.learn(first.cgroups)
    return lines.line
