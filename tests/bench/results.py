# SPDX-License-Identifier: GPL-2.0-only
"""The kept results, and what became worse since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench.guest import JOBBED, OPERATED, PROGRAMS
from tests.bench.tools import KMEMWATCH, NONE

FILE = Path(__file__).with_name("results.json")
GUESTS, NATIVE, CODE, COMPILER = "guests", "native", "code", "compiler"
TOLERATED = 0.10
"""Growth that is not yet a failure."""

Results = dict[str, Any]
"""``guests``: "KERNEL, cgroup vN" -> what tests.bench.guest measured, with ``release`` and ``at``; ``native``: figures
by name; ``code``: recorded facts -> program -> BPF instructions as compiled, by ``compiler``."""


def load(file: Path = FILE) -> Results:
    """The kept ones; empty when there are none."""
    if not file.exists():
        return {GUESTS: {}, NATIVE: {}, CODE: {}, COMPILER: ""}
    kept: Results = json.loads(file.read_text())
    return kept


def save(results: Results, file: Path = FILE) -> None:
    """Keep them."""
    file.write_text(json.dumps(_rounded(results), indent=1, sort_keys=True) + "\n")


def merged(kept: Results, new: Results) -> Results:
    """What is new in place of what was kept of the same guests and parts."""
    return {
        GUESTS: {**kept[GUESTS], **new.get(GUESTS, {})},
        NATIVE: new.get(NATIVE) or kept[NATIVE],
        CODE: new.get(CODE) or kept[CODE],
        COMPILER: new.get(COMPILER) or kept[COMPILER],
    }


def grown(kept: Results, new: Results) -> list[str]:
    """One line for each figure of kmemwatch that grew by more than TOLERATED, or is not among those kept."""
    lines: list[str] = []
    for guest, measured in new.get(GUESTS, {}).items():
        lines += _compare(guest, _costs(kept[GUESTS].get(guest, {})), _costs(measured))
    for facts, lengths in new.get(CODE, {}).items():
        lines += _compare(f"{facts}, instructions as compiled", kept[CODE].get(facts, {}), lengths)
    return lines


def _compare(where: str, old: Mapping[str, float], new: Mapping[str, float]) -> Iterator[str]:
    for name, figure in new.items():
        if name not in old:
            yield f"{where}: {name}: {figure:.0f}, nothing was kept of it"
        elif figure > old[name] * (1 + TOLERATED):
            yield f"{where}: {name}: {figure:.0f}, {100 * (figure / old[name] - 1):.0f} % more than {old[name]:.0f}"


def _costs(measured: Mapping[str, Any]) -> dict[str, float]:
    """Of kmemwatch: instructions a run of each program; what operations and jobs cost more than without it."""
    costs = {name: run["instructions"] for name, run in measured.get(PROGRAMS, {}).get(KMEMWATCH, {}).items()}
    for part in (OPERATED, JOBBED):
        tools = measured.get(part, {})
        if {KMEMWATCH, NONE} <= tools.keys():
            costs.update({what: more - tools[NONE][what] for what, more in tools[KMEMWATCH].items()})
    return costs


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value
