# SPDX-License-Identifier: GPL-2.0-only
"""Which tests run in which guest.

Every kernel runs the tests of the truth of each figure, of the life of memcgs, of pins, and of attaching. It does not
run what does not depend on the kernel, because a guest is 10 to 30 times slower than this machine, which runs
everything. The lists have prefixes of node ids; tests/unit/test_lab_selection.py checks that each matches a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache

from tests.lab import comparison
from tests.lab.boot import TREE
from tests.lab.kernels import SMOKE, LabKernel

LIVE = "tests/live"
IN_GUESTS = "tests/lab/guest"
"""Tests that only guests run."""

ONE_KERNEL = (
    f"{LIVE}/test_exit.py",
    f"{LIVE}/test_lifelines.py",
    f"{LIVE}/test_namespaces.py",
    f"{LIVE}/test_walk.py",
    f"{LIVE}/test_cgroups.py::test_child",
    f"{LIVE}/test_cgroups.py::test_scaled",
    f"{LIVE}/test_churn.py::test_memory",
    f"{LIVE}/test_churn.py::test_odd",
    f"{LIVE}/test_churn_command.py",
    f"{LIVE}/test_serve.py",
    f"{LIVE}/test_startup.py",
)
"""In the whole matrix only SMOKE runs them: how commands end, our own bounds, shapes of a tree of cgroups, the
workload."""

COMPARED = (comparison.GUEST_TEST,)
"""Only the kernels that are compared with each other run it: four minutes."""

OTHER_WAYS = (
    f"{LIVE}/test_truth.py::test_allocations",
    f"{LIVE}/test_truth.py::test_files",
    f"{LIVE}/test_truth.py::test_pipes",
    f"{LIVE}/test_truth.py::test_kernel_bytes",
    f"{LIVE}/test_bulk.py",
    f"{LIVE}/test_churn.py::test_every",
)
"""Tests that kernels other than SMOKE run also in the other ways of attaching: those of what these count."""

SMOKE_TESTS = (
    f"{LIVE}/test_cgroups.py",
    f"{LIVE}/test_truth.py",
    f"{LIVE}/test_zombies.py::test_each",
)
"""What `make test` runs in one kernel, attached in the best way: a check of three minutes that nothing is broken."""

V1_TESTS = (
    f"{LIVE}/test_cgroups.py",
    f"{LIVE}/test_truth.py",
    f"{LIVE}/test_bulk.py",
    f"{LIVE}/test_zombies.py",
    f"{LIVE}/test_churn.py::test_every",
    f"{IN_GUESTS}/test_doctor.py",
)
"""Tests for a guest whose memory controller is on cgroup v1, attached in the best way."""


VARIANT_TESTS = (f"{IN_GUESTS}/test_command_line.py", f"{LIVE}/test_truth.py::test_allocations")
"""Tests for a kernel with another command line, attached in the best way; those about owners only where objects have
owners."""


def nodeids_for(kernel: LabKernel, smoke: bool) -> tuple[str, ...]:
    """Node ids of the tests that `kernel` runs, in the matrix or as the smoke test."""
    everything = all_nodeids()
    if kernel.command_line:
        prefixes = VARIANT_TESTS[:1] if "nokmem" in kernel.command_line else VARIANT_TESTS
        return tuple(nodeid for nodeid in _beginning_with(prefixes, everything) if _way(nodeid) in ("", "best"))
    if smoke:
        return tuple(nodeid for nodeid in _beginning_with(SMOKE_TESTS, everything) if _way(nodeid) in ("", "best"))
    if kernel.cgroup_version == 1:
        return tuple(nodeid for nodeid in _beginning_with(V1_TESTS, everything) if _way(nodeid) in ("", "best"))
    if kernel.name == SMOKE:
        return everything
    left_out = set(_beginning_with(ONE_KERNEL, everything))
    if kernel.name not in comparison.KERNELS:
        left_out |= set(_beginning_with(COMPARED, everything))
    other_ways = {nodeid for nodeid in everything if _way(nodeid) in ("fentry", "kprobe")}
    left_out |= other_ways - set(_beginning_with(OTHER_WAYS, everything))
    return tuple(nodeid for nodeid in everything if nodeid not in left_out)


@cache
def all_nodeids() -> tuple[str, ...]:
    """Node ids of all tests that guests can run, as pytest collects them here."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", LIVE, IN_GUESTS]
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"} | {"KMEMWATCH_GUEST": "any"}
    done = subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"cannot collect {LIVE} {IN_GUESTS}:\n{done.stdout}{done.stderr}")
    return tuple(line for line in done.stdout.splitlines() if "::" in line)


def _beginning_with(prefixes: Iterable[str], tests: Iterable[str]) -> tuple[str, ...]:
    return tuple(nodeid for nodeid in tests if nodeid.startswith(tuple(prefixes)))


def _way(nodeid: str) -> str:
    """What a test is parametrized with."""
    return nodeid.partition("[")[2].rstrip("]")
