# SPDX-License-Identifier: GPL-2.0-only
"""Text that takes an exact number of terminal cells, whatever it is made of.

Expects text that `units.printable` has passed, so there are no control characters, joiners or unassigned
code points left: a character takes 0, 1 or 2 cells.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

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
