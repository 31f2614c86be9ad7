# SPDX-License-Identifier: GPL-2.0-only
"""Every skip is reported, and is a failure in CI unless the machine really lacks what the test needs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator

import pytest

from tests.needs import FAILED, NEEDS, TRACEFS, justified, require

# Its tests are imported by test modules.
pytest.register_assert_rewrite("tests.every_command")
pytest_plugins = ("tests.live.fixtures",)

MOUNTED = pytest.StashKey[bool]()
"""Whether tracefs was mounted for this session."""
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, nohup with SIGHUP ignored, and children inherit that.
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, handler)
    config.addinivalue_line("markers", f"needs(*names): skip unless the machine has {', '.join(NEEDS)}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Mount tracefs unless it is mounted; in many containers it is not. The tracers that figures are compared with need
    it, and so do some checks of NEEDS."""
    live = any(item.nodeid.startswith("tests/live/") for item in session.items)
    if live and not session.config.option.collectonly and os.geteuid() == 0 and not (TRACEFS / "events").exists():
        mounted = subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS], capture_output=True, check=False)
        session.stash[MOUNTED] = mounted.returncode == 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.stash.get(MOUNTED, False):
        subprocess.run(["umount", "--lazy", TRACEFS], check=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        require(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report, expected=hasattr(report, "wasxfail"))
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report, expected=False)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, expected: bool) -> None:
    if not IN_CI or expected or not report.skipped:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not justified(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, although it can run here: {reason}"
