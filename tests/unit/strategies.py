# SPDX-License-Identifier: GPL-2.0-only
"""Hypothesis strategies made from the annotations of `kmemwatch.model`, names that no sane person uses included."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from msgspec import Meta, Struct

from kmemwatch import model
from kmemwatch.units import printable

UNDECODABLE = "".join(map(chr, range(0xDC80, 0xDD00)))
"""What Python makes of bytes that are not UTF-8."""
MOST_ROWS = 3
"""In each tuple and mapping."""

PAGES = ("file", "shmem", "anon", "swapcache")

names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], include_characters=UNDECODABLE), max_size=12),
    st.sampled_from(("dentry", "/", "/a/b", "/a\nb", 'q"u', "back\\slash", "\\x80", "\udc80", "NaN", "/é", "other")),
).map(printable)
times = st.integers(0, 253_402_300_799_999_999_999)
"""Up to the year 9999."""


def of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the model writes it: everything that its annotation allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = next((one for one in arguments[1:] if isinstance(one, Meta)), Meta())
        return _bounded(arguments[0], bounds)
    if origin in (Union, UnionType):
        return st.one_of(*map(of, arguments))
    if origin is tuple:
        return st.lists(of(arguments[0]), max_size=MOST_ROWS).map(tuple)
    if origin is Mapping:
        return st.dictionaries(*map(of, arguments), max_size=MOST_ROWS).map(MappingProxyType)
    return _bounded(hint, Meta())


def _bounded(kind: Any, bounds: Meta) -> st.SearchStrategy[Any]:
    if kind is int:
        least = -(2**63) if bounds.ge is None else int(bounds.ge)
        most = 2**63 - 1 if bounds.le is None else int(bounds.le)
        return st.integers(least, most if bounds.lt is None else int(bounds.lt) - 1)
    if kind is float:
        return st.floats(0, 1e12)
    if kind is str:
        return names if bounds.pattern is None else st.from_regex(bounds.pattern.replace("$", r"\Z"))
    if kind is bool:
        return st.booleans()
    if kind is NoneType:
        return st.none()
    if kind is model.TimeNs:
        return times
    if isinstance(kind, type) and issubclass(kind, Struct):
        return instances(kind)
    return of(kind)


@cache
def instances(kind: type[Struct]) -> st.SearchStrategy[Any]:
    """Instances of a class of the model; every field is given."""
    hints = get_type_hints(kind, include_extras=True)
    made: st.SearchStrategy[Any] = st.builds(kind, **{name: of(hints[name]) for name in kind.__struct_fields__})
    return made.filter(_has_its_pages) if kind is model.Cgroup else made


def _has_its_pages(cgroup: Any) -> bool:
    """Pages that pin a memcg are part of its memory; what says otherwise is read as unknown."""
    pages = sum((cgroup.pins or {}).get(kind, 0) for kind in PAGES)
    return cgroup.memory_bytes is None or pages <= cgroup.memory_bytes


snapshots = instances(model.Snapshot)
events = instances(model.Event)
