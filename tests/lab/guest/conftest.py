# SPDX-License-Identifier: GPL-2.0-only
"""Tests that run in the lab's guests only; see tests/lab/README.md. They have all fixtures of tests/live."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def live(runner_in_root_cgroup: None) -> None:
    """Every test here needs what attaching needs, and runs with the test runner outside the measured cgroups."""
