# SPDX-License-Identifier: GPL-2.0-only
"""Numbers, times and names as people and files want them; pure."""

from __future__ import annotations

import re
from datetime import datetime, timezone

UNKNOWN = "?"
"""What every screen shows for None."""

NS_PER_S = 1_000_000_000
_STEP = 1024
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.?))", re.DOTALL)
_SHORT_ESCAPES = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def bytes_human(value: float | None) -> str:
    """1536 -> ``1.5K``, at most six characters for anything below 1000 P; None -> ``?``."""
    if value is None:
        return UNKNOWN
    sign, rest = ("-", -value) if value < 0 else ("", float(value))
    for suffix in ("B", "K", "M", "G", "T", "P"):
        # 999.95 would print as 1000.0 and break the column.
        if rest < 999.95 or suffix == "P":
            return f"{sign}{rest:.0f}{suffix}" if suffix == "B" else f"{sign}{rest:.1f}{suffix}"
        rest /= _STEP
    raise AssertionError("unreachable")


def count_human(value: float | None) -> str:
    """12345 -> ``12.3k`` in decimal steps; whole numbers below 10,000 stay exact; None -> ``?``."""
    if value is None:
        return UNKNOWN
    sign, rest = ("-", -value) if value < 0 else ("", float(value))
    if rest < 10_000:
        return f"{sign}{rest:.0f}"
    for suffix in ("k", "M", "G", "T", "P"):
        rest /= 1000
        if rest < 999.95 or suffix == "P":
            return f"{sign}{rest:.1f}{suffix}"
    raise AssertionError("unreachable")


def seconds_human(value: float | None) -> str:
    """Age in the two largest units: ``42s``, ``3m20s``, ``5h01m``, ``12d04h``; None -> ``?``."""
    if value is None:
        return UNKNOWN
    seconds = int(value)
    if seconds < 0:
        return f"-{seconds_human(-seconds)}"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{seconds % 60:02d}s"
    return f"{seconds}s"


def rfc3339(at_ns: int | None, digits: int = 6) -> str | None:
    """CLOCK_REALTIME nanoseconds -> ``2026-11-22T20:08:28.123456Z``; `digits` of the second; None stays None."""
    if at_ns is None:
        return None
    whole, ns = divmod(at_ns, NS_PER_S)
    stamp = datetime.fromtimestamp(whole, timezone.utc)
    fraction = f".{ns:09d}"[: digits + 1] if digits else ""
    return f"{stamp:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def parse_rfc3339(text: str | None) -> int | None:
    """Inverse of `rfc3339`, exact to the nanosecond; None stays None; ValueError on anything else."""
    if text is None:
        return None
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time like 2026-11-22T20:08:28.123456789Z: {text!r}")
    stamp = datetime.fromisoformat(match[1] + "+00:00")
    return int(stamp.timestamp()) * NS_PER_S + int((match[2] or "0").ljust(9, "0"))


def printable(name: str) -> str:
    r"""A cgroup or cache name that is safe in a table, a log line and Prometheus' text.

    Control characters, backslashes and undecodable bytes become ``\xNN``, ``\uNNNN`` or ``\n``;
    spaces stay. Two different names never become the same text.
    """
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(_escape(char) for char in name)


def _escape(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if char.isprintable():
        return char
    if 0x80 <= code <= 0xFF:  # a control character, not the byte of the same number
        return f"\\u{code:04x}"
    return char.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    r"""A line that is safe for a terminal or a log: control characters and the like as in `printable`.

    Backslashes stay, because most of it may have passed `printable` before. So two texts may become the same.
    """
    return text if text.isprintable() else "".join(char if char == "\\" else _escape(char) for char in text)


def unprintable(text: str) -> str:
    """Inverse of `printable`; ValueError on an escape that `printable` never writes."""
    return text if "\\" not in text else _ESCAPED.sub(_unescape, text)


def _unescape(match: re.Match[str]) -> str:
    byte, short, long, letter = match.groups()
    if byte is not None:
        code = int(byte, 16)
        return chr(code if code < 0x80 else code + 0xDC00)
    if short is not None or long is not None:
        code = int(short or long, 16)
        if code > 0x10FFFF:
            raise ValueError(f"no such character: {match[0]}")
        return chr(code)
    if letter not in _SHORT_ESCAPES:
        raise ValueError(f"unknown escape {match[0]!r}")
    return _SHORT_ESCAPES[letter]
