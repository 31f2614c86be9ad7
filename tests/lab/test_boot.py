# SPDX-License-Identifier: GPL-2.0-only
"""The lab itself: it passes on exit codes and output, and tells one kind of failure from another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.lab.boot import SHARED, BootFailure, BrokenByEmulator, Guest, Hang, KernelPanic
from tests.lab.conftest import get
from tests.lab.kernels import SMOKE, KernelFiles, selected

# Prints what the tests below check, in one boot.
COMMAND = f"""
uname -r
echo "$ODD"
stat -f -c %T /var/tmp
cat /sys/fs/cgroup/memory/memory.usage_in_bytes >/dev/null && echo memory on v1
touch /usr/touched 2>/dev/null || echo root is read only
echo result >{SHARED}/result
exit 7
"""


@pytest.fixture(params=[SMOKE, *(kernel.name for kernel in selected() if kernel.config is not None)])
def booted(request: pytest.FixtureRequest) -> KernelFiles:
    """A stock kernel, which needs modules, and those with everything built in."""
    return get(request.param)


def test_exit_code_output_and_files_come_through(booted: KernelFiles, tmp_path: Path) -> None:
    result = Guest(booted, tmp_path, cgroup_v1=True).run(COMMAND, limit_s=60, env={"ODD": "a 'b' $c"})
    expected = [booted.release, "a 'b' $c", "ext2/ext3", "memory on v1", "root is read only"]
    assert result.output.splitlines() == expected
    assert result.exit_code == 7
    assert (tmp_path / "result").read_text() == "result\n"
    assert not (tmp_path / "console.log").exists()


def test_panic(booted: KernelFiles, tmp_path: Path) -> None:
    with pytest.raises(KernelPanic, match=r"Kernel panic - not syncing: sysrq triggered crash"):
        Guest(booted, tmp_path).run("echo c >/proc/sysrq-trigger; sleep 60", limit_s=60)
    assert (tmp_path / "console.log").exists()


def test_hang(smoke_kernel: KernelFiles, tmp_path: Path) -> None:
    with pytest.raises(Hang, match=r"last words"):
        Guest(smoke_kernel, tmp_path).run("echo last words; sleep 600", limit_s=2)


def test_what_the_emulator_broke_is_not_waited_for(smoke_kernel: KernelFiles, tmp_path: Path) -> None:
    """The console shows the message of a kernel that returns to a breakpoint for ever; the command would go on."""
    said = r"<0>watchdog: BUG: soft lockup - CPU#1 stuck for 26s!\n<0> exc_int3+0x1e/0x90\n"
    with pytest.raises(BrokenByEmulator, match=r"executed a breakpoint that was gone"):
        Guest(smoke_kernel, tmp_path).run(f"printf '{said}{said}' >/dev/ttyS0; sleep 600", limit_s=60)
    assert (tmp_path / "console.log").exists()


def test_boot_failure(smoke_kernel: KernelFiles, tmp_path: Path) -> None:
    not_a_kernel = tmp_path / "vmlinuz"
    not_a_kernel.write_bytes(b"no kernel" * 1000)
    guest = Guest(dataclasses.replace(smoke_kernel, vmlinuz=not_a_kernel), tmp_path, boot_limit_s=3)
    with pytest.raises(BootFailure, match=r"did not come up"):
        guest.run("true", limit_s=5)
