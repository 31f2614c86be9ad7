# SPDX-License-Identifier: GPL-2.0-only
"""A table of thousands of rows that formats only the visible ones."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from kmemwatch.model import DYING
from kmemwatch.units import UNKNOWN
from kmemwatch.views.fields import Field
from kmemwatch.views.select import RowSelection
from kmemwatch.views.texttable import FittedColumn, Layout, fit, layout

LARGEST_FIRST, SMALLEST_FIRST = "▼", "▲"
_WHEEL_ROWS = 3


class RowTable(Widget, can_focus=True):
    """Header and rows of a selection; the cursor stays on its row when rows move."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "row-table--header",
        "row-table--sorted",
        "row-table--cursor",
        "row-table--unknown",
        "row-table--dying",
    }
    DEFAULT_CSS = """
    RowTable { height: 1fr; }
    RowTable > .row-table--header { text-style: bold; color: $text-muted; }
    RowTable > .row-table--sorted { text-style: bold underline; color: $text-accent; }
    RowTable > .row-table--cursor { text-style: reverse; }
    RowTable > .row-table--unknown { text-style: dim; }
    RowTable > .row-table--dying { color: $text-warning; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "home", "First", show=False),
        Binding("end", "end", "Last", show=False),
        Binding("enter", "choose", "Details", show=False),
    ]

    class Chosen(Message):
        """Enter or a click on the row that has the cursor."""

        def __init__(self, row: Any) -> None:
            super().__init__()
            self.row = row

    class SortBy(Message):
        """A click on a column's header."""

        def __init__(self, field: Field[Any]) -> None:
            super().__init__()
            self.field = field

    class Moved(Message):
        """Other rows are visible now."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._selection: RowSelection | None = None
        self._rows: list[Any] = []
        self._blank = ""
        self._layout: Layout | None = None
        self._cursor = 0
        self._top = 0
        self._held: Hashable = None
        """Identity of the row that a person moved the cursor to; None: the cursor stays on the first row."""

    def put(self, selection: RowSelection | None, found: list[Any] | None, blank: str) -> None:
        """Show these rows, or the text `blank` when there are none."""
        if self._selection is None or selection is None or selection.view is not self._selection.view:
            self._cursor, self._top, self._held = 0, 0, None
        self._selection, self._rows, self._blank = selection, found or [], blank
        self._follow()
        self._arrange()

    @property
    def current(self) -> Any:
        """The row under the cursor; None when there are none."""
        return self._rows[self._cursor] if self._rows else None

    @property
    def extent(self) -> tuple[int, int, int]:
        """(first visible row, last visible row, all rows), counted from 1; 0 when there are none."""
        last = min(self._top + self._visible, len(self._rows))
        return (self._top + 1 if self._rows else 0), last, len(self._rows)

    @property
    def _visible(self) -> int:
        return max(self.size.height - 1, 0)

    def _follow(self) -> None:
        """Put the cursor back on the row it was on."""
        if self._held is not None and self._selection is not None:
            identity = self._selection.view.identity
            for place, row in enumerate(self._rows):
                if identity(row) == self._held:
                    self._cursor = place
                    return
        self._cursor = max(0, min(self._cursor, len(self._rows) - 1))

    def _arrange(self) -> None:
        """Choose columns for the width and keep the cursor in sight."""
        if self._selection is not None:
            self._layout = layout(self._selection.view, max(self.size.width, 1))
        self._top = max(min(self._top, self._cursor), self._cursor - self._visible + 1, 0)
        self._top = min(self._top, max(len(self._rows) - self._visible, 0))
        self.refresh()
        self.post_message(self.Moved())

    def on_resize(self) -> None:
        self._arrange()

    # Cursor

    def _go(self, place: int) -> None:
        if not self._rows or self._selection is None:
            return
        self._cursor = max(0, min(place, len(self._rows) - 1))
        self._held = self._selection.view.identity(self._rows[self._cursor]) if place > 0 else None
        self._arrange()

    def action_move(self, by: int) -> None:
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        self._go(self._cursor + by * max(self._visible - 1, 1))

    def action_home(self) -> None:
        self._go(0)

    def action_end(self) -> None:
        self._go(len(self._rows) - 1)

    def action_choose(self) -> None:
        if self._rows:
            self.post_message(self.Chosen(self.current))

    def on_mouse_scroll_down(self) -> None:
        self._go(self._cursor + _WHEEL_ROWS)

    def on_mouse_scroll_up(self) -> None:
        self._go(self._cursor - _WHEEL_ROWS)

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            field = self._field_at(event.x)
            if field is not None:
                self.post_message(self.SortBy(field))
            return
        place = self._top + event.y - 1
        if place == self._cursor:
            self.action_choose()
        elif place < len(self._rows):
            self._go(place)

    def _field_at(self, x: int) -> Field[Any] | None:
        left = 0
        for column in self._layout.columns if self._layout else ():
            left += column.cells + (self._layout.gap if self._layout else 0)
            if x < left:
                return column.field
        return None

    # Drawing

    def render_line(self, y: int) -> Strip:
        """One line of the screen: the header, a row, or a line of the text for no rows."""
        width = self.size.width
        if not self._rows or self._layout is None:
            return self._blank_line(y, width)
        if y == 0:
            return self._header(self._layout, width)
        place = self._top + y - 1
        if place >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        return self._row(self._layout, place, width)

    def _blank_line(self, y: int, width: int) -> Strip:
        lines = textwrap.wrap(self._blank, max(width - 4, 1))
        text = f"  {lines[y - 1]}" if 0 < y <= len(lines) else ""
        return Strip([Segment(fit(text, width), self.rich_style)], width)

    def _header(self, places: Layout, width: int) -> Strip:
        assert self._selection is not None
        plain = self.get_component_rich_style("row-table--header")
        chosen = self.get_component_rich_style("row-table--sorted")
        descending = self._selection.sort.is_text == self._selection.reverse
        segments: list[Segment] = []
        for column in places.columns:
            is_sorted = column.field.key == self._selection.sort.key
            mark = (LARGEST_FIRST if descending else SMALLEST_FIRST) if is_sorted else ""
            if mark and segments and len(column.field.title) == column.cells:
                segments[-1] = Segment(" " * (places.gap - 1) + mark, chosen)  # the only room is in the gap before it
                mark = ""
            segments.append(_title(column, mark, chosen if is_sorted else plain))
            segments.append(Segment(" " * places.gap, plain))
        return self._strip(segments, places, width, plain)

    def _row(self, places: Layout, place: int, width: int) -> Strip:
        row = self._rows[place]
        base = self.rich_style
        if place == self._cursor:
            base += self.get_component_rich_style("row-table--cursor", partial=True)
            return Strip([Segment(fit(places.row_line(row), width), base)], width)
        unknown = base + self.get_component_rich_style("row-table--unknown", partial=True)
        dying = base + self.get_component_rich_style("row-table--dying", partial=True)
        segments = []
        for column in places.columns:
            cell = column.cell(row)
            text = cell.strip()
            style = unknown if text == UNKNOWN else dying if text == DYING else base
            segments += [Segment(cell, style), Segment(" " * places.gap, base)]
        return self._strip(segments, places, width, base)

    def _strip(self, segments: list[Segment], places: Layout, width: int, style: Style) -> Strip:
        """Exactly one line: without the last gap, and filled to the end."""
        segments.pop()
        used = sum(c.cells for c in places.columns) + places.gap * (len(places.columns) - 1)
        segments.append(Segment(" " * (width - used), style))
        return Strip(segments, width)


def _title(column: FittedColumn, mark: str, style: Style) -> Segment:
    """A column's header, with the mark on the ragged side of its cells."""
    title, is_text = column.field.title, column.field.is_text
    return Segment(fit(title + mark if is_text else mark + title, column.cells, right=not is_text), style)
