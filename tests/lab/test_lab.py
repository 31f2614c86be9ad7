# SPDX-License-Identifier: GPL-2.0-only
"""The live tests in kernels where kprobes and fentry work, and the tests for guests only; one boot per kernel.

A live test in a guest is a test here: it passes, fails with the guest's own traceback, or is skipped
for something that this kernel is known not to have.
"""

from __future__ import annotations

import pytest

from tests.lab.kernels import by_name, is_smoke, selected
from tests.lab.live import LiveRun
from tests.lab.selection import LIVE, nodeids_for
from tests.needs import justified


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kernels = selected()
    if "nodeid" in metafunc.fixturenames:
        pairs = [(kernel.name, nodeid) for kernel in kernels for nodeid in nodeids_for(kernel, is_smoke())]
        ids = [f"{kernel}-{nodeid.removeprefix(f'{LIVE}/')}" for kernel, nodeid in pairs]
        metafunc.parametrize(("live_run", "nodeid"), pairs, indirect=["live_run"], scope="session", ids=ids)
    else:
        metafunc.parametrize("live_run", [kernel.name for kernel in kernels], indirect=True, scope="session")


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
    assert sorted(live_run.outcomes) == sorted(nodeids_for(by_name(live_run.kernel), is_smoke())), (
        live_run.error or live_run.output
    )
