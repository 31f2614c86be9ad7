# SPDX-License-Identifier: GPL-2.0-only
"""What the lab saw on each kernel: kept in results.json, shown in docs/kernels.md.

``KMEMWATCH_LAB_RESULTS=keep`` (`make lab-results`) writes both in a run of the matrix; every other run compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.boot import TREE
from tests.lab.guest_report import GuestOutcome
from tests.lab.kernels import GUESTS, LabKernel

FILE = Path(__file__).with_name("results.json")
DOCUMENT = TREE / "docs/kernels.md"
DOCTOR = "doctor.json"
"""File that a guest leaves in the shared directory."""
KEEP = "KMEMWATCH_LAB_RESULTS"

EXACT, UNCHECKED, NONE = "exact", "unchecked", "none"

_TRUTH = "tests/live/test_truth.py::test_"
_BULK = "tests/live/test_bulk.py::test_"
_ZOMBIES = "tests/live/test_zombies.py::test_"
_RECHARGES = "tests/lab/guest/test_recharges.py::test_"
_DEAD = "tests/lab/guest/test_the_dead.py::test_three"
_STORY = "tests/lab/guest/test_story.py::test_a_dies"
TRUTH: Mapping[str, tuple[str, ...]] = {
    "pins": (f"{_ZOMBIES}each_zombie", f"{_ZOMBIES}dying"),
    "alloc": (f"{_TRUTH}allocations", f"{_TRUTH}files", f"{_TRUTH}pipes", f"{_TRUTH}an_independent"),
    "free": (f"{_TRUTH}allocations", f"{_TRUTH}files", f"{_TRUTH}pipes"),
    "alloc-bulk": (f"{_BULK}requests",),
    "free-bulk": (f"{_BULK}watches", f"{_BULK}entries"),
    "charge": (f"{_TRUTH}kernel_bytes",),
    "lifecycle": ("tests/live/test_churn.py::test_every_birth", _DEAD),
    "recharge": (f"{_RECHARGES}four", f"{_RECHARGES}failures", f"{_RECHARGES}races", f"{_RECHARGES}slabs", _STORY),
    "caches": (_STORY, _DEAD),
    "ids": (f"{_RECHARGES}peak", _STORY, _DEAD),
    "slabs": ("tests/lab/guest/test_child_slabs.py::test_", _DEAD),
}
"""Signal -> the tests that compare it exactly with an independent source, attached in the best way."""

Result = dict[str, Any]


def result_of(doctor: Mapping[str, Any], outcomes: Mapping[str, GuestOutcome]) -> Result:
    """The result of one kernel, from the output of `doctor` and the outcomes of its tests."""
    signals = {}
    for probe in doctor["probes"]:
        name = probe["signal"]
        truth = NONE if probe["attachment"] is None else _truth(TRUTH.get(name, ()), outcomes)
        signals[name] = {key: probe[key] for key in ("attachment", "status", "why")} | {"figures": truth}
    facts = doctor["facts"]
    return {"release": facts["release"], "cgroup_version": facts["hierarchy"]["version"], "signals": signals}


def _truth(prefixes: Sequence[str], outcomes: Mapping[str, GuestOutcome]) -> str:
    checks = [
        outcome.outcome
        for nodeid, outcome in outcomes.items()
        if nodeid.startswith(tuple(prefixes)) and "[" not in nodeid.replace("[best]", "")
    ]
    # A skip means that this kernel lacks the need; any other skip has failed already.
    return EXACT if prefixes and "passed" in checks and set(checks) <= {"passed", "skipped"} else UNCHECKED


def load() -> dict[str, Result]:
    """Kernel's name -> its stored results."""
    kept: dict[str, Result] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return kept


def keep(results: Mapping[str, Result]) -> None:
    """Replace the results of these kernels, and write the document."""
    known = {**load(), **results}
    ordered = {kernel.name: known[kernel.name] for kernel in GUESTS if kernel.name in known}
    FILE.write_text(json.dumps(ordered, indent=1) + "\n")
    DOCUMENT.write_text(document(ordered))


HEAD = """# Kernels

<!-- Written by `make lab-results` from tests/lab/results.json; change tests/lab/results.py instead. -->

This page lists what kmemwatch can tell on each kernel of the lab (`tests/lab`), which boots them in QEMU. Every run of
`make test-lab` compares the page with what it sees. On any other kernel, `kmemwatch doctor` prints the same for that
kernel. What the kernel offers decides, not its version; `kmemwatch/attach/plan.py` has the rules.
"""

LEGEND = """
- **exact**: every run of the lab compares the figure with an independent source (the workload's own count, another
  tracer, the kernel's own files), without tolerance.
- works: it is attached. No test compares this signal alone with an independent source, or the test did not pass here.
- partly: not the best hook, or one that does not see everything; the reason is below.
- missing: the kernel could offer it, and kmemwatch cannot measure it. absent: this kernel has nothing to measure.
"""


def document(results: Mapping[str, Result]) -> str:
    """docs/kernels.md."""
    names = list(results)
    signals = list(dict.fromkeys(signal for result in results.values() for signal in result["signals"]))
    rows = [["signal", *names], ["---"] * (len(names) + 1)]
    rows += [[signal, *(_cell(results[name]["signals"].get(signal)) for name in names)] for signal in signals]
    lines = [HEAD, *(_row(row) for row in rows), LEGEND, "The kernels:", ""]
    lines += [_row(["name", "release", "cgroups", "what it is"]), _row(["---"] * 4)]
    lines += [
        _row([name, f"`{results[name]['release']}`", f"v{results[name]['cgroup_version']}", _kind(kernel)])
        for name, kernel in ((kernel.name, kernel) for kernel in GUESTS)
        if name in results
    ]
    for name in names:
        lines += ["", f"## {name}", "", *_details(results[name])]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(signal: Mapping[str, Any] | None) -> str:
    if signal is None:
        return ""
    if signal["attachment"] is None:
        return str(signal["status"])
    kinds = dict.fromkeys(part.partition(":")[0] for part in signal["attachment"].split(","))
    how = "partly" if signal["why"] else "**exact**" if signal["figures"] == EXACT else "works"
    return f"{how}, {', '.join(kinds)}"


def _kind(kernel: LabKernel) -> str:
    if kernel.config is None:
        return "Debian's stock kernel"
    what = (
        "child caches that are reused, and slabs that are recharged (the patch set)"
        if "recharges" not in kernel.lacks
        else "child caches that are not reused"
    )
    return f"6.1 with {what}; [how it is built](../tests/lab/linux/README.md)"


def _details(result: Result) -> list[str]:
    lines = [_row(["signal", "attachment, or why not"]), _row(["---"] * 2)]
    for name, signal in result["signals"].items():
        hooks = signal["attachment"] and "<br>".join(f"`{part}`" for part in signal["attachment"].split(","))
        why = (signal["why"] or "").replace("|", "\\|")
        lines.append(_row([name, "<br>".join(part for part in (hooks, why) if part)]))
    return lines
