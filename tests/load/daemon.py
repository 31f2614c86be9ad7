# SPDX-License-Identifier: GPL-2.0-only
"""The daemons of the load tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemon import Daemon, started

ROOT = Path(__file__).parents[2]
LIMIT_S = 30.0
"""How long a test waits for what should take a second."""


@contextmanager
def serving(*command: str, port: int = 0) -> Iterator[Daemon]:
    """``python -m COMMAND``, which is ``kmemwatch serve ...`` or the same for an invented host."""
    argv = [sys.executable, "-m", *command, "--web.listen-address", f"127.0.0.1:{port}"]
    with started(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}) as daemon:
        assert len(daemon.told) == 1, "it only says where it serves"
        yield daemon
