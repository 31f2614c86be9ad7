# SPDX-License-Identifier: GPL-2.0-only
"""Tests that attach to the running kernel; their fixtures are in tests/live/fixtures.py."""

from __future__ import annotations

import pytest

from tests.live.fixtures import WITHOUT as WITHOUT


@pytest.fixture(autouse=True)
def live(runner_in_root_cgroup: None) -> None:
    """Every test here needs what attaching needs, and runs with the test runner outside the measured cgroups."""
