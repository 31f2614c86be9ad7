# SPDX-License-Identifier: GPL-2.0-only
"""Filters and sorts the rows of a view; refuses wrong names and patterns, and says which are valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kmemwatch.errors import UsageError
from kmemwatch.model import Snapshot
from kmemwatch.units import printable
from kmemwatch.views.fields import Field
from kmemwatch.views.patterns import Pattern, compiled
from kmemwatch.views.rows import Frame, is_within
from kmemwatch.views.tables import VIEWS, View


@dataclass(frozen=True, slots=True)
class RowSelection:
    """The rows that a person asked for."""

    view: View[Any]
    sort: Field[Any]
    reverse: bool = False
    """Reversed order; the usual one is text from A to Z, and the largest number first."""
    pattern: Pattern | None = None

    def rows(self, shown: Frame) -> list[Any] | None:
        """Rows of a frame, filtered and sorted; None when this kernel has none, see `View.missing`."""
        found = self.view.rows(shown)
        if found is None:
            return None
        if self.pattern is not None:
            label, search = self.view.label, self.pattern.search
            found = [row for row in found if search(label(row))]
        return sort_rows(found, self.sort, self.reverse)

    def matching(self, regex: str | None) -> RowSelection:
        """The same with another filter. Raises UsageError."""
        return replace(self, pattern=compile_filter(regex) if regex else None)


def select(view: str, sort: str | None = None, regex: str | None = None) -> RowSelection:
    """From the options of the command line; `sort` may begin with ``-`` to reverse the order. Raises UsageError."""
    chosen = find_view(view)
    key = sort if sort is not None else chosen.sort
    field = chosen.field(key.removeprefix("-"))
    if field is None:
        valid = ", ".join(f.key for f in chosen.fields)
        raise UsageError(f"--sort: view {chosen.name} has no field {printable(key)!r}", f"it has: {valid}")
    return RowSelection(chosen, field, key.startswith("-"), compile_filter(regex) if regex else None)


def find_view(name: str) -> View[Any]:
    """The view of that name. Raises UsageError."""
    for view in VIEWS:
        if view.name == name:
            return view
    raise UsageError(f"--view: no view {printable(name)!r}", f"there are: {', '.join(v.name for v in VIEWS)}")


def compile_filter(regex: str) -> Pattern:
    """A regular expression to search for in names as the screen shows them. Raises UsageError."""
    return compiled("--filter", regex)


def sort_rows(found: Sequence[Any], field: Field[Any], reverse: bool) -> list[Any]:
    """Sorted, stable. Unknown values come last in either order: unknown is not the smallest."""
    get = field.get
    known, unknown = [], []
    for row in found:
        value = get(row)
        if value is None:
            unknown.append(row)
        else:
            known.append((value, row))
    known.sort(key=lambda item: item[0], reverse=reverse == field.is_text)
    return [row for _, row in known] + unknown


def check_scope(snapshot: Snapshot, scope: str | None) -> None:
    """Raises UsageError when there is no cgroup at or below `scope`."""
    if scope is not None and not any(is_within(c.path, scope) for c in snapshot.cgroups):
        raise UsageError(
            f"--cgroup: no memory cgroup {scope!r} on {snapshot.host.hostname}",
            "paths start at the root of the memory hierarchy: kmemwatch top --once lists them",
        )
