# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch serve`: the daemon that Prometheus scrapes."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack

import click

from kmemwatch.cli.options import Seconds, open_feed, replay_option, without_option
from kmemwatch.cli.stopping import until_stopped
from kmemwatch.exporter import DEFAULT_ADDRESS

INTERVAL_S = 5.0
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600.0
MAX_SERIES = 20_000
MIN_SERIES = 1_000
_CHECK_S = 1.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""


@click.command(short_help="Serve.")
@click.option("--web.listen-address", "address", metavar="ADDR", default=DEFAULT_ADDRESS,
              help=f"HOST:PORT, [IPv6]:PORT or :PORT; {DEFAULT_ADDRESS}. Port 0: any free one.")  # fmt: skip
@click.option("--web.telemetry-path", "telemetry_path", metavar="PATH", default="/metrics",
              help="Where the metrics are: /metrics.")  # fmt: skip
@click.option("--interval", metavar="S", type=Seconds(MIN_INTERVAL_S, MAX_INTERVAL_S), default=INTERVAL_S,
              help=f"Seconds between snapshots: {INTERVAL_S:g}.")  # fmt: skip
@click.option("--max-series", metavar="N", type=click.IntRange(min=MIN_SERIES), default=MAX_SERIES,
              help=f"Fold the smallest cgroups into cgroup=other above N series: {MAX_SERIES}.")  # fmt: skip
@replay_option
@without_option
def command(
    address: str, telemetry_path: str, interval: float, max_series: int, replay: str | None, without: tuple[str, ...]
) -> None:
    """Serve metrics for Prometheus, and the latest snapshot as JSON, over HTTP until SIGTERM or Ctrl-C."""
    from kmemwatch.exporter.app import App, check_telemetry_path
    from kmemwatch.exporter.exposition import Exposition
    from kmemwatch.exporter.publisher import Publisher
    from kmemwatch.exporter.server import Server, listen, url_of

    _keep_memory_low()
    # First what is quick to fail: a port in use must not cost the time to attach.
    check_telemetry_path(telemetry_path)
    with until_stopped(), ExitStack() as stack:
        listener = stack.enter_context(listen(address))
        feed = open_feed(None, replay, without, realtime=True)
        publisher = Publisher(feed, interval, _log, can_go_stale=replay is None)
        stack.callback(publisher.stop)
        app = App(publisher, Exposition(publisher.frame, max_series), telemetry_path, _log)
        server = Server(app, [listener])
        stack.callback(server.stop)
        publisher.start()
        server.start()
        _log(f"serving {url_of(listener)}{telemetry_path}")
        stack.callback(_log, "stopping")
        while True:
            publisher.wait(_CHECK_S)
            server.check()


def _keep_memory_low() -> None:
    """Give freed memory back at once, and have one heap for all threads: Python lets only one of them run anyway."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 64 << 10), (_M_TRIM_THRESHOLD, 64 << 10)):
        mallopt(parameter, value)


def _log(message: str) -> None:
    click.echo(f"kmemwatch: {' '.join(message.split())}", err=True)
