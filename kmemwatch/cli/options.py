# SPDX-License-Identifier: GPL-2.0-only
"""Options that several commands or modules share, and the feed that they select."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kmemwatch.errors import UsageError
from kmemwatch.feeds.feed import Feed
from kmemwatch.units import printable

MOUNT_POINTS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    FloatParam = click.ParamType[float]
else:  # generic since click 8.3
    FloatParam = click.ParamType


class Seconds(click.FloatRange):
    """A finite time: `click.FloatRange` accepts ``nan`` and ``inf``, too."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


def without_option(function: F) -> F:
    """``--without LIST`` -> `without: tuple[str, ...]`, for `open_feed`."""
    return click.option(
        "--without", metavar="LIST", callback=_names, help="Do not attach by these kinds of hook, e.g. raw_tp,fentry."
    )(function)


def latency_option(function: F) -> F:
    """``--latency`` -> `latency: bool`, for `open_feed`."""
    return click.option(
        "--latency", is_flag=True, help="Time one allocation in 64; adds some 180 instructions to each."
    )(function)


def replay_option(function: F) -> F:
    """``--replay FILE`` -> `replay: str | None`."""
    return click.option("--replay", metavar="FILE", help="Play a recording; `demo` ships with kmemwatch.")(function)


def source_options(function: F) -> F:
    """``--connect URL``, ``--replay FILE``, ``--without LIST``, ``--latency``: the arguments of `open_feed`."""
    function = replay_option(without_option(latency_option(function)))
    return click.option("--connect", metavar="URL", help="Read from a daemon (kmemwatch serve) on another host.")(
        function
    )


def scope_path(text: str | None) -> str | None:
    """``--cgroup`` as the model writes paths: absolute in the hierarchy, without the mount point.

    Shells complete paths under /sys/fs/cgroup, so such paths are accepted, too.
    """
    if text is None:
        return None
    for mount in MOUNT_POINTS:
        if text == mount or text.startswith(mount + "/"):
            text = text[len(mount) :]
            break
    return printable("/" + "/".join(part for part in text.split("/") if part))


def _scope(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return scope_path(value)


def cgroup_option(function: F) -> F:
    """``--cgroup PATH`` -> `cgroup: str | None`."""
    return click.option("--cgroup", metavar="PATH", callback=_scope, help="Only this cgroup and those below it.")(
        function
    )


def filter_option(function: F) -> F:
    """``--filter REGEX`` -> `filter_: str | None`."""
    return click.option("--filter", "filter_", metavar="REGEX", help="Only rows whose name matches (RE2).")(function)


def check_source(connect: str | None, replay: str | None, without: tuple[str, ...], latency: bool = False) -> None:
    """Raise UsageError for options that have no meaning together; called before anything is started."""
    if connect is not None and replay is not None:
        raise UsageError("--connect and --replay cannot be used together", "use one of them")
    for option, value in (("--connect", connect), ("--replay", replay)):
        if value is not None and without:
            raise UsageError(f"--without has no meaning with {option}", "it chooses hooks on the kernel that runs here")
        if value is not None and latency:
            raise UsageError(f"--latency has no meaning with {option}", "it measures on the kernel that runs here")


def open_feed(
    connect: str | None,
    replay: str | None,
    without: tuple[str, ...] = (),
    *,
    latency: bool = False,
    realtime: bool = False,
) -> Feed:
    """The feed that the options select; the running kernel without `connect` and `replay`. Raises KmemwatchError.

    `realtime`: a recording plays in the time that it took; else it is read as fast as possible.
    """
    check_source(connect, replay, without, latency)
    return begin_feed(connect, replay, without, latency=latency, realtime=realtime)()


def begin_feed(
    connect: str | None, replay: str | None, without: tuple[str, ...], *, latency: bool, realtime: bool
) -> Callable[[], Feed]:
    """Start the process that attaches, if the feed needs one; the result waits for it, and opens the feed.

    Feeds are imported here: only the selected one, and the live one while the other process attaches.
    """
    if replay is not None:
        from kmemwatch.feeds.replay import ReplayFeed

        return lambda: ReplayFeed(replay, realtime)
    if connect is not None:
        from kmemwatch.feeds.remote import RemoteFeed

        return lambda: RemoteFeed(connect)
    from kmemwatch.attach.handover import Child

    child = Child(without, latency=latency)

    def attach() -> Feed:
        from kmemwatch.feeds.live import take_over

        return take_over(child)

    return attach


@dataclass(frozen=True, slots=True)
class TopOptions:
    """The command line of `top`."""

    delay_s: float
    iterations: int | None
    batch: bool
    output: str
    view: str
    sort: str | None
    filter_: str | None
    cgroup: str | None
    connect: str | None
    replay: str | None
    without: tuple[str, ...]
    latency: bool = False

    def open(self) -> Feed:
        """The feed, read as fast as possible. Raises KmemwatchError."""
        return open_feed(self.connect, self.replay, self.without, latency=self.latency)

    def begin(self) -> Callable[[], Feed]:
        """Opens the feed, for people who watch; see `begin_feed`."""
        return begin_feed(self.connect, self.replay, self.without, latency=self.latency, realtime=True)
