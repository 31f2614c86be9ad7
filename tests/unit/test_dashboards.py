# SPDX-License-Identifier: GPL-2.0-only
"""Dashboards: as their source says, as Grafana's own types have it, and with queries that have something to ask for."""

from __future__ import annotations

import enum
import importlib.util
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import jsonschema
import pytest

from tests.grafana import DASHBOARDS, PROMETHEUS, ROOT, SOME, Target, asked, exported, filled_in, load, panels, targets

EVERY_TARGET = [target for name in DASHBOARDS for target in targets(name)]
COLUMNS = 24
"""Of Grafana's grid."""

DATASOURCE = {"const": {"type": "prometheus", "uid": "${datasource}"}}
IMPORTABLE: dict[str, Any] = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time"],
    # Another Grafana's numbers and inputs, which would ask people for edits at import.
    "not": {"anyOf": [{"required": [key]} for key in ("id", "__inputs", "__requires", "gnetId", "version")]},
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{8,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "tags": {"type": "array", "contains": {"const": "kmemwatch"}},
        "templating": {"properties": {"list": {"items": {
            "required": ["name", "type", "query"],
            "if": {"properties": {"type": {"const": "query"}}},
            "then": {"required": ["datasource"], "properties": {"datasource": DATASOURCE}},
        }}}},
        "panels": {"items": {
            "required": ["id", "type", "title", "gridPos"],
            "properties": {
                "id": {"type": "integer", "minimum": 1},
                "type": {"enum": ["row", "timeseries", "stat", "table", "bargauge", "heatmap"]},
                "gridPos": {
                    "required": ["x", "y", "w", "h"],
                    "properties": {
                        "x": {"type": "integer", "minimum": 0, "maximum": COLUMNS - 1},
                        "y": {"type": "integer", "minimum": 0},
                        "w": {"type": "integer", "minimum": 1, "maximum": COLUMNS},
                        "h": {"type": "integer", "minimum": 1},
                    },
                },
            },
            "if": {"properties": {"type": {"const": "row"}}},
            "else": {
                "required": ["datasource", "description", "targets", "options"],
                "properties": {
                    "datasource": DATASOURCE,
                    "description": {"type": "string", "minLength": 1},
                    "targets": {"minItems": 1, "items": {
                        "required": ["refId", "expr", "datasource"],
                        "properties": {"refId": {"pattern": "^[A-Z]$"}, "datasource": DATASOURCE},
                    }},
                },
            },
        }},
    },
}  # fmt: skip


@pytest.mark.needs("Grafana's types")
@pytest.mark.parametrize("name", DASHBOARDS)
def test_json_is_what_the_source_makes(name: str) -> None:
    import dashboards

    assert set(dashboards.DASHBOARDS) == set(DASHBOARDS)
    assert DASHBOARDS[name].read_text() == dashboards.rendered(name), "run: make dashboards"


@pytest.mark.needs("Grafana's types")
@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_own_types_read_it_and_lose_nothing(name: str) -> None:
    board = load(name)
    assert read_and_written(board) == board
    assert list(wrong_types(read(board), name)) == []


@pytest.mark.needs("Grafana's types")
def test_these_types_see_what_is_wrong() -> None:
    board = load("host")
    (panel, *_) = (panel for panel in panels(board) if panel["type"] == "timeseries")
    panel["fieldConfig"]["defaults"]["custom"]["lineInterpolation"] = "curly"
    panel["gridPos"]["w"] = "12"
    panel["targets"][0]["format"] = "graph"
    panel["fieldConfig"]["defaults"]["unit"] = 7
    wrong = " ".join(wrong_types(read(board), "host"))
    for what in ("line_interpolation is 'curly'", "w is '12'", "format_val is 'graph'", "unit is 7"):
        assert what in wrong
    panel["options"]["legendary"] = True
    assert read_and_written(board) != board


def read(board: dict[str, Any]) -> Any:
    """A board as the library's models."""
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return Dashboard.from_json(board)


