# SPDX-License-Identifier: GPL-2.0-only
"""The page about costs says what was measured; programs are as long as they were then; growth is found."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest

from tests.bench import code, report, results
from tests.bench.programs import Run, typical

KEPT = results.load()
AGAIN = "if it has to be, keep the new results: python -m tests.bench --keep"


def run(instructions: float) -> dict[str, float]:
    return {"instructions": instructions, "length": 50, "runs": 7}


def measured() -> results.Results:
    return {
        "guests": {
            "6.1, cgroup v2": {
                "programs": {"kmemwatch": {"alloc/raw_tp:kmalloc": run(100.0)}, "empty": {"kmalloc": run(45.0)}},
                "operations": {"none": {"eventfd": 1000.0}, "kmemwatch": {"eventfd": 1200.0}},
                "jobs": {"none": {"exec": 1e6}, "kmemwatch": {"exec": 1.1e6}},
            }
        },
        "native": {},
        "code": {"debian-6.1": {"raw_tp_kmalloc": 50}},
        "compiler": "bcc 0.26.0",
    }


def changed(**figures: float) -> results.Results:
    new: Any = copy.deepcopy(measured())
    guest = new["guests"]["6.1, cgroup v2"]
    guest["programs"]["kmemwatch"]["alloc/raw_tp:kmalloc"]["instructions"] = figures.get("program", 100.0)
    guest["programs"]["empty"]["kmalloc"]["instructions"] = figures.get("empty", 45.0)
    guest["operations"]["kmemwatch"]["eventfd"] = figures.get("operation", 1200.0)
    guest["jobs"]["kmemwatch"]["exec"] = figures.get("job", 1.1e6)
    new["code"]["debian-6.1"]["raw_tp_kmalloc"] = figures.get("code", 50)
    return new  # type: ignore[no-any-return]


def test_the_page_shows_what_is_kept() -> None:
    assert report.FILE.read_text() == report.text(KEPT), "python -m tests.bench --keep writes both"


@pytest.mark.needs("root", "bcc", "BTF", "bcc 0.26.0")
@pytest.mark.parametrize("facts", code.FACTS)
def test_no_program_has_grown(facts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT["compiler"] == code.compiler(), "the need of this test names the compiler that results are kept of"
    monkeypatch.setenv("BCC_KERNEL_SOURCE", os.environ.get("BCC_KERNEL_SOURCE", ""))
    assert results.grown(KEPT, {"code": {facts: code.lengths(facts)}}) == [], AGAIN


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"program": 111.0}, "6.1, cgroup v2: alloc/raw_tp:kmalloc: 111, 11 % more than 100"),
        ({"operation": 1222.0}, "6.1, cgroup v2: eventfd: 222, 11 % more than 200"),
        ({"job": 1.2e6}, "6.1, cgroup v2: exec: 200000, 100 % more than 100000"),
        ({"code": 56}, "debian-6.1, instructions as compiled: raw_tp_kmalloc: 56, 12 % more than 50"),
    ],
)
def test_growth_is_found(figures: dict[str, float], said: str) -> None:
    assert results.grown(measured(), changed(**figures)) == [said]


@pytest.mark.parametrize(
    "figures", [{"program": 110.0}, {"operation": 1219.0}, {"code": 55}, {"empty": 99.0}, {"job": 0}]
)
def test_less_than_a_tenth_is_no_growth(figures: dict[str, float]) -> None:
    assert results.grown(measured(), changed(**figures)) == []


def test_a_program_that_nothing_was_kept_of_is_told() -> None:
    new = measured()
    programs = new["guests"]["6.1, cgroup v2"]["programs"]["kmemwatch"]
    programs["alloc/missed:kmalloc"] = run(88.0)
    assert results.grown(measured(), new) == ["6.1, cgroup v2: alloc/missed:kmalloc: 88, nothing was kept of it"]


def test_parts_are_kept_on_their_own() -> None:
    other: results.Results = {"guests": {"patched, cgroup v2": {"programs": {}}}, "native": {}, "code": {}}
    both = results.merged(measured(), other)
    assert sorted(both["guests"]) == ["6.1, cgroup v2", "patched, cgroup v2"]
    assert both["code"] == measured()["code"]


def test_an_interrupt_within_a_program_does_not_count() -> None:
    rounds = [{"a": Run(10, 100.0, 5)}, {"a": Run(11, 900.0, 5), "b": Run(1, 7.0, 5)}, {"a": Run(10, 101.0, 5)}]
    assert typical(rounds) == {"a": Run(31, 101.0, 5)}
