# SPDX-License-Identifier: GPL-2.0-only
"""What the pages name exists: files, modules and what is in them, links and their anchors."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from tests.grafana import ROOT, anchors

PAGES = sorted([*ROOT.glob("*.md"), *(page for top in ("bpf", "docs", "tests") for page in (ROOT / top).rglob("*.md"))])
TOPS = "kmemwatch|bpf|tests|docs|dashboards|packaging|scripts"
PATH = re.compile(rf"(?<![\w./~<-])((?:{TOPS})/[\w./*-]*[\w*])")
ROOMS = "|".join(path.parent.name for path in (ROOT / "kmemwatch").glob("*/__init__.py"))
# `kernel.bpf_stats_enabled` and its like are the kernel's settings, not modules of ours.
NAME = re.compile(rf"`(?!kernel\.)(?:kmemwatch\.)?((?:{ROOMS})(?:\.[A-Za-z_]\w*)+)(?:\(\))?`")
LINK = re.compile(r"\]\((?!https?:)([^#)]*)#?([^)]*)\)")
SUFFIXES = (".py", ".md", ".html", ".json", ".c", ".h")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_paths_exist(page: Path) -> None:
    for path in PATH.findall(LINK.sub("]", page.read_text())):
        assert any(ROOT.glob(path)), path


@each_page
def test_modules_and_names_exist(page: Path) -> None:
    for dotted in NAME.findall(page.read_text()):
        if not dotted.endswith(SUFFIXES):
            try:
                pkgutil.resolve_name(f"kmemwatch.{dotted}")
            except (AttributeError, ImportError) as exc:
                raise AssertionError(dotted) from exc


@each_page
def test_links_and_anchors_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in LINK.findall(text):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


@each_page
def test_no_merge_was_left_unfinished(page: Path) -> None:
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", page.read_text(), re.MULTILINE)


def test_the_index_has_every_page_and_every_decision() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "README.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in index, page.name


def test_decisions_are_numbered_and_of_one_form() -> None:
    pages = sorted((ROOT / "docs/adr").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for number, page in zip(numbers, pages, strict=True):
        text = page.read_text()
        assert text.startswith(f"# {number}. ")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings[0] == "Context", page.name
        assert {"Decision", "Consequences"} <= set(headings), page.name
