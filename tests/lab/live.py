# SPDX-License-Identifier: GPL-2.0-only
"""Run tests/live in a guest, in one boot, and keep what became of each test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab.boot import SHARED, TREE, Guest, LabError
from tests.lab.guest_report import FILE_VARIABLE, RUNNING, GuestOutcome, read_outcomes
from tests.lab.kernels import KernelFiles

LIVE = "tests/live"
LIMIT_S = 900
"""For all live tests together, in an emulated machine."""

SCALE = "0.1"
PATIENCE = "10"
"""Emulation is 10 to 30 times slower; see tests/live/conftest.py."""

REPORT = "report.jsonl"


@dataclass(frozen=True)
class LiveRun:
    kernel: str
    """Name in the lab's table."""
    outcomes: Mapping[str, GuestOutcome]
    error: LabError | None
    output: str
    boot_s: float | None = None
    run_s: float | None = None

    @property
    def summary(self) -> str:
        """One line: the tests by outcome, and how long it took."""
        if self.error:
            return str(self.error).splitlines()[0]
        counts = Counter(outcome.outcome for outcome in self.outcomes.values())
        tests = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        return f"{tests}; {self.boot_s:.0f} s to boot, {self.run_s:.0f} s to run"

    def outcome(self, nodeid: str) -> GuestOutcome:
        """What became of one test; tests that never ran or never ended failed, with the reason of the guest's end."""
        outcome = self.outcomes.get(nodeid)
        if outcome is not None and outcome.outcome != RUNNING:
            return outcome
        how = "did not run" if outcome is None else "was running when the guest ended"
        return GuestOutcome("failed", f"{how}: {self.error or self.output}")


def run_live(files: KernelFiles, shared: Path, cgroup_v1: bool = False) -> LiveRun:
    """Boot and run; never raises a LabError, so that every test can say what happened to it."""
    env = {
        "KMEMWATCH_GUEST": files.kernel.name,
        "KMEMWATCH_TEST_SCALE": SCALE,
        "KMEMWATCH_TEST_PATIENCE": PATIENCE,
        "CI": os.environ.get("CI", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Plug-ins of the host's tests (snapshots of screens, Hypothesis) that no live test uses: 10 s to import here.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        FILE_VARIABLE: f"{SHARED}/{REPORT}",
    }
    pytest = f"{sys.executable} -m pytest -p no:cacheprovider -p tests.lab.guest_report --durations=10 {LIVE}"
    guest = Guest(files, shared, cgroup_v1=cgroup_v1)
    try:
        result = guest.run(pytest, LIMIT_S, env)
    except LabError as error:
        return LiveRun(files.kernel.name, read_outcomes(shared / REPORT), error, "")
    return LiveRun(files.kernel.name, read_outcomes(shared / REPORT), None, result.output, result.boot_s, result.run_s)


@cache
def live_tests() -> tuple[str, ...]:
    """Node ids of all live tests, as pytest collects them here."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", LIVE]
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    done = subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"cannot collect {LIVE}:\n{done.stdout}{done.stderr}")
    return tuple(line for line in done.stdout.splitlines() if "::" in line)
