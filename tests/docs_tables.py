# SPDX-License-Identifier: GPL-2.0-only
"""Writes the reference tables of docs/interfaces.md from the model and the metrics: ``make docs``.

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; everything else in the file is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kmemwatch.exporter.daemon import DAEMON_METRICS
from kmemwatch.exporter.metrics import METRICS, MetricTable
from kmemwatch.views.fields import Field
from kmemwatch.views.tables import VIEWS

INTERFACES = Path(__file__).parents[1] / "docs/interfaces.md"
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n\n).*?(?=\n<!-- end -->)", re.DOTALL)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def metrics() -> str:
    """All metrics, by name."""
    tables: tuple[MetricTable[Any, Any], ...] = (*METRICS, *DAEMON_METRICS)
    rows = [
        (f"`{field.metric}`", field.kind, ", ".join(f"`{name}`" for name in table.labels), field.help)
        for table in tables
        for field in table.fields
    ]
    return _table(("metric", "type", "labels", "what"), sorted(rows))


def rows_of(fields: Iterable[Field[Any]]) -> str:
    """All fields of the rows of a view, in the order of the file."""
    return _table(("key", "unit", "column", "what"), ((f"`{f.key}`", f.unit, f.title, f.help) for f in fields))


def tables() -> dict[str, str]:
    """Name -> the table."""
    return {"metrics": metrics(), **{f"rows-{view.name}": rows_of(view.fields) for view in VIEWS}}


def filled(text: str) -> str:
    """`text` with its tables as they are now. Raises KeyError for a table that there is not."""
    found = tables()
    return _TABLE.sub(lambda match: match[1] + found[match[2]], text)


def main() -> None:
    """Fill the tables."""
    INTERFACES.write_text(filled(INTERFACES.read_text()))


if __name__ == "__main__":
    main()
