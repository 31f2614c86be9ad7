# SPDX-License-Identifier: GPL-2.0-only
"""What runs of BPF programs cost, from the kernel's own counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kmemwatch.kernel.bpf_calls import ProgramInfo

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@contextmanager
def statistics() -> Iterator[None]:
    """Within this block the kernel measures each run, which costs about 40 instructions."""
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text("0")


@dataclass(frozen=True)
class Run:
    """A program's share of a piece of work."""

    runs: int
    instructions: float
    """On average of a run; the kernel's own reading of the clock is in it."""
    length: int


def between(
    before: Mapping[int, ProgramInfo], after: Mapping[int, ProgramInfo], names: Mapping[int, str]
) -> dict[str, Run]:
    """What the programs of `names` (id -> name) did; those that did not run are left out."""
    runs = {}
    for number, name in names.items():
        first, last = before[number], after[number]
        count = last.run_cnt - first.run_cnt
        if count:
            runs[name] = Run(count, (last.run_time_ns - first.run_time_ns) / count, last.instructions)
    return runs


def typical(rounds: Sequence[Mapping[str, Run]]) -> dict[str, Run]:
    """One run of each program that ran in each of the rounds: the median of their averages.

    An interrupt that hits within a program counts as the program's, and what it frees can be thousands of instructions.
    """
    names = set.intersection(*(set(runs) for runs in rounds))
    return {
        name: Run(
            sum(runs[name].runs for runs in rounds),
            median(runs[name].instructions for runs in rounds),
            rounds[-1][name].length,
        )
        for name in names
    }
