# SPDX-License-Identifier: GPL-2.0-only
"""The screen of `top`: takes frames from the poller, shows one view of them, and handles keys."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from kmemwatch.errors import KmemwatchError
from kmemwatch.top import status
from kmemwatch.top.details import DetailsScreen
from kmemwatch.top.help import HelpScreen
from kmemwatch.top.poller import Ended, Failed, Poller, Refreshed, Update
from kmemwatch.top.rowtable import RowTable
from kmemwatch.units import one_line
from kmemwatch.views.rows import Frame
from kmemwatch.views.select import RowSelection, find_view, select
from kmemwatch.views.tables import CGROUPS, CGROUPS_OWN, VIEWS

DELAYS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


class TopApp(App[None]):
    """Ends by itself when the feed fails; `failure` then says why, for the caller to raise."""

    TITLE = "kmemwatch top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #watched { height: 1; background: $panel; }
    #totals { height: 1; }
    #summary { height: auto; max-height: 2; padding: 0 1; display: none; }
    #notice { height: auto; max-height: 2; color: $text-warning; padding: 0 1; display: none; }
    #bar { height: 1; margin-top: 0; }
    #tabs { width: 48; link-style: none; link-color: $text; link-background: transparent; link-style-hover: bold; }
    #chosen { width: 1fr; text-align: right; }
    #keys { height: 1; dock: bottom; background: $panel; color: $text-muted; }
    #filter { height: 1; dock: bottom; border: none; padding: 0 1; background: $panel; display: none; }
    #filter.-wrong { color: $text-error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(view.letter, f"view('{view.name}')", view.name, show=False) for view in VIEWS),
        Binding("tab", "next_view(1)", "Next view", show=False, priority=True),
        Binding("shift+tab", "next_view(-1)", "Previous view", show=False, priority=True),
        Binding("s,greater_than_sign", "sort(1)", "Sort by the next column", show=False),
        Binding("S,less_than_sign", "sort(-1)", "Sort by the previous column", show=False),
        Binding("R", "reverse", "Reverse the order", show=False),
        Binding("o", "own", "Figures of each cgroup itself, or with its children", show=False),
        Binding("slash", "filter", "Filter", show=False),
        Binding("space", "pause", "Pause", show=False),
        Binding("plus,equals_sign", "delay(1)", "Refresh less often", show=False),
        Binding("minus", "delay(-1)", "Refresh more often", show=False),
        Binding("h,question_mark", "help", "Help", show=False),
        Binding("escape", "escape", "Leave the filter", show=False),
        Binding("q", "quit", "Quit", show=False),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    class Polled(Message):
        """News from the poller, posted from its thread."""

        def __init__(self, update: Update) -> None:
            super().__init__()
            self.update = update

    def __init__(
        self,
        poller: Poller,
        selection: RowSelection,
        *,
        opening: str = "attaching…",
        refreshes: int | None = None,
        signals: Sequence[signal.Signals] = (),
    ) -> None:
        super().__init__()
        self.failure: Exception | None = None
        """The error that ended it; None when a person or a signal did."""
        self._poller = poller
        self._opening = opening
        self._refreshes = refreshes
        self._signals = signals
        self._selections = {view.name: select(view.name) for view in VIEWS}
        self._selections[selection.view.name] = selection
        self._view = selection.view.name
        self._frame: Frame | None = None
        self._latest: Refreshed | None = None
        self._how = status.Running("", poller.delay_s, paused=False, ended=False)
        self._ended_notice: str | None = None
        self._before_filter: RowSelection | None = None

    # Life

    def compose(self) -> ComposeResult:
        yield Static(id="watched")
        yield Static(id="totals")
        yield Static(id="summary")
        yield Static(id="notice")
        with Horizontal(id="bar"):
            yield Static(id="tabs")
            yield Static(id="chosen")
        yield RowTable(id="rows")
        line = Input(id="filter", placeholder="regular expression, then Enter; Esc cancels", compact=True)
        line.cursor_blink = False
        yield line
        yield Static(f" {status.KEYS}", id="keys")

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in self._signals:
            loop.add_signal_handler(signum, self.exit)
        self.query_one(RowTable).focus()
        self._draw()
        self._poller.listen(self._hear)

    def _hear(self, update: Update) -> None:
        self.post_message(self.Polled(update))  # may be called from any thread

    def _handle_exception(self, error: Exception) -> None:
        # Textual would print a traceback; the command line says it in one line.
        self.failure = self.failure or error
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        self._return_code = 1
        self._close_messages_no_wait()

    @on(Polled)
    def _polled(self, message: Polled) -> None:
        update = message.update
        if self._exit or not self.is_running:
            return  # the screen is closing, and the poller does not know yet
        if isinstance(update, Failed):
            self.failure = update.error
            self.exit(return_code=1)
        elif isinstance(update, Ended):
            self._how = replace(self._how, ended=True)
            self._ended_notice = update.notice
            self._draw()
        else:
            self._refreshed(update)

    def _refreshed(self, update: Refreshed) -> None:
        self._latest = update
        self._how = replace(self._how, title=update.title)
        if not self._how.paused:
            self._frame = update.frame
            self._draw()
            for screen in self.screen_stack:
                if isinstance(screen, DetailsScreen):
                    screen.put(update.frame)
        if self._refreshes is not None and update.frame.rates.interval_s is not None:
            self._refreshes -= 1
            if self._refreshes <= 0:
                self.exit()

    # Drawing

    @property
    def selection(self) -> RowSelection:
        """Of the view that is open."""
        return self._selections[self._view]

    def _main(self, selector: str) -> Static:
        """A line of the main screen, also while another screen covers it."""
        return self.screen_stack[0].query_one(selector, Static)

    def _draw(self) -> None:
        shown, selection = self._frame, self.selection
        table = self.screen_stack[0].query_one(RowTable)
        self._main("#tabs").update(status.tabs(selection.view))
        if shown is None:
            self._main("#watched").update(Text(" kmemwatch", status.STRONG, end=""))
            table.put(selection, None, self._opening)
            return
        self._main("#watched").update(status.watched(shown.snapshot, self._how))
        self._main("#totals").update(status.totals(shown, self._how))
        self._line("#summary", selection.view.summary(shown))
        self._notices(shown, selection)
        found = selection.rows(shown)
        if found is None:
            blank = selection.view.missing(shown.snapshot)
        else:
            blank = "no name matches the filter; Esc clears it" if selection.pattern else selection.view.empty
        table.put(selection, found, blank)

    def _notices(self, shown: Frame, selection: RowSelection) -> None:
        notice = self._latest.notice if self._latest else None
        lines = dict.fromkeys(n for n in (self._ended_notice, notice, selection.view.note(shown)) if n)
        self._line("#notice", one_line("; ".join(lines)))

    def _line(self, selector: str, text: str | None) -> None:
        line = self._main(selector)
        line.display = bool(text)
        line.update(Text(text or "", end=""))

    @on(RowTable.Moved)
    def _moved(self, message: RowTable.Moved) -> None:
        if self.is_running:
            self._draw_chosen()

    def _draw_chosen(self) -> None:
        main = self.screen_stack[0]
        typo = main.query_one(Input).has_class("-wrong")
        text = status.chosen(self.selection, main.query_one(RowTable).extent, typo)
        self._main("#chosen").update(text)

    def _choose(self, selection: RowSelection) -> None:
        self._selections[self._view] = selection
        self._draw()

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of the table do nothing while help or details are open, and Tab does nothing while a filter is typed."""
        own = {"view", "next_view", "sort", "reverse", "own", "filter", "pause", "delay", "help", "escape"}
        busy = len(self.screen_stack) > 1 or (action == "next_view" and self._before_filter is not None)
        return not (action in own and busy)

    def action_view(self, name: str) -> None:
        self._view = find_view(name).name
        self._draw()

    def action_next_view(self, by: int) -> None:
        names = [view.name for view in VIEWS]
        self.action_view(names[(names.index(self._view) + by) % len(names)])

    def action_sort(self, by: int) -> None:
        fields = self.selection.view.columns
        keys = [field.key for field in fields]
        here = keys.index(self.selection.sort.key) if self.selection.sort.key in keys else -1
        self._choose(replace(self.selection, sort=fields[(here + by) % len(fields)], reverse=False))

    def action_reverse(self) -> None:
        self._choose(replace(self.selection, reverse=not self.selection.reverse))

    def action_own(self) -> None:
        """Switch between figures of each cgroup itself and those with its children, in the view of cgroups."""
        before = self._selections[CGROUPS.name]
        if self._view != CGROUPS.name:
            return
        view = CGROUPS if before.view is CGROUPS_OWN else CGROUPS_OWN
        field = view.field(view.sort if before.sort.key == before.view.sort else before.sort.key)
        assert field is not None
        self._choose(replace(before, view=view, sort=field))

    @on(RowTable.SortBy)
    def _sort_by(self, message: RowTable.SortBy) -> None:
        same = self.selection.sort.key == message.field.key
        self._choose(replace(self.selection, sort=message.field, reverse=same and not self.selection.reverse))

    def action_pause(self) -> None:
        self._how = replace(self._how, paused=not self._how.paused)
        if not self._how.paused and self._latest is not None:
            self._frame = self._latest.frame
        self._draw()

    def action_delay(self, by: int) -> None:
        now = self._poller.delay_s
        others: Iterable[float] = (d for d in DELAYS_S if (d > now if by > 0 else d < now))
        self._poller.delay_s = (min if by > 0 else max)(others, default=now)
        self._how = replace(self._how, delay_s=self._poller.delay_s)
        self._draw()

    def action_help(self) -> None:
        self.push_screen(HelpScreen(self.selection.view))

    @on(RowTable.Chosen)
    def _details(self, message: RowTable.Chosen) -> None:
        if self._frame is not None:
            self.push_screen(DetailsScreen(self.selection.view, message.row, self._frame))

    # Filter

    def action_filter(self) -> None:
        self._before_filter = self.selection
        line = self.query_one(Input)
        line.display, self._main("#keys").display = True, False
        line.value = self.selection.pattern.pattern if self.selection.pattern else ""
        line.focus()

    @on(Input.Changed)
    def _preview(self, message: Input.Changed) -> None:
        if self._before_filter is None:
            return
        try:
            self._choose(self.selection.matching(message.value))
            message.input.remove_class("-wrong")
        except KmemwatchError:  # invalid, or RE2 is not installed
            message.input.add_class("-wrong")  # half-typed; the last good one stays
        self._draw_chosen()

    @on(Input.Submitted)
    def _accept(self) -> None:
        self._leave_filter()

    def action_escape(self) -> None:
        """While typing, restore the filter from before; else remove it."""
        if self._before_filter is not None:
            self._choose(self._before_filter)
            self._leave_filter()
        elif self.selection.pattern is not None:
            self._choose(self.selection.matching(None))

    def _leave_filter(self) -> None:
        self._before_filter = None
        line = self.query_one(Input)
        line.remove_class("-wrong")
        line.display, self._main("#keys").display = False, True
        self.query_one(RowTable).focus()
