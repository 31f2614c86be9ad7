# SPDX-License-Identifier: GPL-2.0-only
"""docs/reports and docs/compare.md show the same comparisons, and what they say is what the lab tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kmemwatch.compare.report import CLAIMS
from tests.lab import comparison, reports

PAIRS = pytest.mark.parametrize("pair", comparison.PAIRS, ids="-".join)


def test_the_document_shows_what_was_printed() -> None:
    document = reports.DOCUMENT.read_text()
    assert reports.in_document(document) == reports.chapter(reports.DIRECTORY)
    for word in ("--kind", "--objects", "--leave", "--dead", "--cgroups", "--rate", "--seed"):
        given = comparison.CHURN[comparison.CHURN.index(word) + 1]
        assert f"{word} {given}" in document, word


@PAIRS
def test_the_verdicts_are_those_that_are_tested(pair: tuple[str, str]) -> None:
    text = (reports.DIRECTORY / f"{'-'.join(pair)}.txt").read_text()
    # "1. Title", maybe wrapped, then "   A  HOLDS: ..." and "   B  ...".
    found = re.findall(r"^   ([AB])  ([A-Z ]+): ", text, re.MULTILINE)
    keys = [key for key, _, _ in CLAIMS]
    wanted = [
        (side, comparison.EXPECTED[name][key].upper()) for key in keys for side, name in zip("AB", pair, strict=True)
    ]
    assert found == wanted


@PAIRS
def test_the_reports_are_small_and_whole(pair: tuple[str, str]) -> None:
    page = Path(reports.DIRECTORY / f"{'-'.join(pair)}.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert len(page.encode()) < reports.MAX_BYTES
    assert all(f"{name}.kmw" in page for name in pair)
