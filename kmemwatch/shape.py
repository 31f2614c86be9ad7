# SPDX-License-Identifier: GPL-2.0-only
"""What is said of a field of the model, once: from it come the columns, the metrics, the JSON Schema and the docs.

kernel_bytes: Annotated[Gauge | None, About("Kernel memory of the memcg ...", BYTES, "KERNEL")] = None
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct

BYTES, BYTES_PER_S = "bytes", "bytes/s"
COUNT, COUNT_PER_S = "count", "count/s"
SECONDS = "seconds"
NANOSECONDS = "nanoseconds"
ID = "id"
"""A number that is a name: shown exactly, never rounded."""
TIME = "time"
"""CLOCK_REALTIME nanoseconds; RFC 3339 in files."""
TEXT = "text"

GAUGE, COUNTER, INFO, HISTOGRAM = "gauge", "counter", "info", "histogram"

GAUGE_END = 1 << 62
"""There are never as many bytes, objects or references; a number of 64 bits that went below 0 is that large."""
MOST = (1 << 63) - 1
Whole = Annotated[int, Meta(ge=-MOST - 1, le=MOST)]
Count = Annotated[int, Meta(ge=0, le=MOST)]
Gauge = Annotated[int, Meta(ge=0, lt=GAUGE_END)]


def one_of(*words: str) -> Meta:
    """A string that is one of these."""
    return Meta(pattern=f"^(?:{'|'.join(words)})$", extra_json_schema={"enum": list(words)})


class About(Struct, frozen=True):
    """One field of the model."""

    help: str
    """One or two sentences: what it is, where it comes from. Help of the metric and description in the schema, too."""
    unit: str = COUNT
    title: str = ""
    """Header of its column; empty: no table has one."""
    metric: str | None = None
    """Full Prometheus name; None: not exported as it is."""
    column: str | None = None
    """Its name in ``--sort``, in CSV and in rows of JSON, where that is not its key in a snapshot."""
    none: str = "?"
    """What a screen shows for None."""
    min_width: int = 0
    max_width: int = 0
    """A column is never wider than this; 0: as wide as there is room."""

    @property
    def kind(self) -> str:
        """Type of the metric, by the rule of Prometheus for names."""
        name = self.metric or ""
        return COUNTER if name.endswith("_total") else INFO if name.endswith("_info") else GAUGE


class Described(NamedTuple):
    """A field of a class of the model."""

    name: str
    """In Python."""
    key: str
    """In JSON."""
    about: About
    type: Any
    """Without the `About`."""

    @property
    def column(self) -> str:
        """In tables and CSV."""
        return self.about.column or self.key


@cache
def shape_of(model: type[Struct]) -> dict[str, Described]:
    """The fields of `model` by their names in Python, in the order of the JSON."""
    hints = get_type_hints(model, include_extras=True)
    return {
        name: _described(name, key, hints[name])
        for name, key in zip(model.__struct_fields__, model.__struct_encode_fields__, strict=True)
    }


def _described(name: str, key: str, hint: Any) -> Described:
    if get_origin(hint) is Annotated:
        bare, *said = get_args(hint)
        for one in said:
            if isinstance(one, About):
                return Described(name, key, one, bare)
    raise TypeError(f"{name}: {hint} has no About")
