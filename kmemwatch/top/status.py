# SPDX-License-Identifier: GPL-2.0-only
"""The lines around the table: host and probes, totals, tabs, keys; pure except for Rich's Text."""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style
from rich.text import Text

from kmemwatch.model import ABSENT, MISSING, Snapshot
from kmemwatch.units import count_human, printable
from kmemwatch.views.fields import SEPARATOR
from kmemwatch.views.rows import Frame
from kmemwatch.views.select import RowSelection
from kmemwatch.views.tables import VIEWS, View
from kmemwatch.views.texttable import summary

BAD = Style(color="red", bold=True, reverse=True)
WARN = Style(color="yellow", bold=True)
STRONG = Style(bold=True)
DIM = Style(dim=True)
ACTIVE = Style(reverse=True, bold=True)

KEYS = "?:help  /:filter  s:sort  Enter:details  Tab:view  Space:pause  q:quit"


@dataclass(frozen=True, slots=True)
class Running:
    """How the screen is fed."""

    title: str
    delay_s: float
    paused: bool
    ended: bool


def watched(snapshot: Snapshot, running: Running) -> Text:
    """Host, kernel, losses, probes, delay, source."""
    kernel = f"{snapshot.host.kernel} ({snapshot.kernel.era or 'era ?'})"
    parts = [
        Text(snapshot.host.hostname, STRONG),
        Text(kernel),
        _lost(snapshot),
        _probes(snapshot),
        Text(f"every {running.delay_s:g}s"),
        Text(printable(running.title)),
    ]
    return _line(*parts)


def _lost(snapshot: Snapshot) -> Text:
    total = snapshot.lost.total
    return Text(f"lost {count_human(total)}", BAD if total else "")


def _probes(snapshot: Snapshot) -> Text:
    wanted = [p for p in snapshot.probes if p.status != ABSENT]
    missing = [p.signal for p in wanted if p.status == MISSING]
    text = Text(f"probes {len(wanted) - len(missing)}/{len(wanted)}")
    if missing:
        text.append(f" (no {', '.join(missing)})", WARN)
    return text


def totals(shown: Frame, running: Running) -> Text:
    """Memcgs, kernel memory, and whether the screen is paused."""
    line = _line(Text(summary(shown).rpartition(SEPARATOR)[0]))  # the loss is in the line above
    if running.paused:
        line.append(SEPARATOR)
        line.append(" PAUSED ", ACTIVE)
    if running.ended:
        line.append(SEPARATOR)
        line.append(" ENDED ", ACTIVE)
    return line


def tabs(active: View[object]) -> Text:
    """Names of the views; the letter that opens each is underlined."""
    line = Text(no_wrap=True, overflow="crop", end="")
    for view in VIEWS:
        style = ACTIVE if view.name == active.name else Style()
        click = Style.from_meta({"@click": f"app.view('{view.name}')"})
        before, letter, after = view.name.partition(view.letter)
        line.append(f" {before}", style + click)
        line.append(letter, style + click + Style(underline=True))
        line.append(f"{after} ", style + click)
        line.append(" ")
    return line


def chosen(selection: RowSelection, extent: tuple[int, int, int], typo: bool) -> Text:
    """Filter, and which of the rows are visible; `typo`: the text in the filter line is not a valid pattern."""
    first, last, count = extent
    line = Text(no_wrap=True, overflow="ellipsis", end="", justify="right")
    if selection.pattern is not None:
        line.append(f"/{printable(selection.pattern.pattern)}/", WARN)
        line.append("  ")
    if typo:
        line.append(" not a pattern yet ", BAD)
        line.append("  ")
    if count:
        line.append(f"{first}-{last} of {count} ")
    return line


def _line(*parts: Text) -> Text:
    line = Text(" ", no_wrap=True, overflow="ellipsis", end="")
    for place, part in enumerate(parts):
        if place:
            line.append(SEPARATOR, DIM)
        line.append_text(part)
    return line
