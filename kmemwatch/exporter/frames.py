# SPDX-License-Identifier: GPL-2.0-only
"""What answers are made of: the latest snapshot, and how old it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from kmemwatch.model import Snapshot

T = TypeVar("T")

STALE_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class ProgramRuns:
    """What the kernel counts about a BPF program, while something makes it count (kernel.bpf_stats_enabled)."""

    runs: int
    run_ns: int


@dataclass(frozen=True, slots=True)
class ReaderState:
    """The process that reads the kernel, when it took a snapshot."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    open_fds: int
    start_time_s: float
    """Since the epoch, as in ``process_start_time_seconds``."""
    programs: Mapping[str, ProgramRuns] = field(default_factory=dict)
    """Those that the kernel has counted runs of."""


class Opens(Protocol):
    """A snapshot that is still packed."""

    def open(self) -> Snapshot:
        """Unpack it; takes a while, and memory for as long as somebody keeps the answer."""


class Frame:
    """One published snapshot, and what was made of it: each thing is made once, however many ask at a time."""

    def __init__(self, snapshot: Snapshot | Opens, published_s: float, reader: ReaderState | None = None) -> None:
        """`published_s`: `time.monotonic`, a clock that all processes share."""
        self._snapshot = snapshot
        self.published_s = published_s
        self.reader = reader
        self._lock = threading.RLock()
        self._made: dict[Hashable, object] = {}

    @property
    def snapshot(self) -> Snapshot:
        """Unpacked for each caller when it came packed: nobody needs it for long."""
        return self._snapshot if isinstance(self._snapshot, Snapshot) else self._snapshot.open()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, or what it returned the first time for `key`."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]  # type: ignore[return-value]


class Latest:
    """The latest frame; one thread publishes, any number of others read."""

    def __init__(self, stale_s: float) -> None:
        """`stale_s`: age at which a frame no longer passes for the present state; infinite for a recording."""
        self._stale_s = stale_s
        self._frame: Frame | None = None
        self._failure: str | None = None
        self.reader: ReaderState | None = None
        """The last that was heard of it, however old."""

    def publish(self, frame: Frame) -> None:
        """Make `frame` the latest."""
        # One assignment: readers see the old frame or the new one.
        self._frame = frame
        self.reader = frame.reader or self.reader

    def fail(self, reason: str) -> None:
        """There will be no more frames."""
        self._failure = reason

    def frame(self) -> Frame | None:
        """The latest snapshot; None when there is none that may pass for the present state, see `problem`."""
        return None if self.problem() else self._frame

    def last(self) -> Frame | None:
        """The latest, however old."""
        return self._frame

    def problem(self) -> str | None:
        """Why there is no valid snapshot, in one line; None when there is."""
        if self._failure is not None:
            return self._failure
        frame = self._frame
        if frame is None:
            return "no snapshot yet"
        age_s = time.monotonic() - frame.published_s
        if age_s > self._stale_s:
            return f"the last snapshot is {age_s:.0f} s old, more than {STALE_INTERVALS} intervals"
        return None
