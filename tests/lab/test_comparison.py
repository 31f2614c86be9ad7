# SPDX-License-Identifier: GPL-2.0-only
"""The same work on kernels with and without the series, recorded in the guests and compared here: the claims of the
cover letter come out as it says, by figures that are the kernels' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kmemwatch.compare.verdict import MIN_SAMPLES
from tests.lab import comparison, reports
from tests.lab.kernels import selected
from tests.lab.live import Matrix
from tests.unit.test_compare_output import SCHEMA


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = {kernel.name for kernel in selected()}
    pairs = [pair for pair in comparison.PAIRS if names.issuperset(pair)]
    metafunc.parametrize("compared", pairs, indirect=True, scope="module", ids=["-".join(pair) for pair in pairs])


@pytest.fixture(scope="module")
def compared(
    request: pytest.FixtureRequest, matrix: Matrix, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, str], dict[str, Any], Path]:
    """The two kernels, what compare says of them as JSON, and the directory that has it all."""
    pair: tuple[str, str] = request.param
    directory = tmp_path_factory.mktemp("-".join(pair))
    for name in pair:
        run = matrix.run_of(name)
        assert not reports.trouble(run), f"{name}: {reports.trouble(run)}"
        reports.collect(name, matrix.shared(name), directory)
    document = json.loads(reports.compare(directory, *pair, "json"))
    jsonschema.validate(document, SCHEMA)
    return pair, document, directory


Compared = tuple[tuple[str, str], dict[str, Any], Path]


def test_the_claims_come_out_as_the_cover_letter_says(compared: Compared) -> None:
    pair, document, _ = compared
    for place, kernel in enumerate(pair):
        found = {claim["key"]: claim["sides"][place] for claim in document["claims"]}
        assert {key: side["verdict"] for key, side in found.items()} == comparison.EXPECTED[kernel], (kernel, found)


def test_the_figures_are_those_of_the_kernel(compared: Compared) -> None:
    pair, document, directory = compared
    for place, kernel in enumerate(pair):
        kernels = json.loads(comparison.counters(directory, kernel).read_text())
        facts: dict[str, float | None] = {}
        for claim in document["claims"]:
            facts |= {key: fact["value"] for key, fact in claim["sides"][place]["figures"].items()}
        known = {key: kernels[name] for key, name in comparison.FIGURES.items() if name in kernels}
        if kernel == "baseline":  # which counts recharges, as 0; kmemwatch knows that there are none
            known = {key: None if comparison.FIGURES[key].startswith("recharge") else known[key] for key in known}
        assert {key: facts.get(key) for key in known} == known, kernel
        assert facts["removed"] == comparison.CGROUPS
        # Nothing was lost and nothing is odd, so that a reader need not doubt it.
        side = document["sides"][place]
        assert (side["contradictions"], side["restarts"], side["cut"]) == ([], 0, None)
        # This machine may be busy, and the guest stand still. What was lost is nothing that the figures here come from:
        # the guest's own test sees to that.
        harmless = ("no samples for", "without samples", "kmemwatch lost")
        assert [note for note in side["notes"] if not any(words in note for words in harmless)] == []
        if kernel != "6.1":
            assert len(known) >= 7
            assert ((facts["reused_with_caches"] or 0) > 0) == (kernel == "patched")


def test_allocations_and_checks_were_timed(compared: Compared) -> None:
    pair, document, _ = compared
    claim = next(claim for claim in document["claims"] if claim["key"] == "cost")
    for kernel, side in zip(pair, claim["sides"], strict=True):
        facts = {key: fact["value"] for key, fact in side["figures"].items()}
        assert facts["allocation_without_check_samples"] >= MIN_SAMPLES, kernel
        if kernel == "patched":
            assert min(facts["allocation_with_check_samples"], facts["recharge_check_samples"]) >= MIN_SAMPLES
            assert 0 < facts["check_share"] < 1
        else:
            assert {"allocation_with_check_samples", "recharge_check_samples"}.isdisjoint(facts), kernel


def test_both_did_the_same_work(compared: Compared) -> None:
    _, document, _ = compared
    plans = {side["workload"]["report"]["cgroups"]["plan_sha256"] for side in document["sides"]}
    assert len(plans) == 1
    assert not any("workload" in note for note in document["notes"]), document["notes"]


def test_the_reports_can_be_sent_by_mail(compared: Compared) -> None:
    pair, _, directory = compared
    for output in ("html", "table"):
        assert 1_000 < len(reports.compare(directory, *pair, output).encode()) < reports.MAX_BYTES
