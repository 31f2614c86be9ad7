# SPDX-License-Identifier: GPL-2.0-only
"""Regular expressions from users, matched against names that other people choose.

A container chooses the names of its cgroups, and one of 45 letters can keep Python's `re` busy for years. RE2 needs
time in proportion to the name, whatever the expression; Prometheus and Grafana use it, too. It is loaded with the
first expression, so commands without one do not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.units import printable

_MAX_MEM = 4 << 20
"""Most bytes for one compiled expression; the library's default is 8 MiB."""
_LONGEST = 10_000
"""Most characters of one expression; the longest path of the kernel is less than half of it."""

_LACKING = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<": "look-behind",
    "(?P=": "references to groups",
    "(?P>": "references to groups",
    "(?R": "references to groups",
    "(?&": "references to groups",
    "(?(": "conditions",
    "(?>": "atomic groups",
    "(?#": "comments",
}
"""Syntax of other engines that RE2 lacks, by how it begins."""
_LITERAL = re.compile(r"\{(?:,\d+|\d{5,}(?:,\d*)?|\d+,\d{5,})\}", re.ASCII)
"""Repetitions in other engines; RE2 matches them as literal text, which nobody wants."""
_INSTEAD = {
    "\\Z": "the end of the text is \\z",
    "\\u": "a character by its number is \\x{20AC}",
    "\\U": "a character by its number is \\x{20AC}",
    "\\N": "a character by its number is \\x{20AC}",
    "\\h": "a blank is [ \\t]",
    "\\R": "an end of a line is [\\r\\n]",
}


class Pattern:
    """A valid regular expression."""

    __slots__ = ("_regexp", "pattern")

    def __init__(self, regexp: Any, pattern: str) -> None:
        """`regexp`: of RE2; `pattern`: as the user typed it."""
        self._regexp = regexp
        self.pattern = pattern

    def search(self, text: str) -> bool:
        """Whether it matches somewhere in `text`."""
        return self._regexp.search(_encoded(text)) is not None

    def fullmatch(self, text: str) -> bool:
        """Whether it matches the whole of `text`."""
        return self._regexp.fullmatch(_encoded(text)) is not None


def load() -> None:
    """Load RE2 now: later the process may not be allowed to read its files. Raises KmemwatchError."""
    _engine()


def compiled(option: str, expression: str) -> Pattern:
    """`option`: where the user gave it, for messages. Raises UsageError when it is invalid or needs what RE2 lacks."""
    if len(expression) > _LONGEST:
        raise UsageError(f"{option}: a regular expression of more than {_LONGEST} characters", "name fewer things")
    return _compiled(option, expression)


def _compiled(option: str, expression: str) -> Pattern:
    re2, options = _engine()
    for at, in_class in _tokens(expression):
        if at and not in_class and _LITERAL.match(expression, at):
            raise _invalid(option, expression, "invalid repetition size", at, "a repetition is {0,3}, of at most 1000")
    try:
        return Pattern(re2.compile(_encoded(expression), options), expression)
    except re2.error as error:
        raise _refused(option, expression, error) from error


def any_of(option: str, expressions: Sequence[str]) -> Pattern | None:
    """One expression that matches what any of them does; None without expressions. Raises UsageError."""
    for expression in expressions:
        compiled(option, expression)
    return (
        _compiled(option, "|".join(f"(?:{_closed(expression)})" for expression in expressions)) if expressions else None
    )


def _closed(expression: str) -> str:
    r"""The expression with the closing \E, which may be missing at its end."""
    *_, (last, _) = [(0, False), *_tokens(expression)]
    is_open = expression.startswith("\\Q", last) and "\\E" not in expression[last:]
    return expression + "\\E" if is_open else expression


@cache
def _engine() -> tuple[Any, Any]:
    try:
        import re2
    except ImportError as error:
        raise KmemwatchError(
            f"regular expressions need RE2 for Python, which cannot be loaded: {error}", "pip install google-re2"
        ) from error
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEM
    return re2, options


def _encoded(text: str) -> bytes:
    """Bytes of a name that are not UTF-8 are surrogates in `text`; RE2 takes each for one character, too."""
    return text.encode("utf-8", "surrogatepass")


def _refused(option: str, expression: str, error: Exception) -> UsageError:
    raw = error.args[0] if error.args else b""
    message = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    what, _, where = message.partition(": ")
    at = _place(expression, where) if where and where != expression else None
    lacking = _lacking(expression if at is None else expression[at:], what, where)
    if lacking is not None:
        return UsageError(
            f"{option}: {_shown(expression)} cannot be used: RE2 has no {lacking}{_at(expression, at)}",
            "expressions are those of Prometheus: https://github.com/google/re2/wiki/Syntax",
        )
    instead = next((hint for begin, hint in _INSTEAD.items() if where.startswith(begin)), None)
    return _invalid(option, expression, what, at, instead)


def _invalid(option: str, expression: str, what: str, at: int | None, hint: str | None = None) -> UsageError:
    return UsageError(
        f"{option}: {_shown(expression)} is not a regular expression: {printable(what)}{_at(expression, at)}",
        hint or r"RE2's syntax, as in Prometheus; a literal . * ( [ needs a backslash before it",
    )


def _at(expression: str, at: int | None) -> str:
    return "" if at is None else f" at character {at + 1}: {_shown(expression[at:], 8)}"


def _shown(text: str, most: int = 200) -> str:
    """Quoted and cut; backslashes stay single where that is safe."""
    part = text[:most]
    return f"'{part if part.isprintable() else printable(part)}'{'...' if len(text) > most else ''}"


def _lacking(rest: str, what: str, where: str) -> str | None:
    """Name of the syntax that `rest` begins with, if RE2 lacks it."""
    if what == "invalid perl operator":
        return next((name for begin, name in _LACKING.items() if rest.startswith(begin)), "such groups or flags")
    if what == "bad repetition operator" and where.endswith("+"):
        return "possessive repetitions"
    if what == "invalid escape sequence" and rest[:1] == "\\" and (rest[1:2].isdigit() or rest[1:2] in ("k", "g")):
        return "references to groups"
    return None


def _place(expression: str, fragment: str) -> int | None:
    """Place of `fragment` in `expression`, unless it is literal there."""
    for at, _ in _tokens(expression):
        # RE2 quotes only the beginning of what is wrong: (?P<name>...) is valid.
        if expression.startswith(fragment, at) and not (fragment == "(?P" and expression.startswith("(?P<", at)):
            return at
    return None


def _tokens(expression: str) -> Iterator[tuple[int, bool]]:
    """Places where something other than a literal character may begin, and whether each is inside brackets."""
    at, in_class = 0, False
    while at < len(expression):
        character = expression[at]
        if character == "\\" or not in_class:
            yield at, in_class
        if character == "\\":
            end = expression.find("\\E", at) if expression.startswith("\\Q", at) else at
            at = len(expression) if end < 0 else end + 2
        elif in_class:
            in_class = character != "]"
            at += 1
        elif character == "[":
            # A closing bracket that comes first in a class is literal.
            at += 1 + expression.startswith("^", at + 1)
            at += expression.startswith("]", at)
            in_class = True
        else:
            at += 1
