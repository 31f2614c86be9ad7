# SPDX-License-Identifier: GPL-2.0-only
"""Takes a parsed JSON object apart field by field; what does not fit is an error that names the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from kmemwatch.cacheids import ID, CacheIds, without_addresses
from kmemwatch.errors import UsageError
from kmemwatch.shape import GAUGE_END
from kmemwatch.units import parse_rfc3339, unprintable

T = TypeVar("T")
_MISSING: Any = object()
_SOMETHING: Any = object()
"""What is not shown: it may be most of an address."""
_PREVIEW_CHARS = 60
_ADDRESS = re.compile("0x[0-9a-fA-F]{1,16}")
_OLD_IDS = CacheIds()
"""For the addresses in what older releases wrote, which must be of no use to whoever sees the ids."""
LEAST, MOST = -(1 << 63), (1 << 64) - 1
"""All numbers of the kernel's fit in 64 bits; larger ones would fail later, in sums with fractions."""


class Reader:
    """One JSON object; `where` is its path, ``cgroups[3]``, kept in parts because it is rarely printed."""

    __slots__ = ("_data", "_index", "_where")

    def __init__(self, data: object, where: str, index: int | None = None) -> None:
        self._where, self._index = where, index
        if not isinstance(data, dict):
            self._data: dict[str, Any] = {}
            self.fail("", "an object", data)
        self._data = data

    def fail(self, key: str, expected: str, got: object) -> NoReturn:
        """Raise the UsageError for `key`."""
        path = self._path(key) or "document"
        if got is _MISSING:
            raise UsageError(f"{path}: missing, expected {expected}")
        if got is _SOMETHING:
            raise UsageError(f"{path}: expected {expected}, got something else")
        text = repr(got)
        shown = text if len(text) <= _PREVIEW_CHARS else text[:_PREVIEW_CHARS] + "..."
        raise UsageError(f"{path}: expected {expected}, got {shown}")

    def _path(self, key: str) -> str:
        index = "" if self._index is None else f"[{self._index}]"
        return ".".join(part for part in (f"{self._where}{index}", key) if part)

    def whole(self, key: str, minimum: int | None = 0) -> int:
        """A whole number, at least `minimum`."""
        value = self._data.get(key, _MISSING)
        # bool is an int in Python, not in JSON.
        if type(value) is not int or value > MOST or value < (LEAST if minimum is None else minimum):
            sign = "" if minimum is None else f" of at least {minimum}"
            self.fail(key, f"a whole number{sign}", value)
        return value

    def opt_whole(self, key: str, minimum: int | None = 0) -> int | None:
        """A whole number or null."""
        if self._data.get(key, _MISSING) is None:
            return None
        return self.whole(key, minimum)

    def opt_gauge(self, key: str) -> int | None:
        """A whole number or null; None, too, for what an older release took for a number: a difference below 0, a count
        that the kernel had not finished."""
        value = self.opt_whole(key, minimum=None)
        return value if value is not None and 0 <= value < GAUGE_END else None

    def opt_gauges(self, key: str) -> Mapping[str, int] | None:
        """An object of whole numbers or null; None, too, when one of them is no gauge."""
        found = self.opt_counts(key)
        return found if found is not None and all(0 <= value < GAUGE_END for value in found.values()) else None

    def later(self, key: str, read: Callable[[str], T | None]) -> T | None:
        """What `read` makes of `key`; None where it is missing, as in documents older than the field."""
        return read(key) if key in self._data else None

    def number(self, key: str) -> float:
        """A finite number that is not negative."""
        return self._finite(key, self._data.get(key, _MISSING))

    def numbers(self, key: str) -> tuple[float, ...]:
        """An array of them."""
        return tuple(self._finite(f"{key}[{i}]", item) for i, item in enumerate(self._list(key)))

    def _finite(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST:
            self.fail(key, "a number of at least 0", value)
        return float(value)

    def wholes(self, key: str) -> tuple[int, ...]:
        """An array of whole numbers."""
        items = self._list(key)
        for i, item in enumerate(items):
            if type(item) is not int or not 0 <= item <= MOST:
                self.fail(f"{key}[{i}]", "a whole number of at least 0", item)
        return tuple(items)

    def text(self, key: str) -> str:
        """A string, unescaped."""
        value = self._data.get(key, _MISSING)
        if not isinstance(value, str):
            self.fail(key, "a string", value)
        return self._unescape(key, value)

    def opt_text(self, key: str) -> str | None:
        """A string or null."""
        return None if self._data.get(key, _MISSING) is None else self.text(key)

    def _unescape(self, key: str, value: str) -> str:
        try:
            return unprintable(value)
        except ValueError:
            self.fail(key, r"text with escapes such as \x80, \n or \\", value)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self._data.get(key, _MISSING)
        if value not in allowed:
            self.fail(key, f"one of {', '.join(allowed)}", value)
        return str(value)

    def opt_bool(self, key: str) -> bool | None:
        """true, false or null."""
        value = self._data.get(key, _MISSING)
        if value is not None and not isinstance(value, bool):
            self.fail(key, "true, false or null", value)
        return value

    def time(self, key: str) -> int:
        """RFC 3339 -> nanoseconds since the epoch."""
        value = self._data.get(key, _MISSING)
        try:
            at_ns = parse_rfc3339(value if isinstance(value, str) else "")
        except ValueError:
            at_ns = None
        if at_ns is None:
            self.fail(key, "a time such as 2026-11-22T20:08:28.123456789Z", value)
        return at_ns

    def opt_time(self, key: str) -> int | None:
        """RFC 3339 or null."""
        return None if self._data.get(key, _MISSING) is None else self.time(key)

    def cache_id(self, key: str, old_key: str) -> str:
        """Of a cache; for the address that older releases wrote as `old_key`, an id that holds in this process."""
        value = self.opt_cache_id(key, old_key)
        if value is None:
            self.fail(key, "the id of a cache, such as k5mw2pcq7xg3", value)
        return value

    def opt_cache_id(self, key: str, old_key: str) -> str | None:
        """The same, or null."""
        if key not in self._data and old_key in self._data:
            address = self._opt_address(old_key)
            return None if address is None else _OLD_IDS[address]
        value = self._data.get(key, _MISSING)
        if value is not None and not (isinstance(value, str) and ID.fullmatch(value)):
            self.fail(key, "the id of a cache, such as k5mw2pcq7xg3", value)
        return value

    def _opt_address(self, key: str) -> int | None:
        value = self._data[key]
        if value is None:
            return None
        if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
            self.fail(key, "an address of 64 bits", _SOMETHING)
        return int(value, 16)

    def cache(self, key: str) -> str:
        """Name of a cache. Older releases wrote the address where they did not know it."""
        name = self.text(key)
        return _OLD_IDS.name(int(name, 16)) if name.startswith("0x") and _ADDRESS.fullmatch(name) else name

    def opt_cache(self, key: str) -> str | None:
        """The same, or null."""
        return None if self._data.get(key, _MISSING) is None else self.cache(key)

    def opt_message(self, key: str) -> str | None:
        """A sentence or null; without the kernel addresses that older releases wrote into some."""
        text = self.opt_text(key)
        return None if text is None else without_addresses(text)

    def counts(self, key: str) -> Mapping[str, int]:
        """An object of whole numbers."""
        value = self._data.get(key, _MISSING)
        if not isinstance(value, dict):
            self.fail(key, "an object of whole numbers", value)
        for name, count in value.items():
            if type(count) is not int or not LEAST <= count <= MOST:
                self.fail(f"{key}.{name}", "a whole number", count)
        return MappingProxyType({self._unescape(key, name): count for name, count in value.items()})

    def opt_counts(self, key: str) -> Mapping[str, int] | None:
        """An object of whole numbers or null."""
        return None if self._data.get(key, _MISSING) is None else self.counts(key)

    def object(self, key: str) -> Reader:
        """An object inside this one."""
        if key not in self._data:
            self.fail(key, "an object", _MISSING)
        return Reader(self._data[key], self._path(key))

    def opt_object(self, key: str, decode: Callable[[Reader], T]) -> T | None:
        """An object through `decode`, or null."""
        return None if self._data.get(key, _MISSING) is None else decode(self.object(key))

    def each(self, key: str, decode: Callable[[Reader], T]) -> tuple[T, ...]:
        """An array of objects, each through `decode`."""
        return tuple(decode(item) for item in self._objects(key))

    def opt_each(self, key: str, decode: Callable[[Reader], T]) -> tuple[T, ...] | None:
        """An array of objects or null."""
        return None if self._data.get(key, _MISSING) is None else self.each(key, decode)

    def _objects(self, key: str) -> Iterator[Reader]:
        where = self._path(key)
        for index, item in enumerate(self._list(key)):
            yield Reader(item, where, index)

    def _list(self, key: str) -> list[Any]:
        value = self._data.get(key, _MISSING)
        if not isinstance(value, list):
            self.fail(key, "an array", value)
        return value
