# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch churn`: makes cgroups that die with kernel memory behind them, and reports what it did."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol

import click

from kmemwatch.churn.lives import BY_NAME, ChurnOptions, Mix, mix_text, parse_mix
from kmemwatch.churn.results import FAILURES, MEMORY, SIGNAL, ChurnReport
from kmemwatch.churn.runner import churn
from kmemwatch.cli.options import Seconds
from kmemwatch.cli.process import Terminated, say
from kmemwatch.errors import KmemwatchError, UsageError

CGROUPS, OBJECTS, DEAD = 100, 100, 1000
MAX_CGROUPS, MAX_OBJECTS, MAX_PARALLEL = 10_000_000, 1_000_000, 256
MAX_RATE, MAX_SEED = 1e6, 2**63 - 1
KINDS = "inode,shmem,pipe"
DIRECTORY = "/var/tmp"  # /tmp may be a tmpfs, which has neither page cache of its own nor negative dentries


def _mix(ctx: click.Context, param: click.Parameter, value: str) -> Mix:
    return parse_mix(value)


class Rate(Seconds):
    """Cgroups a second."""

    name = "rate"


@click.command(short_help="Make cgroups that die.")
@click.option("--kind", "mix", metavar="K[=W],...", callback=_mix, default=KINDS,
              help=f"Objects they leave, with weights: {KINDS}. Kinds: {', '.join(BY_NAME)}.")  # fmt: skip
@click.option("--cgroups", metavar="N", type=click.IntRange(1, MAX_CGROUPS), help=f"Cgroups to make: {CGROUPS}.")
@click.option("--objects", metavar="N", type=click.IntRange(1, MAX_OBJECTS), default=OBJECTS,
              help=f"Objects that each cgroup makes: {OBJECTS}.")  # fmt: skip
@click.option("--leave", metavar="PERCENT", type=click.IntRange(0, 100), default=100,
              help="Percent of the objects that outlive their cgroup: 100.")  # fmt: skip
@click.option("--dead", metavar="N", type=click.IntRange(0, MAX_CGROUPS),
              help="Keep at most N dying cgroups: free the oldest ones' objects.")  # fmt: skip
@click.option(
    "--parallel", metavar="N", type=click.IntRange(1, MAX_PARALLEL), default=1, help="Workers at the same time: 1."
)
@click.option("--rate", metavar="R", type=Rate(0, MAX_RATE, min_open=True), help="At most R cgroups a second.")
@click.option("--seed", metavar="N", type=click.IntRange(0, MAX_SEED), help="Repeat the run that had this seed.")
@click.option("--duration", metavar="S", type=Seconds(0, min_open=True),
              help=f"End after S seconds; without --cgroups, --dead is {DEAD}.")  # fmt: skip
@click.option("--hold", metavar="S", type=Seconds(0), default=0.0, help="Wait S seconds before cleaning up.")
@click.option("--directory", metavar="DIR", default=DIRECTORY, help=f"Directory for files on disk: {DIRECTORY}.")
@click.option("--list", "lists", is_flag=True, help="Report each cgroup, not only how many.")
def command(
    mix: Mix, cgroups: int | None, objects: int, leave: int, dead: int | None, parallel: int, rate: float | None,
    seed: int | None, duration: float | None, hold: float, directory: str, lists: bool,
) -> None:  # fmt: skip
    """Make cgroups that die and leave kernel memory behind, clean up, and print as JSON what was done."""
    if not directory.startswith("/"):
        raise UsageError(f"--directory: {directory!r} does not begin with /", "give the whole path")
    if cgroups is None and duration is not None:
        dead = DEAD if dead is None else dead
    options = ChurnOptions(
        mix=mix,
        cgroups=CGROUPS if cgroups is None and duration is None else cgroups,
        objects=objects,
        leave_percent=leave,
        dead=dead,
        parallel=parallel,
        rate=rate,
        seed=secrets.randbits(32) if seed is None else seed,
        duration_s=duration,
        hold_s=hold,
        directory=directory,
    )
    with _ProgressBar(options) as progress:
        report = churn(options, progress, lists=lists)
    json.dump(report.to_dict(), sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()
    _conclude(report)


def _conclude(report: ChurnReport) -> None:
    """Raise the error of a run that did not go as it should."""
    course = report.course
    if course.ended_by == SIGNAL:
        if course.signum in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise Terminated(int(course.signum or 0))
    if course.remains:
        raise KmemwatchError(f"churn: not all could be taken away: {course.remains[0]}", "remove it by hand")
    if course.ended_by == MEMORY:
        raise KmemwatchError("churn: ended early, the host is short of memory", "smaller --objects, --dead or --leave")
    if report.failed or course.ended_by == FAILURES:
        first = report.tally.failures()[0]
        raise KmemwatchError(
            f"churn: {report.failed} things failed, first {first['what']}: {first['why']}",
            "the report has all of them, in failures",
        )


class _Bar(Protocol):
    def update(self, n_steps: int) -> None: ...


class _ProgressBar:
    """On a terminal a progress bar; elsewhere only the line that the run holds."""

    STEPS = 1000

    def __init__(self, options: ChurnOptions) -> None:
        self._options = options
        self._stack: AbstractContextManager[Any] = nullcontext()
        self._bar: _Bar | None = None
        self._shown = 0

    def __enter__(self) -> _ProgressBar:
        label = f"churn {mix_text(self._options.mix)} seed {self._options.seed}"
        self._open(label)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _open(self, label: str) -> None:
        if sys.stderr.isatty():
            self._stack = click.progressbar(length=self.STEPS, label=label, file=sys.stderr, show_eta=True)
            self._bar = self._stack.__enter__()
            self._shown = 0

    def _close(self) -> None:
        if self._bar is not None:
            self._bar = None
            self._stack.__exit__(None, None, None)

    def works(self, done: int, elapsed_s: float) -> None:
        """So many cgroups were made and removed."""
        if self._bar is None:
            return
        share = done / self._options.cgroups if self._options.cgroups else 0.0
        if self._options.duration_s is not None:
            share = max(share, elapsed_s / self._options.duration_s)
        steps = int(self.STEPS * min(1.0, share))
        if steps > self._shown:
            self._bar.update(steps - self._shown)
            self._shown = steps

    def holds(self, parent: str, removed: int, hold_s: float) -> None:
        """All cgroups are removed; what they left stays for `hold_s`."""
        self._close()
        at = time.strftime("%H:%M:%S")
        say(f"kmemwatch: {at} {removed} cgroups removed below {parent}; holding for {hold_s:g} s")

    def cleans(self) -> None:
        """What they left is freed now."""
        self._close()
