# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch compare`: two recordings, daemons or selectors of Prometheus, and what the patch set did."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import click

from kmemwatch.cli.options import FloatParam, Seconds
from kmemwatch.cli.process import say, say_over
from kmemwatch.compare.comparison import Comparison, compare
from kmemwatch.compare.html import to_html
from kmemwatch.compare.measure import DaemonWatch, read_recording, run_all, watch
from kmemwatch.compare.output import WIDTH, to_json, to_text
from kmemwatch.compare.prometheus import PREFIX, PrometheusServer, TimeRange, parse, read_prometheus
from kmemwatch.compare.side import Side
from kmemwatch.compare.workload import read_workload
from kmemwatch.errors import UsageError
from kmemwatch.feeds.http_client import Access, read_password
from kmemwatch.feeds.user_files import check_place, write_whole
from kmemwatch.units import parse_rfc3339

OUTPUTS = ("table", "json", "html")
DURATION_S, INTERVAL_S = 60.0, 5.0
RANGE_S = 3600.0
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Span(FloatParam):
    """``90``, ``15m``, ``6h``, ``7d``: seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _SPAN.fullmatch(str(value))
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a time like 90, 15m, 6h or 7d.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Moment(FloatParam):
    """RFC 3339, or seconds since the epoch."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = float(value)
        except ValueError:
            try:
                found = (parse_rfc3339(str(value)) or 0) / 1e9
            except ValueError:
                found = math.nan
        if not math.isfinite(found) or found < 0:
            self.fail(f"{value!r} is not a time like 2026-11-22T20:00:00Z.", param, ctx)
        return found


@dataclass(frozen=True, slots=True)
class SideOptions:
    """What the command line says of one side."""

    label: str
    source: str
    access: Access
    workload: str | None

    @property
    def is_daemon(self) -> bool:
        """Whether the source is the URL of a daemon; a file is one even if it looks like HOST:PORT."""
        if self.source.startswith(PREFIX) or os.path.lexists(self.source):
            return False
        return "://" in self.source or re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}/?", self.source) is not None


@dataclass(frozen=True, slots=True)
class Measuring:
    """How long and when."""

    duration_s: float
    interval_s: float
    from_s: float | None
    to_s: float | None
    range_s: float | None
    step_s: float | None


def _access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for label in ("b", "a"):
        for name, metavar, what in (
            ("workload", "FILE", "What kmemwatch churn reported of its run there"),
            ("password-file", "FILE", "File with the password"),
            ("user", "NAME", "User of its web server"),
            ("ca", "FILE", "Certificates to trust"),
        ):
            function = click.option(
                f"--{name}-{label}" if name != "password-file" else f"--password-file-{label}",
                f"{name.replace('-', '_')}_{label}", metavar=metavar, help=f"{label.upper()}: {what}.",
            )(function)  # fmt: skip
    return function


@click.command(short_help="Compare two sides.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--output", metavar="FORMAT", default=OUTPUTS[0], type=click.Choice(OUTPUTS),
              help="table (default), json, or html.")  # fmt: skip
@click.option("--out", metavar="FILE", help="Write to FILE, not to the terminal.")
@click.option("--duration", metavar="S", type=Seconds(0, 864000, min_open=True), default=DURATION_S,
              help=f"Daemons: measure for S seconds: {DURATION_S:g}.")  # fmt: skip
@click.option("--interval", metavar="S", type=Seconds(0.1, 3600), default=INTERVAL_S,
              help=f"Daemons: seconds between samples: {INTERVAL_S:g}.")  # fmt: skip
@click.option("--from", "from_s", metavar="TIME", type=Moment(), help="Prometheus: begin at this time, RFC 3339.")
@click.option("--to", "to_s", metavar="TIME", type=Moment(), help="Prometheus: end at this time; now if not given.")
@click.option(
    "--range", "range_s", metavar="TIME", type=Span(), help="Prometheus: the last 15m, 6h, 7d; 1h if not given."
)
@click.option("--step", "step_s", metavar="TIME", type=Span(), help="Prometheus: time between samples.")
@_access_options
def command(a: str, b: str, output: str, out: str | None, **options: Any) -> None:
    """Compare a patched with an unpatched host, and judge what the patch set's cover letter claims.

    A and B are recordings (`demo` ships with kmemwatch), URLs of daemons, or prometheus:URL?SELECTOR.

    \b
    kmemwatch compare old.kmw.gz new.kmw.gz --output html --out report.html
    kmemwatch compare http://db1:10777 http://db2:10777 --duration 600
    kmemwatch compare --range 7d 'prometheus:http://prom:9090?host="db1"' \\
        'prometheus:http://prom:9090?host="db2"'
    """
    sides = tuple(
        SideOptions(label.upper(), source, _access(options, label), options[f"workload_{label}"])
        for label, source in (("a", a), ("b", b))
    )
    measuring = Measuring(*(options[name] for name in ("duration", "interval", "from_s", "to_s", "range_s", "step_s")))
    _check(sides, measuring, output, out)
    _write(compare(*_read(sides, measuring)), output, out)


