# SPDX-License-Identifier: GPL-2.0-only
"""A recording as a Side: read once, from its beginning to its end or to where it was cut off."""

from __future__ import annotations

import contextlib
from importlib import resources

from kmemwatch.compare.side import RECORDING, Side
from kmemwatch.compare.watching import Watching
from kmemwatch.errors import UsageError
from kmemwatch.feeds.recording import EVENT, SNAPSHOT, Header, RecordingReader
from kmemwatch.feeds.replay import DEMO, DEMO_FILE
from kmemwatch.model import Event


def read_recording(label: str, path: str) -> Side:
    """Raises UsageError, with file and line, when it is not a recording, or is damaged, or has no snapshot."""
    with contextlib.ExitStack() as stack:
        place = path
        if path == DEMO:
            place = str(stack.enter_context(resources.as_file(resources.files("kmemwatch") / "data" / DEMO_FILE)))
        reader = stack.enter_context(RecordingReader(place, path))
        watching, header, events = _read(reader)
        if watching.latest is None:
            raise UsageError(reader.cut or f"{path}: there is no snapshot in this recording", "record again")
        return watching.side(
            label, RECORDING, path, kmemwatch=header and header.kmemwatch, events=events, cut=reader.cut
        )  # fmt: skip


def _read(reader: RecordingReader) -> tuple[Watching, Header | None, int]:
    """(what was watched, the first header, number of events)."""
    watching, count = Watching(), 0
    events: list[Event] = []
    first: Header | None = None
    header: Header | None = None
    while (record := reader.next()) is not None:
        if record.type == SNAPSHOT:
            watching.add(reader.parse(record.snapshot), events)
            count += len(events)
            events = []
            if header is not None:
                watching.header(header.host)
                header = None
        elif record.type == EVENT:
            events.append(reader.parse(record.event))
        else:
            header = reader.parse(record.header)
            first = first or header
    watching.add_events(events)
    return watching, first, count + len(events)
