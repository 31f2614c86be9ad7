# SPDX-License-Identifier: GPL-2.0-only
"""The parent's end of the process that serves HTTP, see `worker`: start it, feed it, notice its end."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence

from kmemwatch.errors import KmemwatchError
from kmemwatch.exporter import wire
from kmemwatch.exporter.frames import Frame
from kmemwatch.sources.handover import CHILD_DIRECTORY, child_environ

_MODULE = "kmemwatch.exporter.worker"
_STOP_S = 3.0


class HttpProcess:
    """A process that listens, and answers from the frames that it is given."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        """`listeners` are its from now on: close them."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            fds = [theirs.fileno(), *(listener.fileno() for listener in listeners)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                pass_fds=fds, cwd=CHILD_DIRECTORY, env=child_environ(),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self._wake = threading.Condition()
        self._frame: Frame | None = None
        self._control: deque[object] = deque()
        self._stopping = False
        self._sender = threading.Thread(target=self._send_all, name="to http", daemon=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def configure(self, settings: object) -> None:
        """The first message: `worker.Settings`. Raises KmemwatchError when it ended."""
        try:
            wire.send(self._channel, settings)
        except OSError as error:
            raise self._ended() from error

    def wait_ready(self) -> None:
        """Return when it serves. Raises its KmemwatchError when it cannot."""
        if not wire.receive_answer(self._channel):
            raise self._ended()

    def start(self) -> None:
        """Begin to send; a thread does, which starts with the privileges that there are now."""
        self._sender.start()

    def has_frame(self, timeout_s: float) -> bool:
        """Whether it has its first frame, and pages have something to show; waits for it up to `timeout_s`."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000)) and wire.receive_answer(self._channel)

    def forward(self, frame: Frame) -> None:
        """Send `frame` soon, unless a newer one comes first; never blocks."""
        with self._wake:
            self._frame = frame
            self._wake.notify()

    def tell(self, message: object) -> None:
        """Send a `worker.NewWeb` or `worker.BrokenWeb` soon; never blocks."""
        with self._wake:
            self._control.append(message)
            self._wake.notify()

    def check(self) -> None:
        """Raise KmemwatchError when it has ended."""
        if self._process.poll() is not None:
            raise self._ended()

    def stop(self) -> None:
        """Let it finish its answers, and end it; harmless when called twice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        try:
            self._channel.shutdown(socket.SHUT_RDWR)  # also wakes a thread that is sending
        except OSError:
            pass
        self._channel.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._frame is not None or self._control)
                if self._stopping:
                    return
                messages, frame = [*self._control], self._frame
                self._control.clear()
                self._frame = None
            if frame is not None:
                messages.append(wire.pack(frame))
            try:
                for message in messages:
                    wire.send(self._channel, message)
            except OSError:
                return  # it has ended, which `check` tells

    def _ended(self) -> KmemwatchError:
        try:
            status = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            return KmemwatchError("the process that serves HTTP does not answer")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return KmemwatchError(f"the process that serves HTTP ended: {how}")
