# SPDX-License-Identifier: GPL-2.0-only
"""Which tests guests run: prefixes that no test has any more would leave something out, or in, without a word."""

from __future__ import annotations

import pytest

from tests.lab.kernels import GUESTS, SMOKE, by_name
from tests.lab.selection import (
    COMPARED,
    IN_GUESTS,
    ONE_KERNEL,
    OTHER_WAYS,
    SMOKE_TESTS,
    V1_TESTS,
    all_nodeids,
    nodeids_for,
)


@pytest.mark.parametrize("prefix", [*ONE_KERNEL, *COMPARED, *OTHER_WAYS, *SMOKE_TESTS, *V1_TESTS])
def test_prefix_is_that_of_a_test(prefix: str) -> None:
    assert any(nodeid.startswith(prefix) for nodeid in all_nodeids())


def test_every_test_runs_somewhere_and_truth_everywhere() -> None:
    by_kernel = {kernel.name: set(nodeids_for(kernel, smoke=False)) for kernel in GUESTS}
    assert by_kernel[SMOKE] == set(all_nodeids())
    truth = {nodeid for nodeid in all_nodeids() if "/test_truth.py" in nodeid and nodeid.endswith("[best]")}
    assert truth
    for name, tests in by_kernel.items():
        assert truth <= tests
        ways = {way for way in ("best", "fentry", "kprobe") if any(nodeid.endswith(f"[{way}]") for nodeid in tests)}
        assert ways == ({"best"} if name.endswith("-v1") else {"best", "fentry", "kprobe"})
    doctor = {nodeid for nodeid in all_nodeids() if nodeid.startswith(f"{IN_GUESTS}/test_doctor.py")}
    assert doctor
    assert all(doctor <= tests for tests in by_kernel.values())


def test_the_smoke_run_is_a_small_part() -> None:
    smoke = nodeids_for(by_name(SMOKE), smoke=True)
    assert smoke
    assert not any(nodeid.endswith(("[fentry]", "[kprobe]")) for nodeid in smoke)
