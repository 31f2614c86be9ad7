# SPDX-License-Identifier: GPL-2.0-only
"""Reads the files of the dashboards and rules: panels, queries, and the metrics and labels that the queries use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from kmemwatch.exporter.daemon import DAEMON_METRICS
from kmemwatch.exporter.metrics import METRICS, MetricTable
from kmemwatch.shape import HISTOGRAM

ROOT = Path(__file__).parents[1]
DASHBOARDS = {path.stem: path for path in sorted((ROOT / "dashboards").glob("*.json"))}
PROMETHEUS = ROOT / "dashboards/prometheus"
RULES = PROMETHEUS / "kmemwatch.rules.yml"
RUNBOOK = ROOT / "docs/runbook.md"

OF_PROMETHEUS = {"job", "instance"}
"""Labels that every scraped series has."""


@dataclass(frozen=True)
class Target:
    """One query of a panel."""

    dashboard: str
    panel: str
    expr: str
    instant: bool
    format: str
    legend: str


def load(name: str) -> dict[str, Any]:
    """A dashboard's JSON."""
    board: dict[str, Any] = json.loads(DASHBOARDS[name].read_text())
    return board


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels but the headings."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def targets(name: str) -> list[Target]:
    """All queries of a dashboard."""
    return [
        Target(name, panel["title"], t["expr"], t["instant"], t["format"], t["legendFormat"])
        for panel in panels(load(name))
        for t in panel["targets"]
    ]


def filled_in(expr: str, variables: Mapping[str, str]) -> str:
    """The query that Grafana would send: `$name` and `${name}` replaced, longest names first."""
    for name in sorted(variables, key=len, reverse=True):
        expr = expr.replace(f"${{{name}}}", variables[name]).replace(f"${name}", variables[name])
    assert "$" not in expr, f"a variable that nobody fills in: {expr}"
    return expr


SOME = {"host": "h", "patched": "p", "unpatched": "u", "__rate_interval": "1m", "__range": "6h"}
"""Values with which a query can be parsed."""


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules that are a `record` or an `alert`."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def asked(expr: str) -> list[tuple[str, set[str]]]:
    """(metric, labels that the query matches or groups it by) of each selector in `expr`."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any, grouped: frozenset[str]) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a metric in {expr}"
            found.append((node.name, {m.name for m in node.matchers.matchers} | grouped))
        elif isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector, grouped)
        elif isinstance(node, promql_parser.AggregateExpr):
            visit(node.expr, grouped | frozenset(node.modifier.labels if node.modifier else ()))
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                visit(argument, grouped)
        elif isinstance(node, promql_parser.BinaryExpr):
            for side in (node.lhs, node.rhs):
                visit(side, grouped)
        elif isinstance(node, promql_parser.ParenExpr | promql_parser.UnaryExpr | promql_parser.SubqueryExpr):
            visit(node.expr, grouped)
        else:
            assert isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral), node

    visit(promql_parser.parse(expr), frozenset())
    return found


def exported() -> dict[str, set[str]]:
    """Name of every series that `kmemwatch serve` can export -> its labels, from the field table."""
    known: dict[str, set[str]] = {}
    tables: tuple[MetricTable[Any, Any], ...] = (*METRICS, *DAEMON_METRICS)
    for table in tables:
        for field in table.fields:
            if field.kind == HISTOGRAM:
                known |= {f"{field.metric}_{part}": set(table.labels) for part in ("count", "sum")}
                known[f"{field.metric}_bucket"] = {*table.labels, "le"}
            else:
                known[str(field.metric)] = set(table.labels)
    return {name: labels | OF_PROMETHEUS for name, labels in known.items()}


def anchors(markdown: str) -> set[str]:
    """Anchors that links can point to, made from the headings as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*?) *$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
