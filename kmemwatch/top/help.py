# SPDX-License-Identifier: GPL-2.0-only
"""Help: keys, the columns of the view that is open, and the meaning of signs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from kmemwatch.views.tables import VIEWS, View

KEYS = (
    ("Tab, Shift+Tab", "next, previous view"),
    ("s > , S <", "sort by the next, previous column; R reverses the order"),
    ("o", "in the view cgroups: figures of each cgroup itself, or with its child cgroups"),
    ("/", "filter by a regular expression; Esc clears it"),
    ("Enter", "everything about the row under the cursor"),
    ("up down PgUp PgDn", "move; Home goes to the top and stays there"),
    ("Space", "pause: the screen stands still, counting goes on"),
    ("+ -", "refresh less, more often"),
    ("? h", "this help"),
    ("q Ctrl+C", "quit"),
)
SIGNS = (
    ("?", "this kernel, or these privileges, cannot tell; never the same as 0"),
    ("-", "known to be none"),
    (">10m", "at least this long: it was removed before kmemwatch was attached"),
    ("dying", "rmdir is done, but something still pins it: see the zombies view"),
    ("lost", "what the kernel did and could not be counted; 0 means the figures are complete"),
)
_NAME_CELLS = 18


def help_text(view: View[Any], width: int) -> Text:
    """Keys, columns of the view, signs; meanings are wrapped in a column of their own."""
    text = Text(end="")
    _section(text, "Keys", [*((v.letter, f"{v.name}: {v.help}") for v in VIEWS), *KEYS], width)
    _section(text, f"Columns of {view.name}", [(f.title, f.help) for f in view.columns], width)
    _section(text, "Signs", SIGNS, width)
    return text


def _section(text: Text, title: str, lines: Sequence[tuple[str, str]], width: int) -> None:
    text.append(f"{title}\n", "bold underline")
    for name, meaning in lines:
        wrapped = textwrap.wrap(meaning, max(width - _NAME_CELLS - 2, 20))
        text.append(f"  {name:<{_NAME_CELLS}}", "bold")
        text.append(("\n" + " " * (_NAME_CELLS + 2)).join(wrapped) + "\n")
    text.append("\n")


class HelpScreen(ModalScreen[None]):
    """Closes with any of the keys that opened it."""

    DEFAULT_CSS = """
    HelpScreen { background: $background; }
    HelpScreen > #help-title { height: 1; background: $panel; text-style: bold; }
    HelpScreen > VerticalScroll { padding: 0 1; }
    HelpScreen > #help-keys { height: 1; background: $panel; color: $text-muted; dock: bottom; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,h,question_mark,enter", "app.pop_screen", "Back", show=False, priority=True),
    ]

    def __init__(self, view: View[Any]) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        yield Static(" kmemwatch top", id="help-title")
        with VerticalScroll():
            yield Static(id="help-text")
        yield Static(" Esc:back  up/down:scroll", id="help-keys")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        self.query_one("#help-text", Static).update(help_text(self._view, self.size.width - 4))
