# SPDX-License-Identifier: GPL-2.0-only
"""What the compiler writes, for the reason of a failure."""

from __future__ import annotations

import os
import sys

from kmemwatch.kernel import bpf_calls


class StderrCapture:
    """Catches what the compiler writes to descriptor 2, for the reason of a failure."""

    def __init__(self) -> None:
        # In memory: a container may have no directory that can be written to.
        self._file = open(os.memfd_create("stderr"), "w+b")  # noqa: SIM115 - lives as long as this object
        self._saved = -1

    def __enter__(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        sys.stderr.flush()
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)

    def text(self) -> str:
        """All of it."""
        self._file.seek(0)
        return self._file.read().decode("utf-8", "replace")

    def reason(self) -> str | None:
        """The most telling line."""
        return bpf_calls.reason_in(self.text())
