# SPDX-License-Identifier: GPL-2.0-only
"""A recording as a Feed, with the recording's clock and events, and one line about where it was cut off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from kmemwatch.errors import UsageError
from kmemwatch.feeds.recording import EVENT, SNAPSHOT, RecordingReader
from kmemwatch.model import Event, Snapshot
from kmemwatch.units import NS_PER_S, rfc3339

DEMO: Final = "demo"
DEMO_FILE: Final = "demo.kmw.gz"

_JITTER = 0.05
"""A recording made every 5 s has snapshots 5.003 s apart: this share of a delay may be missing."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One snapshot of the recording and the events before it."""

    snapshot: Snapshot | None
    """None: the recording ends after `events`."""
    events: tuple[Event, ...]
    restarted: bool
    """It is the first snapshot of another run of the recorder, so its counters began at 0 again."""
    error: UsageError | None = None
    """The error in the file at this place; raised when the replay gets here, not before."""


class ReplayFeed:
    """Plays a recording. Raises UsageError, with file and line, when it is not one or is damaged.

    Time is that of the recording. A call of `next_snapshot` moves forward by its delay, and by at least one snapshot,
    so that none comes twice. With `realtime` this takes as long as in the recording (a pause between two runs of the
    recorder takes one delay). Without it, nothing waits.
    """

    def __init__(self, path: str, realtime: bool = False) -> None:
        """`path` is a file, or ``demo`` for the recording that ships with kmemwatch."""
        self.realtime = realtime
        self._title = Path(path).name
        self._closed = threading.Event()
        self._files = contextlib.ExitStack()
        self._events: list[Event] = []
        self._at_ns: int | None = None
        """CLOCK_MONOTONIC of the recorded host at the end of the last step; None before the first."""
        self._restart: str | None = None
        try:
            self._reader = RecordingReader(self._locate(path), path)
            self._files.callback(self._reader.close)
            self._next = self._pull()
            if self._next.snapshot is None:
                raise self._next.error or UsageError(
                    self._reader.cut or f"{path}: there is no snapshot in this recording", "record again"
                )
        except BaseException:
            self._files.close()
            raise

    def _locate(self, path: str) -> str:
        if path != DEMO:
            return path
        packaged = resources.files("kmemwatch") / "data" / DEMO_FILE
        if not packaged.is_file():
            raise UsageError(f"demo: {DEMO_FILE} is missing from this installation", "install kmemwatch again")
        return str(self._files.enter_context(resources.as_file(packaged)))

    @property
    def title(self) -> str:
        """File name of the recording."""
        return self._title

    @property
    def notice(self) -> str | None:
        """Says where the recording was cut off, once the replay gets there, or that the recorder was restarted here."""
        reached_end = self._next.snapshot is None and self._next.error is None
        return (self._reader.cut if reached_end else None) or self._restart

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        """The snapshot `delay_s` of recorded time later, or the next one if that is farther away; None at the end."""
        if self._closed.is_set():
            return None
        first = self._next
        snapshot = self._take()
        if snapshot is None:
            return None
        delay_ns = int(delay_s * NS_PER_S)
        before_ns = self._at_ns
        continues = before_ns is not None and not first.restarted
        target_ns = before_ns + delay_ns if before_ns is not None and continues else snapshot.monotonic_ns
        slack_ns = delay_ns * _JITTER if continues else 0
        while (
            (later := self._next.snapshot) is not None
            and not self._next.restarted
            and later.monotonic_ns <= target_ns + slack_ns
        ):
            snapshot = self._take() or later
        # Use the end of the step, not the time of its snapshot, so that small differences do not add up.
        self._at_ns = max(target_ns, snapshot.monotonic_ns)
        wait_ns = self._at_ns - before_ns if before_ns is not None and continues else delay_ns
        if self.realtime and delay_ns and before_ns is not None and self._closed.wait(wait_ns / NS_PER_S):
            return None
        return snapshot

    def take_events(self) -> Sequence[Event]:
        """Events recorded up to the snapshot returned last."""
        events, self._events = self._events, []
        return events

    def wait_events(self, timeout_s: float) -> Sequence[Event] | None:
        """The next events of the recording; None when there are no more."""
        while not self._events:
            step = self._next
            if self._closed.is_set() or (step.snapshot is None and not step.events and step.error is None):
                return None
            if self.realtime and step.snapshot is not None:
                now_ns = step.snapshot.monotonic_ns if self._at_ns is None or step.restarted else self._at_ns
                due_ns = max(0, step.snapshot.monotonic_ns - now_ns)
                wait_ns = min(due_ns, int(timeout_s * NS_PER_S))
                self._closed.wait(wait_ns / NS_PER_S)
                self._at_ns = now_ns + wait_ns
                if wait_ns < due_ns:
                    return ()
            self._take()
        return self.take_events()

    def close(self) -> None:
        """Close the file and wake a waiting thread; harmless when called twice."""
        self._closed.set()
        self._files.close()

    def _take(self) -> Snapshot | None:
        """Go one step forward."""
        step = self._next
        if step.error is not None:
            raise step.error
        self._events += step.events
        if step.snapshot is None:
            self._next = _Step(None, (), False)
            return None
        stamp = rfc3339(step.snapshot.taken_at_ns, digits=0)
        self._restart = f"{self._title}: the recorder was restarted before {stamp}" if step.restarted else None
        self._next = self._pull()
        return step.snapshot

    def _pull(self) -> _Step:
        """Read up to and with the next snapshot."""
        events: list[Event] = []
        restarted = False
        try:
            while not self._closed.is_set() and (record := self._reader.next()) is not None:
                if record.type == SNAPSHOT:
                    return _Step(self._reader.parse(record.snapshot), tuple(events), restarted)
                if record.type == EVENT:
                    events.append(self._reader.parse(record.event))
                else:
                    restarted = record.seq > 0
        except UsageError as exc:
            return _Step(None, tuple(events), False, exc)
        except ValueError:
            # Another thread called `close`, which closed the file.
            if not self._closed.is_set():
                raise
        return _Step(None, tuple(events), False)
