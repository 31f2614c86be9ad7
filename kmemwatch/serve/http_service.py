# SPDX-License-Identifier: GPL-2.0-only
"""The process that serves HTTP. It has no privileges, no BPF descriptors, and no way to get either.

The process that reads the kernel starts it as ``python -m kmemwatch.serve.http_service FD BEATS LIFELINE``: three
descriptors, of a Unix socket (see `messages`), a pipe for signs of life, and its `lifeline`. It imports all modules
before it gives up its privileges, because it may be unable to read Python's files afterwards. It ends when the other
end of the socket is closed; if it hangs, the lifeline ends it.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - asyncio would import it at the first request
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from kmemwatch.errors import KmemwatchError, UsageError, shortage_of
from kmemwatch.exporter.daemon import WebConfigStatus
from kmemwatch.exporter.exposition import Exposition
from kmemwatch.exporter.published import LatestSnapshot
from kmemwatch.exporter.snapshots import SnapshotFilter
from kmemwatch.kernel import lifeline
from kmemwatch.serve import messages
from kmemwatch.serve.app import App
from kmemwatch.serve.memory import keep_memory_low
from kmemwatch.serve.messages import BrokenConfig, NewConfig, Settings, SnapshotMessage
from kmemwatch.units import one_line
from kmemwatch.views import patterns
from kmemwatch.web import privileges
from kmemwatch.web.access import AccessControl, AccessRules, TokenBucket
from kmemwatch.web.clientlog import ClientLog
from kmemwatch.web.config import LoadedConfig, RateLimit, WebConfig, weaker
from kmemwatch.web.server import Connections, Server

_CHECK_MS = 1000
_CONFIG_LINES = RateLimit(10.0, 20)
"""Log lines about the web configuration."""
_SWITCH_S = 0.0005
"""Python's switch interval. While one thread writes the metrics of a large snapshot, each step of another answer waits
this long for Python's lock. With the default of 5 ms the slowest scrapes take twice as long."""


class HttpService:
    """Everything that serves, without the process around it."""

    def __init__(self, settings: Settings, log: Callable[[str], None], beat: Callable[[], None] = lambda: None) -> None:
        """`beat`: see `server.Server`. Raises UsageError for a web configuration that cannot be used."""
        self._log = log
        self._client_log = ClientLog(log)
        self._latest = LatestSnapshot(settings.stale_s)
        self._latest.reader = settings.reader
        web = settings.web
        self._config_status = None if web is None else WebConfigStatus(True, web.loaded_at_s)
        self._exposition = Exposition(
            self._latest.current,
            settings.max_series,
            settings.selection.selection(),
            reader=lambda: self._latest.reader,
            web=self._config_status,
        )
        shown = SnapshotFilter(settings.selection)
        self._access = AccessControl(
            App(self._latest, self._exposition, settings.telemetry_path, self._client_log.say, shown)
        )
        self._config_line_limit = TokenBucket(_CONFIG_LINES)
        self._config_lines: list[str] = []
        """Not logged yet."""
        self._config = WebConfig()
        context = None
        if web is not None:
            self._apply(web)
            if web.config.tls is not None:
                from kmemwatch.web import tls

                context = tls.CurrentContext.of(lambda: self._access.rules.context)
        listeners = [socket.socket(fileno=fd) for fd in settings.listeners]
        self._connections = Connections(lambda: self._access.rules.requirements)
        self._server = Server(
            self._access, listeners, tls=context, connections=self._connections, log=self._client_log.say, beat=beat
        )

    def start(self) -> None:
        """Begin to answer requests. Raises KmemwatchError."""
        self._server.start()

    def follow(self, channel: socket.socket) -> None:
        """Handle messages of the other process until it ends. Raises KmemwatchError when the server stops."""
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while True:
            self._log_config_lines()
            self._client_log.catch_up()
            if not poll.poll(_CHECK_MS):
                self._server.check()
                continue
            message = messages.receive(channel)
            if message is None:
                return
            is_first = self._latest.last() is None
            self.handle(message)
            if is_first and self._latest.last() is not None:
                messages.answer(channel, None)

    def handle(self, message: object) -> None:
        """A message of the other process."""
        if isinstance(message, SnapshotMessage):
            published = message.published
            self._exposition.prepare(published, self._latest.last())
            self._latest.publish(published)
        elif isinstance(message, NewConfig):
            try:
                self._replace(message.web)
            except UsageError as error:
                self._keep_current(str(error))
            else:
                self._log_config(f"{message.web.name}: in use as it is now")
        elif isinstance(message, BrokenConfig):
            self._keep_current(message.why)

    def _replace(self, web: LoadedConfig) -> None:
        """Use `web` in place of the current configuration. Raises UsageError, and then changes nothing."""
        less = "; ".join(weaker(self._config, web.config))
        if (web.config.tls is None) != (self._config.tls is None):
            less += f"{'; ' if less else 'tls_server_config: '}turning TLS on or off takes a restart"
            raise UsageError(f"{web.name}: {less}")
        if less:
            raise UsageError(f"{web.name}: protects less than what is in use, which takes a restart: {less}")
        self._apply(web)
        self._server.call_soon(self._connections.close_outdated)

    def _apply(self, web: LoadedConfig) -> None:
        """Raises UsageError, and then changes nothing."""
        assert self._config_status is not None
        context = None
        if web.config.tls is not None:
            from kmemwatch.web import tls

            context = tls.context_of(web)
        # One assignment: a request sees the old rules or the new ones, never a mixture.
        self._access.rules = AccessRules.of(web.config, self._access.rules, context, web.requirements)
        self._config = web.config
        self._config_status.loaded_at_s, self._config_status.successful = web.loaded_at_s, True

    def _keep_current(self, why: str) -> None:
        assert self._config_status is not None
        self._config_status.successful = False
        self._log_config(f"{why} (the last good configuration stays in use)")

    def _log_config(self, message: str) -> None:
        """Log a line, but not one for each of many changes in a short time."""
        self._config_lines.append(message)
        self._log_config_lines()

    def _log_config_lines(self) -> None:
        """Log the last line that waits, which is about the current state."""
        if self._config_lines and self._config_line_limit.take():
            *before, last = self._config_lines
            self._config_lines.clear()
            self._log(last + (f" ({len(before)} earlier changes are not shown)" if before else ""))

    def stop(self) -> None:
        """Give answers a moment to finish, then close everything."""
        self._server.stop()


