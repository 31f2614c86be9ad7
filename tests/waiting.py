# SPDX-License-Identifier: GPL-2.0-only
"""How tests wait for what other processes and the kernel do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(look: Callable[[], T], limit_s: float, what: str = "", every_s: float = 0.1) -> T:
    """The first result of `look` that is true. AssertionError with `what` and the last result after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what or 'no result'}: still {found!r} after {limit_s} s"
        time.sleep(every_s)
    return found


def settled(read: Callable[[], T], expected: T, limit_s: float) -> T:
    """What `read` returns as soon as it is `expected`, else its last result after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while (now := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def rested(read: Callable[[], T], limit_s: float, every_s: float = 0.1) -> T:
    """What `read` returns twice in a row, else its last result after `limit_s`."""
    deadline = time.monotonic() + limit_s
    now, last = read(), None
    while now != last and time.monotonic() < deadline:
        time.sleep(every_s)
        now, last = read(), now
    return now
