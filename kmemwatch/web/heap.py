# SPDX-License-Identifier: GPL-2.0-only
"""Memory that is not used goes back to the system: a daemon is measured by what it keeps."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""


def keep_memory_low() -> None:
    """Give freed memory back at once, and have one heap for all threads: Python lets only one of them run anyway."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 64 << 10), (_M_TRIM_THRESHOLD, 64 << 10)):
        mallopt(parameter, value)


@contextmanager
def no_collector() -> Iterator[None]:
    """For making 100,000 series or so, in no cycles: Python would look through those that there are again and again,
    which takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
