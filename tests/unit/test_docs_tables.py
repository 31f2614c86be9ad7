# SPDX-License-Identifier: GPL-2.0-only
"""The reference tables of the docs are those that the code gives now."""

from __future__ import annotations

import re

from tests import docs_tables


def test_tables_are_current() -> None:
    text = docs_tables.INTERFACES.read_text()
    assert docs_tables.filled(text) == text, "run: make docs"


def test_there_is_a_place_for_each_table() -> None:
    assert sorted(re.findall(r"<!-- table: (\S+) -->", docs_tables.INTERFACES.read_text())) == sorted(
        docs_tables.tables()
    )
