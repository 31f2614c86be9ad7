# SPDX-License-Identifier: GPL-2.0-only
"""Kernels for the lab's tests, fetched once and booted once per session."""

from __future__ import annotations

import pytest

from tests.lab.kernels import SMOKE, KernelFiles, by_name, is_smoke, obtain
from tests.lab.live import LiveRun, live_tests, run_live
from tests.needs import GUEST, require

# Run by the guests' own pytest; here by test_lab.py, through them.
collect_ignore = [] if GUEST else ["guest"]

_runs = pytest.StashKey[list[str]]()


def get(name: str) -> KernelFiles:
    """The kernel of that name, or a skip where there can be no guest."""
    require("qemu", "no lab", "a Debian archive")
    return obtain(by_name(name))


@pytest.fixture(scope="session")
def smoke_kernel() -> KernelFiles:
    """The stock kernel that every run of the tests boots."""
    return get(SMOKE)


@pytest.fixture(scope="session")
def live_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    """All live tests in the kernel that the test is parametrized with, in one boot."""
    files = get(request.param)
    run = run_live(files, tmp_path_factory.mktemp("guest"), live_tests(is_smoke()))
    request.config.stash.setdefault(_runs, []).append(f"{files.release}: {run.summary}")
    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How long the guests took, which the times of single tests do not show."""
    for line in config.stash.get(_runs, []):
        terminalreporter.write_line(f"lab: {line}")
