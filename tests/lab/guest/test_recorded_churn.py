# SPDX-License-Identifier: GPL-2.0-only
"""A recording of `kmemwatch churn`, made by users' commands, has what the kernel counted and what churn did.

Recording, report and counters stay in the shared directory, where the host compares kernels (tests/lab/reports.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest

from kmemwatch.feeds.recording import EVENT, SNAPSHOT
from kmemwatch.feeds.recording.format import parse_line
from kmemwatch.model import DYING, Snapshot
from tests.daemon import KMEMWATCH
from tests.lab import comparison
from tests.lab.boot import SHARED
from tests.lab.guest.truth import (
    ELSEWHERE,
    REST_S,
    bury,
    every_used_id,
    grown,
    kernel_counters,
    kernel_figures,
    lost_between,
    our_figures,
)
from tests.live.test_churn_command import Churn
from tests.needs import GUEST, slab_mode
from tests.waiting import wait_for

pytestmark = pytest.mark.needs("root", "bcc", "cgroup v2")

START_S = 240
HAS_CHILD_CACHES = slab_mode() not in (None, "shared")
"""And counters of the kernel's own."""
HOLD_S = 3600
"""Longer than anything takes here; it is ended by a signal."""


@dataclass
class Recorded:
    """A recording that is being written."""

    file: BinaryIO
    lines: int = 0
    latest: Snapshot | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    """Events up to `latest`."""
    _begun: bytes = b""
    _since: Counter[str] = field(default_factory=Counter)

    def read(self) -> None:
        """Take in what was written since."""
        *whole, self._begun = (self._begun + self.file.read()).splitlines(keepends=True) or [b""]
        if self._begun.endswith(b"\n"):
            whole, self._begun = [*whole, self._begun], b""
        last = None
        for line in whole:
            record = parse_line(line, self.lines, len(line))
            self.lines += 1
            if record.type == EVENT:
                self._since[record.event().kind] += 1
            elif record.type == SNAPSHOT:
                last = record
                self.kinds, self._since = self.kinds + self._since, Counter()
        if last is not None:
            self.latest = last.snapshot()

    def after(self, monotonic_ns: int) -> Snapshot:
        """The first snapshot that was begun after that time."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            self.read()
            # It is as old as what it counts, and that was read within an interval.
            if self.latest is not None and self.latest.monotonic_ns > monotonic_ns + comparison.INTERVAL_S * 10**9:
                return self.latest
            time.sleep(comparison.INTERVAL_S / 2)
        raise AssertionError(f"no snapshot in {START_S} s")


@dataclass(frozen=True)
class Rest:
    """What the recording and the kernel said while nothing happened."""

    snapshot: Snapshot
    kinds: Counter[str]
    kernel: dict[str, int]

    def ours(self) -> dict[str, int | None]:
        return {name: value for name, value in our_figures(self.snapshot, self.kinds).items() if name in self.kernel}


def kernel_says(memory_root: Path) -> dict[str, int]:
    """By its own counters where it has any, else by what cgroup v2 tells."""
    if HAS_CHILD_CACHES:
        return kernel_figures(kernel_counters())
    lines = (line.split() for line in (memory_root / "cgroup.stat").read_text().splitlines())
    stat = {name: int(value) for name, value in lines}
    return {"dying": stat["nr_dying_descendants"], "online": stat["nr_descendants"] + 1}


def rest(recorded: Recorded, memory_root: Path) -> Rest:
    """Once the kernel's figures are the same before and after a snapshot."""
    until = time.monotonic() + REST_S
    before = kernel_says(memory_root)
    while time.monotonic() < until:
        now = recorded.after(time.monotonic_ns())
        after = kernel_says(memory_root)
        if after == before and now.totals.dying_cgroups == after["dying"]:
            return Rest(now, recorded.kinds.copy(), after)
        before = after
    raise AssertionError(f"no rest in {REST_S} s: {after}, recorded {now.totals}")


@pytest.fixture
def fillers(memory_root: Path) -> Iterator[None]:
    """Only churn's memcgs may die during the recording, and no other memcg's id may be reused."""
    if not HAS_CHILD_CACHES:
        yield
        return
    bury()
    with every_used_id(memory_root):
        yield


@pytest.fixture
def recorder(tmp_path: Path, fillers: None) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A running `kmemwatch record`: its file, and how to end it."""
    path = tmp_path / "recording.kmw"
    command = [*KMEMWATCH, "record", str(path), *comparison.RECORD]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def end() -> None:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=START_S)
        assert process.returncode == 0, said

    wait_for(lambda: process.poll() is not None or (path.exists() and path.stat().st_size), START_S, "recording")
    assert process.poll() is None, process.communicate()[1]
    yield path, end
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_a_recording_of_churn_has_what_the_kernel_counted(
    recorder: tuple[Path, Callable[[], None]], memory_root: Path, disk_path: Path
) -> None:
    path, end_recording = recorder
    with path.open("rb") as file:
        recorded = Recorded(file)
        begin = rest(recorded, memory_root)
        churn = Churn(disk_path, *comparison.CHURN, "--hold", str(HOLD_S))
        try:
            churn.held(2 * START_S)
            end = rest(recorded, memory_root)
            end_recording()
        finally:
            churn.process.send_signal(signal.SIGINT)
        report = churn.end(START_S)
    kernels = grown(begin.kernel, end.kernel)
    _keep(path, report, {name: value for name, value in kernels.items() if value is not None})

    lost = lost_between(begin.snapshot, end.snapshot)
    assert {name: count for name, count in lost.items() if name not in ELSEWHERE} == {}
    ours = grown(begin.ours(), end.ours())
    if slab_mode() == "private":
        assert ours == {name: None if name.startswith("recharge") else value for name, value in kernels.items()}
    else:
        assert ours == kernels
    assert report["cgroups"]["removed"] == report["cgroups"]["made"] == comparison.CGROUPS
    assert _grown(begin.snapshot.totals.cgroups_offlined_total, end.snapshot) == comparison.CGROUPS
    assert report["dying"]["after_hold"] == _dying_below(Path(report["parent"]["path"]).name, end.snapshot)
    assert report["failures"] == []
    assert report["cleaned"] is True


def _dying_below(name: str, snapshot: Snapshot) -> int:
    return sum(cgroup.state == DYING and name in (cgroup.path or "").split("/") for cgroup in snapshot.cgroups)


def _grown(before: int | None, end: Snapshot) -> int:
    assert before is not None
    assert end.totals.cgroups_offlined_total is not None
    return end.totals.cgroups_offlined_total - before


def _keep(path: Path, report: dict[str, object], kernels: dict[str, int]) -> None:
    assert GUEST is not None
    shared = Path(SHARED)
    shutil.copyfile(path, comparison.recording(shared, GUEST))
    comparison.churn_report(shared, GUEST).write_text(json.dumps(report, indent=1) + "\n")
    comparison.counters(shared, GUEST).write_text(json.dumps(kernels, indent=1) + "\n")
