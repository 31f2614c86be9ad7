# SPDX-License-Identifier: GPL-2.0-only
"""Fields: what tables, files and metrics show of an object, and how to read it.

What the model says of its members is not repeated here; only figures that are derived are described here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from kmemwatch.model import MAX_PREVIOUS_OWNERS, Cache, Cgroup, ChildSlabs, KmemcgId, Pair, RechargePair, RechargeTotal
from kmemwatch.shape import (
    BYTES,
    BYTES_PER_S,
    COUNT,
    COUNT_PER_S,
    ID,
    SECONDS,
    TEXT,
    TIME,
    About,
    shape_of,
)
from kmemwatch.units import UNKNOWN, bytes_human, count_human, printable, rfc3339, seconds_human
from kmemwatch.views.rates import AllocRates, CgroupRates

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=Struct)

Value = float | str | tuple[float, ...] | None
"""int, float or text; a tuple for a histogram; None when this kernel cannot tell."""

NOTHING = "-"
"""What a screen shows for a name that is known not to exist; unlike `?`."""
SEPARATOR = " · "
"""Between the parts of a line of totals."""

_WIDTHS = {BYTES: 7, BYTES_PER_S: 7, COUNT: 6, COUNT_PER_S: 6, SECONDS: 6, ID: 6, TIME: 20, TEXT: 12}


def rate_human(value: float | None) -> str:
    """A rate of counts: one decimal below 10 (0.3 a second is not 0), else as `count_human`."""
    if value is not None and 0 < abs(value) < 9.95:
        return f"{value:.1f}"
    return count_human(value)


def _time_text(ns: int | None) -> str:
    stamp = rfc3339(ns)
    return UNKNOWN if stamp is None else stamp.partition(".")[0] + "Z"


_TEXTS: Mapping[str, Callable[[Any], str]] = {
    BYTES: bytes_human,
    BYTES_PER_S: bytes_human,
    COUNT: count_human,
    COUNT_PER_S: rate_human,
    SECONDS: seconds_human,
    ID: str,
    TIME: _time_text,
    TEXT: printable,
}


@dataclass(frozen=True)
class Field(Generic[T]):
    """One figure of a `T`. Every screen, file and metric that shows it loops over these."""

    key: str
    """Stable name with the unit in it: ``--sort``, CSV header, JSON key of a row."""
    about: About
    get: Callable[[T], Value]
    show: Callable[[T], str] | None = None
    """Text for a screen when the unit alone does not say it; None: by unit."""
    rank: int = 0
    """Columns with the highest rank go first when the terminal is narrow; 0 always stays."""
    kind: str = ""
    """Type of the metric; empty: by its name."""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.about.kind)

    @property
    def title(self) -> str:
        """Column header."""
        return self.about.title

    @property
    def unit(self) -> str:
        """One of those of `kmemwatch.shape`."""
        return self.about.unit

    @property
    def help(self) -> str:
        """What it is, and where it comes from."""
        return self.about.help

    @property
    def metric(self) -> str | None:
        """Full Prometheus name; None: not exported."""
        return self.about.metric

    @property
    def is_text(self) -> bool:
        """Left-aligned, and sorted from A to Z; everything else is a number: right, largest first."""
        return self.unit == TEXT

    @property
    def width(self) -> int:
        """Cells that header and every usual value need."""
        return max(len(self.title), self.about.min_width or _WIDTHS[self.unit])

    def text(self, item: T) -> str:
        """For a screen: short, in units a person reads, ``?`` for unknown, safe to print."""
        if self.show is not None:
            return self.show(item)
        value = self.get(item)
        return self.about.none if value is None else _TEXTS[self.unit](value)

    def exact(self, item: T) -> float | str | None:
        """For files: full precision, text escaped by `units.printable`, None for unknown."""
        value = self.get(item)
        if self.unit == TIME:
            return rfc3339(None if value is None else int(value))  # type: ignore[arg-type]
        return value  # type: ignore[return-value]

    def of(self, part: Callable[[R], T], *, rank: int = 0, title: str | None = None) -> Field[R]:
        """The same field of something that has a `T`: the column of a row."""
        show = self.show
        return Field(
            self.key,
            self.about if title is None else replace(self.about, title=title),
            lambda row: self.get(part(row)),
            None if show is None else lambda row: show(part(row)),
            rank,
            self.kind,
        )


def member_fields(model: type[M], **shows: Callable[[M], str]) -> dict[str, Field[M]]:
    """The members of a class of the model as fields, by their keys in tables.

    `shows`: member -> its text for a screen, where unit and value alone do not say it.
    """
    return {
        member.column: Field(member.column, member.about, attrgetter(member.name), shows.get(member.name))
        for member in shape_of(model).values()
    }


CACHE = member_fields(
    Cache,
    kmemcg_id=lambda c: NOTHING if c.root is None else UNKNOWN if c.kmemcg_id is None else str(c.kmemcg_id),
)
CGROUP = member_fields(Cgroup, path=lambda c: cgroup_name(c.id, c.path))
PAIR = member_fields(Pair)
CHILD_SLABS = member_fields(ChildSlabs)
RECHARGE = member_fields(RechargePair)
RECHARGE_TOTAL = member_fields(RechargeTotal)
KMEMCG_ID = member_fields(KmemcgId)
KMEMCG_ID["previous_owners"] = Field(
    "previous_owners",
    KMEMCG_ID["previous_owners"].about,
    lambda i: " ".join(map(str, i.previous_owners)) or NOTHING,
)
KMEMCG_ID["reuses"] = Field(
    "reuses",
    About(
        f"Memcgs that had the id before, as far as kmemwatch saw; it remembers {MAX_PREVIOUS_OWNERS}.", title="REUSES"
    ),
    lambda i: len(i.previous_owners),
    lambda i: f"{len(i.previous_owners)}{'+' * (len(i.previous_owners) >= MAX_PREVIOUS_OWNERS)}",
)
ALLOC_RATES = member_fields(AllocRates)
CGROUP_RATES = member_fields(CgroupRates, top_cache=lambda r: _top(r.top_cache, r.alloc))


def cgroup_name(cgroup_id: int, path: str | None) -> str:
    """The path, or the id where the path is unknown."""
    return f"{UNKNOWN} (id {cgroup_id})" if path is None else path


def _top(name: str | None, alloc: AllocRates) -> str:
    """A name; `-` when nothing was allocated, `?` when that is unknown."""
    known = alloc.allocated_bytes_per_s if alloc.allocated_bytes_per_s is not None else alloc.allocations_per_s
    if name is None:
        return UNKNOWN if known is None else NOTHING
    return name
