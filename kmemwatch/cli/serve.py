# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch serve`: the daemon that Prometheus scrapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click

from kmemwatch.cli.options import Seconds, check_source, latency_option, open_feed, replay_option, without_option
from kmemwatch.cli.process import say, until_stopped
from kmemwatch.errors import KmemwatchError
from kmemwatch.exporter.published import STALE_INTERVALS, ProgramRuns, ReaderCost, reader_cost
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.live import LiveFeed
from kmemwatch.serve.http_process import HttpProcess
from kmemwatch.serve.memory import keep_memory_low
from kmemwatch.serve.messages import BrokenConfig, NewConfig, Settings
from kmemwatch.serve.paths import check_telemetry_path
from kmemwatch.serve.publisher import Publisher
from kmemwatch.web import listening, privileges
from kmemwatch.web.config import LoadedConfig
from kmemwatch.web.configfiles import WebConfigFiles
from kmemwatch.web.listening import DEFAULT_ADDRESS

INTERVAL_S = 5.0
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600.0
MAX_SERIES = 20_000
MIN_SERIES = 1_000
_CHECK_S = 1.0
_FIRST_S = 2.0


@click.command(short_help="Serve.")
@click.option("--web.listen-address", "addresses", metavar="ADDR", multiple=True,
              help=f"HOST:PORT, [IPv6]:PORT, :PORT, unix:PATH, fd:// or fd://NAME; {DEFAULT_ADDRESS}. Port 0: any free"
                   " one. May be repeated.")  # fmt: skip
@click.option("--web.systemd-socket", "systemd_socket", is_flag=True,
              help="The same as --web.listen-address fd://: the sockets that systemd hands over.")  # fmt: skip
@click.option("--web.config.file", "config_file", metavar="FILE",
              help="TLS, client certificates and passwords, as for Prometheus' own exporters. Read again when it"
                   " changes.")  # fmt: skip
@click.option("--web.telemetry-path", "telemetry_path", metavar="PATH", default="/metrics",
              help="Path of the metrics: /metrics.")  # fmt: skip
@click.option("--interval", metavar="S", type=Seconds(MIN_INTERVAL_S, MAX_INTERVAL_S), default=INTERVAL_S,
              help=f"Seconds between snapshots: {INTERVAL_S:g}.")  # fmt: skip
@click.option("--max-series", metavar="N", type=click.IntRange(min=MIN_SERIES), default=MAX_SERIES,
              help=f"Fold the smallest cgroups into cgroup=other above N series: {MAX_SERIES}.")  # fmt: skip
@click.option("--cgroup.include", "cgroup_include", metavar="REGEX", multiple=True,
              help="Show only cgroups whose whole path matches; may be repeated.")  # fmt: skip
@click.option("--cgroup.exclude", "cgroup_exclude", metavar="REGEX", multiple=True,
              help="Hide cgroups whose whole path matches; may be repeated.")  # fmt: skip
@click.option("--cache.include", "cache_include", metavar="REGEX", multiple=True,
              help="Show only caches whose whole name matches; may be repeated.")  # fmt: skip
@click.option("--cache.exclude", "cache_exclude", metavar="REGEX", multiple=True,
              help="Hide caches whose whole name matches; may be repeated.")  # fmt: skip
@click.option("--cgroup.name", "naming", type=click.Choice(("path", "kubernetes")), default="path",
              help="kubernetes also labels the cgroups of pods with qos, uid and container_id.")  # fmt: skip
@replay_option
@without_option
@latency_option
def command(**given: Any) -> None:
    """Serve metrics for Prometheus, and the latest snapshot as JSON, over HTTP until SIGTERM or Ctrl-C."""

    keep_memory_low()
    with until_stopped(), ExitStack() as stack:
        Daemon(ServeOptions.of(given), stack).run()


@dataclass(frozen=True)
class ServeOptions:
    """The options, checked."""

    addresses: tuple[str, ...]
    config_file: str | None
    telemetry_path: str
    interval_s: float
    max_series: int
    selection: SelectionOptions
    replay: str | None
    without: tuple[str, ...]
    latency: bool

    @staticmethod
    def of(given: dict[str, Any]) -> ServeOptions:
        """Raises UsageError."""

        check_source(None, given["replay"], given["without"], given["latency"])
        check_telemetry_path(given["telemetry_path"])
        selection = SelectionOptions(
            given["cgroup_include"],
            given["cgroup_exclude"],
            given["cache_include"],
            given["cache_exclude"],
            given["naming"],
        )
        selection.selection()
        addresses = (*given["addresses"], *(["fd://"] if given["systemd_socket"] else []))
        return ServeOptions(
            addresses=addresses or (DEFAULT_ADDRESS,),
            config_file=given["config_file"],
            telemetry_path=given["telemetry_path"],
            interval_s=given["interval"],
            max_series=given["max_series"],
            selection=selection,
            replay=given["replay"],
            without=given["without"],
            latency=given["latency"],
        )


