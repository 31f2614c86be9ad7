# SPDX-License-Identifier: GPL-2.0-only
"""Short in `make test`, long in `make test-load`, which also prints what it measured."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

LONG = "KMEMWATCH_LOAD"
_FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture(scope="session")
def is_long() -> bool:
    """Whether this is the long form."""
    return os.environ.get(LONG) == "long"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``figure("p99 ...")`` adds a line to the summary at the end."""
    found = request.config.stash.setdefault(_FIGURES, [])
    return lambda text: found.append((request.node.name, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was measured, for docs/running.md."""
    figures = config.stash.get(_FIGURES, [])
    if figures and os.environ.get(LONG) == "long":
        terminalreporter.section("measured")
        for name, text in figures:
            terminalreporter.write_line(f"{name}: {text}")
