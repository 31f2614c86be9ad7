# SPDX-License-Identifier: GPL-2.0-only
"""The screen of `top` on invented data, without threads or clocks, so that every run draws the same."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable

from textual import events
from textual.dom import DOMNode
from textual.keys import REPLACED_KEYS, _character_to_key, _get_unicode_name_from_key
from textual.pilot import Pilot
from textual.strip import Strip
from textual.widget import Widget

from kmemwatch.model import Snapshot
from kmemwatch.top.poller import Poller, Refreshed, Update
from kmemwatch.top.rowtable import RowTable
from kmemwatch.top.topapp import TopApp
from kmemwatch.views.rows import frame
from kmemwatch.views.select import select
from tests.unit.fakes import FakeFeed

Make = Callable[[int], Snapshot]


class StillPoller(Poller):
    """Delivers the updates that a test gives it at once, and no others."""

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


class Person:
    """Presses keys and waits until the app has done all that follows, however busy the machine is.

    Textual's own pilot guesses from the processor time of the process, which fails when others take it.
    """

    def __init__(self, pilot: Pilot[None]) -> None:
        self._pilot = pilot
        self._app = pilot.app

    async def press(self, *keys: str) -> None:
        for key in keys:
            self._app.post_message(key_event(key))
            await self.pause()

    async def click(self, selector: str, offset: tuple[int, int]) -> None:
        await self._pilot.click(selector, offset=offset)
        await self.pause()

    async def resize(self, width: int, height: int) -> None:
        await self._pilot.resize_terminal(width, height)
        while tuple(self._app.screen.size) != (width, height):
            await asyncio.sleep(0.005)
        await self.pause()

    async def pause(self) -> None:
        """Wait until no message is queued for a while."""
        quiet = 0
        while quiet < 10 and not self._app._exit:
            await asyncio.sleep(0)
            nodes = [node for screen in self._app.screen_stack for node in (screen, *screen.walk_children())]
            busy = self._app.message_queue_size or any(map(_is_busy, nodes))
            quiet = 0 if busy else quiet + 1


def _is_busy(node: DOMNode) -> bool:
    return bool(node.message_queue_size) or (isinstance(node, Widget) and node._layout_required)


def key_event(key: str) -> events.Key:
    """The event of a key by its name, ``slash``, or by its character, ``/``."""
    if len(key) == 1 and not key.isalnum():
        key = _character_to_key(key)
    try:
        char = unicodedata.lookup(_get_unicode_name_from_key(REPLACED_KEYS.get(key, key)))
    except KeyError:
        char = key if len(key) == 1 else ""
    return events.Key(key, char or None)


def drive(app: TopApp, test: Callable[[Person], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    """Run a test coroutine while the app is on an invisible terminal."""

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            person = Person(pilot)
            await person.pause()
            await test(person)

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
