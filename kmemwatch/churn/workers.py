# SPDX-License-Identifier: GPL-2.0-only
"""The worker processes of a run: sends them commands, takes their answers, ends them."""

from __future__ import annotations

import ast
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kmemwatch.errors import KmemwatchError, UnsupportedError
from kmemwatch.kernel.lifeline import TiedProcess

_ROOT = str(Path(__file__).parents[2])
_CODE = "import sys; sys.path.append(sys.argv[1]); from kmemwatch.churn.cgroup_worker import main; main(sys.argv[2:])"
"""Run without site-packages, because the process is forked for each cgroup and must be small."""
START_S = 60.0
_LOOK_S = 0.1
Answer = dict[str, Any]


class WorkerProcess:
    """Runs cgroup_worker.py in a session of its own, so Ctrl-C in the terminal does not reach it."""

    def __init__(self, arguments: list[str]) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-I", "-S", "-c", _CODE, _ROOT, str(theirs.fileno()), *arguments]
            errors = None if os.environ.get("KMEMWATCH_DEBUG") else subprocess.DEVNULL
            self._process = TiedProcess(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        self._waiting: deque[str] = deque()
        self._text = b""
        self.busy = True
        """A command, or the start, has not been answered yet."""

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, command: str) -> None:
        """Queue a command; the worker gets it when it has answered all those before."""
        self._waiting.append(command)
        self._send_next()

    def _send_next(self) -> None:
        if self._waiting and not self.busy:
            self.busy = True
            with contextlib.suppress(OSError):  # `receive` notices that it is gone
                self._channel.sendall(f"{self._waiting.popleft()}\n".encode())

    def receive(self) -> Iterator[Answer]:
        """Answers that have arrived; call it when `fileno` is readable. Raises KmemwatchError when the worker ended."""
        try:
            part = self._channel.recv(1 << 20)
        except ConnectionError:
            part = b""
        if not part:
            raise KmemwatchError("churn: a worker ended unexpectedly", "was it killed? see: journalctl -k, dmesg")
        *lines, self._text = (self._text + part).split(b"\n")
        for line in lines:
            self.busy = False
            self._send_next()
            yield ast.literal_eval(line.decode())

    def finish(self) -> None:
        """Have it end after its current command; drop the commands that wait."""
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def reap(self, is_over: Callable[[], bool]) -> bool:
        """Wait for its end; once `is_over`, kill it and all its children. Returns whether it ended by itself."""
        while (code := self._process.wait(_LOOK_S)) is None and not is_over():
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.end()
        self._channel.close()
        return code == 0


class WorkerPool:
    """All workers of a run."""

    def __init__(self, number: int, arguments: list[str]) -> None:
        self._selector = selectors.DefaultSelector()
        self.workers: list[WorkerProcess] = []
        self._number, self._arguments = number, arguments

    def start(self, wake_fd: int) -> None:
        """Return when they are ready or `wake_fd` is readable. Raises UnsupportedError when one cannot work here."""
        self._selector.register(wake_fd, selectors.EVENT_READ)
        for _ in range(self._number):
            self.workers.append(WorkerProcess(self._arguments))
            self._selector.register(self.workers[-1], selectors.EVENT_READ)
        until = time.monotonic() + START_S
        while any(worker.busy for worker in self.workers):
            if time.monotonic() > until:
                raise KmemwatchError(f"churn: workers are not ready after {START_S:g} s")
            for answer in self.answers(until - time.monotonic()):
                if "refused" in answer:
                    hint = "run kmemwatch churn on the host, or choose other kinds with --kind"
                    raise UnsupportedError(f"churn: a worker cannot work: {answer['refused']}", hint)
            if self.woken:
                return

    woken = False
    """`wake_fd` was readable."""

    def answers(self, timeout_s: float | None) -> Iterator[Answer]:
        """Answers, each with its ``worker``; returns at once when `wake_fd` is readable."""
        for key, _ in self._selector.select(None if timeout_s is None else max(0.0, timeout_s)):
            if not isinstance(key.fileobj, WorkerProcess):
                self.woken = True
                self._selector.unregister(key.fileobj)
                continue
            for answer in key.fileobj.receive():
                yield {**answer, "worker": key.fileobj}

    def end(self, is_over: Callable[[], bool]) -> bool:
        """End all and their children, by force once `is_over`; whether they ended, and cleaned up, by themselves."""
        for worker in self.workers:
            worker.finish()
        ended = [worker.reap(is_over) for worker in self.workers]  # all of them, even if the first one was killed
        self._selector.close()
        self.workers.clear()
        return all(ended)
