# SPDX-License-Identifier: GPL-2.0-only
"""The support matrix (results.json, docs/kernels.md) is what the kernels say now."""

from __future__ import annotations

import os

import pytest

from tests.lab import results
from tests.lab.kernels import selected
from tests.lab.live import LiveRun


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("live_run", [kernel.name for kernel in selected()], indirect=True, scope="session")


def test_doctor_states_what_is_known_of_this_kernel(live_run: LiveRun) -> None:
    assert live_run.doctor is not None, "doctor did not come to an end in the guest"
    now = results.result_of(live_run.doctor, live_run.outcomes)
    if os.environ.get(results.KEEP) == "keep":
        results.keep({live_run.kernel: now})
    kept = results.load().get(live_run.kernel)
    assert kept is not None, "nothing is kept of this kernel: make lab-results"
    # The archive has a newer build of a stock kernel every few weeks.
    assert {**now, "release": None} == {**kept, "release": None}
