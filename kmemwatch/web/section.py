# SPDX-License-Identifier: GPL-2.0-only
"""A mapping of a YAML file, with the line of every key: errors name file, line and key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import yaml

from kmemwatch.errors import UsageError
from kmemwatch.units import printable

T = TypeVar("T")

_STR, _BOOL, _INT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "int", "null"))
NO_VALUE = "has no value"
_DIGITS = 15
HINT = "the format is that of Prometheus' exporter-toolkit, docs/web-configuration.md there"


class Section:
    """A mapping of the file, whose keys are taken one by one."""

    def __init__(self, name: str, path: str, node: yaml.Node | None) -> None:
        self._name = name
        self._path = path
        self._node = node
        self._known: list[str] = []
        self._items: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        if not path and (node is None or node.tag == _NULL):
            raise UsageError(f"{name}: is empty", "to serve without TLS and passwords, leave it out, or write {} in it")
        if node is None or node.tag == _NULL:
            raise self._error(node, path, NO_VALUE)
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, path, "not a mapping of keys to values")
        for key, value in node.value:
            text = key.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge" else None
            if text is None:
                raise self._error(key, path, "a key must be text")
            if text in self._items:
                raise self._error(key, self.full(text), "is there twice")
            self._items[text] = key, value

    @property
    def given(self) -> bool:
        """There is a key in it."""
        return bool(self._items)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the file, in its order."""
        return tuple(self._items)

    def full(self, key: str) -> str:
        """``tls_server_config.key_file``."""
        return f"{self._path}.{key}" if self._path else key

    def _error(self, node: yaml.Node | None, path: str, problem: str, hint: str | None = None) -> UsageError:
        line = 1 if node is None else node.start_mark.line + 1
        return UsageError(f"{self._name}:{line}: {printable(path) or 'the file'}: {problem}", hint or HINT)

    def refuse(self, key: str, problem: str, hint: str | None = None) -> UsageError:
        """What is wrong with the value of `key`."""
        return self._error(self._items[key][1] if key in self._items else self._node, self.full(key), problem, hint)

    def section(self, key: str) -> Section | None:
        """The mapping at `key`; None when it is not there."""
        self._known.append(key)
        return Section(self._name, self.full(key), self._items[key][1]) if key in self._items else None

    def _scalar(self, key: str, what: str, *tags: str) -> str | None:
        self._known.append(key)
        if key not in self._items:
            return None
        node = self._items[key][1]
        self._refuse_null(key)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
            raise self._error(node, self.full(key), f"must be {what}")
        return str(node.value)

    def _refuse_null(self, key: str) -> None:
        """Half a file often ends behind a colon; what was to follow is seldom the default."""
        if self.is_null(key):
            raise self.refuse(key, NO_VALUE)

    def is_null(self, key: str) -> bool:
        """It is there, and nothing behind its colon."""
        return key in self._items and self._items[key][1].tag == _NULL

    def text(self, key: str, *, or_number: bool = False) -> str | None:
        """None when it is not there, or is an empty text."""
        return self._scalar(key, "text", _STR, *([_INT] if or_number else [])) or None

    def flag(self, key: str) -> bool | None:
        """true or false."""
        value = self._scalar(key, "true or false", _BOOL)
        return None if value is None else value.lower() in ("true", "yes", "on")

    def number(self, key: str) -> int | None:
        """A whole number, not negative."""
        value = self._scalar(key, "a whole number", _INT)
        if value is not None and not (value.isdecimal() and len(value) <= _DIGITS):
            raise self.refuse(key, f"must be a whole number, not {value[:_DIGITS]}")
        return None if value is None else int(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of text."""
        self._known.append(key)
        node = self._items[key][1] if key in self._items else None
        if node is None:
            return ()
        self._refuse_null(key)
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, self.full(key), "must be a list")
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode) or item.tag != _STR or not item.value:
                raise self._error(item, self.full(key), "must be a list of text")
        return tuple(str(item.value) for item in node.value)

    def one_of(self, key: str, names: Mapping[str, T], default: str) -> str:
        """One of `names`."""
        value = self.text(key) or default
        if value not in names:
            raise self.refuse(key, f"{value!r} is none of {', '.join(names)}")
        return value

    def finish(self) -> None:
        """Raise UsageError for keys that nobody has taken."""
        for key, (node, _) in self._items.items():
            if key not in self._known:
                raise self._error(node, self.full(key), "unknown key", f"known here: {', '.join(self._known)}")
