# SPDX-License-Identifier: GPL-2.0-only
"""The test's end of tests/lab/guest/worker.py."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """One running worker.py, at first in the cgroup of the test."""

    def __init__(self) -> None:
        # -I -S: no site-packages, nothing that would touch more files than it must.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def answer(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, command: object, *words: object) -> None:
        """Give a command; `finish` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, (command, *words))) + "\n")
        self._process.stdin.flush()

    def finish(self) -> int:
        """Wait for the command; its value, 0 if it has none."""
        done, _, value = self.answer().partition(" ")
        assert done == "done"
        return int(value or 0)

    def do(self, command: object, *words: object) -> int:
        self.start(command, *words)
        return self.finish()

    def answered(self) -> bool:
        """Whether `finish` would return at once."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout.fileno()], [], [], 0)[0])

    def end(self) -> None:
        """Close its stdin, wait for its exit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def workers(number: int) -> Iterator[list[Worker]]:
    """That many, started side by side; they have ended when the block ends."""
    started = [Worker() for _ in range(number)]
    try:
        for worker in started:
            assert worker.answer() == "ready"
        yield started
    finally:
        for worker in started:
            worker.end()


def do_all(those: Iterable[Worker], command: object, *words: object) -> list[int]:
    """The same command side by side; their values."""
    those = list(those)
    for worker in those:
        worker.start(command, *words)
    return [worker.finish() for worker in those]
