# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong, as one narrow tree; `kmemwatch.cli` alone turns it into text and exit codes.

KmemwatchError          exit 1: it failed
├── ShortageError       exit 1: this machine lacks something just now, and may have it the next time
├── UsageError          exit 2: the command line or an input file is wrong
└── UnsupportedError    exit 3: this kernel or these privileges cannot do it
"""

from __future__ import annotations


class KmemwatchError(Exception):
    """Something failed; `str()` is one line that names the thing and the place."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        """One line that says what to do about it, or None."""


class ShortageError(KmemwatchError):
    """Descriptors, memory, room on a disk or the like ran out: which says nothing about the kernel."""


class UsageError(KmemwatchError):
    """The user asked for something that does not exist or cannot be read: option value, file, URL."""

    exit_code = 2


class UnsupportedError(KmemwatchError):
    """This kernel, or these privileges, cannot do what was asked; the message has the reason."""

    exit_code = 3
