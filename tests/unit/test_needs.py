# SPDX-License-Identifier: GPL-2.0-only
"""Skips must not go unquestioned in CI; checked with a run of pytest inside pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.cgroup_mounts import MemoryMount, memory_mount

ROOT = Path(__file__).parents[2]

UNJUSTIFIED = """
import pytest
def test_it(): pytest.skip("do not feel like it")
"""
JUSTIFIED = """
import pytest
from tests import needs
needs.NEEDS["a unicorn"] = lambda: False
@pytest.mark.needs("a unicorn")
def test_it(): pass
"""


def run(test: str, tmp_path: Path, ci: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", "."]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("test", "ci", "closing"),
    [
        pytest.param(UNJUSTIFIED, "true", "1 failed", id="unjustified-in-ci"),
        pytest.param(UNJUSTIFIED, "", "1 skipped", id="unjustified"),
        pytest.param(JUSTIFIED, "true", "1 skipped", id="justified-in-ci"),
    ],
)
def test_skips_in_ci_fail_unless_the_need_is_missing(test: str, ci: str, closing: str, tmp_path: Path) -> None:
    done = run(test, tmp_path, ci)
    assert closing in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if "failed" in closing else 0)


@pytest.mark.parametrize(("present", "justified"), [(True, False), (False, True)])
def test_justified_asks_the_machine_again(present: bool, justified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(needs.NEEDS, "root", lambda: present)
    assert needs.justified("Skipped: needs root") is justified
    assert not needs.justified("Skipped: needs rest")


def test_memory_mount_of_v1_and_odd_mount_points(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "20 1 0:10 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "21 1 0:11 / /odd\\040place rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    )
    assert memory_mount(str(mountinfo)) == MemoryMount(Path("/odd place"), 1)


def test_memory_mount_of_v2_is_the_one_with_the_controller(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"20 1 0:10 / {tmp_path} rw,relatime - cgroup2 cgroup2 rw\n")
    assert memory_mount(str(mountinfo)) is None
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert memory_mount(str(mountinfo)) == MemoryMount(tmp_path, 2)
