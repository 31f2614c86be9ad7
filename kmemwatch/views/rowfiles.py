# SPDX-License-Identifier: GPL-2.0-only
"""Rows of a view for programs: CSV and NDJSON, every field at full precision, names with their unit."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from kmemwatch.units import printable, rfc3339
from kmemwatch.views.measures import NOTHING
from kmemwatch.views.rows import Frame
from kmemwatch.views.select import Selection
from kmemwatch.views.views import View

TIME_COLUMN = "taken_at"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the wide forms of the first, which some spreadsheets take for the same."""


def csv_header(view: View[Any]) -> str:
    """Column names; the same for every host and kernel."""
    return _csv([[TIME_COLUMN, *(f.key for f in view.fields)]])


def csv_rows(shown: Frame, selection: Selection) -> str:
    """One line a row; an unknown value is an empty cell."""
    taken_at = rfc3339(shown.snapshot.taken_at_ns)
    fields = selection.view.fields
    return _csv([[taken_at, *(_cell(f.exact(row)) for f in fields)] for row in selection.rows(shown) or ()])


def _cell(value: float | str | None) -> float | str | None:
    """Text that a spreadsheet would take for a formula gets a quote before it, and text with such a quote another."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) and value != NOTHING else value


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def ndjson_rows(shown: Frame, selection: Selection) -> str:
    """One JSON object a row; an unknown value is null."""
    snapshot, view = shown.snapshot, selection.view
    common = {
        TIME_COLUMN: rfc3339(snapshot.taken_at_ns),
        "host": printable(snapshot.host.hostname),
        "view": view.name,
        "interval_s": shown.rates.interval_s,
    }
    return "".join(
        json.dumps({**common, **{f.key: f.exact(row) for f in view.fields}}, ensure_ascii=False) + "\n"
        for row in selection.rows(shown) or ()
    )
