# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmemwatch.units import bytes_human, count_human, parse_rfc3339, printable, rfc3339, seconds_human

NAMES = st.binary(max_size=255).map(os.fsdecode)
"""Whatever a kernel can hand out as a file name, NUL and slash included."""
SIZES = st.integers(min_value=0, max_value=999 * 1024**5)
LAST_NS = 253_402_300_799_999_999_999
"""9999-12-31T23:59:59.999999999Z"""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "?"),
        (0, "0B"),
        (1023, "1.0K"),
        (999, "999B"),
        (1536, "1.5K"),
        (4096, "4.0K"),
        (1024**2 - 1, "1.0M"),
        (3 * 1024**3, "3.0G"),
        (-4096, "-4.0K"),
    ],
)
def test_bytes_human(value: int | None, shown: str) -> None:
    assert bytes_human(value) == shown


@given(SIZES)
@example(1023)
@example(1024**2 - 1)
def test_bytes_fit_their_column(value: int) -> None:
    assert len(bytes_human(value)) <= 6


@given(SIZES)
def test_bytes_are_within_the_digit_shown(value: int) -> None:
    shown = bytes_human(value)
    factor = 1024 ** "BKMGTP".index(shown[-1])
    assert abs(float(shown[:-1]) * factor - value) <= 0.05 * factor + value * 1e-9


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "?"), (0, "0"), (9999, "9999"), (10_000, "10.0k"), (12_345, "12.3k"), (999_950, "1.0M"), (-5, "-5")],
)
def test_count_human(value: int | None, shown: str) -> None:
    assert count_human(value) == shown


@given(st.integers(min_value=0, max_value=10**17))
def test_counts_fit_their_column(value: int) -> None:
    assert len(count_human(value)) <= 6


@given(st.integers(min_value=-9999, max_value=9999))
def test_small_counts_are_exact(value: int) -> None:
    assert int(count_human(value)) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "?"),
        (0, "0s"),
        (59.9, "59s"),
        (200, "3m20s"),
        (3599, "59m59s"),
        (18_060, "5h01m"),
        (1_051_200, "12d04h"),
        (-61, "-1m01s"),
    ],
)
def test_seconds_human(value: float | None, shown: str) -> None:
    assert seconds_human(value) == shown


def test_rfc3339_of_a_known_moment() -> None:
    assert rfc3339(1_795_377_908_123_456_789) == "2026-11-22T20:05:08.123456Z"


@given(st.integers(min_value=0, max_value=LAST_NS))
def test_rfc3339_round_trip_to_the_microsecond(at_ns: int) -> None:
    assert parse_rfc3339(rfc3339(at_ns)) == at_ns // 1000 * 1000


@given(st.integers(min_value=0, max_value=LAST_NS))
def test_rfc3339_with_nine_digits_keeps_every_nanosecond(at_ns: int) -> None:
    assert parse_rfc3339(rfc3339(at_ns, digits=9)) == at_ns


def test_unknown_time_stays_unknown() -> None:
    assert rfc3339(None) is None
    assert parse_rfc3339(None) is None


@pytest.mark.parametrize("text", ["", "now", "2026-11-22", "2026-13-01T00:00:00.000000Z"])
def test_parse_rfc3339_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rfc3339(text)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"/user.slice/a b", "/user.slice/a b"),
        ("/gr\u00fc\u00df".encode(), "/gr\u00fc\u00df"),
        (b"a\nb\tc", "a\\nb\\tc"),
        (b"a\\nb", "a\\\\nb"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u0085".encode(), "\\u0085"),
        ("\u202e".encode(), "\\u202e"),
        (b"\x1b[2J", "\\x1b[2J"),
    ],
)
def test_printable(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


@given(NAMES)
def test_printable_has_nothing_that_moves_a_cursor_or_fails_to_encode(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert not any(unicodedata.category(char).startswith("C") for char in shown)
    shown.encode("utf-8")


@given(NAMES, NAMES)
@example("\x80", "\udc80")
@example("\\x80", "\udc80")
@example("\n", "\\n")
def test_printable_keeps_names_apart(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)


_UNESCAPED = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


def _unprintable(shown: str) -> str:
    """Inverse of `printable`: that there is one shows that no two names become the same text."""
    name, at = "", 0
    while at < len(shown):
        width = {"\\x": 4, "\\u": 6, "\\U": 10}.get(shown[at : at + 2], 2 if shown[at] == "\\" else 1)
        token, at = shown[at : at + width], at + width
        if width <= 2:
            name += _UNESCAPED.get(token, token)
            continue
        code = int(token[2:], 16)
        name += chr(code + 0xDC00 if token[1] == "x" and code >= 0x80 else code)
    return name


@given(NAMES)
def test_printable_can_be_undone(name: str) -> None:
    assert _unprintable(printable(name)) == name
