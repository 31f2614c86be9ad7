# SPDX-License-Identifier: GPL-2.0-only
"""Where views get snapshots from: the live kernel, a recording, or a daemon. Views do not see which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kmemwatch.model import Event, Snapshot


class Feed(Protocol):
    """A stream of snapshots. Only one thread at a time may use it; any thread may call `close`."""

    @property
    def title(self) -> str:
        """Its name in the status line: ``live``, the file name of a recording, or a URL."""

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        """Wait up to `delay_s` seconds of the feed's own time, then return a snapshot.

        0 returns at once. None: the feed has ended (end of a recording, or closed).
        Raises KmemwatchError when the source breaks.
        """

    def take_events(self) -> Sequence[Event]:
        """All events since the last call, oldest first."""

    def wait_events(self, timeout_s: float) -> Sequence[Event] | None:
        """Wait up to `timeout_s` for events; () on time-out, None when the feed has ended."""

    @property
    def notice(self) -> str | None:
        """One line the user should see, for example that the recording was cut off; else None."""

    def close(self) -> None:
        """Detach or disconnect; harmless when called twice."""
