# SPDX-License-Identifier: GPL-2.0-only
"""From the kernel to the screen and the pager: the distribution's own Prometheus and Alertmanager, and a real daemon.

What this machine's kernel cannot have (child caches, ids, recharges) is asked of two invented hosts: the same daemon,
which plays recordings that tests/e2e/invented.py makes.
"""

from __future__ import annotations

import math
import os
import queue
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import HOSTS, LIVE, Fleet
from tests.e2e.invented import PATCHED
from tests.e2e.servers import START_S, promtool
from tests.grafana import DASHBOARDS, RULES, Target, asked, filled_in, load, panels, rules, targets
from tests.unit.test_alerts import TESTS
from tests.waiting import wait_for

EVERY_TARGET = [target for name in DASHBOARDS for target in targets(name)]
ONLY_WITH_CHILD_CACHES = {
    "kmemwatch_caches_per_root",
    "kmemwatch_caches_per_root_max",
    "kmemwatch_dying_cgroup_child_slab_bytes",
    "kmemwatch_kmemcg_id_reuses_total",
    "kmemwatch_kmemcg_ids_freed_total",
    "kmemwatch_kmemcg_ids_given_total",
    "kmemwatch_kmemcg_ids_in_use",
    "kmemwatch_recharge_checks_total",
    "kmemwatch_recharge_failures_total",
    "kmemwatch_recharge_lost_races_total",
    "kmemwatch_recharged_bytes_total",
    "kmemwatch_recharges_total",
}
"""Metrics that a kernel where all memcgs share the caches does not have."""

SHOWN = {
    "overview": "this machine and two invented hosts",
    "host": "this machine; slabs of the dead in child caches: an invented host",
    "patched-against-unpatched": "two invented hosts",
}
"""Whose figures are in the picture of a dashboard."""

pytestmark = pytest.mark.needs("no lab", "Prometheus")


def test_promtool_finds_nothing_wrong_with_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)


def test_every_alert_and_record_does_what_its_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS)


def variables_for(target: Target, fleet: Fleet) -> dict[str, str]:
    """For a query that only kernels with child caches can answer, the invented host stands in for this machine."""
    known = fleet.variables()
    if target.dashboard == "overview":
        return known | {"host": ".*"}
    if {metric for metric, _ in asked(filled_in(target.expr, known))} & ONLY_WITH_CHILD_CACHES:
        return known | {"host": HOSTS[PATCHED]}
    return known


def answer(target: Target, fleet: Fleet) -> list[dict[str, Any]]:
    """Series of a query of a dashboard."""
    expr = filled_in(target.expr, variables_for(target, fleet))
    if target.instant:
        return fleet.prometheus.query(expr, fleet.ended_s)
    return fleet.prometheus.query_range(expr, fleet.began_s, fleet.ended_s)


@pytest.mark.parametrize("target", EVERY_TARGET, ids=lambda t: f"{t.dashboard}-{t.panel}")
def test_every_query_of_every_dashboard_returns_data(target: Target, fleet: Fleet) -> None:
    series = answer(target, fleet)
    values = [float(value) for one in series for _, value in one.get("values") or [one["value"]]]
    assert any(math.isfinite(value) for value in values), filled_in(target.expr, variables_for(target, fleet))


def test_this_machine_was_asked_for_all_that_it_has(fleet: Fleet) -> None:
    """An invented host stands in only for what this kernel really does not export."""
    found = fleet.prometheus.get("label/__name__/values", **{"match[]": f'{{instance="{LIVE}"}}'})
    (kernel,) = fleet.prometheus.query(f'kmemwatch_kernel_info{{instance="{LIVE}"}}')
    if kernel["metric"]["era"] == "objcg":
        assert set(found) & ONLY_WITH_CHILD_CACHES == set()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_offer_hosts(name: str, fleet: Fleet) -> None:
    offered = {}
    for variable in load(name)["templating"]["list"][1:]:
        selector = variable["query"]["query"].removeprefix("label_values(").removesuffix(", instance)")
        offered[variable["name"]] = set(fleet.prometheus.get("label/instance/values", **{"match[]": selector}))
    if "host" in offered:
        assert offered["host"] == {LIVE, *HOSTS.values()}
    else:
        assert HOSTS[PATCHED] in offered["patched"]
        assert LIVE in offered["unpatched"]


@pytest.mark.parametrize("name", [LIVE, *HOSTS.values()])
def test_promtool_finds_nothing_wrong_with_metrics(name: str, fleet: Fleet) -> None:
    text = fleet.credentials.get(fleet.addresses[name])
    assert "kmemwatch_kernel_info" in text
    assert promtool("check", "metrics", text=text) == ""


def test_nobody_else_gets_the_metrics(fleet: Fleet) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fleet.credentials.get(fleet.addresses[LIVE], authorized=False)


def test_prometheus_evaluates_every_rule(fleet: Fleet) -> None:
    loaded = [rule for group in fleet.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(loaded) == len(rules("alert")) + len(rules("record"))
    assert {rule["health"] for rule in loaded} == {"ok"}
    for record in rules("record"):
        assert fleet.prometheus.query(record["record"]), record["record"]


def test_an_alert_reaches_whoever_must_know(fleet: Fleet) -> None:
    """The patched host fails to recharge a slab every few seconds: the one alert that does not wait."""

    def message() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = fleet.webhook.messages.get_nowait()
        except queue.Empty:
            return None
        return found if found["groupLabels"]["alertname"] == "KmemwatchRechargeFailures" else None

    sent = wait_for(message, START_S, "message from Alertmanager")
    assert sent is not None
    assert (sent["status"], sent["receiver"]) == ("firing", "default")
    (alert,) = sent["alerts"]
    assert alert["labels"] == {
        "alertname": "KmemwatchRechargeFailures",
        "instance": HOSTS[PATCHED],
        "job": "kmemwatch",
        "severity": "warning",
    }
    assert alert["annotations"]["summary"] == f"Slabs could not be recharged on {HOSTS[PATCHED]}."
    assert alert["annotations"]["runbook_url"] == "docs/runbook.md#kmemwatchrechargefailures"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_it_can_be_drawn_and_no_panel_is_empty(name: str, fleet: Fleet, tmp_path: Path) -> None:
    """`make dashboards` keeps the pictures, in docs/dashboards."""
    from tests.e2e.drawing import draw

    known = {(target.panel, target.expr): target for target in targets(name)}
    board = load(name)
    titles = {id(target): panel["title"] for panel in panels(board) for target in panel["targets"]}

    def answers(target: Mapping[str, Any]) -> list[dict[str, Any]]:
        return answer(known[titles[id(target)], target["expr"]], fleet)

    path = Path(os.environ.get("KMEMWATCH_PICTURES") or tmp_path) / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    seconds = int(fleet.ended_s - fleet.began_s)
    empty = draw(board, answers, path, f"{SHOWN[name]}; {seconds} s; drawn by matplotlib, not by Grafana")
    assert empty == []
    assert path.read_bytes().startswith(b"\x89PNG")
