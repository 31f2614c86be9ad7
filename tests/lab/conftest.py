# SPDX-License-Identifier: GPL-2.0-only
"""Kernels for the lab's tests, fetched once and booted once per session."""

from __future__ import annotations

import pytest

from tests.lab.kernels import KERNELS, SMOKE, KernelFiles, obtain
from tests.lab.live import LiveRun, run_live
from tests.needs import require


@pytest.fixture(scope="session")
def smoke_kernel() -> KernelFiles:
    """The stock kernel that every run of the tests boots."""
    require("qemu", "no lab", "a Debian archive")
    return obtain(next(kernel for kernel in KERNELS if kernel.name == SMOKE))


_runs = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def smoke_run(
    smoke_kernel: KernelFiles, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> LiveRun:
    """All live tests in SMOKE, in one boot."""
    run = run_live(smoke_kernel, tmp_path_factory.mktemp("guest"))
    request.config.stash.setdefault(_runs, []).append(f"{smoke_kernel.release}: {run.summary}")
    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How long the guests took, which the times of single tests do not show."""
    for line in config.stash.get(_runs, []):
        terminalreporter.write_line(f"lab: {line}")
