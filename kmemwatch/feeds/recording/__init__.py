# SPDX-License-Identifier: GPL-2.0-only
"""One file that holds snapshots and events in the order in which they happened.

One JSON object a line, so that jq reads it; see `format`. In a file whose name ends in ``.gz`` each line
is a gzip member of its own: zcat reads it, and a file that was cut off loses its last record only.
"""

from __future__ import annotations

from kmemwatch.feeds.recording.format import EVENT, HEADER, SNAPSHOT, Header, Record
from kmemwatch.feeds.recording.reader import RecordingReader
from kmemwatch.feeds.recording.writer import RecordingWriter

__all__ = ["EVENT", "HEADER", "SNAPSHOT", "Header", "Record", "RecordingReader", "RecordingWriter"]
