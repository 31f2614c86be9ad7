# SPDX-License-Identifier: GPL-2.0-only
"""Alerts and recording rules ask for what there is, and each leads to a page that helps; promtool tests the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.grafana import OF_PROMETHEUS, ROOT, RULES, RUNBOOK, anchors, asked, exported, rules

ALERTS = {rule["alert"]: rule for rule in rules("alert")}
RECORDS = {rule["record"]: rule for rule in rules("record")}
GUIDE = ROOT / "docs/prometheus.md"
TESTS = ROOT / "tests/e2e/rules_test.yml"


def known() -> dict[str, set[str]]:
    """What a rule may ask for: what is exported, `up`, and the recording rules."""
    names = exported() | {"up": OF_PROMETHEUS}
    for record, rule in RECORDS.items():
        (metric,) = {metric for metric, _ in asked(rule["expr"])} - {"kmemwatch_map_capacity"}
        names[record] = exported()[metric]
    return names


@pytest.mark.parametrize("rule", [*ALERTS.values(), *RECORDS.values()], ids=lambda r: r.get("alert") or r["record"])
def test_rules_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    names = known()
    for metric, labels in asked(rule["expr"]):
        assert metric in names
        assert labels <= names[metric]


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_leads_to_its_page_of_the_runbook(name: str) -> None:
    alert = ALERTS[name]
    assert re.fullmatch(r"Kmemwatch[A-Z]\w+", name)
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / page == RUNBOOK
    assert anchor == name.lower()
    assert anchor in anchors(RUNBOOK.read_text())


def test_the_runbook_has_no_page_without_an_alert_and_each_says_what_to_do() -> None:
    pages = re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    assert [page.splitlines()[0] for page in pages] == list(ALERTS)
    for page in pages:
        parts = re.findall(r"^\*\*(.*?)\.\*\*", page, re.MULTILINE)
        # Of lost events, the table says for each reason what to do.
        assert parts in (["Means", "Find out", "Do"], ["Means", "Find out and do"]) or "| do |" in page


@pytest.mark.parametrize("page", [RUNBOOK, GUIDE], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https:)([^#)]*)#?([^)]*)\)", page.read_text()):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), anchor


def test_the_guide_lists_every_alert() -> None:
    assert re.findall(r"^\| (Kmemwatch\w+) \|", GUIDE.read_text(), re.MULTILINE) == list(ALERTS)


def test_every_panel_that_the_runbook_names_exists() -> None:
    from tests.grafana import DASHBOARDS, load, panels

    titles = {re.sub(", (un)?patched$", "", panel["title"]) for name in DASHBOARDS for panel in panels(load(name))}
    boards = {load(name)["title"].removeprefix("kmemwatch / ") for name in DASHBOARDS}
    named = set(re.findall(r"(?<![\w*])\*([A-Z][^*\n]*)\*(?!\*)", RUNBOOK.read_text()))
    assert named - titles - boards == {"Targets"}  # a page of Prometheus


def test_each_alert_and_record_has_a_test_that_sees_it_and_one_that_does_not() -> None:
    tests = yaml.safe_load(TESTS.read_text())
    assert [(TESTS.parent / file).resolve() for file in tests["rule_files"]] == [RULES]
    fires: set[str] = set()
    silent: set[str] = set()
    for case in (case for group in tests["tests"] for case in group.get("alert_rule_test", ())):
        (fires if case.get("exp_alerts") else silent).add(case["alertname"])
    assert fires == silent == set(ALERTS)
    used = " ".join([rule["expr"] for rule in ALERTS.values()] + [
        case["expr"] for group in tests["tests"] for case in group.get("promql_expr_test", ())
    ])  # fmt: skip
    assert [record for record in RECORDS if record not in used] == []
