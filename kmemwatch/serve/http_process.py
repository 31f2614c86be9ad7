# SPDX-License-Identifier: GPL-2.0-only
"""The parent's end of the process that serves HTTP (`http_service`): start it, send it snapshots, notice its end."""

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
from kmemwatch.serve import messages

_MODULE = "kmemwatch.serve.http_service"
_STOP_S = 3.0
_START_S = 60.0
"""Until its answer. In an emulated machine Python takes half a minute to start."""
_PIPE_BYTES = 1 << 16
"""Capacity of a pipe."""
KEPT_VARIABLES = (
    "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "OPENSSL_CONF", "PYTHONHOME", "PYTHONPATH", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "TZ", "TZDIR",
)  # fmt: skip
"""What Python and OpenSSL need to start as they do here. All other variables may be secrets, and are not passed on."""


class HttpProcess:
    """A process that listens, and answers from the snapshots that it gets."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        """The process inherits `listeners`; the caller closes its own ones."""
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
        # For receiving only: sending a snapshot may take any time.
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(_START_S), 0))
        self._checked_s = time.monotonic()
        self._silent = 0
        self._hangs = False
        self._wake = threading.Condition()
        self._next: PublishedSnapshot | None = None
        self._control: deque[object] = deque()
        self._stopping = False
        self._sender = threading.Thread(target=self._send_all, name="to http", daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def configure(self, settings: object) -> None:
        """Send the first message, `messages.Settings`. Raises KmemwatchError when the process has ended or hangs."""
        # Settings with certificates may be larger than what the channel holds until the process begins to read.
        rest = memoryview(messages.framed(settings))
        try:
            while rest:
                self._wait_during_start(select.POLLOUT)
                rest = rest[self._channel.send(rest, socket.MSG_DONTWAIT) :]
        except OSError as error:
            raise self._ended() from error

    def _wait_during_start(self, event: int) -> None:
        """Wait for the event on the channel. Raises KmemwatchError when the process hangs.

        A process that is starting sends no signs of life yet, so this one watches whether it is stopped.
        """
        if not self._process.speaks(self._channel, event, _START_S):
            self._hangs = True
            raise self._silence()

    def wait_ready(self) -> None:
        """Return when the process serves. Raises the KmemwatchError that it sends when it cannot."""
        self._wait_during_start(select.POLLIN)
        try:
            answered = messages.receive_answer(self._channel)
        except BlockingIOError as error:
            self._hangs = True
            raise self._silence() from error
        if not answered:
            raise self._ended()

    def start(self) -> None:
        """Start the thread that sends; it has the privileges that this process has now."""
        self._sender.start()

    def has_snapshot(self, timeout_s: float) -> bool:
        """Whether the process has its first snapshot, so that pages show something. Waits up to `timeout_s`."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000)) and messages.receive_answer(self._channel)

    def forward(self, published: PublishedSnapshot) -> None:
        """Send `published` soon, unless a newer one replaces it; never blocks."""
        with self._wake:
            self._next = published
            self._wake.notify()

    def send(self, message: object) -> None:
        """Send a `messages.NewConfig` or `messages.BrokenConfig` soon; never blocks."""
        with self._wake:
            self._control.append(message)
            self._wake.notify()

    def check(self) -> None:
        """Raise KmemwatchError when the process has ended or hangs. To be called about once a second."""
        if self._process.status() is not None:
            raise self._ended()
        if time.monotonic() < self._checked_s + LOOK_S:
            return
        self._checked_s = time.monotonic()
        self._silent = 0 if self._has_beaten() else self._silent + 1
        if self._silent >= SILENT_LOOKS:
            self._hangs = True
            raise self._silence()

    def _has_beaten(self) -> bool:
        """Whether its server has sent a sign of life since the last call, see `server.Server`."""
        # One read: a process that writes without end must not keep this one here.
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._beats, _PIPE_BYTES))
        return False

    def stop(self) -> None:
        """Let the process finish its answers, then end it in any case; harmless when called twice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        try:
            self._channel.shutdown(socket.SHUT_RDWR)  # also wakes a thread that is sending
        except OSError:
            pass
        self._channel.close()
        if not self._hangs:
            self._process.wait(_STOP_S)
        self._process.end()
        if self._beats >= 0:
            os.close(self._beats)
            self._beats = -1

    def _send_all(self) -> None:
        try:
            while self._send_waiting():
                pass
        except OSError:
            pass  # the process has ended, which `check` reports

    def _send_waiting(self) -> bool:
        """Wait for messages and send them; False at the end. Keeps nothing of them meanwhile: they may be megabytes."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._next is not None or self._control)
            if self._stopping:
                return False
            waiting, published = [*self._control], self._next
            self._control.clear()
            self._next = None
        if published is not None:
            waiting.append(messages.pack(published))
        for message in waiting:
            messages.send(self._channel, message)
        return True

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
