# SPDX-License-Identifier: GPL-2.0-only
"""Plain tables: the columns that fit, a header, rows, totals; text that takes an exact number of terminal cells."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kmemwatch.model import LATENCY_KINDS, Snapshot
from kmemwatch.units import UNKNOWN, bytes_human, count_human, one_line, seconds_human
from kmemwatch.views import derived
from kmemwatch.views.fields import SEPARATOR, Field
from kmemwatch.views.rows import Frame
from kmemwatch.views.select import RowSelection
from kmemwatch.views.tables import View

GAP, WIDE_GAP = 1, 2
"""Cells between columns: two where every column fits with them."""
_NAME_AT_LEAST = 10
_LONG = 20
"""A text column of that width holds paths or lists, and gets more room if there is some."""
_TIMED = dict(zip(LATENCY_KINDS, ("allocation", "with a check", "check"), strict=True))


@dataclass(frozen=True, slots=True)
class FittedColumn:
    field: Field[Any]
    cells: int

    def header(self, mark: str = "") -> str:
        """Title, padded; `mark` shows that the table is sorted by it."""
        return fit(self.field.title + mark, self.cells, right=not self.field.is_text)

    def cell(self, row: Any) -> str:
        """One cell, padded or cut: a path loses its beginning, other text its end."""
        text = self.field.text(row)
        return fit(text, self.cells, right=not self.field.is_text, keep_tail="/" in text)


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns that fit a width, and the space between them."""

    columns: tuple[FittedColumn, ...]
    gap: int

    def header_line(self) -> str:
        """Titles, without trailing spaces."""
        return (" " * self.gap).join(c.header() for c in self.columns).rstrip()

    def row_line(self, row: Any) -> str:
        """One row, without trailing spaces."""
        return (" " * self.gap).join(c.cell(row) for c in self.columns).rstrip()


def layout(view: View[Any], cells: int) -> Layout:
    """Columns of a view that fit. The highest rank is dropped first; long texts share the room that is left."""
    fields = list(view.columns)
    gap = WIDE_GAP if _needed(fields, WIDE_GAP) <= cells else GAP
    while len(fields) > 1 and _needed(fields, gap) > cells and (least := max(fields, key=lambda f: f.rank)).rank > 0:
        fields.remove(least)
    while len(fields) > 1 and _needed(fields, gap, _NAME_AT_LEAST) > cells:
        fields.pop()  # narrower than any real terminal: fewer columns are better than broken ones
    spare = cells - _needed(fields, gap)
    widths = [f.width for f in fields]
    if spare < 0:
        widths[0] = max(1, widths[0] + spare)
    else:
        _share(fields, widths, spare)
    return Layout(tuple(FittedColumn(f, w) for f, w in zip(fields, widths, strict=True)), gap)


def natural_layout(view: View[Any], found: Sequence[Any]) -> Layout:
    """All columns, as wide as their contents: for files and pipes, where nothing may be cut."""
    columns = [FittedColumn(f, max([width(f.title), *(width(f.text(row)) for row in found)])) for f in view.columns]
    return Layout(tuple(columns), WIDE_GAP)


def _needed(fields: Sequence[Field[Any]], gap: int, name_at_most: int = 1 << 30) -> int:
    name = min(fields[0].width, name_at_most)
    return name + sum(f.width for f in fields[1:]) + gap * (len(fields) - 1)


