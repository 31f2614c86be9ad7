# SPDX-License-Identifier: GPL-2.0-only
"""The process that serves HTTP: it has no privileges, no BPF descriptors, and no way to get either.

Run as ``python -m kmemwatch.serve.worker FD BEATS LIFELINE`` with a Unix socket at descriptor FD, see `wire`, a pipe
for signs of life and one that is its `lifeline`. It imports everything before it gives its privileges up, as it may not
be able to read Python's files afterwards. It ends when the other end of the socket is closed, however that came about;
when it does nothing any more, the lifeline ends it.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - asyncio would import it with the first request
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.exporter.daemon import WebConfigStatus
from kmemwatch.exporter.exposition import Exposition
from kmemwatch.exporter.published import LatestSnapshot
from kmemwatch.exporter.selection import SnapshotFilter
from kmemwatch.kernel import lifeline
from kmemwatch.serve import wire
from kmemwatch.serve.app import App
from kmemwatch.serve.memory import keep_memory_low
from kmemwatch.serve.wire import BrokenWeb, FrameMessage, NewWeb, Settings
from kmemwatch.units import one_line
from kmemwatch.views import patterns
from kmemwatch.web import privileges
from kmemwatch.web.access import AccessControl, AccessRules, TokenBucket
from kmemwatch.web.clientlog import ClientLog
from kmemwatch.web.config import LoadedConfig, RateLimit, WebConfig, weaker
from kmemwatch.web.server import Connections, Server

_CHECK_MS = 1000
_TOLD = RateLimit(10.0, 20)
"""Lines about the web configuration."""
_SWITCH_S = 0.0005
"""How long answers wait for Python's lock, each time they need it, while metrics of a large snapshot are written. By
Python's own 5 ms, each of the many steps of an answer waits that long: the slowest scrapes then take twice as long."""


class Worker:
    """Everything that serves, in this process."""

    def __init__(self, settings: Settings, log: Callable[[str], None], beat: Callable[[], None] = lambda: None) -> None:
        """`beat`: of `server.Server`. Raises UsageError for a web configuration that cannot be used."""
        self._log = log
        self._clients = ClientLog(log)
        self._latest = LatestSnapshot(settings.stale_s)
        self._latest.reader = settings.reader
        web = settings.web
        self._web = None if web is None else WebConfigStatus(True, web.loaded_at_s)
        self._exposition = Exposition(
            self._latest.current,
            settings.max_series,
            settings.selection.selection(),
            reader=lambda: self._latest.reader,
            web=self._web,
        )
        shown = SnapshotFilter(settings.selection)
        self._access = AccessControl(
            App(self._latest, self._exposition, settings.telemetry_path, self._clients.say, shown)
        )
        self._told = TokenBucket(_TOLD)
        self._untold: list[str] = []
        self._config = WebConfig()
        context = None
        if web is not None:
            self._exchange(web)
            if web.config.tls is not None:
                from kmemwatch.web import tls

                context = tls.CurrentContext.of(lambda: self._access.rules.context)
        listeners = [socket.socket(fileno=fd) for fd in settings.listeners]
        self._connections = Connections(lambda: self._access.rules.requirements)
        self._server = Server(
            self._access, listeners, tls=context, connections=self._connections, log=self._clients.say, beat=beat
        )

    def start(self) -> None:
        """Answer. Raises KmemwatchError."""
        self._server.start()

    def follow(self, channel: socket.socket) -> None:
        """Take what the other process tells, until it ends. Raises KmemwatchError when the server stops."""
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while True:
            self._tell_waiting()
            self._clients.catch_up()
            if not poll.poll(_CHECK_MS):
                self._server.check()
                continue
            message = wire.receive(channel)
            if message is None:
                return
            is_first = self._latest.last() is None
            self._take(message)
            if is_first and self._latest.last() is not None:
                wire.answer(channel, None)

    def _take(self, message: object) -> None:
        if isinstance(message, FrameMessage):
            frame = message.frame
            self._exposition.prepare(frame, self._latest.last())
            self._latest.publish(frame)
        elif isinstance(message, NewWeb):
            try:
                self._use(message.web)
            except UsageError as error:
                self._keep_last(str(error))
            else:
                self._tell(f"{message.web.name}: in use as it is now")
        elif isinstance(message, BrokenWeb):
            self._keep_last(message.why)

    def _use(self, web: LoadedConfig) -> None:
        """In place of the one before. Raises UsageError, and changes nothing then."""
        less = "; ".join(weaker(self._config, web.config))
        if (web.config.tls is None) != (self._config.tls is None):
            less += f"{'; ' if less else 'tls_server_config: '}turning TLS on or off takes a restart"
            raise UsageError(f"{web.name}: {less}")
        if less:
            raise UsageError(f"{web.name}: protects less than what is in use, which takes a restart: {less}")
        self._exchange(web)
        self._server.call_soon(self._connections.close_outdated)

    def _exchange(self, web: LoadedConfig) -> None:
        """Raises UsageError, and changes nothing then."""
        assert self._web is not None
        context = None
        if web.config.tls is not None:
            from kmemwatch.web import tls

            context = tls.context_of(web)
        # At once: whoever looks sees the one or the other, and nobody a mixture.
        self._access.rules = AccessRules.of(web.config, self._access.rules, context, web.requirements)
        self._config = web.config
        self._web.loaded_at_s, self._web.successful = web.loaded_at_s, True

    def _keep_last(self, why: str) -> None:
        assert self._web is not None
        self._web.successful = False
        self._tell(f"{why} (the last good configuration stays in use)")

    def _tell(self, message: str) -> None:
        """In one line; not more of them than somebody can read, when a file is written again and again."""
        self._untold.append(message)
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        """The last message of those that wait, which says how it is now."""
        if self._untold and self._told.take():
            *before, last = self._untold
            self._untold.clear()
            self._log(last + (f" ({len(before)} changes before are not told)" if before else ""))

    def stop(self) -> None:
        """Let answers finish for a moment."""
        self._server.stop()


