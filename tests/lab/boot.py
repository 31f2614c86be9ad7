# SPDX-License-Identifier: GPL-2.0-only
"""Boot one kernel in QEMU (software emulation, so it runs anywhere) and run one command in it.

The guest sees the host's files read only, at the same paths, and one directory that both may write;
/tmp and /run are its own tmpfs, /var/tmp an ext4 disk that is thrown away.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import emulator
from tests.lab.initramfs import write_initramfs
from tests.lab.kernels import KernelFiles, module_files

HERE = Path(__file__).parent
TREE = HERE.parents[1]
SHARED = "/run/kmemwatch-lab"
"""Where the guest sees `Guest.shared`."""

SCRATCH_MB = 1024
TAIL_LINES = 30
CONSOLE_LOG = "console.log"
LISTEN_EVERY_S = 2


class LabError(Exception):
    """There is no result of the command. The message ends with the last lines of the console."""


class BootFailure(LabError):
    """The guest did not get to the command."""


class KernelPanic(LabError):
    """The kernel panicked (or oopsed) while the command ran."""


class Hang(LabError):
    """The command did not end within the time limit."""


class GuestLost(LabError):
    """QEMU ended while the command ran, without a panic."""


class BrokenByEmulator(LabError):
    """QEMU executed code that is not in the guest's memory, so the run says nothing about the kernel or the command."""


@dataclass(frozen=True)
class GuestResult:
    exit_code: int
    output: str
    """Standard output and error, as written."""
    boot_s: float
    """From the start of QEMU to the start of the command."""
    run_s: float


@dataclass(frozen=True)
class Guest:
    """How to boot; `run` boots once for each command."""

    files: KernelFiles
    shared: Path
    """Directory of the host that the guest sees at SHARED, writable; the console log stays here on failure."""
    cgroup_v1: bool | None = None
    """The memory controller on cgroup v1; None: as the kernel's row in the table says."""
    cpus: int = 2
    memory_mb: int = 2048
    boot_limit_s: float = 180
    icount: bool = False
    """Every instruction takes 1 ns of the guest's time, and waiting takes none, so its clocks count instructions.
    `cpus` must be 1; every run is then nearly the same."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set by another thread to end the guest early."""

    def run(self, command: str, limit_s: float, env: Mapping[str, str] | None = None) -> GuestResult:
        """Run `command` with sh, in the working tree, as root; raises one of the LabErrors."""
        self._prepare(command, env or {})
        began = time.monotonic()
        with (self.shared / CONSOLE_LOG).open("wb") as console:
            qemu = subprocess.Popen(
                self._qemu_command(), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
            try:
                started = self._wait(qemu, self.shared / "started", began + self.boot_limit_s)
                self._wait(qemu, None, (started or began) + limit_s)
            finally:
                killed = qemu.poll() is None
                qemu.kill()
                qemu.wait()
        ended = time.monotonic()
        if started is None or not self._file("status"):
            raise self._failure(started, ended - began, killed)
        exit_code, output = int(self._file("status")), self._file("output")
        for name in (CONSOLE_LOG, "initramfs", "scratch.img"):
            (self.shared / name).unlink()
        return GuestResult(exit_code, output, started - began, ended - started)

    def _prepare(self, command: str, env: Mapping[str, str]) -> None:
        for stale in ("started", "status", "output"):
            (self.shared / stale).unlink(missing_ok=True)
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in env.items())
        (self.shared / "command.sh").write_text(f"{exports}cd {shlex.quote(str(TREE))}\n{command}\n")
        shutil.copy(HERE / "guest.sh", self.shared)
        write_initramfs(self.shared / "initramfs", (HERE / "init.sh").read_text(), module_files(self.files))
        scratch = self.shared / "scratch.img"
        with scratch.open("wb") as image:
            image.truncate(SCRATCH_MB << 20)
        mkfs = shutil.which("mkfs.ext4", path="/sbin:/usr/sbin") or "mkfs.ext4"
        subprocess.run([mkfs, "-q", "-F", scratch], check=True)

    def _qemu_command(self) -> list[str]:
        v1 = self.files.kernel.cgroup_version == 1 if self.cgroup_v1 is None else self.cgroup_v1
        append = [
            "console=ttyS0 panic=-1 oops=panic quiet loglevel=5 mitigations=off random.trust_cpu=on",
            f"kmw.tree={TREE}",
            *(["kmw.cgroup_v1"] if v1 else []),
            self.files.kernel.command_line,
        ]
        accel = "tcg,thread=single" if self.icount else "tcg,thread=multi"
        machine = ["-machine", "q35", "-accel", accel, "-cpu", "max,la57=off"]
        if self.icount:
            machine += ["-icount", "shift=0,sleep=off"]
        size = ["-smp", str(self.cpus), "-m", str(self.memory_mb)]
        boot = ["-kernel", str(self.files.vmlinuz), "-initrd", str(self.shared / "initramfs")]
        quiet = ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-net", "none"]
        disk = ["-drive", f"file={self.shared / 'scratch.img'},format=raw,if=virtio,cache=unsafe"]
        shares = [*_share("root", Path("/"), True), *_share("tree", TREE, True), *_share("share", self.shared, False)]
        # When the tests end for any reason, end the guest: nobody else would.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "nice",
            "qemu-system-x86_64",
            *machine,
            *size,
            *boot,
            "-append",
            " ".join(append),
        ]
        return [*command, *quiet, *disk, *shares]

    def _wait(self, qemu: subprocess.Popen[bytes], file: Path | None, until: float) -> float | None:
        """Wait until QEMU ends, `file` appears (returns the time), the time is `until`, `stop` is set, or the console
        says that the emulator has broken the guest, which may then never end."""
        listened = time.monotonic()
        while time.monotonic() < until and not self.stop.is_set():
            if file is not None and file.exists():
                return time.monotonic()
            if time.monotonic() > listened + LISTEN_EVERY_S:
                if emulator.stale_breakpoint(self._file(CONSOLE_LOG)):
                    break
                listened = time.monotonic()
            try:
                qemu.wait(0.05)
                break
            except subprocess.TimeoutExpired:
                pass
        # The file may have appeared just before QEMU ended.
        return time.monotonic() if file is not None and file.exists() else None

    def _failure(self, started: float | None, took_s: float, killed: bool) -> LabError:
        console = self._file(CONSOLE_LOG)
        tail = "\n".join([f"{self.shared / CONSOLE_LOG}:", *console.splitlines()[-TAIL_LINES:]])
        panic = next((line for line in console.splitlines() if "Kernel panic" in line), "")
        name = self.files.release
        if emulator.stale_breakpoint(console):
            return BrokenByEmulator(f"{name} after {took_s:.0f} s: QEMU executed a breakpoint that was gone\n{tail}")
        if started is None:
            return BootFailure(f"{name} did not come up in {took_s:.0f} s {panic}\n{tail}")
        if panic:
            return KernelPanic(f"{name} after {took_s:.0f} s: {panic}\n{tail}")
        said = "\n".join(["what the command said last:", *self._file("output").splitlines()[-TAIL_LINES:]])
        if killed:
            return Hang(f"{name}: the command did not end in {took_s:.0f} s\n{tail}\n{said}")
        return GuestLost(f"{name} ended after {took_s:.0f} s without a result\n{tail}\n{said}")

    def _file(self, name: str) -> str:
        try:
            return (self.shared / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""


def _share(tag: str, path: Path, readonly: bool) -> list[str]:
    options = ",readonly=on" if readonly else ""
    return [
        "-fsdev",
        f"local,id={tag},path={path},security_model=none,multidevs=remap{options}",
        "-device",
        f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    ]
