# SPDX-License-Identifier: GPL-2.0-only
"""What `top` prints at one refresh when nobody looks at a terminal."""

from __future__ import annotations

from kmemwatch.codec import snapshot_to_json
from kmemwatch.model import Snapshot
from kmemwatch.units import printable
from kmemwatch.views.rowfiles import csv_header, csv_rows, ndjson_rows
from kmemwatch.views.rows import frame
from kmemwatch.views.select import Selection
from kmemwatch.views.texttable import table


class Printer:
    """Turns refreshes into the text of one output; remembers only whether it has begun."""

    def __init__(self, selection: Selection, scope: str | None, output: str, title: str, cells: int | None) -> None:
        self._selection, self._scope = selection, scope
        self._output, self._title, self._cells = output, title, cells
        self._begun = False
        self.missing: str | None = None
        """Why the rows of the last refresh cannot be had; one line, for csv and ndjson cannot say it."""

    def text(self, before: Snapshot, after: Snapshot | None) -> str:
        """The refresh that `after` makes; None: there is only `before`, so no rate is known."""
        begun, self._begun = self._begun, True
        shown = frame(before, after, self._scope) if after is not None else frame(None, before, self._scope)
        if self._output == "json":
            return snapshot_to_json(shown.snapshot, indent=2) + "\n"
        view = self._selection.view
        if self._output in ("csv", "ndjson"):
            known = view.rows(shown) is not None
            self.missing = None if known else f"{view.name}: {printable(view.missing(shown.snapshot))}"
        if self._output == "ndjson":
            return ndjson_rows(shown, self._selection)
        if self._output == "csv":
            return ("" if begun else csv_header(self._selection.view)) + csv_rows(shown, self._selection)
        return ("\n" if begun else "") + table(shown, self._selection, self._cells, title=self._title)
