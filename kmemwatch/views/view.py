# SPDX-License-Identifier: GPL-2.0-only
"""What a view of `top` is: rows, columns, how they are sorted, and what to say when there are none."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kmemwatch.model import ABSENT, MISSING, Snapshot
from kmemwatch.views.field import Field
from kmemwatch.views.rows import Frame

R = TypeVar("R")


@dataclass(frozen=True)
class View(Generic[R]):
    name: str
    """``--view NAME``."""
    letter: str
    """Key that opens it."""
    help: str
    """One sentence: what question it answers."""
    columns: tuple[Field[R], ...]
    """On the screen, from left to right; the first is the name and takes the room that is left."""
    extra: tuple[Field[R], ...]
    """Only in files and details."""
    sort: str
    """Key of the field it is sorted by unless told otherwise."""
    rows: Callable[[Frame], Sequence[R] | None]
    """None: this kernel, or this source, does not have them; `missing` says why."""
    missing: Callable[[Snapshot], str]
    label: Callable[[R], str]
    """Printable name, what a filter is matched against."""
    identity: Callable[[R], Hashable]
    """Keeps the cursor on the same thing over refreshes."""
    empty: str
    """What an empty list means, in words."""
    note: Callable[[Frame], str | None] = lambda _: None
    """One line that qualifies what is shown."""
    summary: Callable[[Frame], str | None] = lambda _: None
    """One printable line of totals."""

    @property
    def fields(self) -> tuple[Field[R], ...]:
        """All of them: on the screen and in files."""
        return self.columns + self.extra

    def field(self, key: str) -> Field[R] | None:
        """The field of that key, or of that column title, whatever its case."""
        wanted = key.strip().casefold()
        for field in self.fields:
            if wanted in (field.key.casefold(), field.title.casefold()):
                return field
        return None


def why_missing(snapshot: Snapshot, signals: Sequence[str]) -> str | None:
    """Reason that the probes give for a signal that is not measured."""
    for probe in snapshot.probes:
        if probe.signal in signals and probe.status in (MISSING, ABSENT):
            return probe.why
    return None