class Daemon:
    """The process that reads the kernel. It starts another one to serve HTTP, see docs/adr/0014-two-processes.md."""

    def __init__(self, options: ServeOptions, stack: ExitStack) -> None:
        """`stack` gets everything that must be undone at the end."""
        self._options = options
        self._stack = stack

    def run(self) -> None:
        """Run until an exception ends it. Raises KmemwatchError."""

        # First what fails fast: a port in use must not cost the time to attach.
        files, web = self._read_web()
        http, urls = self._start_http(web)
        if web is not None:
            http.wait_ready()
        options = self._options
        feed = open_feed(None, options.replay, options.without, latency=options.latency, realtime=True)
        self._stack.callback(feed.close)
        if web is None:
            http.wait_ready()
        publisher = Publisher(
            feed,
            self._options.interval_s,
            _log,
            can_go_stale=self._options.replay is None,
            forward=http.forward,
            reader=self._cost(feed),
        )
        if _is_live(feed):
            give_up_privileges(feed)
        # Threads start after that, because they keep the privileges they start with.
        self._stack.callback(publisher.stop)
        self._stack.callback(http.stop)
        http.start()
        publisher.start()
        self._wait_first(publisher, http)
        for url in urls:
            _log(f"serving {url}")
        self._stack.callback(_log, "stopping")
        while True:
            publisher.wait(_CHECK_S)
            http.check()
            if files is not None:
                files.reload(lambda now: http.send(NewConfig(now)), lambda why: http.send(BrokenConfig(why)))

    def _read_web(self) -> tuple[WebConfigFiles, LoadedConfig] | tuple[None, None]:
        if self._options.config_file is None:
            return None, None

        files = WebConfigFiles(self._options.config_file)
        # Without capabilities, as after each later change: an unreadable certificate must be an error now.
        with privileges.using_only(()):
            return files, files.load()

    def _start_http(self, web: LoadedConfig | None) -> tuple[HttpProcess, list[str]]:
        """(the process that serves, its URLs)."""

        listeners = listening.listen_all(self._options.addresses)
        self._stack.callback(listening.remove_unix, self._options.addresses)
        scheme = "http" if web is None or web.config.tls is None else "https"
        path = self._options.telemetry_path
        urls = [
            url if url.startswith(listening.UNIX) else url + path
            for url in (listening.url_of(listener, scheme) for listener in listeners)
        ]
        http = HttpProcess(listeners)
        self._stack.callback(http.stop)
        settings = Settings(
            listeners=[listener.fileno() for listener in listeners],
            telemetry_path=path,
            max_series=self._options.max_series,
            stale_s=self._stale_s(),
            selection=self._options.selection,
            reader=reader_cost({}),
            web=web,
        )
        for listener in listeners:
            listener.close()
        http.configure(settings)
        return http, urls

    @staticmethod
    def _wait_first(publisher: Publisher, http: HttpProcess) -> None:
        """Wait a moment for the first snapshot, so that the pages show something when the log names their URLs."""
        deadline = time.monotonic() + _FIRST_S
        while not http.has_snapshot(_FIRST_S / 100) and time.monotonic() < deadline:
            publisher.wait(0)
            http.check()

    def _stale_s(self) -> float:

        # A recording ends, and its last snapshot stays current.
        return STALE_INTERVALS * self._options.interval_s if self._options.replay is None else float("inf")

    def _cost(self, feed: Feed) -> Callable[[], ReaderCost]:
        """Returns what this process and its BPF programs cost."""

        runs = getattr(feed, "program_runs", dict)
        return lambda: reader_cost({name: ProgramRuns(*counted) for name, counted in runs().items()})


def _is_live(feed: Feed) -> bool:

    return isinstance(feed, LiveFeed)


def give_up_privileges(feed: Feed) -> None:
    """Keep only the capabilities that reading needs: none on most kernels, CAP_BPF on some. Raises KmemwatchError."""

    # A whole snapshot tries every way in which the feed reads the kernel.
    _, enough = privileges.least_needed(lambda: feed.next_snapshot(0))
    try:
        privileges.give_up(enough)
    except OSError as error:
        raise KmemwatchError(f"privileges cannot be given up: {error}") from error
    if missing := privileges.filter_reader_calls():
        _log(f"system calls are not filtered: {missing}")


def _log(message: str) -> None:
    say(f"kmemwatch: {message}")
