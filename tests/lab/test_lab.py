# SPDX-License-Identifier: GPL-2.0-only
"""Every live test again, in kernels where kprobes and fentry work, on cgroup v2; one boot per kernel.

A live test in a guest is a test here: it passes, fails with the guest's own traceback, or is skipped
for something that this kernel is known not to have.
"""

from __future__ import annotations

import pytest

from tests.lab.kernels import is_smoke, selected
from tests.lab.live import LIVE, LiveRun, live_tests
from tests.needs import justified


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = [kernel.name for kernel in selected()]
    metafunc.parametrize("live_run", names, indirect=True, scope="session")
    if "nodeid" in metafunc.fixturenames:
        tests = live_tests(is_smoke())
        metafunc.parametrize("nodeid", tests, ids=[nodeid.removeprefix(f"{LIVE}/") for nodeid in tests])


def test_live(live_run: LiveRun, nodeid: str) -> None:
    outcome = live_run.outcome(nodeid)
    if outcome.outcome == "skipped":
        reason = f"{live_run.kernel}: {outcome.text.removeprefix('Skipped: ')}"
        if justified(reason):
            pytest.skip(reason)
        pytest.fail(f"skipped in the guest, which should have what it needs: {reason}", pytrace=False)
    if outcome.outcome != "passed":
        pytest.fail(f"in {live_run.kernel}:\n{outcome.text}", pytrace=False)


def test_guest_ran_the_same_tests(live_run: LiveRun) -> None:
    assert sorted(live_run.outcomes) == sorted(live_tests(is_smoke())), live_run.error or live_run.output