def _share(fields: Sequence[Field[Any]], widths: list[int], spare: int) -> None:
    """Give spare cells to long texts, the name first, up to their maximum width."""
    long_texts = [n for n, f in enumerate(fields) if n == 0 or (f.is_text and f.about.min_width >= _LONG)]
    for turn, place in enumerate(long_texts):
        most = fields[place].about.max_width or 1 << 30
        extra = min(spare // (len(long_texts) - turn), max(0, most - widths[place]))
        widths[place] += extra
        spare -= extra
    if not fields[0].about.max_width:
        widths[0] += spare


def summary(shown: Frame) -> str:
    """Totals: memcgs, kernel memory, losses."""
    snapshot = shown.snapshot
    online, dying = count_human(derived.online_count(snapshot)), count_human(derived.dying_count(snapshot))
    parts = [
        f"memcgs {online} online, {dying} dying",
        f"kernel memory {bytes_human(kernel_bytes(shown))}" + (f" in {shown.scope}" if shown.scope else ""),
        *timed(snapshot),
        f"lost {count_human(snapshot.lost.total)}",
    ]
    return SEPARATOR.join(parts)


def timed(snapshot: Snapshot) -> Iterator[str]:
    """Mean time of an allocation and of a recharge check since the start; nothing unless they are timed."""
    means = derived.mean_latency_ns(snapshot)
    if means is None:
        return
    yield ", ".join(f"{_TIMED[kind]} {UNKNOWN if ns is None else f'{ns:,.0f} ns'}" for kind, ns in means.items())


def kernel_bytes(shown: Frame) -> int | None:
    """Kernel memory of the scope, or of the root cgroup, children included."""
    path = shown.scope or "/"
    return next((c.kernel_bytes for c in shown.snapshot.cgroups if c.path == path), None)


def heading(snapshot: Snapshot, title: str) -> str:
    """Host, kernel, and how long kmemwatch is attached."""
    return SEPARATOR.join(
        (
            f"kmemwatch {snapshot.host.hostname}",
            f"kernel {snapshot.host.kernel} ({snapshot.kernel.era or 'unknown era'})",
            f"attached {seconds_human(snapshot.duration_s)}",
            one_line(title),
        )
    )


def table(shown: Frame, selection: RowSelection, cells: int | None, *, title: str) -> str:
    """Heading, totals and the table; ends with a newline.

    Lines have at most `cells` cells; None: all columns, and nothing is cut.
    """
    lines = [heading(shown.snapshot, title), summary(shown)]
    view = selection.view
    found = selection.rows(shown)
    if (totals := view.summary(shown)) is not None:
        lines.append(totals)
    if (note := view.note(shown)) is not None:
        lines.append(f"note: {note}")
    lines.append("")
    if found is None:
        lines.append(f"{view.name}: {view.missing(shown.snapshot)}")
    elif not found:
        lines.append(f"({'no name matches the filter' if selection.pattern else view.empty})")
    else:
        places = natural_layout(view, found) if cells is None else layout(view, cells)
        lines.append(places.header_line())
        lines.extend(places.row_line(row) for row in found)
    return "".join(f"{line}\n" for text in lines for line in _wrap(text, cells))


def _wrap(text: str, cells: int | None) -> list[str]:
    """Lines of at most `cells` cells, broken at spaces; a longer word is cut."""
    if cells is None or width(text) <= cells:
        return [text]
    return [fit(line, cells).rstrip() for line in textwrap.wrap(text, cells, break_long_words=False)]


ELLIPSIS = "…"
_SKIN_TONES = range(0x1F3FB, 0x1F400)


@lru_cache(4096)
def char_width(char: str) -> int:
    """Cells of one printable character: 0 for combining marks, 2 for wide ones."""
    if unicodedata.category(char)[0] == "M" or ord(char) in _SKIN_TONES:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def width(text: str) -> int:
    """Cells that the text takes."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def fit(text: str, cells: int, *, right: bool = False, keep_tail: bool = False) -> str:
    """Exactly `cells` cells: padded, or cut with an ellipsis; `keep_tail` cuts the beginning away.

    The end of a path says more than its beginning.
    """
    used = width(text)
    if used > cells:
        text = cut_head(text, cells) if keep_tail else cut_tail(text, cells)
        used = width(text)
    padding = " " * (cells - used)
    return padding + text if right else text + padding


def cut_tail(text: str, cells: int) -> str:
    """The beginning and an ellipsis, at most `cells` cells."""
    if cells < 1:
        return ""
    kept, used = [], 0
    for char in text:
        used += char_width(char)
        if used > cells - 1:
            break
        kept.append(char)
    return "".join(kept) + ELLIPSIS


def cut_head(text: str, cells: int) -> str:
    """An ellipsis and the end, at most `cells` cells; never begins with a mark that lost its letter."""
    if cells < 1:
        return ""
    start, used = len(text), 0
    while start > 0 and used + char_width(text[start - 1]) <= cells - 1:
        start -= 1
        used += char_width(text[start])
    while start < len(text) and char_width(text[start]) == 0:
        start += 1
    return ELLIPSIS + text[start:]
