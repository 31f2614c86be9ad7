# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch serve` under load: started, watched from outside, ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.load.clients import Address, Client

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 30.0


class Daemon:
    """Both processes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process, self.reader = process, process.pid
        line = process.stderr.readline()
        found = re.search(r"serving http://127\.0\.0\.1:(\d+)/metrics$", line)
        assert found, line
        self.address: Address = ("127.0.0.1", int(found[1]))
        self.http = int(Path(f"/proc/{self.reader}/task/{self.reader}/children").read_text())

    def metric(self, name: str) -> float:
        """Of a metric, with its labels if it has any."""
        client = Client(self.address, packed=False)
        try:
            text = client.get(keep=True).body.decode()
        finally:
            client.close()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def is_healthy(self) -> bool:
        """It answers, and what it has is not old."""
        client = Client(self.address)
        try:
            return all(client.get(path).status == 200 for path in ("/-/healthy", "/-/ready", "/metrics"))
        finally:
            client.close()

    def ends(self, signum: int) -> tuple[int, list[str]]:
        """(exit status, what it had to say) after a signal."""
        self.process.send_signal(signum)
        _, told = self.process.communicate(timeout=_PATIENCE_S)
        return self.process.returncode, told.splitlines()


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def resident_mb(pid: int) -> float:
    """Now, in units of 10**6 bytes."""
    return _status(pid, "VmRSS") * 1024 / 1e6


def peak_mb(pid: int) -> float:
    """The most that it ever was."""
    return _status(pid, "VmHWM") * 1024 / 1e6


def proportional_mb(pid: int) -> float:
    """PSS: pages that several processes have are shared out among them."""
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """Processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    """How many it has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def until(wanted: Callable[[], bool], limit_s: float = _PATIENCE_S) -> None:
    """Wait for it."""
    deadline = time.monotonic() + limit_s
    while not wanted():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@contextmanager
def serving(*command: str, port: int = 0) -> Iterator[Daemon]:
    """``python -m COMMAND``, which is ``kmemwatch serve ...`` or the same of a host that is made up."""
    listen = ("--web.listen-address", f"127.0.0.1:{port}")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", *command, *listen]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield Daemon(process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(_PATIENCE_S)
