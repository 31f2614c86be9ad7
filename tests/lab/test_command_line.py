# SPDX-License-Identifier: GPL-2.0-only
"""Kernels booted with each command line that changes what kmemwatch can tell."""

from __future__ import annotations

import threading

import pytest

from tests.lab.kernels import LabKernel, variants
from tests.lab.live import run_live
from tests.lab.selection import nodeids_for
from tests.needs import justified, require


@pytest.mark.parametrize("kernel", variants(), ids=lambda kernel: kernel.name)
def test_what_runs_in_this_guest_passes(kernel: LabKernel, tmp_path_factory: pytest.TempPathFactory) -> None:
    require("qemu", "no lab", "a Debian archive")
    nodeids = nodeids_for(kernel, smoke=False)
    run = run_live(kernel, tmp_path_factory.mktemp("guest") / kernel.name, nodeids, threading.Event())
    outcomes = {nodeid: run.outcome(nodeid) for nodeid in nodeids}
    wrong = {
        nodeid: outcome.text
        for nodeid, outcome in outcomes.items()
        if outcome.outcome != "passed"
        and not (outcome.outcome == "skipped" and justified(f"{kernel.name}: {outcome.text.removeprefix('Skipped: ')}"))
    }
    assert wrong == {}, run.summary
    assert any(outcome.outcome == "passed" for outcome in outcomes.values())
