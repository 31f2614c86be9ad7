# SPDX-License-Identifier: GPL-2.0-only
"""The README shows what the commands print, the reference tables what the code has, docs/reports and docs/compare.md
comparisons that the lab tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from kmemwatch.cli.main import cli
from kmemwatch.compare.comparison import CLAIMS
from kmemwatch.compare.verdict import BYTES_PER_HOUR, PER_HOUR
from tests import docs_tables
from tests.lab import comparison, reports
from tests.unit.test_compare_agreement import check_cell

README = (Path(__file__).parents[2] / "README.md").read_text()
SAMPLES = [part.partition("\n") for part in README.split("$ kmemwatch ")[1:] if part.startswith("top --replay demo")]
PAIRS = pytest.mark.parametrize("pair", comparison.PAIRS, ids="-".join)


@pytest.mark.parametrize(("command", "printed"), [(line, after.split("```")[0].strip()) for line, _, after in SAMPLES])
def test_the_readme_shows_what_the_command_prints(command: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(cli, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert f"{printed}\n" in result.output, "or the README is older than the screen"


def test_the_readme_shows_two_views() -> None:
    assert len(SAMPLES) == 2


def test_the_beginning_of_the_readme_fits_a_terminal() -> None:
    screen = README.splitlines()[:25]
    assert max(map(len, screen)) <= 80
    assert screen.count("```") == 2
    for part in ("what keeps removed", "make top", "--replay demo", "PINNED BY"):
        assert any(part in line for line in screen), part


def test_reference_tables_are_current() -> None:
    text = docs_tables.INTERFACES.read_text()
    assert docs_tables.filled(text) == text, "run: make docs"


def test_there_is_a_place_for_each_reference_table() -> None:
    assert sorted(re.findall(r"<!-- table: (\S+) -->", docs_tables.INTERFACES.read_text())) == sorted(
        docs_tables.tables()
    )


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


@PAIRS
def test_no_word_contradicts_the_interval_beside_it(pair: tuple[str, str]) -> None:
    lines = (reports.DIRECTORY / f"{'-'.join(pair)}.txt").read_text().splitlines()
    rows = dict.fromkeys(("trend of their number", "the same in the second half"), PER_HOUR)
    rows["trend of the memory that they keep"] = BYTES_PER_HOUR
    for title, unit in rows.items():
        (row,) = (line.strip() for line in lines if line.strip().startswith(title))
        for cell in re.split(r" {2,}", row)[1:]:
            check_cell(cell, unit)
