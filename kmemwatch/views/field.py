# SPDX-License-Identifier: GPL-2.0-only
"""What a field is: one figure with its title, metric, help, unit and the way to read it from an object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kmemwatch.model import Snapshot
from kmemwatch.units import UNKNOWN, bytes_human, count_human, printable, rfc3339, seconds_human

T = TypeVar("T")
R = TypeVar("R")

Value = float | str | tuple[float, ...] | None
"""int, float or text; a tuple for a histogram; None when this kernel cannot tell."""

BYTES, BYTES_PER_S = "bytes", "bytes/s"
COUNT, COUNT_PER_S = "count", "count/s"
SECONDS = "seconds"
ID = "id"
"""A number that is a name: shown exactly, never rounded."""
TIME = "time"
"""CLOCK_REALTIME nanoseconds; RFC 3339 in files."""
TEXT = "text"

SEPARATOR = " · "
"""Between the parts of a line of totals."""

GAUGE, COUNTER, INFO, HISTOGRAM = "gauge", "counter", "info", "histogram"

_WIDTHS = {BYTES: 7, BYTES_PER_S: 7, COUNT: 6, COUNT_PER_S: 6, SECONDS: 6, ID: 6, TIME: 20, TEXT: 12}


def rate_human(value: float | None) -> str:
    """A rate of counts: one decimal below 10 (0.3 a second is not 0), else as `count_human`."""
    if value is not None and 0 < abs(value) < 9.95:
        return f"{value:.1f}"
    return count_human(value)


def _id_text(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def _name_text(value: Any) -> str:
    return UNKNOWN if value is None else printable(value)


def _time_text(ns: int | None) -> str:
    stamp = rfc3339(ns)
    return UNKNOWN if stamp is None else stamp.partition(".")[0] + "Z"


_TEXTS: Mapping[str, Callable[[Any], str]] = {
    BYTES: bytes_human,
    BYTES_PER_S: bytes_human,
    COUNT: count_human,
    COUNT_PER_S: rate_human,
    SECONDS: seconds_human,
    ID: _id_text,
    TIME: _time_text,
    TEXT: _name_text,
}


@dataclass(frozen=True)
class Field(Generic[T]):
    """One figure of a `T`. Every screen, file and metric that shows it loops over these."""

    key: str
    """Stable name with the unit in it: ``--sort``, CSV header, JSON key of a row."""
    title: str
    """Column header."""
    unit: str
    help: str
    """One sentence: what it is, where it comes from, in which unit."""
    get: Callable[[T], Value]
    metric: str | None = None
    """Full Prometheus name; None: not exported."""
    kind: str = GAUGE
    show: Callable[[T], str] | None = None
    """Text for a screen when the unit alone does not say it; None: by unit."""
    rank: int = 0
    """Columns with the highest rank go first when the terminal is narrow; 0 always stays."""
    min_width: int = 0
    max_width: int = 0
    """More room than this is of no use; 0: as much as there is."""

    @property
    def is_text(self) -> bool:
        """Left-aligned, and sorted from A to Z; everything else is a number: right, largest first."""
        return self.unit == TEXT

    @property
    def width(self) -> int:
        """Columns that header and every usual value need."""
        return max(len(self.title), self.min_width or _WIDTHS[self.unit])

    def text(self, item: T) -> str:
        """For a screen: short, in units a person reads, ``?`` for unknown, safe to print."""
        return self.show(item) if self.show is not None else _TEXTS[self.unit](self.get(item))

    def exact(self, item: T) -> float | str | None:
        """For files: full precision, text escaped by `units.printable`, None for unknown."""
        value = self.get(item)
        if self.unit == TIME:
            return rfc3339(None if value is None else int(value))  # type: ignore[arg-type]
        return printable(value) if isinstance(value, str) else value  # type: ignore[return-value]

    def of(
        self, part: Callable[[R], T], *, rank: int = 0, title: str | None = None, key: str | None = None
    ) -> Field[R]:
        """The same field of something that has a `T`: the column of a row."""
        show = self.show
        return Field(
            key or self.key,
            title or self.title,
            self.unit,
            self.help,
            lambda row: self.get(part(row)),
            self.metric,
            self.kind,
            None if show is None else lambda row: show(part(row)),
            rank,
            self.min_width,
            self.max_width,
        )


@dataclass(frozen=True)
class MetricTable(Generic[T]):
    """Metrics that share their labels: one series per item, field and label values.

    Two items may have the same labels (two caches of one name, a path that was used twice):
    whoever exports them adds them up.
    """

    items: Callable[[Snapshot], Iterable[T]]
    labels: Mapping[str, Callable[[T], str]]
    """Label name -> value, already escaped; ``?`` where the name is unknown."""
    fields: tuple[Field[T], ...]
    """Only fields with a metric. A value of None means that the series is absent."""


def label(value: object) -> str:
    """Label value; ``?`` for None, ``true``/``false`` for a bool."""
    if isinstance(value, bool):
        return str(value).lower()
    return UNKNOWN if value is None else printable(str(value))
