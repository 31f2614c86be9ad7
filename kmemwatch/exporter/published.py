# SPDX-License-Identifier: GPL-2.0-only
"""The latest snapshot, how old it is, and what the process that read it costs."""

from __future__ import annotations

import functools
import os
import resource
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from kmemwatch.model import Snapshot

T = TypeVar("T")

STALE_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class ProgramRuns:
    """What the kernel counts of a BPF program while kernel.bpf_stats_enabled is set."""

    runs: int
    run_ns: int


@dataclass(frozen=True, slots=True)
class ReaderCost:
    """What the process that reads the kernel cost when it took a snapshot."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    open_fds: int
    start_time_s: float
    """Since the epoch, as in ``process_start_time_seconds``."""
    programs: Mapping[str, ProgramRuns] = field(default_factory=dict)
    """BPF programs of which the kernel has counted runs."""


def reader_cost(programs: Mapping[str, ProgramRuns]) -> ReaderCost:
    """What this process costs now."""
    virtual_bytes, resident_bytes = memory_bytes()
    return ReaderCost(
        cpu_s=processor_s(),
        resident_bytes=resident_bytes,
        virtual_bytes=virtual_bytes,
        open_fds=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        start_time_s=_start_time_s(),
        programs=programs,
    )


def processor_s() -> float:
    """Processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_bytes() -> tuple[int, int]:
    """(virtual, resident) memory of this process."""
    virtual, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(virtual) * resource.getpagesize(), int(resident) * resource.getpagesize()


@functools.cache
def _start_time_s() -> float:
    """As prometheus_client's ProcessCollector computes it."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_s = float(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s


class PackedSnapshot(Protocol):
    """A snapshot as the other process sent it."""

    def open(self) -> Snapshot:
        """Unpack it. This takes time, and memory for as long as the caller keeps the result."""


class PublishedSnapshot:
    """A snapshot, and the answers made from it: each is made once, no matter how many clients ask at a time."""

    def __init__(
        self, snapshot: Snapshot | PackedSnapshot, published_s: float, reader: ReaderCost | None = None
    ) -> None:
        """`published_s`: by `time.monotonic`, a clock that all processes share."""
        self._snapshot = snapshot
        self.published_s = published_s
        self.reader = reader
        self._lock = threading.RLock()
        self._made: dict[Hashable, object] = {}

    @property
    def snapshot(self) -> Snapshot:
        """A packed snapshot is unpacked for each caller, because no caller needs it for long."""
        return self._snapshot if isinstance(self._snapshot, Snapshot) else self._snapshot.open()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time for `key`."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]  # type: ignore[return-value]


class LatestSnapshot:
    """The latest snapshot; one thread publishes, any number of others read."""

    def __init__(self, stale_s: float) -> None:
        """`stale_s`: age above which a snapshot no longer counts as current; infinite for a recording."""
        self._stale_s = stale_s
        self._last: PublishedSnapshot | None = None
        self._failure: str | None = None
        self.reader: ReaderCost | None = None
        """The last one known, however old."""

    def publish(self, published: PublishedSnapshot) -> None:
        """Make `published` the latest."""
        # One assignment: other threads see the previous snapshot or this one.
        self._last = published
        self.reader = published.reader or self.reader

    def fail(self, reason: str) -> None:
        """There will be no more snapshots."""
        self._failure = reason

    def current(self) -> PublishedSnapshot | None:
        """The latest snapshot; None when there is none or it is too old, see `problem`."""
        return None if self.problem() else self._last

    def last(self) -> PublishedSnapshot | None:
        """The latest snapshot, however old."""
        return self._last

    def problem(self) -> str | None:
        """Why there is no current snapshot, in one line; None when there is one."""
        if self._failure is not None:
            return self._failure
        last = self._last
        if last is None:
            return "no snapshot yet"
        age_s = time.monotonic() - last.published_s
        if age_s > self._stale_s:
            return f"the last snapshot is {age_s:.0f} s old, more than {STALE_INTERVALS} intervals"
        return None
