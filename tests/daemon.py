# SPDX-License-Identifier: GPL-2.0-only
"""A running `kmemwatch serve`: how tests start it, ask it, and end it."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.processes import children

KMEMWATCH = (sys.executable, "-m", "kmemwatch")
ON_A_FREE_PORT = ("--web.listen-address", "127.0.0.1:0")
START_S = 120.0
"""A cold start takes half a minute in an emulated machine."""
END_S = 30.0


class Daemon:
    """The process that reads the kernel, and its child that serves HTTP."""

    def __init__(self, process: subprocess.Popen[str], limit_s: float = START_S) -> None:
        """Wait until it serves. AssertionError with what it said when it ends before, or after `limit_s`, when it is
        killed."""
        assert process.stderr is not None
        self.process = process
        self.reader = process.pid
        self.told: list[str] = []
        """Lines of standard error until it served."""
        watchdog = threading.Timer(limit_s, process.kill)
        watchdog.start()
        try:
            while not self.told or "serving" not in self.told[-1]:
                line = process.stderr.readline()
                assert line, f"it does not serve: {self.told}"
                self.told.append(line)
        finally:
            watchdog.cancel()
        self.metrics_url = self.told[-1].split()[-1]
        self.url = self.metrics_url.rpartition("/")[0]
        self.address = ("127.0.0.1", int(self.url.rpartition(":")[2]))

    @property
    def http(self) -> int:
        """The process that serves HTTP."""
        (child,) = children(self.reader)
        return child

    def get(self, path: str, limit_s: float = END_S) -> str:
        """The answer to a GET. Raises HTTPError for any other status than 200."""
        with urllib.request.urlopen(self.url + path, timeout=limit_s) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        """The value of one series, `name` with its labels if it has any."""
        for line in self.get("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no {name}")

    def is_healthy(self) -> bool:
        """It answers, and its data is not old."""
        try:
            return all(self.get(path) for path in ("/-/healthy", "/-/ready", "/metrics"))
        except OSError:
            return False

    def ends(self, signum: int) -> tuple[int, list[str]]:
        """(exit status, what it still said) after a signal."""
        self.process.send_signal(signum)
        _, told = self.process.communicate(timeout=END_S)
        return self.process.returncode, told.splitlines()


@contextmanager
def started(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> Iterator[Daemon]:
    """The daemon that `command` runs; it gets SIGTERM at the end of the block, SIGKILL if that is not enough."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=cwd) as process:
        try:
            yield Daemon(process)
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            finally:
                process.kill()


def serving(*args: str) -> AbstractContextManager[Daemon]:
    """``kmemwatch serve ARGS`` on a free port of 127.0.0.1."""
    return started([*KMEMWATCH, "serve", *ON_A_FREE_PORT, *args])