def confine(log: Callable[[str], None], lifeline_fd: int) -> None:
    """Give up everything. Raises OSError."""
    privileges.drop_from_bounding_set()
    if not privileges.become_nobody() and os.geteuid() == 0:
        log("http: stays root, without capabilities: becoming nobody takes CAP_SETUID and CAP_SETGID, and a user 65534")
    privileges.give_up()
    # Before, it was as the user that this process is no more.
    lifeline.tie_myself(lifeline_fd)
    if missing := privileges.filter_http_calls():
        log(f"http: system calls are not filtered: {missing}")


def _log(message: str) -> None:
    text = f"kmemwatch: {one_line(message)}\n"
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads it


def _beat(fd: int) -> None:
    with contextlib.suppress(OSError):  # full, as the other process is stopped; or that has ended
        os.write(fd, b".")


def _say_in_lines(log: Callable[[str], None]) -> None:
    """What nobody has caught, in a line of the log in place of Python's traceback."""
    lines = ClientLog(log)

    def say(where: object, kind: type[BaseException], error: BaseException | None) -> None:
        lines.say(f"http: internal error in {where}: {kind.__name__}: {error}")

    sys.excepthook = lambda kind, error, traceback: say("the main thread", kind, error)
    threading.excepthook = lambda found: say(found.thread and found.thread.name, found.exc_type, found.exc_value)
    sys.unraisablehook = lambda found: say(found.object, found.exc_type, found.exc_value)


def main(argv: Sequence[str]) -> int:
    """Entry point; the exit status is 0 when the other process has ended it, or was told why it does not serve."""
    # The other process ends us, after it has ended what it does; Ctrl-C, Ctrl-Z and systemd tell both.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    _say_in_lines(_log)
    keep_memory_low()
    sys.setswitchinterval(_SWITCH_S)
    channel, beats, lifeline_fd = socket.socket(fileno=int(argv[1])), int(argv[2]), int(argv[3])
    settings = wire.receive(channel)
    if settings is None:
        return 0
    try:
        worker = _serve(settings, beats, lifeline_fd)
    except KmemwatchError as error:
        wire.answer(channel, error)
        return 0
    wire.answer(channel, None)
    try:
        worker.follow(channel)
    except KmemwatchError as error:
        _log(str(error))
        return 1
    worker.stop()
    return 0


def _serve(settings: Settings, beats: int, lifeline_fd: int) -> Worker:
    if settings.selection.has_expressions:
        patterns.load()
    if settings.web is not None:
        import bcrypt  # noqa: F401 - a later configuration may have passwords

    try:
        confine(_log, lifeline_fd)
    except OSError as error:
        raise KmemwatchError(f"http: privileges cannot be given up: {error}") from error
    worker = Worker(settings, _log, beat=lambda: _beat(beats))
    worker.start()
    return worker


if __name__ == "__main__":
    status = main(sys.argv)
    # Threads may still wait for clients.
    os._exit(status)
