# SPDX-License-Identifier: GPL-2.0-only
"""How the host gets the results of a guest's tests: a pytest plugin in the guest writes one JSON line per step.

It writes each line at once, so that after a panic or a hang the host knows which test it was.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

FILE_VARIABLE = "KMEMWATCH_GUEST_REPORT"
RUNNING = "running"
TEST_LIMIT_S = 500
"""For set-up, test and tear-down each, so that one test that hangs does not keep the others from running."""


class LimitReached(BaseException):
    """Not an Exception: code that catches every Exception, such as callbacks from C, must let it through."""


@dataclass(frozen=True)
class GuestOutcome:
    outcome: str
    """``passed``, ``failed``, ``skipped``, or RUNNING if it never ended."""
    text: str = ""
    """Traceback, or the reason of a skip."""
    seconds: float = 0.0
    """Duration of set-up and test."""


_spent: dict[str, float] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    yield from _limited()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _limited()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    yield from _limited()


def _limited() -> Generator[None, None, None]:
    def expired(*_: object) -> None:
        raise LimitReached(f"did not end in {TEST_LIMIT_S} s")

    signal.signal(signal.SIGALRM, expired)
    # Repeatedly: ctypes swallows every exception that hits inside a callback.
    signal.setitimer(signal.ITIMER_REAL, TEST_LIMIT_S, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(nodeid, GuestOutcome(RUNNING))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _spent[report.nodeid] = _spent.get(report.nodeid, 0.0) + report.duration
    if report.when == "call" or not report.passed:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        sections = "".join(f"\n--- {title} ---\n{content}" for title, content in report.sections)
        text += sections if report.failed else ""
        _write(report.nodeid, GuestOutcome(report.outcome, text, _spent[report.nodeid]))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid, GuestOutcome(report.outcome, report.longreprtext))


def _write(nodeid: str, outcome: GuestOutcome) -> None:
    line = {"nodeid": nodeid, "outcome": outcome.outcome, "text": outcome.text, "seconds": outcome.seconds}
    with Path(os.environ[FILE_VARIABLE]).open("a") as report:
        report.write(json.dumps(line) + "\n")


def read_outcomes(file: Path) -> dict[str, GuestOutcome]:
    """Node id -> outcome; a later pass (of its teardown, for example) never hides a failure."""
    outcomes: dict[str, GuestOutcome] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        entry = json.loads(line)
        nodeid = entry.pop("nodeid")
        if nodeid not in outcomes or outcomes[nodeid].outcome != "failed":
            outcomes[nodeid] = GuestOutcome(**entry)
    return outcomes
