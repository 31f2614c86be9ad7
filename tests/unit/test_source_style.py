# SPDX-License-Identifier: GPL-2.0-only
"""Rules that no linter of ours checks: licence lines, size of functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPDX = "SPDX-License-Identifier: GPL-2.0-only"
FUNCTION_LINES = 40
SOURCES = ("kmemwatch", "bpf", "dashboards", "tests", "scripts", ".ci")
COMMENTED = {".py", ".c", ".h", ".sh", ".tcss", ".yml", ""}


def sources(*suffixes: str) -> Iterator[Path]:
    for top in SOURCES:
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path


def test_every_source_names_its_licence_first() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in sources(*COMMENTED)
        if path.name != "py.typed" and SPDX not in "".join(path.read_text().splitlines()[:2])
    ]
    assert missing == []


NAMES = [str(path.relative_to(ROOT)) for path in sources(".py")]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("tests/")])
def test_functions_are_short(name: str) -> None:
    text = (ROOT / name).read_text()
    too_long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert too_long == []
