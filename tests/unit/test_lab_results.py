# SPDX-License-Identifier: GPL-2.0-only
"""docs/kernels.md says what the lab saw, for every kernel it has, and what a kernel's facts let us expect."""

from __future__ import annotations

from typing import Any

import pytest

from kmemwatch.attach.plan import plan
from kmemwatch.kernel.facts import Facts
from tests.lab import facts, results
from tests.lab.guest_report import GuestOutcome
from tests.lab.kernels import GUESTS, KERNELS, LabKernel
from tests.lab.selection import all_nodeids

PASSED, FAILED, SKIPPED = GuestOutcome("passed"), GuestOutcome("failed"), GuestOutcome("skipped")
CHARGES = "tests/live/test_truth.py::test_kernel_bytes_and_charges_equal_the_kernels_file"


def test_document_is_made_of_the_results() -> None:
    assert results.DOCUMENT.read_text() == results.document(results.load())


def test_results_are_of_all_the_labs_kernels_in_their_order() -> None:
    assert list(results.load()) == [kernel.name for kernel in GUESTS]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_what_was_attached_is_what_the_recorded_facts_ask_for(kernel: LabKernel) -> None:
    result = results.load()[kernel.name]
    chosen = plan(Facts.from_json(facts.file_of(kernel, result["release"]).read_text()))
    assert list(result["signals"]) == [signal.name for signal in chosen.signals]
    for signal in chosen.signals:
        seen = result["signals"][signal.name]
        names = [option.name for option in signal.candidates]
        if seen["status"] == "attached":
            assert seen["attachment"] == names[0]
        elif seen["status"] == "fallback":
            assert seen["attachment"] in names[1:]
            assert seen["why"]
        else:
            assert seen["attachment"] is None
            assert seen["why"]


@pytest.mark.parametrize("prefix", [prefix for prefixes in results.TRUTH.values() for prefix in prefixes])
def test_truth_is_a_test(prefix: str) -> None:
    assert any(nodeid.startswith(prefix) for nodeid in all_nodeids())


def doctor(attachment: str | None, status: str, why: str | None) -> dict[str, Any]:
    probe = {"signal": "charge", "attachment": attachment, "status": status, "why": why}
    return {"facts": {"release": "6.1.0", "hierarchy": {"version": 2}}, "probes": [probe]}


@pytest.mark.parametrize(
    ("outcomes", "figures"),
    [
        ({f"{CHARGES}[best]": PASSED}, results.EXACT),
        ({f"{CHARGES}[best]": PASSED, f"{CHARGES}[kprobe]": FAILED}, results.EXACT),
        ({f"{CHARGES}[best]": FAILED}, results.UNCHECKED),
        ({f"{CHARGES}[best]": SKIPPED}, results.UNCHECKED),
        ({f"{CHARGES}[kprobe]": PASSED}, results.UNCHECKED),
        ({}, results.UNCHECKED),
    ],
)
def test_exact_is_what_passed_as_attached_best(outcomes: dict[str, GuestOutcome], figures: str) -> None:
    found = results.result_of(doctor("fentry:f+g", "attached", None), outcomes)
    assert found["signals"]["charge"]["figures"] == figures


def test_cells_and_reasons() -> None:
    shown = {
        "patched": results.result_of(doctor("fentry:f+g,fexit:h", "attached", None), {f"{CHARGES}[best]": PASSED}),
        "5.10": results.result_of(doctor("kprobe:f", "fallback", "fentry|fexit: no"), {f"{CHARGES}[best]": PASSED}),
        "6.1": results.result_of(doctor(None, "absent", "nothing to tell of"), {}),
    }
    lines = results.document(shown).splitlines()
    assert "| charge | **exact**, fentry, fexit | partly, kprobe | absent |" in lines
    assert "| charge | `fentry:f+g`<br>`fexit:h` |" in lines
    assert "| charge | `kprobe:f`<br>fentry\\|fexit: no |" in lines
    assert "| charge | nothing to tell of |" in lines
