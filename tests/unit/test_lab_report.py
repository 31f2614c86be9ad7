# SPDX-License-Identifier: GPL-2.0-only
"""What the host makes of a guest's report, above all when the guest did not finish."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.lab import emulator, initramfs, live
from tests.lab.boot import BrokenByEmulator, Hang, KernelPanic, LabError
from tests.lab.guest_report import GuestOutcome, read_outcomes
from tests.lab.kernels import KERNELS, KernelFiles, module_files
from tests.lab.live import LiveRun
from tests.needs import justified


def report(tmp_path: Path, *steps: tuple[str, str]) -> dict[str, GuestOutcome]:
    file = tmp_path / "report.jsonl"
    lines = [{"nodeid": nodeid, "outcome": outcome, "text": outcome, "seconds": 1.0} for nodeid, outcome in steps]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_outcomes(file)


def test_the_last_word_counts_but_never_hides_a_failure(tmp_path: Path) -> None:
    outcomes = report(
        tmp_path,
        ("a", "running"),
        ("a", "passed"),
        ("b", "running"),
        ("b", "failed"),
        ("b", "passed"),
        ("c", "running"),
    )
    assert {nodeid: outcome.outcome for nodeid, outcome in outcomes.items()} == {
        "a": "passed",
        "b": "failed",
        "c": "running",
    }


def test_no_report_is_no_outcome(tmp_path: Path) -> None:
    assert read_outcomes(tmp_path / "none") == {}


def test_a_hang_fails_the_test_it_hit_and_those_after_it(tmp_path: Path) -> None:
    run = LiveRun("6.1", report(tmp_path, ("a", "passed"), ("b", "running")), Hang("no end"))
    assert run.outcome("a").outcome == "passed"
    assert run.outcome("b") == GuestOutcome("failed", "was running when the guest ended: no end")
    assert run.outcome("c") == GuestOutcome("failed", "did not run: no end")
    assert run.summary == "no end"


def test_only_what_a_kernel_lacks_may_be_skipped_there() -> None:
    assert justified("6.1: needs memcg tracepoints")
    assert justified("6.1: needs no lab")
    assert not justified("6.1: needs kprobes")
    assert justified("6.1: needs cgroup v1")
    assert not justified("6.1-v1: needs cgroup v1")
    assert justified("6.1-v1: needs cgroup v2")
    assert justified("baseline: needs recharges")
    assert not justified("baseline: needs child caches")
    assert not justified("6.1: does not feel like it")
    assert not justified("2.4: needs memcg tracepoints")


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "fs/9p/9p.ko: net/9p/9pnet.ko fs/netfs.ko\nnet/9p/9pnet.ko:\nfs/netfs.ko:\n"
        "net/9p/9pnet_virtio.ko.xz: net/9p/9pnet.ko drivers/virtio/virtio.ko\n"
        "drivers/virtio/virtio.ko:\nsound/snd.ko:\n"
    )
    files = KernelFiles(KERNELS[0], "6.1", tmp_path / "vmlinuz", tmp_path)
    order = [path.name for path in module_files(files)]
    assert order == ["netfs.ko", "9pnet.ko", "9p.ko", "virtio.ko", "9pnet_virtio.ko.xz"]


def test_initramfs_is_a_cpio_archive_with_the_modules_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"busybox")
    monkeypatch.setattr(initramfs, "BUSYBOX", busybox)
    modules = [tmp_path / "zz.ko", tmp_path / "aa.ko"]
    for module in modules:
        module.write_bytes(module.name.encode())
    initramfs.write_initramfs(tmp_path / "initramfs", "#!init", modules)
    archive = (tmp_path / "initramfs").read_bytes()
    assert len(archive) % 4 == 0
    assert archive.startswith(b"070701")
    assert archive.index(b"modules/00-zz.ko") < archive.index(b"modules/01-aa.ko") < archive.index(b"TRAILER!!!")


def oops(before: str) -> str:
    """What a kernel says of a breakpoint that nobody knows, with the byte `before` where it stood; then of who ran."""
    code = "Code: 48 8b 74 24 40 {} <{}> 48 83 f9 10\n"
    return (
        f"Oops: int3: 0000 [#1] SMP\nRIP: 0010:kfree+0x23/0x420\n{code.format(before, '7b')}{code.format('05', '48')}"
    )


def lockup(*trace: str) -> str:
    """What a kernel says every 20 seconds of a processor that does not come back."""
    calls = "".join(f" ? {name}+0x1e/0x90\n" for name in trace)
    return (
        f"watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python3:71]\nRIP: 0010:kfree+0x0/0x2f0\n <TASK>\n{calls}"
    )


@pytest.mark.parametrize(
    ("console", "stale"),
    [
        (oops("eb"), True),
        (oops("cc"), False),
        (oops("eb").replace("int3", "general protection fault"), False),
        (lockup("exc_int3", "asm_exc_int3"), False),
        (2 * lockup("exc_int3", "asm_exc_int3"), True),
        (2 * lockup("asm_exc_page_fault", "vfs_read"), False),
        (lockup("vfs_read") + 2 * lockup("exc_int3"), True),
        (lockup("exc_int3") + lockup("vfs_read"), False),
        ("", False),
    ],
)
def test_what_the_emulator_broke_is_told_by_the_console(console: str, stale: bool) -> None:
    assert emulator.stale_breakpoint(console) is stale


@pytest.mark.parametrize(("error", "again"), [(BrokenByEmulator, True), (KernelPanic, False), (Hang, False)])
def test_a_guest_that_the_emulator_broke_is_booted_again_and_no_other(
    error: type[LabError], again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    def run_once(kernel: object, shared: Path, nodeids: object, stop: object) -> LiveRun:
        shared.mkdir()
        runs.append(shared.name)
        if len(runs) == 1:
            return LiveRun("7.x", {}, error("how it ended"))
        return LiveRun("7.x", {"a": GuestOutcome("passed")}, None)

    monkeypatch.setattr(live, "_run_once", run_once)
    run = live.run_live(KERNELS[0], tmp_path / "7.x", ["a"], threading.Event())
    assert len(runs) == (2 if again else 1)
    assert ("booted again" in run.summary) == again
    assert (run.outcome("a").outcome == "passed") == again
    assert (tmp_path / "7.x.broken-by-qemu").exists() == again
