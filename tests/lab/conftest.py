# SPDX-License-Identifier: GPL-2.0-only
"""Kernels for the lab's tests, fetched once and booted once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.comparison import PAIRS
from tests.lab.kernels import SMOKE, KernelFiles, by_name, is_smoke, obtain, selected, variants
from tests.lab.live import LiveRun, Matrix
from tests.lab.selection import nodeids_for
from tests.needs import GUEST, require

# Run by the guests' own pytest; here by test_lab.py, through them.
collect_ignore = [] if GUEST else ["guest"]
if is_smoke():
    # The short run leaves out most of the tests that decide whether a figure is exact.
    collect_ignore.append("test_results.py")
if not any({kernel.name for kernel in selected()}.issuperset(pair) for pair in PAIRS):
    collect_ignore.append("test_comparison.py")
if not variants():
    collect_ignore.append("test_command_line.py")

SLOWEST = 5

_runs = pytest.StashKey[list[LiveRun]]()


def get(name: str) -> KernelFiles:
    """The kernel of that name; skips where no guest can run."""
    require("qemu", "no lab", "a Debian archive")
    return obtain(by_name(name))


@pytest.fixture(scope="session")
def smoke_kernel() -> KernelFiles:
    """The stock kernel that every run of the tests boots."""
    return get(SMOKE)


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """All guests of this run, which boot in the background."""
    require("qemu", "no lab", "a Debian archive")
    tests = {kernel: nodeids_for(kernel, is_smoke()) for kernel in selected()}
    running = Matrix(tests, tmp_path_factory.mktemp("guests"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def live_run(request: pytest.FixtureRequest, matrix: Matrix) -> LiveRun:
    """All tests in the kernel that the test is parametrized with."""
    run = matrix.run_of(request.param)
    request.config.stash.setdefault(_runs, []).append(run)
    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report how long the guests took; the durations of the tests here do not show it."""
    for run in config.stash.get(_runs, []):
        terminalreporter.write_line(f"lab: {run.kernel}: {run.summary}")
        slowest = sorted(run.outcomes.items(), key=lambda item: -item[1].seconds)[:SLOWEST]
        for nodeid, outcome in slowest:
            terminalreporter.write_line(f"lab: {run.kernel}: {outcome.seconds:6.0f} s {nodeid}")
