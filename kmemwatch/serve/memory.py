# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the C library's allocator for a process that runs for weeks."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""


def keep_memory_low() -> None:
    """Return freed memory to the system at once, and use one heap for all threads: Python runs one at a time anyway."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 64 << 10), (_M_TRIM_THRESHOLD, 64 << 10)):
        mallopt(parameter, value)
