# SPDX-License-Identifier: GPL-2.0-only
"""The parent's end of the process that serves HTTP, see `worker`: start it, feed it, notice its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from kmemwatch.attach.handover import CHILD_DIRECTORY, child_environ
from kmemwatch.errors import KmemwatchError
from kmemwatch.exporter.published import PublishedSnapshot
from kmemwatch.kernel.lifeline import LOOK_S, SILENT_LOOKS, TiedProcess
from kmemwatch.serve import wire

_MODULE = "kmemwatch.serve.worker"
_STOP_S = 3.0
_START_S = 60.0
"""For an answer of it. In an emulated machine Python needs half a minute to begin."""
_PIPE_BYTES = 1 << 16
"""All that may wait in a pipe."""
KEPT_VARIABLES = (
    "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "OPENSSL_CONF", "PYTHONHOME", "PYTHONPATH", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "TZ", "TZDIR",
)  # fmt: skip
"""What Python and OpenSSL need to start as they do here. All others may be secrets, and stay with the reader."""


class HttpProcess:
    """A process that listens, and answers from the frames that it is given."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        """`listeners` are its from now on: close them."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._beats, beats = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            fds = [theirs.fileno(), beats, *(listener.fileno() for listener in listeners)]
            try:
                self._process = TiedProcess(
                    [sys.executable, "-m", _MODULE, str(theirs.fileno()), str(beats)],
                    pass_fds=fds, tell_fd=True, cwd=CHILD_DIRECTORY, env=_environ(),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            finally:
                os.close(beats)
        # Of receiving alone: a frame may wait for as long as it likes.
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(_START_S), 0))
        self._checked_s = time.monotonic()
        self._silent = 0
        self._is_hung = False
        self._wake = threading.Condition()
        self._frame: PublishedSnapshot | None = None
        self._control: deque[object] = deque()
        self._stopping = False
        self._sender = threading.Thread(target=self._send_all, name="to http", daemon=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def configure(self, settings: object) -> None:
        """The first message: `worker.Settings`. Raises KmemwatchError when it ended, or is stopped."""
        # Settings with certificates may be more than the channel takes before the other end has begun to read.
        rest = memoryview(wire.framed(settings))
        try:
            while rest:
                self._wait_while_it_begins(select.POLLOUT)
                rest = rest[self._channel.send(rest, socket.MSG_DONTWAIT) :]
        except OSError as error:
            raise self._ended() from error

    def _wait_while_it_begins(self, event: int) -> None:
        """Until there is that event on the channel. Raises KmemwatchError if it does nothing; it gives no signs of life
        yet, and may take long to give the first one, but not while it is stopped."""
        if not self._process.speaks(self._channel, event, _START_S):
            self._is_hung = True
            raise self._silence()

    def wait_ready(self) -> None:
        """Return when it serves. Raises its KmemwatchError when it cannot."""
        self._wait_while_it_begins(select.POLLIN)
        try:
            answered = wire.receive_answer(self._channel)
        except BlockingIOError as error:
            self._is_hung = True
            raise self._silence() from error
        if not answered:
            raise self._ended()

    def start(self) -> None:
        """Begin to send; a thread does, which starts with the privileges that there are now."""
        self._sender.start()

    def has_frame(self, timeout_s: float) -> bool:
        """Whether it has its first frame, and pages have something to show; waits for it up to `timeout_s`."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000)) and wire.receive_answer(self._channel)

    def forward(self, frame: PublishedSnapshot) -> None:
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
        """Raise KmemwatchError when it has ended, or does nothing any more. To be called about once a second."""
        if self._process.status() is not None:
            raise self._ended()
        if time.monotonic() < self._checked_s + LOOK_S:
            return
        self._checked_s = time.monotonic()
        self._silent = 0 if self._has_beaten() else self._silent + 1
        if self._silent >= SILENT_LOOKS:
            self._is_hung = True
            raise self._silence()

    def _has_beaten(self) -> bool:
        """Whether its server went round since the last time, see `server.Server`."""
        # Once: who writes without an end must not keep us here.
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._beats, _PIPE_BYTES))
        return False

    def stop(self) -> None:
        """Let it finish its answers, and end it, whatever it does; harmless when called twice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        try:
            self._channel.shutdown(socket.SHUT_RDWR)  # also wakes a thread that is sending
        except OSError:
            pass
        self._channel.close()
        if not self._is_hung:
            self._process.wait(_STOP_S)
        self._process.end()
        if self._beats >= 0:
            os.close(self._beats)
            self._beats = -1

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
        status = self._process.wait(_STOP_S)
        if status is None:
            return self._silence()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return KmemwatchError(f"the process that serves HTTP ended: {how}")

    def _silence(self) -> KmemwatchError:
        return KmemwatchError(
            "the process that serves HTTP does not answer", "is it stopped, or out of processor time?"
        )


def _environ() -> dict[str, str]:
    given = child_environ()
    return {name: value for name, value in given.items() if name in KEPT_VARIABLES or name.startswith("LC_")}
