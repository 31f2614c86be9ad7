# SPDX-License-Identifier: GPL-2.0-only
"""Run tests in guests, one boot for each kernel, and keep the outcome of each test."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.lab.boot import SHARED, BrokenByEmulator, Guest, LabError
from tests.lab.guest_report import FILE_VARIABLE, RUNNING, GuestOutcome, read_outcomes
from tests.lab.kernels import LabKernel, obtain
from tests.lab.results import DOCTOR

LIMIT_S = 2700
"""Limit for all tests of one guest together, on an emulated machine."""

SCALE = "0.01"
PATIENCE = "10"
"""Emulation is 10 to 30 times slower; see tests/live/fixtures.py. So are the BPF programs, and interrupts hit them that
much more often: only a short run loses no events."""

REPORT = "report.jsonl"


@dataclass(frozen=True)
class LiveRun:
    kernel: str
    """Name in the lab's table."""
    outcomes: Mapping[str, GuestOutcome]
    error: LabError | None
    output: str = ""
    boot_s: float = 0.0
    run_s: float = 0.0
    doctor: Mapping[str, Any] | None = None
    """Output of `kmemwatch doctor --output json` in the guest, if that test ran and passed."""
    broken_by_qemu: bool = False
    """Whether this is the second run; see tests/lab/emulator.py."""

    @property
    def summary(self) -> str:
        """One line: the tests by outcome, and how long it took."""
        if self.error:
            return str(self.error).splitlines()[0]
        counts = Counter(outcome.outcome for outcome in self.outcomes.values())
        tests = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        again = "; booted again, as QEMU executed a breakpoint that was gone" if self.broken_by_qemu else ""
        return f"{tests}; {self.boot_s:.0f} s to boot, {self.run_s:.0f} s to run{again}"

    def outcome(self, nodeid: str) -> GuestOutcome:
        """The outcome of one test. A test that never ran or never ended has failed, because of how the guest ended."""
        outcome = self.outcomes.get(nodeid)
        if outcome is not None and outcome.outcome != RUNNING:
            return outcome
        how = "did not run" if outcome is None else "was running when the guest ended"
        return GuestOutcome("failed", f"{how}: {self.error or self.output}")


class Matrix:
    """The guests of a whole run, as many at once as this machine has CPUs; each boots once."""

    def __init__(self, tests: Mapping[LabKernel, Sequence[str]], directory: Path) -> None:
        """Start the guests, those with the most tests first. `wanted`: node ids by kernel."""
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self._directory = directory
        self._stop = threading.Event()
        self._runs = {
            kernel.name: self._pool.submit(run_live, kernel, self.shared(kernel.name), nodeids, self._stop)
            for kernel, nodeids in sorted(tests.items(), key=lambda item: -len(item[1]))
        }

    def run_of(self, kernel: str) -> LiveRun:
        """Waits for the guest. Raises FetchError when its kernel is not available."""
        return self._runs[kernel].result()

    def shared(self, kernel: str) -> Path:
        """Directory that the guest saw at SHARED, where its tests leave files."""
        return self._directory / kernel

    def close(self) -> None:
        """End the running guests and start no more."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def run_live(kernel: LabKernel, shared: Path, nodeids: Sequence[str], stop: threading.Event) -> LiveRun:
    """Boot and run tests. It raises no LabError, so that every test can report what happened. It boots a second time
    if the emulator broke the guest."""
    run = _run_once(kernel, shared, nodeids, stop)
    if not isinstance(run.error, BrokenByEmulator):
        return run
    shared.rename(shared.with_name(f"{shared.name}.broken-by-qemu"))
    return replace(_run_once(kernel, shared, nodeids, stop), broken_by_qemu=True)


def _run_once(kernel: LabKernel, shared: Path, nodeids: Sequence[str], stop: threading.Event) -> LiveRun:
    shared.mkdir()
    guest = Guest(obtain(kernel), shared, stop=stop)
    name, report = kernel.name, shared / REPORT
    env = {
        "KMEMWATCH_GUEST": name,
        "KMEMWATCH_TEST_SCALE": SCALE,
        "KMEMWATCH_TEST_PATIENCE": PATIENCE,
        "CI": os.environ.get("CI", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Plug-ins of the host's tests (snapshots of screens, Hypothesis) that no live test uses: 10 s to import here.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        FILE_VARIABLE: f"{SHARED}/{REPORT}",
    }
    (shared / "tests").write_text("\n".join(nodeids))
    pytest = f"{sys.executable} -m pytest -p no:cacheprovider -p tests.lab.guest_report --durations=10 @{SHARED}/tests"
    try:
        result = guest.run(pytest, LIMIT_S, env)
    except LabError as error:
        return LiveRun(name, read_outcomes(report), error)
    doctor = json.loads((shared / DOCTOR).read_text()) if (shared / DOCTOR).exists() else None
    return LiveRun(name, read_outcomes(report), None, result.output, result.boot_s, result.run_s, doctor)
