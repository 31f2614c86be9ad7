# SPDX-License-Identifier: GPL-2.0-only
"""Everything about one row: all its fields, and a table of its caches, its cgroups or what keeps it."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from kmemwatch.model import DYING, Cgroup
from kmemwatch.shape import BYTES, BYTES_PER_S, TEXT
from kmemwatch.top.rowtable import RowTable
from kmemwatch.units import UNKNOWN
from kmemwatch.views.fields import Field
from kmemwatch.views.rows import CacheRow, CgroupRow, Frame, IdRow, ZombieRow, cgroup_row, zombie_row
from kmemwatch.views.select import RowSelection
from kmemwatch.views.subtables import caches_of, caches_with, cgroups_of, dying_children_of, slabs_of
from kmemwatch.views.tables import CGROUPS, ZOMBIES, View
from kmemwatch.views.texttable import fit

TITLE_CELLS = 15


def below(row: Any) -> View[Any] | None:
    """The table below a row: caches of a cgroup, or what keeps a dying one; cgroups of a cache; caches of an id."""
    if isinstance(row, CacheRow):
        return cgroups_of((row.cache.name, row.cache.id))
    if isinstance(row, CgroupRow | ZombieRow):
        return _below_cgroup(row.cgroup)
    return caches_with(row.id.kmemcg_id) if isinstance(row, IdRow) else None


def _below_cgroup(cgroup: Cgroup) -> View[Any]:
    if cgroup.state == DYING and cgroup.dying_children and not cgroup.child_slabs:
        return dying_children_of(cgroup.id)
    return caches_of(cgroup.id) if cgroup.child_slabs is None else slabs_of(cgroup.id)


def field_text(field: Field[Any], row: Any) -> str:
    """A figure in the units that a person reads, with the exact number where these round."""
    text = field.text(row)
    value = field.get(row)
    if field.unit in (BYTES, BYTES_PER_S) and isinstance(value, int | float) and abs(value) >= 1024:
        return f"{text} ({value:,.0f})"
    return text


def figures(view: View[Any], row: Any, shown: Frame) -> list[tuple[Field[Any], Any]]:
    """All fields of a row, each with the object to read it from; a dying cgroup has the fields of both its views."""
    found = [(field, row) for field in view.fields]
    if isinstance(row, CgroupRow | ZombieRow):
        cgroup = row.cgroup
        if isinstance(row, ZombieRow):
            other: Any = cgroup_row(shown, cgroup)
            found += [(field, other) for field in CGROUPS.fields]
        elif cgroup.state == DYING:
            other = zombie_row(shown, cgroup)
            found += [(field, other) for field in ZOMBIES.fields]
    first: dict[str, tuple[Field[Any], Any]] = {}
    for field, item in found:
        first.setdefault(field.key, (field, item))
    if view.label(row) == view.columns[0].text(row):
        first.pop(view.columns[0].key)  # the title of the screen shows it
    if "age_at_least_s" in first:
        first.pop("age_s")  # the other age says the same
    return list(first.values())


def facts(found: list[tuple[Field[Any], Any]], width: int) -> Text:
    """Long texts on lines of their own, figures in two columns where there is room."""
    long = [item for item in found if item[0].unit == TEXT and item[0].width >= 16]
    short = [item for item in found if item not in long]
    text = Text(no_wrap=True, overflow="crop", end="")
    for item in long:
        _fact(text, *item, width)
        text.append("\n")
    columns = 2 if width >= 60 else 1
    rows = -(-len(short) // columns)
    for place in range(rows):
        for item in short[place::rows]:
            _fact(text, *item, width // columns)
        text.append("\n")
    return text


def _fact(text: Text, field: Field[Any], row: Any, cells: int) -> None:
    text.append(fit(field.title, TITLE_CELLS) + " ", "dim")
    value = field_text(field, row)
    text.append(fit(value, max(cells - TITLE_CELLS - 2, 1), keep_tail="/" in value) + " ")


class DetailsScreen(ModalScreen[None]):
    """Follows its row while it is open; keeps the last state of a row that is gone."""

    DEFAULT_CSS = """
    DetailsScreen { background: $background; }
    DetailsScreen > #details-title { height: 1; background: $panel; text-style: bold; }
    DetailsScreen > #details-facts { height: auto; max-height: 60%; padding: 0 1; }
    DetailsScreen > #details-part { height: 1; color: $text-muted; padding: 0 1; }
    DetailsScreen > #details-keys { height: 1; background: $panel; color: $text-muted; dock: bottom; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,backspace", "app.pop_screen", "Back", show=False, priority=True),
    ]

    def __init__(self, view: View[Any], row: Any, shown: Frame) -> None:
        super().__init__()
        self._view, self._row, self._frame = view, row, shown
        self._gone = False
        self._selection: RowSelection | None = None
        self._choose_part()

    def _choose_part(self) -> None:
        """The table below changes when a cgroup dies, and when more becomes known about it."""
        part, now = below(self._row), self._selection
        if part is None or (now is not None and now.view.name == part.name):
            return
        field = part.field(part.sort)
        assert field is not None
        self._selection = RowSelection(part, field)

    def compose(self) -> ComposeResult:
        yield Static(id="details-title")
        yield Static(id="details-facts")
        yield Static(id="details-part")
        yield RowTable(id="details-table")
        yield Static(" Esc:back  up/down:scroll", id="details-keys")

    def on_mount(self) -> None:
        self.query_one(RowTable).focus()
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def on_row_table_chosen(self, event: RowTable.Chosen) -> None:
        event.stop()  # there is nothing below this

    def on_row_table_sort_by(self, event: RowTable.SortBy) -> None:
        event.stop()
        if self._selection is not None:
            same = self._selection.sort.key == event.field.key
            self._selection = RowSelection(self._selection.view, event.field, same and not self._selection.reverse)
            self._draw()

    def put(self, shown: Frame) -> None:
        """A newer state."""
        self._frame = shown
        identity = self._view.identity
        wanted = identity(self._row)
        now = next((row for row in self._view.rows(shown) or () if identity(row) == wanted), None)
        self._gone = now is None
        if now is not None:
            self._row = now
            self._choose_part()
        if self.is_mounted:  # else it draws itself once it is
            self._draw()

    def _draw(self) -> None:
        gone = "  (gone: these are its last figures)" if self._gone else ""
        label = self._view.label(self._row)
        name = fit(label, max(self.size.width - len(gone) - 2, 1), keep_tail=label.startswith("/"))
        self.query_one("#details-title", Static).update(Text(f" {name.rstrip()}{gone}", end=""))
        found = figures(self._view, self._row, self._frame)
        self.query_one("#details-facts", Static).update(facts(found, max(self.size.width - 2, 20)))
        table = self.query_one(RowTable)
        part = self.query_one("#details-part", Static)
        part.display = table.display = self._selection is not None
        if self._selection is None:
            return
        view = self._selection.view
        rows = self._selection.rows(self._frame)
        part.update(Text(f"{view.name}: {UNKNOWN if rows is None else len(rows)}", end=""))
        table.put(self._selection, rows, view.missing(self._frame.snapshot) if rows is None else view.empty)
