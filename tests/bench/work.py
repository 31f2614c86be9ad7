# SPDX-License-Identifier: GPL-2.0-only
"""The known work, and the process that does it inside a cgroup."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.initramfs import BUSYBOX
from tests.live.cgroups import OwnCgroup

_WORKER = Path(__file__).with_name("worker.py")
_SPIN = "spin 1500000"
"""Some 60 million instructions, at least 6 ticks of the kernel's clock: what RCU frees is freed by then."""
ROUNDS = 2
"""The least counts: the first one may do what is only done once, and what comes from outside only adds."""
_SETTLE_S = 1.0
"""Until what was freed through RCU is freed; costs nothing, as waiting takes no time here."""

EXECS, COPIED = 60, 200
_EXEC_SCRIPT = f"i=0\nwhile [ $i -lt {EXECS} ]; do /bin/true; i=$((i + 1)); done\n"
_FILE_SCRIPT = "cp -r /tree /copy\nfind /copy -type f -size 0\nmv /copy /moved\nrm -r /moved\n"


@dataclass(frozen=True)
class Operation:
    """Something small, done many times."""

    what: str
    command: str
    times: int


OPERATIONS = (
    Operation("eventfd() and close()", "eventfd 2000", 2000),
    Operation("a file made and removed, tmpfs", "file 500 files", 500),
    Operation("pipe() and twice close()", "pipe 1000", 1000),
)


@dataclass(frozen=True)
class Job:
    """Something that people do."""

    what: str
    script: str


JOBS = (
    Job(f"a shell starts {EXECS} dynamically linked programs", "exec"),
    Job(f"{COPIED} files of 4 KiB copied, listed, moved, removed, tmpfs", "files.sh"),
)


class Work:
    """A running worker.py in a cgroup and a directory."""

    def __init__(self, cgroup: OwnCgroup, directory: Path) -> None:
        self._nothing = 0
        # -I -S: no site-packages, nothing that would touch more files than it must.
        self._process = cgroup.popen(
            [sys.executable, "-I", "-S", str(_WORKER)], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _do(self, command: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{command}: the worker ended")
        return int(answer)

    def settle(self, command: str) -> None:
        """Do it, and wait until all of it is freed."""
        self._do(command)
        time.sleep(_SETTLE_S)

    def calibrate(self) -> None:
        """Measure the cost of doing nothing, with the programs that are attached now."""
        self._nothing = self._least(_SPIN)

    def instructions(self, command: str) -> int:
        """Instructions that the whole machine needs for it until all of it is freed. Call `calibrate` first."""
        return self._least(f"{command};{_SPIN}") - self._nothing

    def _least(self, command: str) -> int:
        return min(self._alone(command) for _ in range(ROUNDS))

    def _alone(self, command: str) -> int:
        time.sleep(_SETTLE_S)
        return self._do(command)

    def run(self, job: Job) -> int:
        """Instructions of a job, likewise."""
        return self.instructions(f"run bin/chroot . /bin/sh /{job.script}")

    def end(self) -> None:
        """Close its stdin, wait for its exit."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def working(cgroup: OwnCgroup) -> Iterator[Work]:
    """A worker that has ended when the block ends; its files are on a tmpfs: no disk, so no waiting."""
    directory = Path(tempfile.mkdtemp(prefix="kmw-bench-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=0", "kmw-bench", str(directory)], check=True)
    try:
        _furnish(directory)
        work = Work(cgroup, directory)
        try:
            yield work
        finally:
            work.end()
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


def _furnish(root: Path) -> None:
    """A root directory with a shell, /bin/true with its libraries, scripts, and a tree of files.

    What has to be waited for would count: the guest's clock jumps to whatever is due next.
    """
    (root / "files").mkdir()
    (root / "bin").mkdir()
    shutil.copy(BUSYBOX, root / "bin/sh")
    true = shutil.which("true") or "/bin/true"
    linked = subprocess.run(["ldd", true], capture_output=True, text=True, check=True).stdout.split()
    for library in [word for word in linked if word.startswith("/")]:
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])
    shutil.copy(true, root / "bin/true")
    for applet in ("chroot", "cp", "find", "mv", "rm"):
        os.link(root / "bin/sh", root / "bin" / applet)
    (root / "exec").write_text(_EXEC_SCRIPT)
    (root / "files.sh").write_text(_FILE_SCRIPT)
    for number in range(COPIED):
        file = root / "tree" / str(number % 10) / str(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(4096))