def _access(options: dict[str, Any], label: str) -> Access:
    user, password_file = options[f"user_{label}"], options[f"password_file_{label}"]
    if password_file is not None and user is None:
        raise UsageError(f"--password-file-{label} has no meaning without --user-{label}")
    return Access(options[f"ca_{label}"], user, None if password_file is None else read_password(password_file))


def _check(sides: tuple[SideOptions, ...], measuring: Measuring, output: str, out: str | None) -> None:
    """Refuse what means nothing, before anything is measured."""
    for side in sides:
        web = side.is_daemon or side.source.startswith(PREFIX)
        if not web and side.access != Access():
            raise UsageError(f"--ca-{side.label.lower()} and --user-{side.label.lower()} are for URLs, not for files")
        if web and "@" in urlsplit(side.source.removeprefix(PREFIX)).netloc:
            label = side.label.lower()
            raise UsageError(
                f"{side.label}: a URL with a password in it", f"--user-{label} and --password-file-{label}"
            )
    times = (measuring.from_s, measuring.to_s, measuring.range_s, measuring.step_s)
    if any(time is not None for time in times) and not any(side.source.startswith(PREFIX) for side in sides):
        raise UsageError("--from, --to, --range and --step are for prometheus: sides", "none of the two is one")
    if measuring.from_s is not None and measuring.range_s is not None:
        raise UsageError("--from and --range cannot be used together", "use one of them")
    if out is not None:
        try:
            check_place(out)
        except OSError as exc:
            what = "no such directory" if isinstance(exc, FileNotFoundError) else (exc.strerror or "").lower()
            raise UsageError(f"{out}: cannot write there: {what}") from exc
    elif output == "html" and sys.stdout.isatty():
        raise UsageError("--output html is for a browser, not for a terminal", "give --out report.html")


def _read(sides: tuple[SideOptions, ...], measuring: Measuring) -> tuple[Side, Side]:
    """Files and servers first: their errors show at once."""
    workloads = [None if side.workload is None else read_workload(side.workload) for side in sides]
    found: dict[str, Side] = {}
    for side in sides:
        if not side.is_daemon:
            found[side.label] = _read_at_rest(side, measuring)
    watches: dict[str, DaemonWatch] = {
        side.label: watch(side.label, side.source, side.access, measuring.duration_s, measuring.interval_s)
        for side in sides
        if side.is_daemon
    }
    if watches:
        run_all(list(watches.values()), _progress(measuring.duration_s))
        if sys.stderr.isatty():
            say_over(" " * 40)
            say_over("")
    found |= {label: one.side() for label, one in watches.items()}
    a, b = (replace(found[side.label], workload=workload) for side, workload in zip(sides, workloads, strict=True))
    return a, b


def _read_at_rest(side: SideOptions, measuring: Measuring) -> Side:
    if not side.source.startswith(PREFIX):
        return read_recording(side.label, side.source)
    url, selector = parse(side.source)
    to_s = measuring.to_s if measuring.to_s is not None else time.time()
    from_s = measuring.from_s if measuring.from_s is not None else to_s - (measuring.range_s or RANGE_S)
    if from_s >= to_s:
        raise UsageError("--from is not before --to")
    over = TimeRange.of(from_s, to_s, measuring.step_s)
    return read_prometheus(side.label, side.source, PrometheusServer(url, side.access), selector, over)


def _progress(duration_s: float) -> Callable[[float], None]:
    if not sys.stderr.isatty():
        return lambda seconds: None

    def show(seconds: float) -> None:
        say_over(f"measuring, {max(0, duration_s - seconds):.0f} s left ")

    return show


def _write(found: Comparison, output: str, out: str | None) -> None:
    if output == "json":
        text = to_json(found, time.time_ns())
    elif output == "html":
        text = to_html(found, time.time_ns())
    else:
        text = to_text(found, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    if out is None:
        sys.stdout.write(text)
        return
    data = text.encode("utf-8", "backslashreplace")
    write_whole(out, data)
    say(f"kmemwatch: {out}: written, {len(data)} bytes")
