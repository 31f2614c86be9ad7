# SPDX-License-Identifier: GPL-2.0-only
"""Run tests/live and tests/lab/guest in a guest, in one boot, and keep what became of each test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab.boot import SHARED, TREE, Guest, LabError
from tests.lab.guest_report import FILE_VARIABLE, RUNNING, GuestOutcome, read_outcomes
from tests.lab.kernels import KernelFiles

LIVE = "tests/live"
IN_GUESTS = "tests/lab/guest"
"""Tests that only guests run."""

NOT_IN_SMOKE = (
    IN_GUESTS,
    f"{LIVE}/test_offsets.py",
    f"{LIVE}/test_startup.py",
    f"{LIVE}/test_caches.py",
    f"{LIVE}/test_walk.py",
    f"{LIVE}/test_namespaces.py",
    f"{LIVE}/test_churn.py::test_memory",
    f"{LIVE}/test_churn.py::test_odd",
    f"{LIVE}/test_exit.py::test_a_signal_ends_it_and_detaches[top-",
    f"{LIVE}/test_exit.py::test_a_signal_ends_it_and_detaches[serve-",
)
"""What node ids start with that are left out of the guest that every run of the tests boots.

An attachment takes 25 s there, and 6 s when it is kept from an earlier one. The smoke run has the truth of each figure
by each way of attaching, one lifecycle, and the ways to end; `make test-lab` runs everything on the kernels asked for.
"""

LIMIT_S = 1200
"""For all live tests of one guest together, in an emulated machine."""

SCALE = "0.01"
PATIENCE = "10"
"""Emulation is 10 to 30 times slower; see tests/live/fixtures.py. So are the programs, which interrupts hit that much
more often: a run in which none is lost has to be short."""

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


def run_live(files: KernelFiles, directory: Path, tests: Sequence[str], cgroup_v1: bool = False) -> LiveRun:
    """Boot, run `tests` (node ids); never raises a LabError, so that every test can say what happened to it.

    There are as many guests at once as this machine has processors: a test keeps one busy, rarely two.
    """
    parts = split(tests, os.cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        guests = []
        for number, part in enumerate(parts):
            shared = directory / str(number)
            shared.mkdir()
            guests.append(pool.submit(_run_part, Guest(files, shared, cgroup_v1=cgroup_v1), part))
        return merge([guest.result() for guest in guests])


def split(tests: Sequence[str], parts: int) -> list[list[str]]:
    """Deal out whole groups (file and parameter), as tests of one group may share what is slow to set up."""
    groups: dict[str, list[str]] = {}
    for nodeid in tests:
        file, _, test = nodeid.partition("::")
        groups.setdefault(f"{file}[{test.partition('[')[2]}", []).append(nodeid)
    dealt: list[list[str]] = [[] for _ in range(max(1, min(parts, len(groups))))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(dealt, key=len).extend(group)
    return [sorted(part) for part in dealt]


def merge(runs: Sequence[LiveRun]) -> LiveRun:
    """One run out of those of several guests with the same kernel."""
    return LiveRun(
        runs[0].kernel,
        {nodeid: outcome for run in runs for nodeid, outcome in run.outcomes.items()},
        next((run.error for run in runs if run.error), None),
        "\n".join(run.output for run in runs),
        max(run.boot_s for run in runs),
        max(run.run_s for run in runs),
    )


def _run_part(guest: Guest, tests: Sequence[str]) -> LiveRun:
    name, report = guest.files.kernel.name, guest.shared / REPORT
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
    (guest.shared / "tests").write_text("\n".join(tests))
    pytest = f"{sys.executable} -m pytest -p no:cacheprovider -p tests.lab.guest_report --durations=10 @{SHARED}/tests"
    try:
        result = guest.run(pytest, LIMIT_S, env)
    except LabError as error:
        return LiveRun(name, read_outcomes(report), error)
    return LiveRun(name, read_outcomes(report), None, result.output, result.boot_s, result.run_s)


@cache
def live_tests(smoke: bool) -> tuple[str, ...]:
    """Node ids of the tests that guests run, as pytest collects them here."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", LIVE, IN_GUESTS]
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"} | {"KMEMWATCH_GUEST": "any"}
    done = subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"cannot collect {LIVE} {IN_GUESTS}:\n{done.stdout}{done.stderr}")
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    return tuple(nodeid for nodeid in tests if not (smoke and nodeid.startswith(NOT_IN_SMOKE)))
