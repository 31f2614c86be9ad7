# SPDX-License-Identifier: GPL-2.0-only
"""The screen of `top` on invented data, without threads or clocks, so that every run draws the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from textual.pilot import Pilot
from textual.strip import Strip

from kmemwatch.fields.rows import frame
from kmemwatch.model import Snapshot
from kmemwatch.render.select import select
from kmemwatch.tui.app import TopApp
from kmemwatch.tui.poller import Poller, Refreshed, Update
from kmemwatch.tui.table import RowTable
from tests.unit.fakes import FakeFeed

Make = Callable[[int], Snapshot]


class StillPoller(Poller):
    """Says what a test gives it, at once, and nothing else."""

    def __init__(self, *updates: Update) -> None:
        super().__init__(lambda: FakeFeed([]), 3.0)
        self._updates = list(updates)
        self.stopped = 0

    def start(self) -> None:
        raise AssertionError("a test must not start a thread")

    def listen(self, tell: Callable[[Update], None]) -> None:
        for update in self._updates:
            tell(update)

    def stop(self) -> None:
        self.stopped += 1


def refreshed(make: Make, seconds: int = 3, notice: str | None = None, scope: str | None = None) -> Refreshed:
    """The second look at an invented host, with rates."""
    return Refreshed(frame(make(seconds - 3), make(seconds), scope), "live", notice)


def app_of(
    *updates: Update,
    view: str = "cgroups",
    sort: str | None = None,
    regex: str | None = None,
    opening: str = "attaching…",
) -> TopApp:
    return TopApp(StillPoller(*updates), select(view, sort, regex), opening=opening)


def drive(app: TopApp, test: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    """Run a test coroutine while the app is on an invisible terminal."""

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await test(pilot)

    asyncio.run(run())


def lines(app: TopApp) -> list[str]:
    """The whole screen as text."""
    return [_text(strip) for strip in app.screen._compositor.render_strips()]


def _text(strip: Strip) -> str:
    return strip.text.rstrip()


def table_lines(app: TopApp) -> list[str]:
    """Header and rows of the table in front."""
    table = app.screen.query_one(RowTable)
    return [_text(table.render_line(y)) for y in range(table.size.height)]