def read_and_written(board: dict[str, Any]) -> Any:
    """What is left of a board in the library's models: a key that they do not know is not."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    return json.loads(json.dumps(read(board), cls=JSONEncoder))


def wrong_types(value: Any, where: str) -> Iterator[str]:
    """Where a model of the library has a value that its annotation does not allow."""
    hints = typing.get_type_hints(type(value), vars(sys.modules[type(value).__module__]))
    assert hints, f"{where}: {type(value)} has no types"
    for key, hint in hints.items():
        yield from _mismatch(getattr(value, key), hint, f"{where}.{key}")


def _mismatch(value: Any, hint: Any, where: str) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (object, typing.Any) or (value is None and type(None) in arguments):
        # Options and targets of a panel: which type they have depends on the panel.
        if hasattr(value, "to_json"):
            yield from wrong_types(value, where)
    elif origin in (typing.Union, types.UnionType):
        tried = [list(_mismatch(value, one, where)) for one in arguments if one is not type(None)]
        yield from [] if [] in tried else tried[0]
    elif origin is typing.Literal:
        yield from [] if value in arguments else [f"{where} is {value!r}"]
    elif origin is list:
        if not isinstance(value, list):
            yield f"{where} is no list"
        for place, item in enumerate(value if isinstance(value, list) else ()):
            yield from _mismatch(item, arguments[0], f"{where}[{place}]")
    elif origin is dict:
        yield from [] if isinstance(value, dict) else [f"{where} is no object"]
    elif issubclass(hint, enum.Enum):
        yield from (
            [] if value in [member.value for member in hint] else [f"{where} is {value!r}, not a {hint.__name__}"]
        )
    elif hint is float:
        yield from [] if type(value) in (int, float) else [f"{where} is {value!r}, not a number"]
    elif hint in (int, str, bool):
        yield from [] if type(value) is hint else [f"{where} is {value!r}, not a {hint.__name__}"]
    elif isinstance(value, dict) and hasattr(hint, "from_json"):  # which the library leaves as it is, here and there
        yield from wrong_types(hint.from_json(value), where)
    elif not isinstance(value, hint):
        yield f"{where} is a {type(value).__name__}, not a {hint.__name__}"
    else:
        yield from wrong_types(value, where)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_it_imports_without_edits(name: str) -> None:
    board = load(name)
    jsonschema.Draft202012Validator(IMPORTABLE).validate(board)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(board):
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]


def test_dashboards_have_names_of_their_own() -> None:
    boards = [load(name) for name in DASHBOARDS]
    assert len(boards) == 3
    for key in ("uid", "title"):
        assert len({board[key] for board in boards}) == 3


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in load(name)["panels"]]
    for title, at in places:
        assert at["x"] + at["w"] <= COLUMNS, title
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], f"{one} lies on {other}"
    area = sum(at["w"] * at["h"] for _, at in places)
    assert area == COLUMNS * max(at["y"] + at["h"] for _, at in places), "there is a gap"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_data_source_and_hosts_are_variables(name: str) -> None:
    board = load(name)
    first, *hosts = board["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert hosts
    for variable in hosts:
        ((metric, labels),) = asked(re.sub(r"^label_values\((.*), instance\)$", r"\1", variable["query"]["query"]))
        assert labels <= exported()[metric]
    used = {variable["name"] for variable in board["templating"]["list"]}
    named = set(re.findall(r"\$\{?(\w+)", DASHBOARDS[name].read_text()))
    assert named - {"__rate_interval", "__range", "__all"} == used


@pytest.mark.parametrize("target", EVERY_TARGET, ids=lambda t: f"{t.dashboard}-{t.panel}")
def test_every_query_asks_for_series_that_the_exporter_has(target: Target) -> None:
    known = exported()
    selectors = asked(filled_in(target.expr, SOME))
    assert selectors
    for metric, labels in selectors:
        assert metric in known
        assert labels <= known[metric]
        assert "instance" in labels, "of all hosts, whatever was chosen"


@pytest.mark.parametrize("target", EVERY_TARGET, ids=lambda t: f"{t.dashboard}-{t.panel}")
def test_legends_name_labels_that_are_left(target: Target) -> None:
    kept = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", target.expr) for label in labels.split(",")}
    if not re.search(r"\b(sum|max|count)\b", target.expr):
        kept = set.union(*(exported()[metric] for metric, _ in asked(filled_in(target.expr, SOME))))
    assert set(re.findall(r"{{(\w+)}}", target.legend)) <= kept


def test_rates_are_of_counters_and_only_of_these() -> None:
    for target in EVERY_TARGET:
        for metric in re.findall(r"(?:rate|increase)\((\w+)", target.expr):
            assert metric.endswith(("_total", "_bucket")), target
        for metric in re.findall(r"deriv\((\w+)", target.expr):
            assert not metric.endswith("_total"), target


def test_examples_beside_them_are_yaml_and_name_what_is_there() -> None:
    import yaml

    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert [(PROMETHEUS / file).is_file() for file in scrape["rule_files"]] == [True]
    (job,) = scrape["scrape_configs"]
    assert (job["job_name"], job["scheme"]) == ("kmemwatch", "https")
    provisioning = ROOT / "dashboards/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources.yml").read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards.yml").read_text())["providers"]
    assert (provider["type"], provider["folder"]) == ("file", "kmemwatch")


def test_types_are_there_where_they_can_be() -> None:
    """Else the tests above would be skipped without anybody noticing."""
    assert importlib.util.find_spec("grafana_foundation_sdk") is not None or sys.version_info < (3, 11)