def confine(log: Callable[[str], None], lifeline_fd: int) -> None:
    """Give up all privileges. Raises OSError."""
    privileges.drop_from_bounding_set()
    if not privileges.become_nobody() and os.geteuid() == 0:
        log("http: stays root, without capabilities: becoming nobody needs CAP_SETUID, CAP_SETGID and a user 65534")
    privileges.give_up()
    # Again, because the change of the user has undone it.
    lifeline.tie_myself(lifeline_fd)
    if missing := privileges.filter_http_calls():
        log(f"http: system calls are not filtered: {missing}")


def _log(message: str) -> None:
    text = f"kmemwatch: {one_line(message)}\n"
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nothing reads it


def _beat(fd: int) -> None:
    with contextlib.suppress(OSError):  # the pipe is full, as the other process is stopped; or that has ended
        os.write(fd, b".")


def _log_uncaught(log: Callable[[str], None]) -> None:
    """Log uncaught exceptions in one line each, instead of Python's traceback."""
    lines = ClientLog(log)

    def say(where: object, kind: type[BaseException], error: BaseException | None) -> None:
        short = None if error is None else shortage_of(error)
        lines.say(f"http: {short or f'internal error in {where}: {kind.__name__}: {error}'}")

    sys.excepthook = lambda kind, error, traceback: say("the main thread", kind, error)
    threading.excepthook = lambda found: say(found.thread and found.thread.name, found.exc_type, found.exc_value)
    sys.unraisablehook = lambda found: say(found.object, found.exc_type, found.exc_value)


def main(argv: Sequence[str]) -> int:
    """Entry point. The exit status is 0 when the other process ended it, or got the reason why it cannot serve."""
    # Ctrl-C, Ctrl-Z and systemd signal both processes. The other one ends this one when it has finished.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    _log_uncaught(_log)
    keep_memory_low()
    sys.setswitchinterval(_SWITCH_S)
    channel, beats, lifeline_fd = socket.socket(fileno=int(argv[1])), int(argv[2]), int(argv[3])
    settings = messages.receive(channel)
    if settings is None:
        return 0
    try:
        service = _serve(settings, beats, lifeline_fd)
    except Exception as error:
        short = error if isinstance(error, KmemwatchError) else shortage_of(error)
        if short is None:
            raise
        messages.answer(channel, short)
        return 0
    messages.answer(channel, None)
    try:
        service.follow(channel)
    except KmemwatchError as error:
        _log(str(error))
        return 1
    service.stop()
    return 0


def _serve(settings: Settings, beats: int, lifeline_fd: int) -> HttpService:
    if settings.selection.has_expressions:
        patterns.load()
    if settings.web is not None:
        import bcrypt  # noqa: F401 - the next configuration may have passwords

        from kmemwatch.web import tls  # noqa: F401 - as nobody it may be unable to read Python's files

    try:
        confine(_log, lifeline_fd)
    except OSError as error:
        raise KmemwatchError(f"http: privileges cannot be given up: {error}") from error
    service = HttpService(settings, _log, beat=lambda: _beat(beats))
    service.start()
    return service


if __name__ == "__main__":
    status = main(sys.argv)
    # Without waiting for threads that still wait for clients.
    os._exit(status)
