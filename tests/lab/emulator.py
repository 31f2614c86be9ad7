# SPDX-License-Identifier: GPL-2.0-only
"""Recognises on the console what the emulator itself broke, so that no kernel and no test is blamed for it.

A kernel writes a breakpoint while it changes its own code. We have seen QEMU before 8.1, with a thread for each CPU,
execute its old translation after the kernel had removed the breakpoint. No processor does that.
"""

from __future__ import annotations

import re

_OOPS = re.compile(r"int3: 0000 \[#1\](?:(?!Code:)[^\0])*Code: [0-9a-f ]*\b(?!cc)[0-9a-f]{2} <[0-9a-f]{2}>")
"""The kernel dies of it. The byte before the one that the oops marks is then the code that was written since."""

_LOCKUPS = re.compile(r"(?:soft lockup - CPU#\d+ stuck(?:(?!soft lockup)[^\0])*\bexc_int3\+0x[^\0]*?){2}")
"""Or the kernel finds that the breakpoint is gone, returns, and takes it for ever. It must occur twice: a machine that
was stopped for long enough says so as well, and once it may have been at a real breakpoint."""


def stale_breakpoint(console: str) -> bool:
    """Whether the console shows that the kernel hit a breakpoint which was no longer in its memory."""
    return _OOPS.search(console) is not None or _LOCKUPS.search(console) is not None
