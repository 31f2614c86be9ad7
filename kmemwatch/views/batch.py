# SPDX-License-Identifier: GPL-2.0-only
"""What `top` prints at each refresh without a terminal: tables, CSV, NDJSON or JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from kmemwatch.codec import snapshot_to_json
from kmemwatch.model import Snapshot
from kmemwatch.units import rfc3339
from kmemwatch.views.fields import NOTHING
from kmemwatch.views.rows import Frame, frame
from kmemwatch.views.select import RowSelection
from kmemwatch.views.tables import View
from kmemwatch.views.texttable import table


class Printer:
    """Writes refreshes as text; its only state is whether something was written."""

    def __init__(self, selection: RowSelection, scope: str | None, output: str, title: str, cells: int | None) -> None:
        self._selection, self._scope = selection, scope
        self._output, self._title, self._cells = output, title, cells
        self._begun = False
        self.missing: str | None = None
        """Why the last refresh has no rows; one line, because CSV and NDJSON cannot say it."""

    def text(self, before: Snapshot, after: Snapshot | None) -> str:
        """One refresh; without `after` there are no rates."""
        begun, self._begun = self._begun, True
        shown = frame(before, after, self._scope) if after is not None else frame(None, before, self._scope)
        if self._output == "json":
            return snapshot_to_json(shown.snapshot, indent=2).decode() + "\n"
        view = self._selection.view
        if self._output in ("csv", "ndjson"):
            known = view.rows(shown) is not None
            self.missing = None if known else f"{view.name}: {view.missing(shown.snapshot)}"
        if self._output == "ndjson":
            return ndjson_rows(shown, self._selection)
        if self._output == "csv":
            return ("" if begun else csv_header(self._selection.view)) + csv_rows(shown, self._selection)
        return ("\n" if begun else "") + table(shown, self._selection, self._cells, title=self._title)


TIME_COLUMN = "taken_at"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are wide forms of the first; some spreadsheets take them for the same."""


def csv_header(view: View[Any]) -> str:
    """Column names; the same for every host and kernel."""
    return _csv([[TIME_COLUMN, *(f.key for f in view.fields)]])


def csv_rows(shown: Frame, selection: RowSelection) -> str:
    """One line a row; an unknown value is an empty cell."""
    taken_at = rfc3339(shown.snapshot.taken_at_ns)
    fields = selection.view.fields
    return _csv([[taken_at, *(_cell(f.exact(row)) for f in fields)] for row in selection.rows(shown) or ()])


def _cell(value: float | str | None) -> float | str | None:
    """Puts a quote before text that a spreadsheet would take for a formula, or that begins with a quote."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) and value != NOTHING else value


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def ndjson_rows(shown: Frame, selection: RowSelection) -> str:
    """One JSON object a row; an unknown value is null."""
    snapshot, view = shown.snapshot, selection.view
    common = {
        TIME_COLUMN: rfc3339(snapshot.taken_at_ns),
        "host": snapshot.host.hostname,
        "view": view.name,
        "interval_s": shown.rates.interval_s,
    }
    return "".join(
        json.dumps({**common, **{f.key: f.exact(row) for f in view.fields}}, ensure_ascii=False) + "\n"
        for row in selection.rows(shown) or ()
    )
